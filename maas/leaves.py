"""What may cross and holds no other value: numbers, text, arrays.

Each type's row tells how it is packed, and how a stranger's payload becomes the
value again. A loader may raise anything: `Unpacker` makes a `CodecError` of it.
"""

import decimal
import functools
import struct
import uuid
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import msgpack
import numpy as np

from maas import tensors
from maas.errors import CodecError, LimitExceeded
from maas.kinds import (
    Kind,
    Packer,
    Path,
    Rebuilder,
    Unpacker,
    add_family,
    add_finder,
    add_kind,
    add_loader,
    add_row,
    brief,
    render,
)
from maas.tensors import Described, RawTensor

__all__ = ["OUT_OF_LINE", "fields", "lone_array", "plain_keys", "typed"]

OUT_OF_LINE = 4_096
"""Strings longer than this travel as buffers: the header stays small and bytes are not copied."""


def typed(payload: Any, kind: type, tag: str) -> Any:
    """The payload, which must have exactly this type."""
    if type(payload) is not kind:
        raise CodecError(f"{tag} wants a {kind.__name__}, got {brief(payload)}")
    return payload


def fields(payload: Any, tag: str, *kinds: type) -> list[Any]:
    """The payload as a list whose items have exactly these types."""
    if type(payload) is not list or [type(item) for item in payload] != list(kinds):
        raise CodecError(
            f"{tag} wants [{', '.join(kind.__name__ for kind in kinds)}], got {brief(payload)}"
        )
    return payload


def plain_keys(value: Mapping[Any, Any]) -> bool:
    """Whether these keys can be a plain map's: strings, short, and no tags."""
    return all(type(key) is str and key[:1] != "$" and len(key) <= OUT_OF_LINE for key in value)


def _sized(payload: Any, tag: str, size: int) -> bytes:
    data: bytes = typed(payload, bytes, tag)
    if len(data) != size:
        raise CodecError(f"{tag} wants {size} bytes, got {len(data)}")
    return data


# What msgpack has a form for.


def _same(_packer: Packer, value: Any, _path: Path) -> Any:
    return value


def _pack_int(_packer: Packer, value: int, path: Path) -> Any:
    if -(2**63) <= value < 2**64:
        return value
    length = value.bit_length() // 8 + 1
    if length > OUT_OF_LINE:
        raise LimitExceeded(
            f"{render(path)} is an int of {length} bytes; at most {OUT_OF_LINE} cross"
        )
    return {"$int": value.to_bytes(length, "big", signed=True)}


def _load_int(_unpacker: Unpacker, payload: Any) -> int:
    data = typed(payload, bytes, "$int")
    if len(data) > OUT_OF_LINE:
        raise LimitExceeded(f"$int of {len(data)} bytes; at most {OUT_OF_LINE} cross")
    value = int.from_bytes(data, "big", signed=True)
    if -(2**63) <= value < 2**64:
        raise CodecError("$int holds a value that a plain int holds")
    return value


def _pack_str(packer: Packer, value: str, path: Path) -> Any:
    if len(value) <= OUT_OF_LINE:
        return value
    _charge_text(packer, len(value), render(path))
    return {"$str": packer.aside(value.encode("utf-8", "surrogatepass"), path)}


def _load_str(unpacker: Unpacker, payload: Any) -> str:
    data = unpacker.take(payload)
    _charge_text(unpacker, len(data), "$str")
    return str(data, "utf-8", "surrogatepass")


def _charge_text(walk: Packer | Unpacker, length: int, where: str) -> None:
    # One character beyond the basic plane makes every other take four bytes in memory too.
    walk.text += 4 * length
    if walk.text > walk.limits.memory:
        raise LimitExceeded(
            f"{where} brings long text to {walk.text // 4} characters; "
            f"Limits(memory={walk.limits.memory}) allow a quarter of that number; send bytes"
        )


def _pack_bytes(packer: Packer, value: bytes, path: Path) -> Any:
    return value if len(value) <= OUT_OF_LINE else {"$bytes": packer.aside(value, path)}


for _plain in (type(None), bool, float):
    add_row(_plain, Kind(_same))
add_row(int, Kind(_pack_int))
add_row(str, Kind(_pack_str))
add_row(bytes, Kind(_pack_bytes))
add_loader("$int", _load_int)
add_loader("$str", _load_str)
add_loader("$bytes", lambda unpacker, payload: bytes(unpacker.take(payload)))


