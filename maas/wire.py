"""Messages to bytes and back: msgpack all the way down, no socket, no pickle.

A message is a *stream of msgpack objects*, so that any msgpack library reads it:

    "maas" version kind header-length message-length   21 bytes, fixed
    header                                             structure, scalars, tensor descriptors
    nil* bin   nil* bin   ...                          one bin a buffer, padded to 64 bytes

Tensors never pass through the packer: encoding gives the header and views of
the tensors' own memory, decoding gives tensors over the received bytes. What
a stranger may make us allocate is charged against `Limits` before anything is built:
msgpack's own guards compare lengths with the input's size, and a 20 MB array of
empty maps passes them on its way to 1,383 MB.

The whole format, for an implementer in another language: docs/reference/wire-format.md.
"""

import enum
import math
import struct
import time
from collections.abc import Sequence
from typing import Any

import attrs
import msgpack

from maas import failures
from maas.calls import AMBIENT, Autocast, Call, Context, Info, Result
from maas.errors import CodecError, LimitExceeded
from maas.http import Buffer
from maas.limits import Limits
from maas.values import Packer, Path, Unpacker

__all__ = [
    "PREFIX",
    "VERSION",
    "Description",
    "End",
    "Failure",
    "Item",
    "Kind",
    "Message",
    "Prefix",
    "charge",
    "decode",
    "encode",
    "encode_call",
    "read_prefix",
]

VERSION = 1
ALIGNMENT = 64
BIN_MAX = 2**32 - ALIGNMENT
"""A longer buffer is split: a bin of exactly this length goes on in the next one."""

_PREFIX = struct.Struct(">5sBBBIBQ")
_MAGIC = b"\xa4maas"
PREFIX = _PREFIX.size


class Kind(enum.IntEnum):
    """What a message is."""

    CALL = 1
    RESULT = 2
    FAILURE = 3
    ITEM = 4
    END = 5
    DESCRIPTION = 6


@attrs.frozen
class Failure:
    """A call that raised; `rng` as in `Result`."""

    error: Exception
    rng: bytes | None = None


@attrs.frozen
class Item:
    """One item of a stream."""

    value: Any


@attrs.frozen
class End:
    """The explicit end of a stream: without it, the stream was cut."""

    info: Info = Info()
    rng: bytes | None = None


@attrs.frozen
class Description:
    """What a server says about itself and its models, as plain data."""

    data: dict[str, Any]


Message = Result | Failure | Item | End | Description

_ARGS: Path = (None, "args", 1)
_KWARGS: Path = (None, "kwargs", 1)
_RESULT: Path = (None, "result", 1)
_ITEM: Path = (None, "item", 1)
_ERROR: Path = (None, "error", 1)
_DESCRIPTION: Path = (None, "description", 1)


# Encoding.


def encode_call(call: Call, limits: Limits) -> list[Buffer]:
    """The buffers of a call, to be sent one after the other.

    Model and method are not in it: they are the address it is sent to.

    Raises
    ------
    CodecError
        An argument that cannot cross; the message names its path.
    LimitExceeded
        More than `limits` allow, noticed before it is copied.
    """
    packer = Packer(limits)
    for name in call.kwargs:
        if name[:1] == "$":
            raise CodecError(f"an argument is called {name!r}; names that begin with '$' belong to the wire")
    header = [
        [packer.pack(value, (_ARGS, index, 2)) for index, value in enumerate(call.args)],
        {name: packer.pack(value, (_KWARGS, name, 2)) for name, value in call.kwargs.items()},
        _context_data(call.context),
    ]
    return _assemble(Kind.CALL, header, packer)


def encode(message: Message, limits: Limits) -> list[Buffer]:
    """The buffers of an answer, to be sent one after the other; raises as `encode_call` does."""
    packer = Packer(limits)
    if isinstance(message, Result):
        header = [packer.pack(message.value, _RESULT), _info_data(message.info), message.rng]
        return _assemble(Kind.RESULT, header, packer)
    if isinstance(message, Failure):
        header = [failures.pack(packer, failures.to_data(message.error), _ERROR), message.rng]
        return _assemble(Kind.FAILURE, header, packer)
    if isinstance(message, Item):
        return _assemble(Kind.ITEM, [packer.pack(message.value, _ITEM)], packer)
    if isinstance(message, End):
        return _assemble(Kind.END, [_info_data(message.info), message.rng], packer)
    return _assemble(Kind.DESCRIPTION, [packer.pack(message.data, _DESCRIPTION)], packer)


