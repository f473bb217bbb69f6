"""Whether two values are the same, bit by bit, and where they first differ.

There is no tolerance to hide behind: types, dtypes, shapes, every byte of every
number (NaN payloads and the sign of zero included), the order of dicts, the
classes, arguments, attributes, notes and causes of exceptions. Layout, device and
identity are not compared: they are the place's, not the value's.
"""

import dataclasses
import datetime as dt
import decimal
import enum
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from maas import tensors
from maas.failures import REMOTE_TRACEBACK
from maas.values import brief

__all__ = ["difference"]


def difference(left: Any, right: Any) -> str | None:
    """The first place where `left` and `right` differ, in words, or None where they are the same.

    A torch `Parameter` counts as a tensor, and the note that carries a remote
    traceback is left out: neither crosses, and both are documented not to.
    """
    return _compare("value", left, right, 0)


def _compare(path: str, left: Any, right: Any, depth: int) -> str | None:
    # Far above what `Limits` let cross: only a value that contains itself comes here.
    if depth > 150:
        return f"{path}: nested deeper than 150 levels"
    if tensors.facts(left) is not None and tensors.facts(right) is not None:
        return _arrays(path, left, right)
    if type(left) is not type(right):
        return f"{path}: {_named(type(left))} is not {_named(type(right))}"
    for kind, compare in _RULES:
        if isinstance(left, kind):
            return compare(path, left, right, depth)
    members = _fields(left)
    if members is not None:
        return _named_members(path, members, _fields(right) or {}, depth)
    return None if left == right else f"{path}: {brief(left)} is not {brief(right)}"


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


# Numbers and text.


def _floats(path: str, left: float, right: float, _depth: int) -> str | None:
    if struct.pack("<d", left) == struct.pack("<d", right):
        return None
    if math.isnan(left) and math.isnan(right):
        return (
            f"{path}: NaN {struct.pack('>d', left).hex()} is not {struct.pack('>d', right).hex()}"
        )
    return f"{path}: {left!r} is not {right!r}"


def _complexes(path: str, left: complex, right: complex, depth: int) -> str | None:
    return _floats(f"{path}.real", left.real, right.real, depth) or _floats(
        f"{path}.imag", left.imag, right.imag, depth
    )


def _scalars(path: str, left: np.generic, right: np.generic, _depth: int) -> str | None:
    if left.dtype != right.dtype:
        return f"{path}: dtype {left.dtype} is not {right.dtype}"
    return None if left.tobytes() == right.tobytes() else f"{path}: {left!r} is not {right!r}"


def _decimals(path: str, left: Any, right: Any, _depth: int) -> str | None:
    return None if str(left) == str(right) else f"{path}: {left} is not {right}"


def _moments(path: str, left: Any, right: Any, _depth: int) -> str | None:
    for name in ("year", "month", "day", "hour", "minute", "second", "microsecond", "fold"):
        ours, theirs = getattr(left, name, None), getattr(right, name, None)
        if ours != theirs:
            return f"{path}.{name}: {ours} is not {theirs}"
    ours, theirs = _zone(left.tzinfo), _zone(right.tzinfo)
    return None if ours == theirs else f"{path}.tzinfo: {ours} is not {theirs}"


def _zone(zone: dt.tzinfo | None) -> tuple[Any, ...] | None:
    if zone is None:
        return None
    return type(zone), getattr(zone, "key", None), zone.utcoffset(None), zone.tzname(None)


# Arrays.


def _arrays(path: str, left: Any, right: Any) -> str | None:
    if _framework(left) != _framework(right):
        return f"{path}: {_named(type(left))} is not {_named(type(right))}"
    (dtype, shape), (other_dtype, other_shape) = _facts(left), _facts(right)
    if dtype != other_dtype:
        return f"{path}: dtype {dtype} is not {other_dtype}"
    if shape != other_shape:
        return f"{path}: shape {list(shape)} is not {list(other_shape)}"
    grad, other_grad = (getattr(array, "requires_grad", False) for array in (left, right))
    if grad != other_grad:
        return f"{path}: requires_grad {grad} is not {other_grad}"
    return _elements(path, _bytes(left), _bytes(right), shape, tensors.DTYPES.get(dtype, 1))


def _framework(array: Any) -> Any:
    return tensors.adapter_for(type(array)) or type(array)


def _facts(array: Any) -> tuple[str, tuple[int, ...]]:
    found = tensors.facts(array)
    assert found is not None  # noqa: S101 - the caller has looked
    return found


def _bytes(array: Any) -> bytes:
    if type(array) is tensors.RawTensor:
        return array.data
    adapter = tensors.adapter_for(type(array))
    assert adapter is not None  # noqa: S101 - the caller has looked
    return bytes(adapter.contents(array, ()))


