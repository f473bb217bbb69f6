"""Calls drawn from a signature: those that fit it, and those that do not.

A signature is plain data, so a model that runs on another machine can be tested as
well as one that runs here: `calls(maas.connect(url))` asks it what it takes. What is
drawn is small, and symbolic dimensions have one length throughout a call.

Arrays are drawn by a seed: a thousand numbers drawn one by one would use up all
that Hypothesis allows one example.
"""

import datetime as dt
import functools
import keyword
import math
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from hypothesis import strategies as st

from maas import tensors
from maas.errors import SignatureError
from maas.model import Asked, Model
from maas.parameters import Parameter
from maas.schema import Schema, TensorSpec, mismatch
from maas.signature import Signature
from maas.testing.strategies import values
from maas.values import registered, registered_name

__all__ = ["Arguments", "calls", "invalid_calls", "register_strategy"]


@attrs.frozen
class Arguments:
    """The arguments of one call: `arguments.of(model)` makes it."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = attrs.field(factory=dict)

    def of(self, function: Callable[..., Any]) -> Any:
        """What `function` gives for them."""
        return function(*self.args, **self.kwargs)

    def __str__(self) -> str:
        given = [
            *map(repr, self.args),
            *(f"{name}={value!r}" for name, value in self.kwargs.items()),
        ]
        return f"({', '.join(given)})"


_SIZES = st.integers(0, 4)
_OWN: dict[str, st.SearchStrategy[Any]] = {}


def register_strategy(cls: type | str, strategy: st.SearchStrategy[Any]) -> None:
    """Draws what a signature calls `cls` from `strategy`.

    Parameters
    ----------
    cls : a class given to `maas.register`, or a type as the signature writes it, such as
        "collections.abc.Sequence[int]". Without a strategy of its own, an instance of a
        registered class is built as `hypothesis.strategies.from_type` builds it.
    strategy : what gives the values.

    Raises
    ------
    TypeError
        A class that is not registered, so no signature can name it.
    """
    name = cls if isinstance(cls, str) else registered_name(cls)
    if name is None:
        raise TypeError(f"{cls!r} is not registered, so it cannot cross; maas.register it first")
    _OWN[name] = strategy


def calls(
    model: Any, *, sizes: st.SearchStrategy[int] = _SIZES, arrays: str | None = None
) -> st.SearchStrategy[Arguments]:
    """Calls that fit a signature.

    Parameters
    ----------
    model : a Model in any place, one of its methods, a target that could be one, or a `Signature`.
    sizes : lengths of symbolic and unknown dimensions; 0 to 4 unless given.
    arrays : "torch" or "numpy"; torch where the model is a torch module or torch is loaded.
    """
    signature, kind = _asked(model)
    return _calls(signature, sizes, arrays or kind)


def _asked(model: Any) -> tuple[Signature, str]:
    if isinstance(model, Signature):
        return model, _framework()
    asked: Asked[..., Any] = model if isinstance(model, Asked) else Model(model)
    # A NumPy caller of a torch module is served as well, but it is not the usual one.
    kind = "torch" if asked._executor.describe().kind == "torch" else _framework()
    return asked._executor.method(asked._method).signature, kind


def _framework() -> str:
    return "torch" if "torch" in sys.modules else "numpy"


@attrs.frozen
class _Drawing:
    """One call under way: what it draws with, and the lengths its symbols have taken."""

    draw: st.DrawFn
    lengths: st.SearchStrategy[int]
    arrays: str
    taken: dict[str, int] = attrs.field(factory=dict)

    def value(self, schema: Schema, *, hashable: bool = False) -> Any:
        """A value that fits `schema`."""
        special = _SPECIAL.get(schema.kind)
        if special is not None:
            return special(self, schema, hashable)
        return self.draw(_LEAVES[schema.kind])

    def members(self, schema: Schema, *, hashable: bool = False, most: int = 3) -> list[Any]:
        """Some values that fit `schema`."""
        return [
            self.value(schema, hashable=hashable) for _ in range(self.draw(st.integers(0, most)))
        ]

    def length(self, dimension: int | str | None) -> int:
        """The length of one dimension."""
        if type(dimension) is int:
            return dimension
        if dimension is None:
            return self.draw(self.lengths)
        name = str(dimension)
        if name not in self.taken:
            self.taken[name] = self.draw(self.lengths)
        return self.taken[name]

    def array(self, spec: TensorSpec) -> Any:
        """An array of that dtype and shape."""
        shape = [self.length(dimension) for dimension in spec.shape]
        generator = np.random.default_rng(self.draw(st.integers(0, 2**32 - 1)))
        data = _contents(generator, spec.dtype, math.prod(shape), odd=self.draw(st.booleans()))
        tag = "$tensor" if self.arrays == "torch" else "$array"
        return tensors.restore(tag, spec.dtype, shape, (), memoryview(bytearray(data)))


_TEXT = st.text(max_size=8)
_INTS = st.integers() | st.sampled_from([2**63, 2**64, -(2**63) - 1])
_MOMENTS = st.datetimes(timezones=st.none() | st.just(dt.UTC))
_LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "None": st.none(),
    "bool": st.booleans(),
    "int": _INTS,
    "float": st.floats() | st.sampled_from([-0.0, math.inf, math.nan]),
    "complex": st.complex_numbers(),
    "str": _TEXT,
    "bytes": st.binary(max_size=8),
    "bytearray": st.binary(max_size=8).map(bytearray),
    "datetime": _MOMENTS,
    "date": st.dates(),
    "time": st.times(),
    "timedelta": st.timedeltas(),
    "Decimal": st.decimals(),
    "UUID": st.uuids(),
    "slice": st.builds(slice, st.none() | _INTS, st.none() | _INTS, st.none()),
    "range": st.builds(range, _INTS, _INTS, _INTS.filter(bool)),
}


def _object(drawing: _Drawing, schema: Schema, _hashable: bool) -> Any:
    strategy = _OWN.get(schema.name)
    if strategy is None:
        entry = registered(schema.name)
        if entry is None:
            raise SignatureError(
                f"the signature wants a {schema.name}, which is not registered here; "
                "import the module that does maas.register(...)"
            )
        strategy = st.from_type(entry.cls)
    return drawing.draw(strategy)


def _any(drawing: _Drawing, schema: Schema, hashable: bool) -> Any:
    if schema.name in ("", "Any", "object"):
        return drawing.draw(values(arrays=False, max_leaves=4, hashable=hashable))
    if schema.name not in _OWN:
        raise SignatureError(
            f"what a {schema.name} may be is not known; write a type that maas reads, "
            f"or register_strategy({schema.name!r}, ...)"
        )
    return drawing.draw(_OWN[schema.name])


def _stream(_drawing: _Drawing, schema: Schema, _hashable: bool) -> Any:
    raise SignatureError(f"the signature wants {schema} as an argument, and a stream cannot be one")


def _tensor(drawing: _Drawing, schema: Schema, _hashable: bool) -> Any:
    if schema.spec is not None:
        return drawing.array(schema.spec)
    rank = drawing.draw(st.integers(0, 3))
    return drawing.array(TensorSpec("float32", (None,) * rank))


def _dict(drawing: _Drawing, schema: Schema, _hashable: bool) -> dict[Any, Any]:
    keys, members = schema.items
    return {key: drawing.value(members) for key in drawing.members(keys, hashable=True)}


_SPECIAL: dict[str, Callable[[_Drawing, Schema, bool], Any]] = {
    "any": _any,
    "list": lambda drawing, schema, _: drawing.members(schema.items[0]),
    "set": lambda drawing, schema, _: set(drawing.members(schema.items[0], hashable=True)),
    "frozenset": lambda drawing, schema, _: frozenset(
        drawing.members(schema.items[0], hashable=True)
    ),
    "tuple...": lambda drawing, schema, hashable: tuple(
        drawing.members(schema.items[0], hashable=hashable)
    ),
    "tuple": lambda drawing, schema, hashable: tuple(
        drawing.value(item, hashable=hashable) for item in schema.items
    ),
    "dict": _dict,
    "union": lambda drawing, schema, hashable: drawing.value(
        drawing.draw(st.sampled_from(schema.items)), hashable=hashable
    ),
    "literal": lambda drawing, schema, _: drawing.draw(st.sampled_from(schema.literals)),
    "tensor": _tensor,
    "object": _object,
    "stream": _stream,
}


# Contents of arrays.


def _contents(generator: np.random.Generator, dtype: str, count: int, *, odd: bool) -> bytes:
    """So many elements as bytes: usual numbers, or `odd` ones, NaN and the borders among them."""
    if dtype == "bool":
        return generator.integers(0, 2, count, np.uint8).tobytes()
    whole = dtype.removeprefix("u").startswith("int")
    if odd or whole or dtype.startswith(("float8", "float4")):
        return generator.bytes(count * tensors.DTYPES[dtype])
    if dtype == "bfloat16":
        # The upper half of a float32.
        return generator.standard_normal(count).astype(np.float32).view(np.uint16)[1::2].tobytes()
    if dtype.startswith("complex"):
        count, dtype = 2 * count, f"float{int(dtype.removeprefix('complex')) // 2}"
    return generator.standard_normal(count).astype(dtype).tobytes()


# Calls that fit.


@st.composite
def _calls(
    draw: st.DrawFn, signature: Signature, lengths: st.SearchStrategy[int], arrays: str
) -> Arguments:
    drawing = _Drawing(draw, lengths, arrays)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    by_name = False
    for each in signature.parameters:
        if each.kind == "*":
            # Further positional arguments are only possible where all before are positional.
            args += [] if by_name else drawing.members(each.annotation, most=2)
        elif each.kind == "**":
            kwargs |= _further(drawing, signature, each)
        elif not each.required and draw(st.booleans()):
            by_name = True
        elif each.kind == "positional":
            if not by_name:
                args.append(drawing.value(each.annotation))
        else:
            by_name = by_name or each.kind == "keyword" or draw(st.booleans())
            value = drawing.value(each.annotation)
            if by_name:
                kwargs[each.name] = value
            else:
                args.append(value)
    return Arguments(tuple(args), kwargs)


_NAMES = st.from_regex(r"[a-z]{1,6}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name)
)


def _further(drawing: _Drawing, signature: Signature, parameter: Parameter) -> dict[str, Any]:
    known = {each.name for each in signature.parameters}
    names = drawing.draw(st.lists(_NAMES, max_size=2, unique=True))
    return {name: drawing.value(parameter.annotation) for name in names if name not in known}


# Calls that do not fit.


def invalid_calls(
    model: Any, *, sizes: st.SearchStrategy[int] = _SIZES, arrays: str | None = None
) -> st.SearchStrategy[Arguments]:
    """Calls that a model refuses: wrong numbers, names, types, dtypes, shapes, clashing lengths.

    Raises
    ------
    ValueError
        The signature fits every call.
    """
    signature, kind = _asked(model)
    broken = list(_ways_to_break(signature))
    if not broken:
        raise ValueError(f"{signature.render('model')} takes every call, so none is invalid")
    valid = _calls(signature, sizes, arrays or kind)
    return st.builds(lambda call, way: way(call), valid, st.sampled_from(broken)).filter(
        lambda call: _refused(signature, call)
    )


def _refused(signature: Signature, call: Arguments) -> bool:
    try:
        signature.check(call.args, call.kwargs)
    except SignatureError:
        return True
    return False


_Way = Callable[[Arguments], Arguments]
_STRANGERS: Sequence[Any] = (True, 7, 1.5, "x", b"x", [], (), {}, {1}, uuid.UUID(int=0), None)


def _ways_to_break(signature: Signature) -> Iterator[_Way]:
    kinds = {each.kind for each in signature.parameters}
    if "**" not in kinds:
        yield lambda call: Arguments(call.args, {**call.kwargs, "no_such_name": 1})
    if "*" not in kinds:
        most = len(signature.parameters) + 1
        yield lambda call: Arguments(call.args + (None,) * most, call.kwargs)
    if any(each.required for each in signature.parameters):
        yield lambda _call: Arguments()
    for index, each in enumerate(signature.parameters):
        if "*" not in each.kind:
            for change in _changes(each.annotation):
                yield functools.partial(_replace, index, each.name, change)


def _replace(index: int, name: str, change: Callable[[Any], Any], call: Arguments) -> Arguments:
    if name in call.kwargs:
        return Arguments(call.args, {**call.kwargs, name: change(call.kwargs[name])})
    if index < len(call.args):
        args = (*call.args[:index], change(call.args[index]), *call.args[index + 1 :])
        return Arguments(args, call.kwargs)
    return call


def _changes(schema: Schema) -> Iterator[Callable[[Any], Any]]:
    """Ways to make another value of one that fits, most of them wrong."""
    if schema.spec is not None:
        dtype = "int32" if schema.spec.dtype == "uint8" else "uint8"
        yield lambda array: _zeros(array, dtype, tensors.facts(array)[1])  # type: ignore[index]
        yield lambda array: _zeros(array, None, (1, *tensors.facts(array)[1]))  # type: ignore[index]
        for axis in range(len(schema.spec.shape)):
            yield functools.partial(_longer, axis)
    yield from (
        functools.partial(lambda stranger, _value: stranger, stranger)
        for stranger in _STRANGERS
        if mismatch(schema, stranger, {}) is not None
    )


def _longer(axis: int, array: Any) -> Any:
    """One more along an axis: wrong where that has a length, or a symbol with a second use."""
    shape = list(tensors.facts(array)[1])  # type: ignore[index]
    shape[axis] += 1
    return _zeros(array, None, shape)


def _zeros(like: Any, dtype: str | None, shape: Sequence[int]) -> Any:
    dtype = dtype or tensors.dtype_name(like)
    tag = "$array" if type(like) is np.ndarray else "$tensor"
    data = bytearray(math.prod(shape) * tensors.DTYPES[dtype])
    return tensors.restore(tag, dtype, shape, (), memoryview(data))
