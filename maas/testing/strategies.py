"""Hypothesis strategies for everything that may cross, its borders included.

Numbers come as random bytes, not as "nice" numbers: NaN payloads, signalling NaNs,
subnormals and negative zeros are where codecs differ. Arrays come in the layouts
that break naive encoders: transposed, sliced, expanded, channels_last, conjugated.
"""

import collections
import dataclasses
import datetime as dt
import enum
import functools
import importlib
import importlib.util
import math
import struct
import zoneinfo
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import attrs
import numpy as np
from hypothesis import strategies as st

from maas import errors
from maas.tensors import DTYPES, numpy_arrays
from maas.values import register

__all__ = [
    "Level",
    "Person",
    "Point",
    "Score",
    "Shade",
    "exceptions",
    "leaves",
    "tensors",
    "values",
]


# Registered classes, one of each kind that `register` understands.


@functools.partial(register, name="maas.testing.Point")
class Point(NamedTuple):
    """A named tuple."""

    x: Any
    y: Any


@functools.partial(register, name="maas.testing.Person")
@attrs.frozen
class Person:
    """An attrs class with a private name, and one that its constructor does not take."""

    name: Any
    _age: Any = None
    nick: Any = attrs.field(init=False, default=None)


@functools.partial(register, name="maas.testing.Score")
@dataclasses.dataclass
class Score:
    """A dataclass."""

    value: Any
    unit: Any = ""


@functools.partial(register, name="maas.testing.Level")
class Level(enum.IntEnum):
    """An enum whose members are ints as well."""

    LOW = 1
    HIGH = 2


@functools.partial(register, name="maas.testing.Shade")
class Shade(enum.Flag):
    """Flags, whose combinations have no name."""

    RED = 1
    GREEN = 2


@functools.partial(register, name="maas.testing.Refused")
class Refused(Exception):
    """A registered exception that cannot be built without a keyword."""

    def __init__(self, message: str, *, reason: Any) -> None:
        super().__init__(message)
        self.reason = reason


# Leaves.


def _double(bits: int) -> float:
    value: float = struct.unpack(">d", bits.to_bytes(8, "big"))[0]
    return value


_FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, math.inf, -math.inf, 1e308, 5e-324, 1.0]),
    st.integers(0, 2**64 - 1).map(_double),
    # Every NaN payload, quiet or signalling, of either sign.
    st.integers(1, 2**52 - 1).map(lambda payload: _double(0x7FF << 52 | payload)),
    st.integers(1, 2**52 - 1).map(lambda payload: _double(0xFFF << 52 | payload)),
)
# Python shows ints of at most 4,300 digits, and a test wants to show what failed.
_BITS = (7, 8, 15, 16, 31, 32, 63, 64, 1_000, 14_000)
_INTS = st.one_of(
    st.integers(),
    st.builds(
        lambda bits, sign, step: sign * 2**bits + step,
        st.sampled_from(_BITS),
        st.sampled_from([1, -1]),
        st.integers(-1, 1),
    ),
)
# With lone surrogates, which hypothesis leaves out unless told.
_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
_BYTES = st.binary(max_size=20)
_LONG = st.sampled_from([4_095, 4_096, 4_097, 5_000])
_ZONES = st.one_of(
    st.none(),
    st.sampled_from([dt.UTC, zoneinfo.ZoneInfo("UTC"), zoneinfo.ZoneInfo("Europe/Berlin")]),
    st.builds(
        dt.timezone,
        st.integers(-86_399_999_999, 86_399_999_999).map(lambda us: dt.timedelta(microseconds=us)),
        *[st.text(st.characters(exclude_categories=()), max_size=5)],
    ),
    st.integers(-1_439, 1_439).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes))),
)
_SCALARS = st.one_of(
    st.sampled_from(
        [np.float32, np.float64, np.float16, np.int8, np.uint64, np.complex128]
    ).flatmap(
        lambda kind: st.binary(
            min_size=np.dtype(kind).itemsize, max_size=np.dtype(kind).itemsize
        ).map(lambda raw: np.frombuffer(raw, kind)[0])
    ),
    st.booleans().map(np.bool_),
)


# `composite` keeps the repr of these strategies short, which hypothesis computes at every level.


@st.composite
def _plain(draw: st.DrawFn) -> Any:
    return draw(st.one_of(st.none(), st.booleans(), _INTS, _FLOATS, _TEXT, _BYTES))