def _assemble(kind: Kind, header: list[Any], packer: Packer) -> list[Buffer]:
    limits = packer.limits
    if packer.nodes > limits.nodes:
        raise LimitExceeded(f"{packer.nodes} values; Limits(nodes={limits.nodes}) allow no more; send numbers as an array")
    packed: bytes = msgpack.packb(header, strict_types=True, unicode_errors="surrogatepass")
    if len(packed) > limits.header:
        raise LimitExceeded(
            f"everything but tensors takes {len(packed)} bytes; Limits(header={limits.header}) allow no more"
        )
    parts: list[Buffer] = [packed]
    position = PREFIX + len(packed)
    for buffer in packer.buffers:
        for chunk in _chunks(buffer):
            padding = -(position + 5) % ALIGNMENT
            parts.append(b"\xc0" * padding + b"\xc6" + len(chunk).to_bytes(4, "big"))
            parts.append(chunk)
            position += padding + 5 + len(chunk)
    if position > limits.body:
        raise LimitExceeded(f"a message of {position} bytes; Limits(body={limits.body}) allow no more")
    prefix = _PREFIX.pack(_MAGIC, VERSION, kind, 0xCE, len(packed), 0xCF, position)
    parts[:2] = [b"".join((prefix, *parts[:2]))]
    return parts


def _chunks(buffer: Buffer) -> Sequence[Buffer]:
    if len(buffer) < BIN_MAX:
        return (buffer,)
    view = memoryview(buffer)
    return [view[start : start + BIN_MAX] for start in range(0, len(view) + 1, BIN_MAX)]


def _context_data(context: Context) -> dict[str, Any]:
    if context is AMBIENT:
        return {}
    data = {
        field: value
        for field in ("grad", "training", "seed", "rng", "key", "priority", "trace")
        if (value := getattr(context, field)) != getattr(AMBIENT, field)
    }
    if context.autocast:
        data["autocast"] = [[state.device, state.dtype, state.enabled] for state in context.autocast]
    if context.deadline is not None:
        data["deadline"] = context.deadline - time.monotonic()
    return data


def _info_data(info: Info) -> list[Any]:
    return [info.where, info.device, info.batch_size, info.queue_seconds, info.compute_seconds]


# Decoding.


@attrs.frozen
class Prefix:
    """The fixed start of a message: enough to receive and to refuse the rest."""

    kind: Kind
    header: int
    total: int


def read_prefix(data: Buffer, limits: Limits) -> Prefix:
    """The prefix that the first `PREFIX` bytes of `data` hold.

    Raises
    ------
    CodecError
        No message of this version begins here, or one longer than `limits` allow.
    """
    if len(data) < PREFIX:
        raise CodecError(f"a message begins with {PREFIX} bytes, got {len(data)}")
    magic, version, kind, mark, header, long_mark, total = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise CodecError("not a maas message: it does not begin with the string 'maas'")
    if version != VERSION:
        raise CodecError(f"a message of version {version}; this side speaks {VERSION}")
    if mark != 0xCE or long_mark != 0xCF or not Kind.CALL <= kind <= Kind.DESCRIPTION:
        raise CodecError("a broken prefix: after 'maas' come version, kind, header length (uint32), total (uint64)")
    if header > limits.header:
        raise LimitExceeded(f"a header of {header} bytes; Limits(header={limits.header}) allow no more")
    if total > limits.body:
        raise LimitExceeded(f"a message of {total} bytes; Limits(body={limits.body}) allow no more")
    if PREFIX + header > total:
        raise CodecError(f"a header of {header} bytes does not fit a message of {total}")
    return Prefix(Kind(kind), header, total)


def decode(data: Buffer, limits: Limits, *, model: str = "", method: str = "") -> Call | Message:
    """The message that `data` holds, whole; a call is given the address it came to.

    Arrays in it are writable and lie over `data` where that is writable, else over a copy.

    Raises
    ------
    CodecError
        Anything but one whole, well-formed message.
    LimitExceeded
        More than `limits` allow, noticed before it is built.
    """
    prefix = read_prefix(data, limits)
    if prefix.total != len(data):
        raise CodecError(f"the message says {prefix.total} bytes, {len(data)} came")
    view = memoryview(data)
    if view.readonly and prefix.total > PREFIX + prefix.header:
        view = memoryview(bytearray(view))
    header = bytes(view[PREFIX : PREFIX + prefix.header])
    charge(header, limits)
    unpacker = Unpacker(_buffers(view, PREFIX + prefix.header, limits))
    fields = _unpack(header, unpacker)
    if not all(unpacker.taken):
        raise CodecError("a buffer came that nothing refers to")
    return _read(prefix.kind, fields, model, method)