# Other scalars.


def _pack_bytearray(packer: Packer, value: bytearray, path: Path) -> Any:
    # Copied, because its owner may resize it before it is sent.
    return bytes(value) if len(value) <= OUT_OF_LINE else packer.aside(bytes(value), path)


def _load_bytearray(unpacker: Unpacker, payload: Any) -> bytearray:
    if type(payload) is int:
        return bytearray(unpacker.take(payload))
    return bytearray(typed(payload, bytes, "$bytearray"))


def _pack_decimal(packer: Packer, value: decimal.Decimal, path: Path) -> Any:
    return _pack_str(packer, str(value), path)


add_kind(
    bytearray,
    "$bytearray",
    _pack_bytearray,
    _load_bytearray,
    lambda _walk, value, _path: bytearray(value),
)
add_kind(
    complex,
    "$complex",
    lambda _packer, value, _path: struct.pack("<dd", value.real, value.imag),
    lambda _unpacker, payload: complex(*struct.unpack("<dd", _sized(payload, "$complex", 16))),
)
add_kind(
    decimal.Decimal,
    "$decimal",
    _pack_decimal,
    lambda _unpacker, payload: decimal.Decimal(typed(payload, str, "$decimal")),
)
add_kind(
    uuid.UUID,
    "$uuid",
    lambda _packer, value, _path: value.bytes,
    lambda _unpacker, payload: uuid.UUID(bytes=_sized(payload, "$uuid", 16)),
)
add_kind(
    type(Ellipsis),
    "$ellipsis",
    lambda _packer, _value, _path: None,
    lambda _unpacker, _payload: Ellipsis,
)


# Arrays.


def _describe(adapter: ModuleType, value: Any, path: Path) -> Described:
    try:
        described: Described = adapter.describe(value)
    except CodecError as error:
        raise CodecError(f"{render(path)}: {error}") from None
    return described


def _pack_array(adapter: ModuleType, packer: Packer, value: Any, path: Path) -> Any:
    described = _describe(adapter, value, path)
    if len(described.shape) > tensors.MAX_RANK or _extent(described.shape) > _MAX_EXTENT:
        raise CodecError(
            f"{render(path)}: a shape of {len(described.shape)} dimensions that NumPy cannot have"
        )
    # Charged by its logical size first: a tensor expanded from 4 bytes may stand for gigabytes.
    index = packer.reserve(described.nbytes, path)
    packer.buffers.append(adapter.contents(value, described.flags))
    return _array_tree(index, described)


def _pack_raw(packer: Packer, value: RawTensor, path: Path) -> Any:
    return _array_tree(
        packer.aside(value.data, path), Described("$tensor", value.dtype, value.shape)
    )


@functools.lru_cache(1024)
def lone_array(tag: str, dtype: str, shape: tuple[int, ...]) -> bytes | None:
    """The packed tree of an array that is its message's only buffer; None for what cannot cross."""
    if len(shape) > tensors.MAX_RANK or _extent(shape) > _MAX_EXTENT:
        return None
    packed: bytes = msgpack.packb(_array_tree(0, Described(tag, dtype, shape)))
    return packed


def _array_tree(index: int, described: Described) -> dict[str, list[Any]]:
    tree = [index, described.dtype, list(described.shape)]
    if described.flags:
        tree.append(list(described.flags))
    return {described.tag: tree}


def _rebuild_array(adapter: ModuleType, rebuilder: Rebuilder, value: Any, path: Path) -> Any:
    if not adapter.crosses(value):
        _describe(adapter, value, path)
    return rebuilder.array(value, path)


def _find_array(cls: type) -> Kind | None:
    adapter = tensors.adapter_for(cls)
    if adapter is None:
        return None
    return Kind(functools.partial(_pack_array, adapter), functools.partial(_rebuild_array, adapter))


def _load_array(tag: str) -> Callable[[Unpacker, Any], Any]:
    def load(unpacker: Unpacker, payload: Any) -> Any:
        if type(payload) is not list or not 3 <= len(payload) <= 4:
            raise CodecError(f"{tag} wants [buffer, dtype, shape] or [buffer, dtype, shape, flags]")
        index, dtype, shape = payload[:3]
        flags = payload[3] if len(payload) == 4 else ()
        data = unpacker.take(index)
        _check_shape(tag, dtype, shape, len(data))
        if flags == ():
            return tensors.restore(tag, dtype, shape, flags, data)
        _check_flags(tag, flags, dtype, len(shape))
        restored = tensors.restore(tag, dtype, shape, flags, data)
        if tensors.GRAD in flags:
            unpacker.leaves.append(restored)
        return restored

    return load