_LEAVES = st.one_of(
    _plain(),
    _LONG.map(lambda size: "\ud800" * size),
    _LONG.map(lambda size: b"\x00\xff" * (size // 2)),
    st.builds(complex, _FLOATS, _FLOATS),
    st.binary(max_size=20).map(bytearray),
    _LONG.map(bytearray),
    st.decimals(),
    st.uuids(),
    st.just(...),
    st.builds(slice, _INTS, _plain(), st.none()),
    st.builds(range, _INTS, _INTS, _INTS.filter(bool)),
    st.datetimes(timezones=_ZONES),
    st.datetimes().map(lambda moment: moment.replace(fold=1)),
    st.times(timezones=_ZONES),
    st.dates(),
    st.timedeltas(),
    _SCALARS,
    st.sampled_from([*Level, *Shade, Shade.RED | Shade.GREEN, Shade(0)]),
)


@st.composite
def leaves(draw: st.DrawFn) -> Any:
    """Values that hold no other value, arrays and exceptions left out."""
    return draw(_LEAVES)


# Arrays.


def _shapes() -> st.SearchStrategy[tuple[int, ...]]:
    """0-d, dimensions of zero, images, and ranks up to the most that cross."""
    return st.one_of(
        st.just(()),
        st.lists(st.integers(0, 4), max_size=4).map(tuple),
        st.lists(st.integers(1, 3), min_size=4, max_size=5).map(tuple),
        st.integers(1, 64).map(lambda rank: (1,) * (rank - 1) + (2,)),
    )


def _raw(dtype: str, shape: Sequence[int]) -> st.SearchStrategy[bytearray]:
    size = math.prod(shape) * DTYPES[dtype]
    raw = st.binary(min_size=size, max_size=size).map(bytearray)
    if dtype == "bool":
        return raw.map(lambda data: bytearray(byte & 1 for byte in data))
    return raw


def tensors(
    dtype: str | None = None,
    shape: Sequence[int] | None = None,
    *,
    kinds: Sequence[str] = ("torch", "numpy"),
) -> st.SearchStrategy[Any]:
    """Arrays of random bytes in any layout.

    Parameters
    ----------
    dtype : name of a dtype; any that crosses unless given.
    shape : the shape, which layouts then keep; any, up to 64 dimensions, unless given.
    kinds : "torch" and "numpy"; one that is not installed is left out.
    """
    made = {"torch": _torch_tensors, "numpy": _numpy_arrays}
    here = [made[kind] for kind in kinds if importlib.util.find_spec(kind) is not None]
    return st.one_of([make(dtype, shape) for make in here])


def _numpy_arrays(dtype: str | None, shape: Sequence[int] | None) -> st.SearchStrategy[Any]:
    known = [name for name in DTYPES if numpy_arrays.knows(name)]
    layouts = [_as_is, _numpy_transposed, _numpy_fortran, _numpy_read_only]
    if shape is None:
        layouts += [_sliced, _numpy_broadcast]
    return _arrays(dtype, shape, known, _numpy_array, layouts)


def _arrays(
    dtype: str | None,
    shape: Sequence[int] | None,
    known: Sequence[str],
    make: Callable[[str, Sequence[int], bytearray], Any],
    layouts: Sequence[Callable[[Any], Any]],
) -> st.SearchStrategy[Any]:
    dtypes = st.sampled_from(known) if dtype is None else st.just(dtype)
    shapes = _shapes() if shape is None else st.just(tuple(shape))
    contiguous = st.tuples(dtypes, shapes).flatmap(
        lambda both: _raw(*both).map(lambda raw: make(*both, raw))
    )
    return st.builds(lambda array, layout: layout(array), contiguous, st.sampled_from(layouts))


def _as_is(array: Any) -> Any:
    return array


def _sliced(array: Any) -> Any:
    return array[..., ::2] if array.ndim else array


def _numpy_array(dtype: str, shape: Sequence[int], raw: bytearray) -> Any:
    return numpy_arrays.restore(dtype, shape, (), memoryview(raw))


def _numpy_transposed(array: Any) -> Any:
    # Other strides, the same shape.
    return np.ascontiguousarray(array.T).T


def _numpy_fortran(array: Any) -> Any:
    return np.asfortranarray(array)


def _numpy_read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def _numpy_broadcast(array: Any) -> Any:
    return np.broadcast_to(array, (2, *array.shape)) if array.ndim < 64 else array


def _torch_tensors(dtype: str | None, shape: Sequence[int] | None) -> st.SearchStrategy[Any]:
    # By name, as everything of torch's is loaded: only where it is.
    torch_layouts = importlib.import_module("maas.testing.torch_layouts")
    layouts = list(torch_layouts.SAME)
    if shape is None:
        layouts += torch_layouts.OTHER_SHAPE
    if dtype is None:
        layouts += torch_layouts.OTHER_DTYPE
    return _arrays(dtype, shape, torch_layouts.DTYPES, torch_layouts.make, layouts)


# Exceptions.

_SIMPLE = [
    ValueError, TypeError, KeyError, IndexError, RuntimeError, AttributeError, NameError,
    ZeroDivisionError, StopIteration, LookupError, ImportError, AssertionError, SyntaxError,
    errors.Error, errors.NotFound, errors.CodecError, errors.Unsupported,
]  # fmt: skip


@st.composite
def exceptions(draw: st.DrawFn, members: st.SearchStrategy[Any] | None = None) -> Exception:
    """Exceptions of known classes with arguments of `members`, notes, causes and groups."""
    inner = _plain() if members is None else members
    single = st.one_of(
        st.builds(lambda kind, args: kind(*args), st.sampled_from(_SIMPLE), st.tuples(inner)),
        st.builds(OSError, st.integers(1, 40), _TEXT, _TEXT),
        st.builds(
            UnicodeDecodeError, st.just("utf-8"), _BYTES, st.just(0), st.just(1), st.just("bad")
        ),
        st.builds(Refused, _TEXT, reason=inner),
        st.builds(errors.Overloaded, _TEXT, st.none() | st.floats(0, 1e6)),
        st.builds(errors.TransportError, _TEXT, sent=st.booleans(), answered=st.booleans()),
    )
    noted = st.builds(_noted, single, st.lists(_TEXT, max_size=2))
    grouped = st.builds(ExceptionGroup, _TEXT, st.lists(noted, min_size=1, max_size=3))
    some = noted | grouped
    return draw(st.builds(_linked, some, st.none() | some, st.none() | some, st.booleans()))


def _noted(error: Exception, notes: Sequence[str]) -> Exception:
    for note in notes:
        error.add_note(note)
    return error


def _linked(
    error: Exception, cause: Exception | None, context: Exception | None, suppress: bool
) -> Exception:
    error.__cause__, error.__context__ = cause, context
    error.__suppress_context__ = suppress
    return error


# Everything.


def values(
    *, arrays: bool = True, max_leaves: int = 12, hashable: bool = False
) -> st.SearchStrategy[Any]:
    """The whole closed set, containers in containers.

    Parameters
    ----------
    arrays : whether torch tensors and NumPy arrays are among them.
    max_leaves : how many leaves one value may have.
    hashable : only what may be a key of a dict.
    """
    if hashable:
        return _hashable()
    base = [leaves(), exceptions()]
    if arrays:
        base.append(tensors())
    return st.recursive(st.one_of(base), _containers, max_leaves=max_leaves)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = _hashable()
    # Keys that look like the wire's own tags.
    reserved = st.sampled_from(["$", "$tuple", "$tensor", "$map", "a", "$unknown"])
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(_TEXT, inner, max_size=4),
        st.dictionaries(reserved, inner, max_size=2),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=3).map(collections.OrderedDict),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
        st.builds(slice, inner, inner, inner),
        st.builds(Point, inner, inner),
        st.builds(_person, inner, inner, inner),
        st.builds(Score, inner, inner),
        exceptions(inner),
    )


def _person(name: Any, age: Any, nick: Any) -> Person:
    person = Person(name, age)
    object.__setattr__(person, "nick", nick)
    return person


@st.composite
def _hashable(draw: st.DrawFn) -> Any:
    # slice is left out: it cannot be hashed before Python 3.12.
    base = st.one_of(
        _plain(),
        st.uuids(),
        st.dates(),
        st.timedeltas(),
        st.just(...),
        st.sampled_from(list(Level)),
    )
    keys = st.recursive(
        base,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)
        ),
        max_leaves=4,
    )
    return draw(keys)