def _unpack(header: bytes, unpacker: Unpacker) -> list[Any]:
    size = len(header)
    try:
        fields = msgpack.unpackb(
            header,
            object_pairs_hook=unpacker.pairs,
            strict_map_key=True,
            unicode_errors="surrogatepass",
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=size,
            # The format has no ext types, msgpack's timestamp included.
            max_ext_len=0,
        )
    except CodecError:
        raise
    except Exception as error:  # noqa: BLE001 - msgpack raises a dozen kinds, RecursionError among them
        raise CodecError(f"the header is not msgpack: {type(error).__name__}: {error!s:.200}") from None
    if type(fields) is not list:
        raise CodecError("the header is not an array")
    return fields


def _buffers(view: memoryview, position: int, limits: Limits) -> list[memoryview]:
    found: list[memoryview] = []
    pieces: list[memoryview] = []
    while position < len(view):
        start = position
        while position < len(view) and view[position] == 0xC0:
            position += 1
        if position - start >= ALIGNMENT:
            raise CodecError(f"{position - start} nil bytes before a buffer; at most {ALIGNMENT - 1} pad it")
        length, position = _bin_length(view, position)
        if length > len(view) - position:
            raise CodecError(f"a buffer of {length} bytes, {len(view) - position} are left")
        pieces.append(view[position : position + length])
        position += length
        if length != BIN_MAX:
            found.append(pieces[0] if len(pieces) == 1 else memoryview(bytearray().join(pieces)))
            pieces = []
            if len(found) > limits.tensors:
                raise LimitExceeded(f"more than Limits(tensors={limits.tensors}) buffers")
    if pieces:
        raise CodecError("a split buffer misses its last part")
    return found


def _bin_length(view: memoryview, position: int) -> tuple[int, int]:
    width = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(view[position]) if position < len(view) else None
    if width is None or position + 1 + width > len(view):
        raise CodecError("after the header come bins, each after at most 63 nil bytes, and nothing else")
    body = position + 1 + width
    return int.from_bytes(view[position + 1 : body], "big"), body


def _read(kind: Kind, fields: list[Any], model: str, method: str) -> Call | Message:
    wanted = _SHAPES[kind]
    if len(fields) != len(wanted) or not all(isinstance(field, type_) for field, type_ in zip(fields, wanted, strict=True)):
        raise CodecError(f"the header of a {kind.name.lower()} message has the wrong fields")
    if kind is Kind.CALL:
        args, kwargs, context = fields
        return Call(model, method, tuple(args), kwargs, _read_context(context), owned=True)
    if kind is Kind.RESULT:
        return Result(fields[0], _read_info(fields[1]), fields[2])
    if kind is Kind.FAILURE:
        return Failure(failures.from_data(fields[0]), fields[1])
    if kind is Kind.ITEM:
        return Item(fields[0])
    if kind is Kind.END:
        return End(_read_info(fields[0]), fields[1])
    return Description(fields[0])


_OPTIONAL_BYTES = (bytes, type(None))
_SHAPES: dict[Kind, tuple[Any, ...]] = {
    Kind.CALL: (list, dict, dict),
    Kind.RESULT: (object, list, _OPTIONAL_BYTES),
    Kind.FAILURE: (dict, _OPTIONAL_BYTES),
    Kind.ITEM: (object,),
    Kind.END: (list, _OPTIONAL_BYTES),
    Kind.DESCRIPTION: (dict,),
}
_CONTEXT: dict[str, tuple[type, ...]] = {
    "grad": (bool,),
    "training": (bool,),
    "seed": (int,),
    "rng": (bytes,),
    "key": (str,),
    "priority": (int,),
    "trace": (str,),
    "autocast": (list,),
    "deadline": (float, int),
}
_MAX_KEY = 256


def _read_context(data: dict[str, Any]) -> Context:
    if not data:
        return AMBIENT
    for name, value in data.items():
        if type(value) not in _CONTEXT.get(name, ()):
            raise CodecError(f"the context holds {name!r:.40} = {value!r:.40}; known are {', '.join(_CONTEXT)}")
        if type(value) is str and len(value) > _MAX_KEY:
            raise CodecError(f"{name} of {len(value)} characters; at most {_MAX_KEY}")
    fields = dict(data)
    if "autocast" in fields:
        fields["autocast"] = tuple(_read_autocast(state) for state in fields["autocast"])
    if "deadline" in fields:
        if not math.isfinite(fields["deadline"]):
            raise CodecError("a deadline is a finite number of seconds")
        fields["deadline"] = time.monotonic() + fields["deadline"]
    return Context(**fields)


