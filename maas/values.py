"""The closed set of values that may cross, and `register` to widen it.

A value crosses exactly or not at all. Two walks know the set:

- `Packer` turns a value into a *tree* that any msgpack library can write
  (None, bool, int, float, str, bytes, list, map with string keys) and puts
  arrays and long byte strings aside as *buffers*. What has no plain form of its own becomes a
  map with one key that begins with `$`: `{"$tuple": [1, 2]}`.
- `Unpacker.pairs` is the `object_pairs_hook` that turns such maps back, from the
  leaves up, while msgpack decodes. Nothing decodes inside a hook: nested
  decoding crashes the interpreter at 190-odd levels.

`rebuild` walks the same set without making a tree: the local executor uses it
to copy containers and to refuse what could not cross, here as there.

Types are matched exactly: a subclass of `dict` or `int` is another type, and
either registered or refused with the path that leads to it (`args[0]["a"][2]`).
"""

import dataclasses
import datetime as dt
import decimal
import enum
import struct
import sys
import uuid
import zoneinfo
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

import attrs
import numpy as np

from maas import tensors
from maas.errors import CodecError, LimitExceeded
from maas.http import Buffer
from maas.limits import Limits
from maas.tensors import Described, RawTensor

__all__ = [
    "Field",
    "Packer",
    "Path",
    "Registered",
    "Unpacker",
    "add_family",
    "add_kind",
    "rebuild",
    "register",
    "registered",
    "registered_name",
    "render",
]

Path = tuple[Any, ...]
"""Where a value stands: `(parent path, step, depth)`; linked, so that a step costs one tuple."""

OUT_OF_LINE = 4_096
"""Byte strings longer than this travel as buffers: the header stays small and they are not copied."""


def render(path: Path) -> str:
    """A path as Python would write it: `args[0]["a"].field`."""
    parent, step, _depth = path
    if parent is None:
        return str(step)
    if isinstance(step, Field):
        return f"{render(parent)}.{step}"
    if isinstance(step, str):
        return f'{render(parent)}["{step}"]'
    return f"{render(parent)}[{step!r}]"


class Field(str):
    """A step of a path that is an attribute, not a key."""

    __slots__ = ()


# What may cross: a row a type.


@attrs.frozen
class Kind:
    """How one type crosses.

    `pack(packer, value, path)` gives the tree. `rebuild(walk, value, path)` gives a
    copy with its own containers, `walk` being called on each member; None for what cannot change.
    """

    pack: Callable[["Packer", Any, Path], Any]
    rebuild: Callable[["Walk", Any, Path], Any] | None = None


Walk = Callable[[Any, Path], Any]

_KINDS: dict[type, Kind] = {}
_FAMILIES: dict[type, Kind] = {}
_LOADERS: dict[str, Callable[["Unpacker", Any], Any]] = {}


def add_kind(
    kind: type,
    tag: str,
    pack: Callable[["Packer", Any, Path], Any],
    load: Callable[["Unpacker", Any], Any],
    rebuild: Callable[[Walk, Any, Path], Any] | None = None,
) -> None:
    """Add a type to the closed set: `{tag: pack(value)}` on the wire, `load(payload)` back."""
    _KINDS[kind] = Kind(lambda packer, value, path: {tag: pack(packer, value, path)}, rebuild)
    _LOADERS[tag] = load


def add_family(
    base: type, tag: str, pack: Callable[["Packer", Any, Path], Any], load: Callable[["Unpacker", Any], Any]
) -> None:
    """Add a type whose subclasses cross as well; `pack` keeps apart what differs between them."""
    _FAMILIES[base] = Kind(lambda packer, value, path: {tag: pack(packer, value, path)})
    _LOADERS[tag] = load


def _family(value: Any) -> Kind | None:
    for base, kind in _FAMILIES.items():
        if isinstance(value, base):
            return kind
    return None


