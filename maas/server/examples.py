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
from maas.parameters import KINDS
from maas.schema import Schema, TensorSpec

__all__ = ["Layer", "curl", "layers", "python", "written"]


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
    """The layers that the details list; what a stranger's details hold instead is passed by."""
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
    # JSON's quotes, so that one example has one kind of them.
    return _Value(json.dumps(value) if type(value) is str else repr(value), value)


_LEAVES = {
    "None": _plain(None),
    "bool": _plain(True),
    "int": _plain(1),
    "float": _plain(0.5),
    "complex": _Value("1 + 2j", [1, 2]),
    "str": _plain("hello"),
    "bytes": _Value('b"hello"', {"$bytes": "aGVsbG8="}),
    "bytearray": _Value('bytearray(b"hello")', {"$bytes": "aGVsbG8="}),
    "datetime": _Value(
        "datetime.datetime(2024, 5, 17, 12)", "2024-05-17T12:00:00", frozenset({"datetime"})
    ),
    "date": _Value("datetime.date(2024, 5, 17)", "2024-05-17", frozenset({"datetime"})),
    "time": _Value("datetime.time(12)", "12:00:00", frozenset({"datetime"})),
    "timedelta": _Value("datetime.timedelta(seconds=2.5)", 2.5, frozenset({"datetime"})),
    "Decimal": _Value('decimal.Decimal("0.10")', "0.10", frozenset({"decimal"})),
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
    if schema.kind in _LEAVES:
        return _LEAVES[schema.kind]
    make = _MAKERS.get(schema.kind)
    return _plain(1) if make is None else make(schema, framework)


def _choice(schema: Schema, framework: str) -> _Value:
    # Whoever may leave something out will see how it is given.
    return _value(next(item for item in schema.items if item.kind != "None"), framework)


def _literal(schema: Schema, _framework: str) -> _Value:
    first = schema.literals[0]
    return _LEAVES["bytes"] if type(first) is bytes else _plain(first)


def _container(schema: Schema, framework: str) -> _Value:
    item = _value(schema.items[0], framework)
    return _Value(_BRACKETS[schema.kind].format(item), [item.data], item.modules)


def _dict(schema: Schema, framework: str) -> _Value:
    item = _value(schema.items[1], framework)
    return _Value(f'{{"key": {item}}}', {"key": item.data}, item.modules)


def _tuple(schema: Schema, framework: str) -> _Value:
    items = [_value(item, framework) for item in schema.items]
    modules = frozenset[str]().union(*(item.modules for item in items))
    inside = ", ".join(map(str, items)) + ("," if len(items) == 1 else "")
    return _Value(f"({inside})", [item.data for item in items], modules)


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


_MAKERS: dict[str, Callable[[Schema, str], _Value]] = {
    "union": _choice,
    "literal": _literal,
    **dict.fromkeys(_BRACKETS, _container),
    "tuple": _tuple,
    "dict": _dict,
    "tensor": lambda schema, framework: _tensor(
        schema.spec or TensorSpec("float32", (1, 3)), framework
    ),
}


# Which arguments.


@attrs.frozen
class _Argument:
    name: str
    value: _Value
    kind: str


def _arguments(info: ModelInfo, method: Method) -> list[_Argument]:
    """The required arguments, each with an example."""
    required = [each for each in method.signature.parameters if each.required]
    made: list[_Argument] = []
    for each in required:
        schema = each.annotation
        open_ = schema.kind == "any" or (schema.kind == "tensor" and schema.spec is None)
        if info.kind == "torch" and open_ and not made:
            value = _first_input(info)
        else:
            value = _value(schema, info.kind)
        made.append(_Argument(each.name, value, each.kind))
    return made


def _first_input(info: ModelInfo) -> _Value:
    """What the first layer of a torch module with parameters takes, as far as its weights tell."""
    first = next(layers(info), None)
    if first is not None and first.type in _INPUTS:
        _dtype, shape = first.parameters.get("weight", ("", ()))
        if len(shape) >= 2:
            return _INPUTS[first.type](shape)
    return _floats(1, 3)


def _floats(*shape: int) -> _Value:
    return _tensor(TensorSpec("float32", shape), "torch")


_IDS = _Value("torch.tensor([[0, 1, 2]])", {"$array": ["int64", [[0, 1, 2]]]}, frozenset({"torch"}))
_INPUTS: dict[str, Callable[[tuple[int, ...]], _Value]] = {
    "Linear": lambda weight: _floats(1, weight[1]),
    "Conv1d": lambda weight: _floats(1, weight[1], 32),
    "Conv2d": lambda weight: _floats(1, weight[1], 32, 32),
    "Conv3d": lambda weight: _floats(1, weight[1], 8, 32, 32),
    "Embedding": lambda _weight: _IDS,
}


def _data(given: Iterable[_Argument]) -> dict[str, Any]:
    return {each.name: each.value.data for each in given}


# As text.


def written(info: ModelInfo, method: Method) -> bytes:
    """The arguments alone, as the body of a JSON call."""
    data = _data(_arguments(info, method))
    return json.dumps(data, default=lambda zeros: zeros.lists()).encode()


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
        named = named or each.kind == "keyword" or (index > 0 and each.kind != KINDS[0])
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
    data = _data(given)
    zeros = [leaf for leaf in _leaves(data) if isinstance(leaf, _Zeros)]
    if sum(5 * math.prod(each.shape) for each in zeros) > MAX_BODY:
        return f"maas call {shlex.quote(url)} x.npy{' --auth MAAS_KEY' if locked else ''}"
    address = url if method.name == CALL else f"{url}/{method.name}"
    lines = [f"curl {'-N ' if method.streams else ''}{shlex.quote(address)}"]
    if locked:
        lines.append('-H "authorization: Bearer $MAAS_KEY"')
    lines.append("-H 'content-type: application/json'")
    if not zeros:
        return _joined([*lines, f"-d {shlex.quote(json.dumps(data))}"])
    script = f"import json; print(json.dumps({_written(data)}))"
    return f"python3 -c {shlex.quote(script)} |\n" + _joined([*lines, "-d @-"])


def _joined(lines: list[str]) -> str:
    return " \\\n  ".join(lines)


def _leaves(data: Any) -> Iterator[Any]:
    if isinstance(data, list | dict):
        for item in data.values() if isinstance(data, dict) else data:
            yield from _leaves(item)
    else:
        yield data


def _written(data: Any) -> str:
    """JSON data as a Python expression; large arrays as how to make them."""
    if isinstance(data, dict):
        return (
            f"{{{', '.join(f'{json.dumps(key)}: {_written(item)}' for key, item in data.items())}}}"
        )
    if isinstance(data, list):
        return f"[{', '.join(map(_written, data))}]"
    if isinstance(data, str):
        return json.dumps(data)
    return str(data) if isinstance(data, _Zeros) else repr(data)
