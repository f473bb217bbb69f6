"""The protocol's datatypes, and how strings lie in binary data.

Numbers are little-endian and in C order; a BOOL takes a byte. BYTES, the protocol's strings, are
each preceded by their length in four bytes, little-endian. BF16 is Triton's addition.
"""

import struct
from collections.abc import Iterable

from maas.errors import CodecError, LimitExceeded
from maas.limits import Limits
from maas.schema import Schema

__all__ = ["BYTES", "DATATYPES", "DTYPES", "join_strings", "split_strings", "tensor_of"]

BYTES = "BYTES"

DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64", "BF16": "bfloat16",
}  # fmt: skip
"""Our dtype for each datatype but BYTES."""

DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}
"""The datatype for each dtype that has one."""

_LEAVES = {
    "bool": "BOOL",
    "int": "INT64",
    **dict.fromkeys(("float", "timedelta"), "FP64"),
    **dict.fromkeys(("str", "bytes", "bytearray"), BYTES),
    **dict.fromkeys(("datetime", "date", "time", "Decimal", "UUID"), BYTES),
}
_LISTS = frozenset({"list", "set", "frozenset", "tuple..."})


def tensor_of(schema: Schema) -> tuple[str, tuple[int, ...]] | None:
    """The datatype and shape by which a type is spoken of, -1 for any length; None for no tensor.

    What nobody declared is taken to be floats along one dimension.
    """
    if schema.kind == "tensor" and schema.spec is not None:
        datatype = DATATYPES.get(schema.spec.dtype)
        lengths = (each if type(each) is int else -1 for each in schema.spec.shape)
        return None if datatype is None else (datatype, tuple(lengths))
    if schema.kind in ("tensor", "any"):
        return "FP32", (-1,)
    if schema.kind in _LEAVES:
        return _LEAVES[schema.kind], (1,)
    if schema.kind == "literal":
        return tensor_of(Schema(type(schema.literals[0]).__name__.replace("NoneType", "None")))
    if schema.kind == "union":
        return next(filter(None, map(tensor_of, schema.items)), None)
    return _list_of(schema)


def _list_of(schema: Schema) -> tuple[str, tuple[int, ...]] | None:
    if schema.kind in _LISTS:
        length, item = -1, schema.items[0]
    elif schema.kind == "tuple" and len(set(schema.items)) == 1:
        length, item = len(schema.items), schema.items[0]
    else:
        return None
    inside = None if item.kind == "tensor" else tensor_of(item)
    if inside is None:
        return None
    nested = inside[1] if item.kind in _LISTS or item.kind == "tuple" else ()
    return inside[0], (length, *nested)


_LENGTH = struct.Struct("<I")


def split_strings(data: memoryview, count: int, label: str, limits: Limits) -> list[bytes]:
    """The `count` strings that are all of `data`.

    Raises
    ------
    CodecError
        More or fewer strings, or one that does not end within the data.
    LimitExceeded
        More than `limits.nodes`: each becomes an object of its own.
    """
    if count > limits.nodes:
        raise LimitExceeded(
            f"{label} holds {count} strings, more than Limits(nodes={limits.nodes})"
        )
    strings: list[bytes] = []
    position = 0
    while position < len(data) and len(strings) < count:
        start = position + _LENGTH.size
        length = _LENGTH.unpack_from(data, position)[0] if start <= len(data) else len(data)
        position = start + length
        if position > len(data):
            raise CodecError(f"{label} ends inside its string number {len(strings)}")
        strings.append(bytes(data[start:position]))
    if len(strings) != count or position != len(data):
        raise CodecError(
            f"{label} wants {count} strings, each after its length in four bytes; "
            f"{len(data)} bytes hold {'fewer' if len(strings) < count else 'more'}"
        )
    return strings


def join_strings(strings: Iterable[bytes]) -> bytes:
    """Strings as binary data."""
    return b"".join(part for each in strings for part in (_LENGTH.pack(len(each)), each))