class Packer:
    """Turns values into trees and buffers, charging `limits` before anything is copied."""

    __slots__ = ("buffers", "bytes", "limits", "nodes")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.buffers: list[Buffer] = []
        self.bytes = 0
        self.nodes = 0

    def pack(self, value: Any, path: Path) -> Any:
        """The tree of `value`, which stands at `path`.

        Raises
        ------
        CodecError
            A value outside the closed set; the message names its path.
        LimitExceeded
            More than the limits allow.
        """
        self.nodes += 1
        kind = _KINDS.get(type(value))
        if kind is None:
            return _pack_array(self, value, path)
        return kind.pack(self, value, path)

    def enter(self, path: Path) -> int:
        """The depth of the members of the container at `path`."""
        depth: int = path[2] + 1
        if depth > self.limits.depth:
            raise LimitExceeded(
                f"{_shorten(render(path))} is nested deeper than {self.limits.depth} levels; does it contain itself?"
            )
        if self.nodes > self.limits.nodes:
            raise LimitExceeded(
                f"more than {self.limits.nodes} values by {_shorten(render(path))}; "
                "send numbers as an array, or raise Limits(nodes=...)"
            )
        return depth

    def reserve(self, nbytes: int, path: Path) -> int:
        """Charges a buffer and gives its index; the caller then appends it."""
        self.bytes += nbytes
        if self.bytes > self.limits.body:
            raise LimitExceeded(
                f"{render(path)} brings the message to {self.bytes} bytes; Limits(body={self.limits.body}) allow no more"
            )
        if len(self.buffers) >= self.limits.tensors:
            raise LimitExceeded(f"{render(path)} is one buffer more than Limits(tensors={self.limits.tensors}) allow")
        return len(self.buffers)


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}...{text[-17:]}"


def _refuse(value: Any, path: Path) -> CodecError:
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    for base in kind.__mro__[1:]:
        if base in _KINDS and base is not object:
            return CodecError(
                f"{render(path)} is a {name}, a subclass of {base.__name__}, and would arrive as a bare "
                f"{base.__name__}; convert it, or maas.register({kind.__name__})"
            )
    return CodecError(f"{render(path)} is a {name}, which cannot cross; send plain values, or maas.register({kind.__name__})")


def _pack_array(packer: Packer, value: Any, path: Path) -> Any:
    kind = type(value)
    if kind is RawTensor:
        described = Described("$tensor", value.dtype, value.shape)
        index = packer.reserve(described.nbytes, path)
        packer.buffers.append(value.data)
        return _tensor_tree(index, described)
    adapter = tensors.adapter_for(kind)
    if adapter is None:
        family = _family(value)
        if family is None:
            raise _refuse(value, path)
        return family.pack(packer, value, path)
    try:
        described = adapter.describe(value)
    except CodecError as error:
        raise CodecError(f"{render(path)}: {error}") from None
    # Charged by its logical size first: a tensor expanded from 4 bytes may stand for gigabytes.
    index = packer.reserve(described.nbytes, path)
    packer.buffers.append(adapter.contents(value, described.flags))
    return _tensor_tree(index, described)


def _tensor_tree(index: int, described: Described) -> dict[str, list[Any]]:
    tree = [index, described.dtype, list(described.shape)]
    if described.flags:
        tree.append(list(described.flags))
    return {described.tag: tree}


def _pack_scalar(_packer: Packer, value: np.generic, path: Path) -> list[Any]:
    name = tensors.dtype_name(np.asarray(value))
    if name not in tensors.DTYPES:
        raise CodecError(f"{render(path)} is a NumPy scalar of dtype {value.dtype}, which cannot cross; call .item()")
    return [name, value.tobytes()]