_MAX_EXTENT = 2**59
"""Elements that the dimensions other than zero may make: 16 bytes each still fit 63 bits."""


def _extent(shape: Any) -> int:
    extent = 1
    for length in shape:
        extent *= length or 1
    return extent


def _check_shape(tag: str, dtype: Any, shape: Any, given: int) -> None:
    size = tensors.DTYPES.get(dtype) if type(dtype) is str else None
    if size is None:
        raise CodecError(
            f"{tag} of unknown dtype {brief(dtype)}; known: {', '.join(tensors.DTYPES)}"
        )
    if type(shape) is not list or len(shape) > tensors.MAX_RANK:
        raise CodecError(
            f"{tag} wants a shape of at most {tensors.MAX_RANK} dimensions, got {brief(shape)}"
        )
    wanted, extent = size, 1
    for length in shape:
        # bool is an int in Python, and a negative length may cancel another.
        if type(length) is not int or length < 0:
            raise CodecError(f"{tag} has a dimension {brief(length)}; dimensions are ints from 0")
        wanted *= length
        extent *= length or 1
        # Told at once: the product of 64 big ones is an int of its own weight. Zero hides nothing.
        if extent > _MAX_EXTENT:
            raise CodecError(f"{tag} has a shape larger than any memory")
    if wanted != given:
        raise CodecError(f"{tag} {dtype}{shape} takes {wanted} bytes, {given} came")


def _check_flags(tag: str, flags: Any, dtype: str, rank: int) -> None:
    if tag != "$tensor" or flags not in _FLAGS:
        raise CodecError(
            f"{tag} has unknown flags; a $tensor may have {', '.join(map(str, _FLAGS))}"
        )
    if tensors.CHANNELS_LAST in flags and rank not in (4, 5):
        raise CodecError(f"channels_last wants 4 or 5 dimensions, got {rank}")
    if tensors.GRAD in flags and not dtype.startswith(("float", "bfloat", "complex")):
        raise CodecError(f"a tensor of dtype {dtype} cannot require grad")


_FLAGS = (
    [tensors.GRAD],
    [tensors.CHANNELS_LAST],
    [tensors.GRAD, tensors.CHANNELS_LAST],
)


def _pack_scalar(_packer: Packer, value: np.generic, path: Path) -> list[Any]:
    name = tensors.dtype_name(np.asarray(value))
    if name not in tensors.DTYPES:
        raise CodecError(
            f"{render(path)} is a NumPy scalar of dtype {value.dtype}, which cannot cross; "
            "call .item()"
        )
    return [name, value.tobytes()]


def _load_scalar(_unpacker: Unpacker, payload: Any) -> Any:
    name, data = fields(payload, "$scalar", str, bytes)
    if tensors.DTYPES.get(name) != len(data):
        raise CodecError(f"$scalar {brief(name)} does not fit {len(data)} bytes")
    array = tensors.restore("$array", name, (), (), memoryview(bytearray(data)))
    if type(array) is not np.ndarray:
        raise CodecError(f"$scalar of dtype {name} needs the ml_dtypes package here")
    return array[()]


def _find_size(cls: type) -> Kind | None:
    # By its name: torch need not be loaded to tell that something else is no torch.Size.
    named = cls.__name__ == "Size" and cls.__module__ == "torch"
    return Kind(lambda _packer, value, _path: {"$size": list(value)}) if named else None


def _load_size(_unpacker: Unpacker, payload: Any) -> tuple[int, ...]:
    lengths = fields(payload, "$size", *[int] * len(typed(payload, list, "$size")))
    # torch.Size takes longer ints, and fails when it is shown.
    if any(not -(2**63) <= length < 2**63 for length in lengths):
        raise CodecError("$size wants ints of 64 bits")
    torch = tensors.adapter("torch")
    return tuple(lengths) if torch is None else torch.SIZE(lengths)


for _tag in ("$tensor", "$array", "$tf"):
    add_loader(_tag, _load_array(_tag))
add_row(RawTensor, Kind(_pack_raw))
add_finder(_find_array)
add_finder(_find_size)
add_family(np.generic, "$scalar", _pack_scalar, _load_scalar)
add_loader("$size", _load_size)
