"""Calls put together row by row, and the answer taken apart: no call's rows reach another's.

What a call is made of is written down as a *form*: a nested tuple that is equal, and hashes
equal, for calls that may share a run, and from which their common arguments are built again.

    ("array", type, dtype, shape beyond the batch axis, ...)    its rows differ from call to call
    ("constant", type, dtype, shape, ..., its bytes)            an array without a batch axis
    ("value", type, value)    ("tuple" | "list", forms)    ("dict", keys, forms)
"""

import struct
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from maas import tensors
from maas.backends.base import Method
from maas.batching import Batching, Fill
from maas.calls import Call
from maas.errors import SignatureError
from maas.hints import BATCH
from maas.parameters import Parameter
from maas.records import frozen
from maas.schema import Schema, TensorSpec

__all__ = ["Axes", "Plan", "gathered", "scattered"]

_MAX_FORM = 2**13
"""Bytes of arguments without a batch axis, and 16 for each value, that are compared and kept.

A call with more runs alone: what is known of a thousand forms must not hold a thousand prompts.
"""
_MAX_DEPTH = 16
_PLAIN: dict[type, Callable[[Any], Hashable]] = {
    # Equal values that differ in type or in a bit are different parameters.
    **{kind: lambda value: value for kind in (type(None), bool, int, str, bytes)},
    float: lambda value: struct.pack("<d", value),
    complex: lambda value: struct.pack("<dd", value.real, value.imag),
}
_READ: dict[type, Callable[[Any], Any]] = {
    float: lambda packed: struct.unpack("<d", packed)[0],
    complex: lambda packed: complex(*struct.unpack("<dd", packed)),
}

_ALONE = frozenset({"complex32", "float4_e2m1fn_x2"})
"""torch puts no arrays of these together, or warns each time."""

Form = Any


@frozen
class Plan:
    """One call ready to go with others.

    Attributes
    ----------
    form : what it shares with the calls it may go with; see the module's docstring.
    rows : its length along the batch axis.
    arrays : its own arrays, in the order in which the form has them.
    lengths : of the dimensions that are filled up, by symbol.
    """

    form: Form
    rows: int
    arrays: tuple[Any, ...]
    lengths: Mapping[str, int] = attrs.field(factory=dict)


@attrs.frozen
class _Array:
    """What is known of a parameter's arrays: if they have rows, and where they are filled up."""

    rows: bool = True
    ragged: tuple[tuple[int, str, float], ...] = ()


_ROWS = _Array()


class Axes:
    """Where the rows of one method's arguments are.

    Parameters
    ----------
    method : its signature decides where it has the symbol "batch"; else it is the first axis of
        every array.
    batching : its padding names symbols of the signature.

    Raises
    ------
    ValueError
        A signature that leaves no batch axis, or lacks a symbol that is to be filled up.
    """

    def __init__(self, method: Method, batching: Batching) -> None:
        self._binder = method.signature.binder
        specs = [spec for each in method.signature.parameters for spec in _specs(each.annotation)]
        _check(method, specs, batching)
        named = any(BATCH in spec.shape for spec in specs)
        self._arrays = {
            each.name: _array(each, named, batching.padding) for each in method.signature.parameters
        }
        self._returns = method.signature.returns if batching.padding else None

    @property
    def returns(self) -> Schema | None:
        """What the answer is to be trimmed by; None where nothing is filled up."""
        return self._returns

    def plan(self, call: Call) -> Plan | None:
        """How the call goes with others; None where it can only run alone."""
        args, kwargs = call.args, call.kwargs
        walk = _Walk()
        forms = tuple([walk.form(value, self._placed(index)) for index, value in enumerate(args)])
        named = tuple([walk.form(value, self._named(name)) for name, value in kwargs.items()])
        if walk.spoilt or not walk.arrays:
            return None
        return Plan((forms, tuple(kwargs), named), walk.rows, tuple(walk.arrays), walk.lengths)

    def _placed(self, index: int) -> _Array:
        positional = self._binder.positional
        parameter = positional[index] if index < len(positional) else self._binder.star
        return _ROWS if parameter is None else self._arrays[parameter.name]

    def _named(self, name: str) -> _Array:
        parameter = self._binder.keywords.get(name, self._binder.stars)
        return _ROWS if parameter is None else self._arrays[parameter.name]


def _check(method: Method, specs: Sequence[TensorSpec], batching: Batching) -> None:
    if any(BATCH in spec.shape for spec in specs):
        if method.signature.batch_symbol is None:
            raise ValueError(
                f"{method.label}: 'batch' must stand first in some argument and first in every "
                f"tensor of the result, and nowhere else; the signature is {method.signature}"
            )
    elif any(spec.shape and type(spec.shape[0]) is int for spec in specs):
        raise ValueError(
            f"{method.label}: the signature fixes the first dimension, so calls cannot be put "
            f"together; write 'batch' there: {method.signature}"
        )
    known = {symbol for spec in specs for symbol in spec.shape[1:]}
    for symbol in batching.padding:
        if symbol not in known or symbol == BATCH:
            raise ValueError(
                f"{method.label}: padding names {symbol!r}, which is no dimension of an argument "
                f"in its signature {method.signature}"
            )