class Unpacker:
    """Turns trees back into values, over the buffers that came with them."""

    __slots__ = ("buffers", "taken")

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self.buffers = buffers
        self.taken = [False] * len(buffers)

    def pairs(self, pairs: list[tuple[Any, Any]]) -> Any:
        """The `object_pairs_hook`: a tagged map to its value, any other to a dict."""
        if len(pairs) == 1:
            key, payload = pairs[0]
            if type(key) is str and key[:1] == "$":
                loader = _LOADERS.get(key)
                if loader is None:
                    raise CodecError(f"unknown tag {key[:40]!r}; known: {', '.join(sorted(_LOADERS))}")
                return loader(self, payload)
        plain = dict(pairs)
        if len(plain) != len(pairs):
            raise CodecError("a map holds the same key twice")
        for key in plain:
            if type(key) is not str or key[:1] == "$":
                raise CodecError(f"a plain map holds the key {key!r:.40}; keys are strings that do not begin with '$'")
        return plain

    def take(self, index: Any) -> memoryview:
        """The buffer of that index, once."""
        if type(index) is not int or not 0 <= index < len(self.buffers) or self.taken[index]:
            raise CodecError(f"buffer {index!r:.40} is not there, or was used before; {len(self.buffers)} came")
        self.taken[index] = True
        return self.buffers[index]


# Plain values.


def _same(_packer: Packer, value: Any, _path: Path) -> Any:
    return value


def _pack_int(_packer: Packer, value: int, path: Path) -> Any:
    if -(2**63) <= value < 2**64:
        return value
    length = value.bit_length() // 8 + 1
    if length > OUT_OF_LINE:
        raise LimitExceeded(f"{render(path)} is an int of {length} bytes; at most {OUT_OF_LINE} cross")
    return {"$int": value.to_bytes(length, "big", signed=True)}


def _pack_str(packer: Packer, value: str, path: Path) -> Any:
    if len(value) <= OUT_OF_LINE:
        return value
    return {"$str": _aside(packer, value.encode("utf-8", "surrogatepass"), path)}


def _pack_bytes(packer: Packer, value: bytes, path: Path) -> Any:
    return value if len(value) <= OUT_OF_LINE else {"$bytes": _aside(packer, value, path)}


def _aside(packer: Packer, data: bytes, path: Path) -> int:
    index = packer.reserve(len(data), path)
    packer.buffers.append(data)
    return index


for _plain in (type(None), bool, float):
    _KINDS[_plain] = Kind(_same)
_KINDS[int] = Kind(_pack_int)
_KINDS[str] = Kind(_pack_str)
_KINDS[bytes] = Kind(_pack_bytes)


def _typed(payload: Any, kind: type, tag: str) -> Any:
    if type(payload) is not kind:
        raise CodecError(f"{tag} wants a {kind.__name__}, got {payload!r:.60}")
    return payload