def _elements(path: str, left: bytes, right: bytes, shape: Sequence[int], size: int) -> str | None:
    if left == right:
        return None
    ours, theirs = np.frombuffer(left, f"V{size}"), np.frombuffer(right, f"V{size}")
    differing = np.flatnonzero(ours != theirs)
    first = int(differing[0])
    index = ", ".join(str(int(step)) for step in np.unravel_index(first, shape)) if shape else ""
    one, other = ours[first].tobytes().hex(), theirs[first].tobytes().hex()
    counted = f"{len(differing)} of {len(ours)} elements differ"
    return f"{path}[{index}]: bytes {one} are not {other}; {counted}"


# Containers.


def _sequences(path: str, left: Sequence[Any], right: Sequence[Any], depth: int) -> str | None:
    if len(left) != len(right):
        return f"{path}: {len(left)} items are not {len(right)}"
    pairs = enumerate(zip(left, right, strict=True))
    found = (_compare(f"{path}[{step}]", a, b, depth + 1) for step, (a, b) in pairs)
    return next(filter(None, found), None)


def _dicts(path: str, left: Mapping[Any, Any], right: Mapping[Any, Any], depth: int) -> str | None:
    keys = _sequences(f"{path}.keys()", list(left), list(right), depth)
    if keys is not None:
        return keys
    pairs = zip(left.items(), right.values(), strict=True)
    found = (_compare(f"{path}[{brief(key)}]", a, b, depth + 1) for (key, a), b in pairs)
    return next(filter(None, found), None)


def _sets(path: str, left: Any, right: Any, depth: int) -> str | None:
    if len(left) != len(right):
        return f"{path}: {len(left)} members are not {len(right)}"
    rest = list(right)
    for member in left:
        # Not `in`: it takes 1 for True, and never finds the other side's NaN.
        match = next(
            (i for i, other in enumerate(rest) if not _compare(path, member, other, depth + 1)),
            None,
        )
        if match is None:
            return f"{path}: the member {brief(member)} of type {_named(type(member))} is missing"
        del rest[match]
    return None


def _slices(path: str, left: slice, right: slice, depth: int) -> str | None:
    ours, theirs = ([value.start, value.stop, value.step] for value in (left, right))
    return _sequences(path, ours, theirs, depth)


def _ranges(path: str, left: range, right: range, depth: int) -> str | None:
    # range(0) == range(1, 1) in Python.
    ours, theirs = ([value.start, value.stop, value.step] for value in (left, right))
    return _sequences(path, ours, theirs, depth)


def _fields(value: Any) -> dict[str, Any] | None:
    if attrs.has(type(value)):
        return {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _named_members(
    path: str, left: Mapping[str, Any], right: Mapping[str, Any], depth: int
) -> str | None:
    if left.keys() != right.keys():
        return f"{path}: the fields {sorted(left)} are not {sorted(right)}"
    found = (_compare(f"{path}.{name}", left[name], right[name], depth + 1) for name in left)
    return next(filter(None, found), None)


def _enums(path: str, left: enum.Enum, right: enum.Enum, _depth: int) -> str | None:
    return None if left is right or left == right else f"{path}: {left!r} is not {right!r}"


# Exceptions.


def _exceptions(path: str, left: BaseException, right: BaseException, depth: int) -> str | None:
    members = (
        (left.args, _attributes(left), _notes(left)),
        (right.args, _attributes(right), _notes(right)),
    )
    for name, ours, theirs in zip(("args", "__dict__", "__notes__"), *members, strict=True):
        found = _compare(f"{path}.{name}", ours, theirs, depth + 1)
        if found is not None:
            return found
    return _links(path, left, right, depth)


def _links(path: str, left: BaseException, right: BaseException, depth: int) -> str | None:
    names = ["__cause__", "__suppress_context__"]
    # A context that is suppressed is seen by nobody.
    if not left.__suppress_context__:
        names.append("__context__")
    if isinstance(left, BaseExceptionGroup):
        names.append("exceptions")
    found = (
        _compare(f"{path}.{name}", getattr(left, name), getattr(right, name), depth + 1)
        for name in names
    )
    return next(filter(None, found), None)


def _attributes(error: BaseException) -> dict[str, Any]:
    plain = {name: value for name, value in vars(error).items() if not name.startswith("__")}
    slots = {
        name: getattr(error, name)
        for name in ("filename", "filename2", "name", "path")
        if hasattr(error, name)
    }
    return dict(sorted((plain | slots).items()))


def _notes(error: BaseException) -> list[str]:
    return [
        note for note in getattr(error, "__notes__", []) if not note.startswith(REMOTE_TRACEBACK)
    ]


_RULES: list[tuple[type | tuple[type, ...], Callable[[str, Any, Any, int], str | None]]] = [
    (np.generic, _scalars),
    (enum.Enum, _enums),
    (decimal.Decimal, _decimals),
    (float, _floats),
    (complex, _complexes),
    (dt.datetime, _moments),
    (dt.time, _moments),
    (BaseException, _exceptions),
    ((list, tuple), _sequences),
    (Mapping, _dicts),
    ((set, frozenset), _sets),
    (slice, _slices),
    (range, _ranges),
]
