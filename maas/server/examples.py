"""Example calls for people: one that works when it is pasted, drawn from the signature.

An argument is written twice, as Python and as JSON (`json_form.py` reads it back). The
examples are small and the same for everybody; values for tests are drawn elsewhere.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from maas.backends.base import Method
from maas.calls import CALL
from maas.executors.base import ModelInfo
from maas.schema import Schema, TensorSpec
from maas.signature import KINDS

__all__ = ["Layer", "curl", "layers", "python"]


@attrs.frozen
class Layer:
    """A layer of a torch module, as `ModelInfo.details` tell it."""

    name: str
    type: str
    parameters: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def size(self) -> int:
        """Numbers in its parameters."""
        return sum(math.prod(shape) for _dtype, shape in self.parameters.values())


def layers(info: ModelInfo) -> Iterator[Layer]:
    """The layers that the details list; a stranger's details may be anything, and are then passed by."""
    listed = info.details.get("layers")
    for each in listed if type(listed) is list else ():
        try:
            parameters = {
                str(key): (str(dtype), tuple(int(length) for length in shape))
                for key, (dtype, shape) in each["parameters"].items()
            }
            yield Layer(str(each["name"]), str(each["type"]), parameters)
        except (TypeError, ValueError, KeyError, AttributeError):
            continue


# Arguments.


@attrs.frozen
class _Value:
    """One example value: as a Python expression, and as what `json.dumps` takes."""

    python: str
    data: Any
    modules: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.python


def _plain(value: Any) -> _Value:
    return _Value(repr(value), value)


_LEAVES = {
    "None": _plain(None),
    "bool": _plain(True),
    "int": _plain(1),
    "float": _plain(0.5),
    "complex": _Value("1 + 2j", [1, 2]),
    "str": _plain("hello"),
    "bytes": _Value("b'hello'", {"$bytes": "aGVsbG8="}),
    "bytearray": _Value("bytearray(b'hello')", {"$bytes": "aGVsbG8="}),
    "datetime": _Value(
        "datetime.datetime(2024, 5, 17, 12)", "2024-05-17T12:00:00", frozenset({"datetime"})
    ),
    "date": _Value("datetime.date(2024, 5, 17)", "2024-05-17", frozenset({"datetime"})),
    "time": _Value("datetime.time(12)", "12:00:00", frozenset({"datetime"})),
    "timedelta": _Value("datetime.timedelta(seconds=2.5)", 2.5, frozenset({"datetime"})),
    "Decimal": _Value("decimal.Decimal('0.10')", "0.10", frozenset({"decimal"})),
    "UUID": _Value("uuid.UUID(int=1)", f"{1:08x}-0000-0000-0000-{1:012x}", frozenset({"uuid"})),
    "slice": _Value("slice(0, 1, None)", {"$slice": [0, 1, None]}),
    "range": _Value("range(0, 3)", {"$range": [0, 3, 1]}),
}
_BRACKETS = {
    "list": "[{}]",
    "set": "{{{}}}",
    "frozenset": "frozenset({{{}}})",
    "tuple...": "({},)",
}


def _value(schema: Schema, framework: str) -> _Value:
    """An example of what the schema wants; 1 where it does not say."""
    if schema.kind == "union":
        # Whoever may leave something out will see how it is given.
        return _value(next(item for item in schema.items if item.kind != "None"), framework)
    if schema.kind == "literal" and type(schema.literals[0]) is not bytes:
        return _plain(schema.literals[0])
    if schema.kind == "tensor":
        return _tensor(schema.spec or TensorSpec("float32", (1, 3)), framework)
    if schema.kind in _BRACKETS:
        item = _value(schema.items[0], framework)
        return _Value(_BRACKETS[schema.kind].format(item), [item.data], item.modules)
    if schema.kind == "tuple":
        return _tuple([_value(item, framework) for item in schema.items])
    if schema.kind == "dict":
        item = _value(schema.items[1], framework)
        return _Value(f"{{'key': {item}}}", {"key": item.data}, item.modules)
    return _LEAVES.get(schema.kind) or _plain(1)


def _tuple(items: list[_Value]) -> _Value:
    inside = ", ".join(map(str, items))
    modules = frozenset[str]().union(*(item.modules for item in items))
    text = f"({inside},)" if len(items) == 1 else f"({inside})"
    return _Value(text, [item.data for item in items], modules)


_SMALL = 12
"""Numbers that an example shows; of more it shows how to make them."""


@attrs.frozen
class _Zeros:
    """So many zeros: what stands in JSON for an array too large to be read."""

    fill: Any
    shape: tuple[int, ...]

    def __str__(self) -> str:
        text = repr(self.fill)
        for length in reversed(self.shape):
            text = f"[{text}]" if length == 1 else f"[{text}] * {length}"
            text = f"[{text}]" if "*" in text and not text.startswith("[") else text
        return text

    def lists(self) -> Any:
        """The zeros themselves."""
        made = self.fill
        for length in reversed(self.shape):
            made = [made] * length
        return made