def _fields(payload: Any, tag: str, *kinds: type) -> list[Any]:
    """The payload as a list whose items have exactly these types."""
    if type(payload) is not list or [type(item) for item in payload] != list(kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        raise CodecError(f"{tag} wants [{names}], got {payload!r:.60}")
    return payload


def _load_int(_unpacker: Unpacker, payload: Any) -> int:
    data = _typed(payload, bytes, "$int")
    if len(data) > OUT_OF_LINE:
        raise LimitExceeded(f"$int of {len(data)} bytes; at most {OUT_OF_LINE} cross")
    value = int.from_bytes(data, "big", signed=True)
    if -(2**63) <= value < 2**64:
        raise CodecError("$int holds a value that a plain int holds")
    return value


def _load_str(unpacker: Unpacker, payload: Any) -> str:
    try:
        return str(unpacker.take(payload), "utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise CodecError(f"$str is not UTF-8: {error}") from None


_LOADERS["$int"] = _load_int
_LOADERS["$str"] = _load_str
_LOADERS["$bytes"] = lambda unpacker, payload: bytes(unpacker.take(payload))


# Containers.


def _pack_members(packer: Packer, value: Sequence[Any], path: Path) -> list[Any]:
    depth = packer.enter(path)
    return [packer.pack(item, (path, step, depth)) for step, item in enumerate(value)]


def _walk_members(walk: Walk, value: Sequence[Any], path: Path) -> list[Any]:
    depth = path[2] + 1
    return [walk(item, (path, step, depth)) for step, item in enumerate(value)]


def _pack_dict(packer: Packer, value: dict[Any, Any], path: Path) -> Any:
    depth = packer.enter(path)
    if all(type(key) is str and key[:1] != "$" and len(key) <= OUT_OF_LINE for key in value):
        packer.nodes += len(value)
        return {key: packer.pack(item, (path, key, depth)) for key, item in value.items()}
    return {"$map": _pack_items(packer, value, path)}


def _pack_items(packer: Packer, value: Mapping[Any, Any], path: Path) -> list[list[Any]]:
    depth = packer.enter(path)
    return [
        [packer.pack(key, (path, key, depth)), packer.pack(item, (path, key, depth))] for key, item in value.items()
    ]


def _walk_items(walk: Walk, value: Mapping[Any, Any], path: Path) -> list[tuple[Any, Any]]:
    depth = path[2] + 1
    return [
        (key if type(key) is str else walk(key, (path, key, depth)), walk(item, (path, key, depth)))
        for key, item in value.items()
    ]


def _load_items(payload: Any, tag: str) -> dict[Any, Any]:
    items = _typed(payload, list, tag)
    if any(type(item) is not list or len(item) != 2 for item in items):
        raise CodecError(f"{tag} wants a list of [key, value] pairs")
    loaded = _hashing(tag, lambda: dict(items))
    if len(loaded) != len(items):
        raise CodecError(f"{tag} holds the same key twice")
    return loaded


def _hashing(tag: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except TypeError as error:
        raise CodecError(f"{tag}: {error}") from None


def _load_set(kind: type, tag: str) -> Callable[[Unpacker, Any], Any]:
    def load(_unpacker: Unpacker, payload: Any) -> Any:
        items = _typed(payload, list, tag)
        loaded = _hashing(tag, lambda: kind(items))
        if len(loaded) != len(items):
            raise CodecError(f"{tag} holds the same member twice")
        return loaded

    return load


_KINDS[list] = Kind(_pack_members, _walk_members)
_KINDS[dict] = Kind(_pack_dict, lambda walk, value, path: dict(_walk_items(walk, value, path)))
_LOADERS["$map"] = lambda _unpacker, payload: _load_items(payload, "$map")
add_kind(
    tuple,
    "$tuple",
    _pack_members,
    lambda _unpacker, payload: tuple(_typed(payload, list, "$tuple")),
    lambda walk, value, path: tuple(_walk_members(walk, value, path)),
)
add_kind(
    OrderedDict,
    "$ordered",
    _pack_items,
    lambda _unpacker, payload: OrderedDict(_load_items(payload, "$ordered")),
    lambda walk, value, path: OrderedDict(_walk_items(walk, value, path)),
)
for _set, _tag in ((set, "$set"), (frozenset, "$frozenset")):
    add_kind(
        _set,
        _tag,
        lambda packer, value, path: _pack_members(packer, list(value), path),
        _load_set(_set, _tag),
        lambda walk, value, path: type(value)(_walk_members(walk, list(value), path)),
    )


# Leaves that msgpack has no form for.


def _pack_bytearray(packer: Packer, value: bytearray, path: Path) -> Any:
    return bytes(value) if len(value) <= OUT_OF_LINE else _aside(packer, bytes(value), path)


def _load_bytearray(unpacker: Unpacker, payload: Any) -> bytearray:
    if type(payload) is int:
        return bytearray(unpacker.take(payload))
    return bytearray(_typed(payload, bytes, "$bytearray"))


def _load_decimal(_unpacker: Unpacker, payload: Any) -> decimal.Decimal:
    try:
        return decimal.Decimal(_typed(payload, str, "$decimal"))
    except decimal.InvalidOperation:
        raise CodecError(f"$decimal wants a number as text, got {payload!r:.60}") from None


def _load_uuid(_unpacker: Unpacker, payload: Any) -> uuid.UUID:
    if len(_typed(payload, bytes, "$uuid")) != 16:
        raise CodecError(f"$uuid wants 16 bytes, got {len(payload)}")
    return uuid.UUID(bytes=payload)


def _load_complex(_unpacker: Unpacker, payload: Any) -> complex:
    if len(_typed(payload, bytes, "$complex")) != 16:
        raise CodecError(f"$complex wants 16 bytes, got {len(payload)}")
    return complex(*struct.unpack("<dd", payload))


def _load_slice(_unpacker: Unpacker, payload: Any) -> slice:
    if type(payload) is not list or len(payload) != 3:
        raise CodecError("$slice wants [start, stop, step]")
    return slice(*payload)


def _load_scalar(_unpacker: Unpacker, payload: Any) -> Any:
    name, data = _fields(payload, "$scalar", str, bytes)
    if tensors.DTYPES.get(name) != len(data):
        raise CodecError(f"$scalar {name!r:.40} does not fit {len(data)} bytes")
    array = tensors.restore("$array", name, (), (), memoryview(bytearray(data)))
    if type(array) is not np.ndarray:
        raise CodecError(f"$scalar of dtype {name} needs the ml_dtypes package here")
    return array[()]


def _load_array(tag: str) -> Callable[[Unpacker, Any], Any]:
    def load(unpacker: Unpacker, payload: Any) -> Any:
        if type(payload) is not list or not 3 <= len(payload) <= 4:
            raise CodecError(f"{tag} wants [buffer, dtype, shape] or [buffer, dtype, shape, flags]")
        index, dtype, shape = payload[:3]
        flags = payload[3] if len(payload) == 4 else ()
        data = unpacker.take(index)
        _check_shape(tag, dtype, shape, flags, len(data))
        return tensors.restore(tag, dtype, shape, flags, data)

    return load


def _check_shape(tag: str, dtype: Any, shape: Any, flags: Any, given: int) -> None:
    size = tensors.DTYPES.get(dtype) if type(dtype) is str else None
    if size is None:
        raise CodecError(f"{tag} of unknown dtype {dtype!r:.40}; known: {', '.join(tensors.DTYPES)}")
    if type(shape) is not list or len(shape) > tensors.MAX_RANK:
        raise CodecError(f"{tag} wants a shape of at most {tensors.MAX_RANK} dimensions, got {shape!r:.60}")
    wanted = size
    for length in shape:
        # bool is an int in Python, and a negative length may cancel another.
        if type(length) is not int or not 0 <= length < 2**63:
            raise CodecError(f"{tag} has a dimension {length!r:.40}; dimensions are ints from 0")
        wanted *= length
        if wanted > 2**63:
            raise CodecError(f"{tag} of shape {shape!r:.60} is larger than any memory")
    if wanted != given:
        raise CodecError(f"{tag} {dtype}{shape!r:.60} takes {wanted} bytes, {given} came")
    if flags:
        _check_flags(tag, flags, dtype, len(shape))


def _check_flags(tag: str, flags: Any, dtype: str, rank: int) -> None:
    known = type(flags) is list and all(flag in (tensors.GRAD, tensors.CHANNELS_LAST) for flag in flags)
    if not known or tag != "$tensor":
        raise CodecError(f"{tag} has flags {flags!r:.60}; a $tensor may have 'grad' and 'channels_last'")
    if tensors.CHANNELS_LAST in flags and rank not in (4, 5):
        raise CodecError(f"channels_last wants 4 or 5 dimensions, got {rank}")
    if tensors.GRAD in flags and not dtype.startswith(("float", "bfloat", "complex")):
        raise CodecError(f"a tensor of dtype {dtype} cannot require grad")


for _tag in ("$tensor", "$array"):
    _LOADERS[_tag] = _load_array(_tag)
add_family(np.generic, "$scalar", _pack_scalar, _load_scalar)
add_kind(bytearray, "$bytearray", _pack_bytearray, _load_bytearray, lambda _walk, value, _path: bytearray(value))
add_kind(complex, "$complex", lambda _p, value, _path: struct.pack("<dd", value.real, value.imag), _load_complex)
add_kind(decimal.Decimal, "$decimal", lambda _p, value, _path: str(value), _load_decimal)
add_kind(uuid.UUID, "$uuid", lambda _p, value, _path: value.bytes, _load_uuid)
add_kind(
    slice,
    "$slice",
    lambda packer, value, path: _pack_members(packer, (value.start, value.stop, value.step), path),
    _load_slice,
    lambda walk, value, path: slice(*_walk_members(walk, (value.start, value.stop, value.step), path)),
)
add_kind(
    range,
    "$range",
    lambda packer, value, path: _pack_members(packer, (value.start, value.stop, value.step), path),
    lambda _unpacker, payload: _hashing("$range", lambda: _range(payload)),
)
add_kind(type(Ellipsis), "$ellipsis", lambda _p, _value, _path: None, lambda _unpacker, _payload: Ellipsis)


def _range(payload: Any) -> range:
    try:
        return range(*_fields(payload, "$range", int, int, int))
    except ValueError as error:
        raise CodecError(f"$range: {error}") from None


def _load_size(_unpacker: Unpacker, payload: Any) -> tuple[int, ...]:
    lengths = tuple(_fields(payload, "$size", *[int] * len(_typed(payload, list, "$size"))))
    torch = sys.modules.get("torch")
    return lengths if torch is None else torch.Size(lengths)  # type: ignore[no-any-return]


class _AnySize(type):
    """`torch.Size` by name, so that torch need not be loaded to recognise it."""

    def __instancecheck__(cls, value: Any) -> bool:
        return (type(value).__module__, type(value).__name__) == ("torch", "Size")


class _Size(metaclass=_AnySize):
    pass


add_family(_Size, "$size", lambda _p, value, _path: list(value), _load_size)


# Dates: never msgpack's timestamp, which refuses naive times and turns offsets into UTC.


def _pack_zone(zone: dt.tzinfo | None, path: Path) -> Any:
    if zone is None:
        return None
    if type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
        return zone.key
    if type(zone) is dt.timezone:
        offset = zone.utcoffset(None) // dt.timedelta(microseconds=1)
        plain = dt.timezone(dt.timedelta(microseconds=offset))
        return offset if zone.tzname(None) == plain.tzname(None) else [offset, zone.tzname(None)]
    raise CodecError(f"{render(path)} has a tzinfo of type {type(zone).__name__}; use zoneinfo.ZoneInfo or datetime.timezone")


def _load_zone(packed: Any) -> dt.tzinfo | None:
    if packed is None:
        return None
    if type(packed) is str:
        return zoneinfo.ZoneInfo(packed)
    if type(packed) is int:
        return dt.timezone(dt.timedelta(microseconds=packed))
    offset, name = _fields(packed, "timezone", int, str)
    return dt.timezone(dt.timedelta(microseconds=offset), name)


def _calendar(tag: str, build: Callable[[Any], Any]) -> Callable[[Unpacker, Any], Any]:
    """A loader whose every failure, such as month 13 or an unknown zone, is a CodecError."""

    def load(_unpacker: Unpacker, payload: Any) -> Any:
        try:
            return build(payload)
        except (ValueError, TypeError, OverflowError, KeyError, OSError) as error:
            raise CodecError(f"{tag}: {error!s:.200}") from None

    return load


def _load_datetime(payload: Any) -> dt.datetime:
    *moment, fold, zone = _typed(payload, list, "$datetime")
    numbers = _fields(moment, "$datetime", *[int] * 7)
    return dt.datetime(*numbers, fold=_typed(fold, int, "$datetime"), tzinfo=_load_zone(zone))  # noqa: DTZ001 - as sent


def _load_time(payload: Any) -> dt.time:
    *moment, fold, zone = _typed(payload, list, "$time")
    numbers = _fields(moment, "$time", *[int] * 4)
    return dt.time(*numbers, fold=_typed(fold, int, "$time"), tzinfo=_load_zone(zone))


def _moment(value: dt.datetime | dt.time) -> list[Any]:
    return [value.hour, value.minute, value.second, value.microsecond, value.fold]


add_kind(
    dt.datetime,
    "$datetime",
    lambda _p, value, path: [
        value.year,
        value.month,
        value.day,
        *_moment(value),
        _pack_zone(value.tzinfo, path),
    ],
    _calendar("$datetime", _load_datetime),
)
add_kind(
    dt.time,
    "$time",
    lambda _p, value, path: [*_moment(value), _pack_zone(value.tzinfo, path)],
    _calendar("$time", _load_time),
)
add_kind(
    dt.date,
    "$date",
    lambda _p, value, _path: [value.year, value.month, value.day],
    _calendar("$date", lambda payload: dt.date(*_fields(payload, "$date", int, int, int))),
)
add_kind(
    dt.timedelta,
    "$timedelta",
    lambda _p, value, _path: [value.days, value.seconds, value.microseconds],
    _calendar("$timedelta", lambda payload: dt.timedelta(*_fields(payload, "$timedelta", int, int, int))),
)


# Registered classes.

T = TypeVar("T")
C = TypeVar("C", bound=type)


@attrs.frozen
class Registered:
    """A class that crosses by name: how to take it apart into fields and to build it again."""

    cls: type
    name: str
    to_fields: Callable[[Any], dict[str, Any]]
    from_fields: Callable[[dict[str, Any]], Any]


_REGISTERED: dict[str, Registered] = {}
_NAMES: dict[type, str] = {}


def registered(name: str) -> Registered | None:
    """What `register` knows under that name."""
    return _REGISTERED.get(name)


def registered_name(cls: type) -> str | None:
    """The name under which exactly this class is registered."""
    return _NAMES.get(cls)


@overload
def register(cls: C, /) -> C: ...
@overload
def register(
    cls: C,
    /,
    *,
    name: str | None = None,
    to_fields: Callable[[Any], dict[str, Any]] | None = None,
    from_fields: Callable[[dict[str, Any]], Any] | None = None,
) -> C: ...
@overload
def register(
    *,
    name: str | None = None,
    to_fields: Callable[[Any], dict[str, Any]] | None = None,
    from_fields: Callable[[dict[str, Any]], Any] | None = None,
) -> Callable[[C], C]: ...
def register(
    cls: type | None = None,
    /,
    *,
    name: str | None = None,
    to_fields: Callable[[Any], dict[str, Any]] | None = None,
    from_fields: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Let a class cross: an attrs class, dataclass, named tuple, enum or exception.

    Both sides register it under the same name (its qualified name unless given).
    Any other class needs `to_fields` (object to a dict of plain values) and
    `from_fields` (the reverse). An object is built by the class's own
    constructor, so that its validators hold for what a stranger sends.

    Raises
    ------
    TypeError
        A class whose fields cannot be told.
    ValueError
        The name belongs to another class.
    """
    if cls is None:
        return lambda later: register(later, name=name, to_fields=to_fields, from_fields=from_fields)
    name = name or cls.__qualname__
    held = _REGISTERED.get(name)
    if held is not None and (held.cls.__module__, held.cls.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{name!r} is registered for {held.cls!r}; give {cls!r} another name=")
    take, build = (to_fields, from_fields) if to_fields and from_fields else _parts(cls)
    entry = Registered(cls, name, take, build)
    _REGISTERED[name] = entry
    _NAMES[cls] = name
    if not issubclass(cls, BaseException):
        _KINDS[cls] = Kind(
            lambda packer, value, path: _pack_object(packer, entry, value, path),
            lambda walk, value, path: _walk_object(walk, entry, value, path),
        )
    return cls


def _parts(cls: type) -> tuple[Callable[[Any], dict[str, Any]], Callable[[dict[str, Any]], Any]]:
    if attrs.has(cls):
        fields = [(field.name, field.alias if field.init else None) for field in attrs.fields(cls)]
    elif dataclasses.is_dataclass(cls):
        fields = [(field.name, field.name if field.init else None) for field in dataclasses.fields(cls)]
    elif issubclass(cls, tuple) and hasattr(cls, "_fields"):
        fields = [(field, field) for field in cls._fields]
    elif issubclass(cls, enum.Enum):
        return lambda value: {"name": value.name}, lambda given: cls[given["name"]]
    elif issubclass(cls, BaseException):
        return vars, cls
    else:
        raise TypeError(
            f"cannot tell the fields of {cls!r}; register an attrs class, dataclass, named tuple, enum or exception, "
            "or give to_fields= and from_fields="
        )
    return lambda value: {field: getattr(value, field) for field, _ in fields}, lambda given: _build(cls, fields, given)


def _build(cls: type, fields: Sequence[tuple[str, str | None]], given: dict[str, Any]) -> Any:
    if given.keys() != {field for field, _ in fields}:
        raise TypeError(f"wanted the fields {[field for field, _ in fields]}, got {sorted(given)}")
    built = cls(**{alias: given[field] for field, alias in fields if alias is not None})
    for field, alias in fields:
        if alias is None:
            object.__setattr__(built, field, given[field])
    return built


def _pack_object(packer: Packer, entry: Registered, value: Any, path: Path) -> dict[str, list[Any]]:
    depth = packer.enter(path)
    fields = entry.to_fields(value)
    return {
        "$object": [
            entry.name,
            {field: packer.pack(item, (path, Field(field), depth)) for field, item in fields.items()},
        ]
    }


def _walk_object(walk: Walk, entry: Registered, value: Any, path: Path) -> Any:
    if isinstance(value, enum.Enum):
        return value
    depth = path[2] + 1
    fields = entry.to_fields(value)
    return entry.from_fields({field: walk(item, (path, Field(field), depth)) for field, item in fields.items()})


def _load_object(_unpacker: Unpacker, payload: Any) -> Any:
    name, fields = _fields(payload, "$object", str, dict)
    entry = _REGISTERED.get(name)
    if entry is None or issubclass(entry.cls, BaseException):
        raise CodecError(f"{name!r:.80} is not registered here; import the module that does maas.register(...)")
    try:
        return entry.from_fields(fields)
    except Exception as error:  # noqa: BLE001 - the class's own constructor, on a stranger's data
        raise CodecError(f"$object {name!r:.80}: {error!s:.300}") from error


_LOADERS["$object"] = _load_object


def rebuild(value: Any, path: Path, array: Callable[[Any, Path], Any], limits: Limits) -> Any:
    """A copy of `value` with its own containers, `array` applied to every array in it.

    Raises
    ------
    CodecError
        The same error, at the same path, as sending the value would raise.
    """

    def walk(value: Any, path: Path) -> Any:
        kind = _KINDS.get(type(value))
        if kind is None:
            if tensors.adapter_for(type(value)) is not None:
                return array(value, path)
            if type(value) is RawTensor or _family(value) is not None:
                return value
            raise _refuse(value, path)
        if kind.rebuild is None:
            return value
        if path[2] >= limits.depth:
            raise LimitExceeded(
                f"{_shorten(render(path))} is nested deeper than {limits.depth} levels; does it contain itself?"
            )
        return kind.rebuild(walk, value, path)

    return walk(value, path)