def _read_autocast(state: Any) -> Autocast:
    if type(state) is not list or [type(part) for part in state] != [str, str, bool]:
        raise CodecError(f"an autocast state is [device, dtype, enabled], got {state!r:.60}")
    return Autocast(*state)


def _read_info(fields: list[Any]) -> Info:
    where, device, batch_size, queue_seconds, compute_seconds = fields if len(fields) == 5 else [None] * 5
    good = type(where) is str and isinstance(device, str | None) and type(batch_size) is int
    if not (good and type(queue_seconds) is float and type(compute_seconds) is float):
        raise CodecError("info is [where, device, batch size, queue seconds, compute seconds]")
    return Info(
        where=where,
        device=device,
        batch_size=batch_size,
        queue_seconds=queue_seconds,
        compute_seconds=compute_seconds,
    )


# Charging: what the header will take once decoded, told before it is.

_CONTAINERS = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
_CHEAP = 2**20
_LIST, _SLOT = 128, 16
_MAP, _ENTRY = 256, 176
_SCALAR, _TEXT = 32, 80


def charge(header: bytes, limits: Limits) -> None:
    """Refuse a header that would take more than `limits` allow, before anything is built.

    Most headers are proved small without being read: their length bounds their
    nodes, and the bytes in them that could open a container bound containers, hence
    depth and claimed slots. That costs 0.4 microseconds; the scan 0.1 a node.
    """
    size = len(header)
    containers = size - len(header.translate(None, _CONTAINERS))
    # Each container may lie about its length up to the whole header's, which is what msgpack is told to allow.
    bound = containers * (_MAP + _SLOT * size) + size * _TEXT
    if bound <= min(_CHEAP, limits.memory) and size <= limits.nodes and containers <= limits.depth:
        return
    _scan(header, limits)


def _scan(header: bytes, limits: Limits) -> None:
    position, size, nodes, memory = 0, len(header), 0, 0
    # Values still due at each open level; the header itself is one.
    due = [1]
    while due:
        if due[-1] == 0:
            due.pop()
            continue
        due[-1] -= 1
        if position >= size:
            raise CodecError("the header ends inside a value")
        step, members, cost = _node(header, position)
        position += step
        nodes += 1
        memory += cost
        if position > size or members > size - position:
            raise CodecError("the header claims more than it holds")
        if nodes > limits.nodes:
            raise LimitExceeded(f"more than Limits(nodes={limits.nodes}) values in one header")
        if memory > limits.memory:
            raise LimitExceeded(f"the header decodes to more than Limits(memory={limits.memory}) bytes")
        if members:
            due.append(members)
            if len(due) > limits.depth + 1:
                raise LimitExceeded(f"nested deeper than Limits(depth={limits.depth})")
    if position != size:
        raise CodecError(f"{size - position} bytes follow the header's only value")


_FIXED = {0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}
_FIXED |= {0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
_SIZED = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}


def _node(header: bytes, position: int) -> tuple[int, int, int]:
    """Length in bytes without members, number of members, and cost of the value at `position`."""
    first = header[position]
    if first < 0x80 or first >= 0xE0:
        return 1, 0, _SCALAR
    if first in _FIXED:
        return _FIXED[first], 0, _SCALAR
    if 0xA0 <= first <= 0xBF:
        length = first & 0x1F
        return 1 + length, 0, _TEXT + 4 * length
    if first in _SIZED:
        width = _SIZED[first]
        length = int.from_bytes(header[position + 1 : position + 1 + width], "big")
        # One character beyond the basic plane makes every other take four bytes too.
        return 1 + width + length, 0, _TEXT + 4 * length
    if first <= 0x8F or first in _MAPS:
        width = _MAPS.get(first, 0)
        entries = int.from_bytes(header[position + 1 : position + 1 + width], "big") if width else first & 0x0F
        return 1 + width, 2 * entries, _MAP + _ENTRY * entries
    if first <= 0x9F or first in _ARRAYS:
        width = _ARRAYS.get(first, 0)
        members = int.from_bytes(header[position + 1 : position + 1 + width], "big") if width else first & 0x0F
        return 1 + width, members, _LIST + _SLOT * members
    raise CodecError(f"the header holds the byte 0x{first:02x} where a value begins; ext types are not used")