def _specs(schema: Schema) -> Iterator[TensorSpec]:
    return (each.spec for each in schema.walk() if each.spec is not None)


def _array(parameter: Parameter, named: bool, padding: Mapping[str, Fill]) -> _Array:
    specs = list(_specs(parameter.annotation))
    rows = not named or any(spec.shape[:1] == (BATCH,) for spec in specs)
    spec = parameter.annotation.spec
    if spec is None or not rows:
        return _Array(rows)
    ragged = tuple(
        (axis, str(symbol), _fill(padding[symbol], parameter.name))
        for axis, symbol in enumerate(spec.shape)
        if isinstance(symbol, str) and symbol in padding
    )
    return _Array(rows, ragged)


def _fill(fill: Fill, name: str) -> float:
    return fill.get(name, 0) if isinstance(fill, Mapping) else fill


class _Walk:
    """Along the arguments of one call: collects its arrays, counts its rows."""

    __slots__ = ("_weight", "arrays", "lengths", "rows", "spoilt")

    def __init__(self) -> None:
        self._weight = 0
        self.arrays: list[Any] = []
        self.rows = -1
        self.lengths: dict[str, int] = {}
        self.spoilt = False

    def form(self, value: Any, about: _Array, depth: int = 0) -> Form:
        kind = type(value)
        adapter = tensors.CLAIMED.get(kind) or tensors.adapter_for(kind)
        if adapter is not None:
            return self._array(value, adapter, about)
        plain = _PLAIN.get(kind)
        if plain is not None:
            return self._plain(kind, value, plain)
        self._weigh(16)
        if self.spoilt or depth == _MAX_DEPTH:
            self.spoilt = True
            return None
        return self._container(kind, value, about, depth + 1)

    def _container(self, kind: type, value: Any, about: _Array, depth: int) -> Form:
        if kind in (tuple, list):
            return (kind.__name__, tuple(self.form(each, about, depth) for each in value))
        if kind is dict and all(type(key) is str for key in value):
            self._weigh(sum(map(len, value)))
            return (
                "dict",
                tuple(value),
                tuple(self.form(each, about, depth) for each in value.values()),
            )
        self.spoilt = True
        return None

    def _weigh(self, size: int) -> None:
        self._weight += size
        self.spoilt = self.spoilt or self._weight > _MAX_FORM

    def _plain(self, kind: type, value: Any, plain: Callable[[Any], Hashable]) -> Form:
        if kind in (str, bytes):
            self._weigh(16 + len(value))
        else:
            self._weigh(16 + (value.bit_length() // 8 if kind is int else 0))
        return None if self.spoilt else ("value", kind, plain(value))

    def _array(self, array: Any, adapter: Any, about: _Array) -> Form:
        dtype, shape = adapter.facts(array)
        wants_gradient = getattr(array, "requires_grad", False)
        if wants_gradient or dtype in _ALONE or not adapter.crosses(array):
            self.spoilt = True
            return None
        if not about.rows:
            return self._constant(array, adapter, dtype, shape)
        rows = shape[0] if shape else 0
        if not rows or rows != (rows if self.rows < 0 else self.rows):
            self.spoilt = True
            return None
        self.rows = rows
        self.arrays.append(array)
        beyond = shape[1:]
        if about.ragged:
            beyond = self._ragged(shape, about)
        return ("array", type(array), dtype, beyond, adapter.layout(array), about.ragged)

    def _ragged(self, shape: tuple[int, ...], about: _Array) -> tuple[int | str, ...]:
        beyond: list[int | str] = list(shape[1:])
        for axis, symbol, _fill in about.ragged:
            beyond[axis - 1] = symbol
            self.lengths[symbol] = shape[axis]
        return tuple(beyond)

    def _constant(self, array: Any, adapter: Any, dtype: str, shape: tuple[int, ...]) -> Form:
        described = adapter.describe(array)
        self._weigh(described.nbytes)
        if self.spoilt:
            return None
        contents = bytes(adapter.contents(array, described.flags))
        where = adapter.layout(array)
        return ("constant", described.tag, dtype, shape, described.flags, where, contents)


# Together.


def gathered(plans: Sequence[Plan], size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of one call that holds the rows of all plans, filled up to `size` rows."""
    first = plans[0]
    forms, names, named = first.form
    spare = size - sum([plan.rows for plan in plans])
    if len(forms) == 1 and not names and not spare and forms[0][0] == "array":
        _, kind, _dtype, _shape, _layout, ragged = forms[0]
        if not ragged:  # as in most calls
            return (tensors.CLAIMED[kind].concatenate([plan.arrays[0] for plan in plans]),), {}
    longest = {symbol: max(plan.lengths[symbol] for plan in plans) for symbol in first.lengths}
    columns = zip(*(plan.arrays for plan in plans), strict=True)
    builder = _Builder(columns, longest, spare)
    args = tuple(builder.build(form) for form in forms)
    return args, {name: builder.build(form) for name, form in zip(names, named, strict=True)}


class _Builder:
    """From a form back to an argument, with the arrays of all calls one after the other."""

    def __init__(
        self, columns: Iterator[tuple[Any, ...]], longest: Mapping[str, int], spare: int
    ) -> None:
        self._columns = columns
        self._longest = longest
        self._spare = spare

    def build(self, form: Form) -> Any:
        match form:
            case ("array", kind, _dtype, _shape, _layout, ragged):
                return self._joined(list(next(self._columns)), tensors.CLAIMED[kind], ragged)
            case ("constant", tag, dtype, shape, flags, where, contents):
                data = memoryview(bytearray(contents))
                restored = tensors.restore(tag, dtype, shape, flags, data)
                return tensors.CLAIMED[type(restored)].placed(restored, where)
            case ("value", kind, value):
                return _READ[kind](value) if kind in _READ else value
            case ("tuple", forms):
                return tuple(map(self.build, forms))
            case ("list", forms):
                return [self.build(each) for each in forms]
            case ("dict", keys, forms):
                inner = zip(keys, forms, strict=True)
                return {key: self.build(each) for key, each in inner}
        raise AssertionError(form)

    def _joined(self, arrays: list[Any], adapter: Any, ragged: Any) -> Any:
        for axis, symbol, fill in ragged:
            length = self._longest[symbol]
            arrays = [
                array if array.shape[axis] == length else adapter.pad(array, axis, length, fill)
                for array in arrays
            ]
        spare = self._spare
        while spare > 0:
            # Copies of rows that are there: whatever the model refuses, it does not refuse those.
            arrays.append(arrays[0][:spare])
            spare -= len(arrays[-1])
        return adapter.concatenate(arrays)


# Apart.


def scattered(value: Any, plans: Sequence[Plan], size: int, returns: Schema | None) -> list[Any]:
    """Each plan's part of the answer to `size` rows, uncopied.

    Raises
    ------
    SignatureError
        The answer does not have one row for each row asked.
    """
    sizes = [plan.rows for plan in plans]
    spare = size - sum(sizes)
    found = _split(value, [*sizes, spare] if spare else sizes, size)
    found = found[: len(plans)]
    if returns is None or not plans[0].lengths:
        return found
    return [_trimmed(each, returns, plan.lengths) for each, plan in zip(found, plans, strict=True)]


def _split(value: Any, sizes: list[int], total: int) -> list[Any]:
    kind = type(value)
    if kind is tuple:
        columns = [_split(each, sizes, total) for each in value]
        return [tuple(row) for row in zip(*columns, strict=True)] if columns else [()] * len(sizes)
    if kind is dict:
        columns = [_split(each, sizes, total) for each in value.values()]
        parts = zip(*columns, strict=True) if columns else [()] * len(sizes)
        return [dict(zip(value, part, strict=True)) for part in parts]
    if value is None:
        return [None] * len(sizes)
    found = tensors.facts(value)
    rows = len(value) if kind is list else None if found is None or not found[1] else found[1][0]
    if rows != total:
        shown = "" if found is None else f" {list(found[1])}"
        raise SignatureError(
            f"a batch of {total} rows wants an answer of {total} rows, got {kind.__name__}{shown}"
        )
    if kind is list:
        members = iter(value)
        return [[next(members) for _ in range(count)] for count in sizes]
    return tensors.CLAIMED[kind].parts(value, sizes)  # type: ignore[no-any-return]


def _trimmed(value: Any, schema: Schema, lengths: Mapping[str, int]) -> Any:
    """The value without what was filled up, where the signature of the result names it."""
    if schema.spec is not None and tensors.facts(value) is not None:
        for axis, symbol in enumerate(schema.spec.shape):
            if isinstance(symbol, str) and symbol in lengths:
                value = value[(*[slice(None)] * axis, slice(lengths[symbol]))]
        return value
    if schema.kind == "tuple" and type(value) is tuple and len(value) == len(schema.items):
        inner = zip(value, schema.items, strict=True)
        return tuple(_trimmed(each, item, lengths) for each, item in inner)
    if schema.kind == "dict" and type(value) is dict:
        return {key: _trimmed(each, schema.items[1], lengths) for key, each in value.items()}
    return value