def _tensor(spec: TensorSpec, framework: str) -> _Value:
    # A symbol or None leaves the length open.
    shape = tuple(length if type(length) is int else 1 for length in spec.shape)
    kind = spec.dtype.rstrip("0123456789")
    fill: Any = {"bool": False, "int": 0, "uint": 0}.get(kind, 0.0)
    zeros = _Zeros(fill, shape)
    data = zeros if math.prod(shape) > _SMALL else zeros.lists()
    if framework == "torch" or kind not in ("bool", "int", "uint", "float", "complex"):
        sizes = ", ".join(map(str, shape)) or "()"
        dtype = "" if spec.dtype == "float32" else f", dtype=torch.{spec.dtype}"
        return _Value(f"torch.zeros({sizes}{dtype})", data, frozenset({"torch"}))
    return _Value(f"np.zeros({shape}, np.{spec.dtype})", data, frozenset({"numpy as np"}))


# Which arguments.


@attrs.frozen
class _Argument:
    name: str
    value: _Value
    positional: bool


def _arguments(info: ModelInfo, method: Method) -> list[_Argument]:
    """The required arguments, each with an example."""
    required = [each for each in method.signature.parameters if each.required]
    made = []
    for each in required:
        schema = each.annotation
        open_ = schema.kind == "any" or (schema.kind == "tensor" and schema.spec is None)
        if info.kind == "torch" and open_ and not made:
            value = _first_input(info)
        else:
            value = _value(schema, info.kind)
        made.append(_Argument(each.name, value, each.kind == KINDS[0]))
    return made


def _first_input(info: ModelInfo) -> _Value:
    """What the first layer of a torch module with parameters takes, as far as its weights tell."""
    for layer in layers(info):
        for name, (_dtype, shape) in layer.parameters.items():
            made = _INPUTS.get(layer.type)
            if made is not None and name == "weight" and len(shape) >= 2:
                return made(shape)
        break
    return _tensor(TensorSpec("float32", (1, 3)), "torch")


def _floats(*shape: int) -> _Value:
    return _tensor(TensorSpec("float32", shape), "torch")


_IDS = _Value(
    "torch.tensor([[0, 1, 2]])", {"$array": ["int64", [[0, 1, 2]]]}, frozenset({"torch"})
)
_INPUTS: dict[str, Callable[[tuple[int, ...]], _Value]] = {
    "Linear": lambda weight: _floats(1, weight[1]),
    "Conv1d": lambda weight: _floats(1, weight[1], 32),
    "Conv2d": lambda weight: _floats(1, weight[1], 32, 32),
    "Conv3d": lambda weight: _floats(1, weight[1], 8, 32, 32),
    "Embedding": lambda _weight: _IDS,
}


# As text.


def python(info: ModelInfo, method: Method, url: str, *, locked: bool) -> str:
    """The call in Python."""
    given = _arguments(info, method)
    modules = {"maas"}.union(*(each.value.modules for each in given), ["os"] if locked else [])
    auth = ', auth=os.environ["MAAS_KEY"]' if locked else ""
    return "\n".join(
        [
            *(f"import {module}" for module in sorted(modules)),
            "",
            f"model = maas.connect({json.dumps(url)}{auth})",
            _python_call(method, ", ".join(_python_arguments(given))),
        ]
    )


def _python_arguments(given: Iterable[_Argument]) -> Iterator[str]:
    named = False
    for index, each in enumerate(given):
        named = named or (index > 0 and not each.positional)
        yield f"{each.name}={each.value}" if named else str(each.value)


def _python_call(method: Method, arguments: str) -> str:
    asked = "model" if method.name == CALL else f"model.{method.name}"
    if method.streams:
        return f"for item in {asked}.stream({arguments}):\n    print(item)"
    return f"print({asked}({arguments}))"


MAX_BODY = 2**20
"""Bytes of a JSON call that a server reads by default; `Limits.header`."""


def curl(info: ModelInfo, method: Method, url: str, *, locked: bool) -> str:
    """The call in a shell; with `maas call` where the argument is too large for JSON."""
    given = _arguments(info, method)
    if any(_numbers(each.value.data) * 5 > MAX_BODY for each in given):
        return f"maas call {shlex.quote(url)} x.npy"
    address = url if method.name == CALL else f"{url}/{method.name}"
    before, body = _body(given)
    lines = [f"{before}curl {'-N ' if method.streams else ''}{shlex.quote(address)}"]
    if locked:
        lines.append('-H "authorization: Bearer $MAAS_KEY"')
    lines += ["-H 'content-type: application/json'", f"-d {body}"]
    return " \\\n  ".join(lines)


def _body(given: list[_Argument]) -> tuple[str, str]:
    """What stands before curl, and the argument of its `-d`."""
    ordered = any(each.positional for each in given)
    if any(isinstance(each.value.data, _Zeros) for each in given):
        members = (_written(each.value.data) for each in given)
        if ordered:
            text = f"[{', '.join(members)}]"
        else:
            pairs = zip((json.dumps(each.name) for each in given), members, strict=True)
            text = f"{{{', '.join(f'{name}: {member}' for name, member in pairs)}}}"
        return f"python3 -c {shlex.quote(f'import json; print(json.dumps({text}))')} |\n  ", "@-"
    data: Any = [each.value.data for each in given]
    if not ordered:
        data = {each.name: each.value.data for each in given}
    return "", shlex.quote(json.dumps(data))


def _written(data: Any) -> str:
    return str(data) if isinstance(data, _Zeros) else repr(data)


def _numbers(data: Any) -> int:
    return math.prod(data.shape) if isinstance(data, _Zeros) else 1
