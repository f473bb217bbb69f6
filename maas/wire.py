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
import struct
from collections.abc import Sequence
from typing import Any

import msgpack

from maas import failures, tensors
from maas.buffers import Buffer
from maas.calls import AMBIENT, NO_GRAD, Call, Context, Info, Result
from maas.charging import charge
from maas.errors import CodecError, LimitExceeded
from maas.leaves import lone_array
from maas.limits import Limits
from maas.records import frozen
from maas.surroundings import context_data, info_data, read_context, read_info
from maas.values import Packer, Path, Unpacker, brief

__all__ = [
    "ALIGNMENT",
    "BIN_MAX",
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
    "unpack_header",
]

VERSION = 1
ALIGNMENT = 64
BIN_MAX = 2**32 - ALIGNMENT
"""A longer buffer is split: a bin of exactly this length goes on in the next one."""

_NILS = b"\xc0" * ALIGNMENT
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
    LEASED = 7


_KINDS = {kind.value: kind for kind in Kind}


@frozen
class Failure:
    """A call that raised; `rng` as in `Result`."""

    error: Exception
    rng: bytes | None = None


@frozen
class Item:
    """One item of a stream."""

    value: Any


@frozen
class End:
    """The explicit end of a stream: without it, the stream was cut."""

    info: Info = Info()
    rng: bytes | None = None


@frozen
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
    if len(call.args) == 1 and not call.kwargs:
        lone = _lone(call.args[0], limits)
        if lone is not None:
            packed = b"\x93\x91%b\x80%b" % (lone[0], _packed_context(call.context))
            return _framed(Kind.CALL, packed, lone[1:], limits)
    packer = Packer(limits)
    for name in call.kwargs:
        if name[:1] == "$":
            raise CodecError(
                f"an argument is called {brief(name)}; names that begin with '$' belong to the wire"
            )
    header = [
        [packer.tree(value, (_ARGS, index, 2)) for index, value in enumerate(call.args)],
        {name: packer.tree(value, (_KWARGS, name, 2)) for name, value in call.kwargs.items()},
        context_data(call.context),
    ]
    return _assemble(Kind.CALL, header, packer)


def encode(message: Message, limits: Limits) -> list[Buffer]:
    """The buffers of an answer, to be sent one after the other; raises as `encode_call` does.

    A failure that is too large to send goes with its class and message alone.
    """
    if isinstance(message, Result):
        return _encode_result(message, limits)
    packer = Packer(limits)
    if isinstance(message, Failure):
        return _encode_failure(message, packer)
    if isinstance(message, Item):
        return _assemble(Kind.ITEM, [packer.tree(message.value, _ITEM)], packer)
    if isinstance(message, End):
        return _assemble(Kind.END, [info_data(message.info), message.rng], packer)
    return _assemble(Kind.DESCRIPTION, [packer.tree(message.data, _DESCRIPTION)], packer)


def _encode_result(result: Result, limits: Limits) -> list[Buffer]:
    facts = info_data(result.info)
    lone = _lone(result.value, limits) if result.graph is None else None
    if lone is not None:
        packed = b"\x93%b%b%b" % (lone[0], _pack(facts), _pack(result.rng))
        return _framed(Kind.RESULT, packed, lone[1:], limits)
    packer = Packer(limits)
    header = [packer.tree(result.value, _RESULT), facts, result.rng]
    if result.graph is None:
        return _assemble(Kind.RESULT, header, packer)
    return _assemble(Kind.LEASED, [*header, result.graph], packer)


def _encode_failure(failure: Failure, packer: Packer) -> list[Buffer]:
    limits = packer.limits
    try:
        tree = failures.pack(packer, failures.to_data(failure.error), _ERROR)
        return _assemble(Kind.FAILURE, [tree, failure.rng], packer)
    except LimitExceeded:
        packer = Packer(limits)
        tree = failures.pack(packer, failures.bare(failure.error), _ERROR)
        return _assemble(Kind.FAILURE, [tree, failure.rng], packer)


def _lone(value: Any, limits: Limits) -> tuple[bytes, Buffer] | None:
    """The packed tree of a value that is one plain array, as nearly all are, and its contents.

    None for any other value, and for what must be refused: the long way says why.
    """
    adapter = tensors.CLAIMED.get(type(value))
    if adapter is None or not adapter.crosses(value):
        return None
    described = adapter.describe(value)
    if described.flags or described.nbytes > limits.body:
        return None
    tree = lone_array(described.tag, described.dtype, described.shape)
    return None if tree is None else (tree, adapter.contents(value, ()))


def _packed_context(context: Context) -> bytes:
    if context is AMBIENT:
        return b"\x80"
    return _PACKED_NO_GRAD if context is NO_GRAD else _pack(context_data(context))


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, strict_types=True, unicode_errors="surrogatepass")
    return packed


_PACKED_NO_GRAD = _pack(context_data(NO_GRAD))


def _assemble(kind: Kind, header: list[Any], packer: Packer) -> list[Buffer]:
    try:
        packed = _pack(header)
    except ValueError as error:  # msgpack's own depth, 511, where Limits allow more
        raise LimitExceeded(f"the message cannot be packed: {error}") from None
    return _framed(kind, packed, packer.buffers, packer.limits)


def _framed(kind: Kind, packed: bytes, buffers: Sequence[Buffer], limits: Limits) -> list[Buffer]:
    # Charged as the receiver will: what leaves under these limits arrives under them.
    charge(packed, limits)
    if len(packed) > limits.header:
        raise LimitExceeded(
            f"everything but tensors takes {len(packed)} bytes; "
            f"Limits(header={limits.header}) allow no more"
        )
    parts: list[Buffer] = [packed]
    position = PREFIX + len(packed)
    for buffer in buffers:
        for chunk in _chunks(buffer):
            padding = -(position + 5) % ALIGNMENT
            parts.append(_NILS[:padding] + b"\xc6" + len(chunk).to_bytes(4, "big"))
            parts.append(chunk)
            position += padding + 5 + len(chunk)
    if position > limits.body:
        raise LimitExceeded(
            f"a message of {position} bytes; Limits(body={limits.body}) allow no more"
        )
    prefix = _PREFIX.pack(_MAGIC, VERSION, kind, 0xCE, len(packed), 0xCF, position)
    parts[:2] = [b"".join((prefix, *parts[:2]))]
    return parts


def _chunks(buffer: Buffer) -> Sequence[Buffer]:
    if len(buffer) < BIN_MAX:
        return (buffer,)
    view = memoryview(buffer)
    return [view[start : start + BIN_MAX] for start in range(0, len(view) + 1, BIN_MAX)]


# Decoding.


@frozen
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
    known = _KINDS.get(kind)
    if known is None and Kind.LEASED < kind < 0x80:
        raise CodecError(
            f"a message of kind {kind}; this side knows 1 to {Kind.LEASED:d}, the other is newer"
        )
    if mark != 0xCE or long_mark != 0xCF or known is None:
        raise CodecError(
            "a broken prefix: after 'maas' come version, kind, "
            "header length (uint32) and total (uint64)"
        )
    if header > limits.header:
        raise LimitExceeded(
            f"a header of {header} bytes; Limits(header={limits.header}) allow no more"
        )
    if total > limits.body:
        raise LimitExceeded(f"a message of {total} bytes; Limits(body={limits.body}) allow no more")
    if PREFIX + header > total:
        raise CodecError(f"a header of {header} bytes does not fit a message of {total}")
    return Prefix(known, header, total)


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
    header = view[PREFIX : PREFIX + prefix.header]
    unpacker = Unpacker(_buffers(view, PREFIX + prefix.header, limits), limits)
    charge(header, limits)
    try:
        fields = unpack_header(header, unpacker)
        message = _read(prefix.kind, fields, tuple(unpacker.leaves), model, method)
    except CodecError:
        raise
    except Exception as error:  # noqa: BLE001 - msgpack raises a dozen kinds, RecursionError among them
        raise CodecError(f"the header is broken: {type(error).__name__}: {error!s:.200}") from None
    if not all(unpacker.taken):
        raise CodecError("a buffer came that nothing refers to")
    return message


def unpack_header(header: Buffer, unpacker: Unpacker) -> Any:
    """The values of a charged header, over the buffers that the unpacker holds."""
    size = len(header)
    return msgpack.unpackb(
        header,
        object_pairs_hook=unpacker.pairs,
        ext_hook=_refuse_ext,
        strict_map_key=True,
        unicode_errors="surrogatepass",
        max_str_len=size,
        max_bin_len=size,
        max_array_len=size,
        max_map_len=size,
        max_ext_len=0,
    )


def _refuse_ext(code: int, _data: bytes) -> None:
    # An empty one passes max_ext_len=0.
    raise CodecError(f"the header holds ext type {code}; the format has none")


def _buffers(view: memoryview, position: int, limits: Limits) -> list[memoryview]:
    found: list[memoryview] = []
    pieces: list[memoryview] = []
    while position < len(view):
        start = position + 5 + -(position + 5) % ALIGNMENT
        if (
            start > len(view)
            or view[position : start - 4] != _NILS[: start - 5 - position] + b"\xc6"
        ):
            raise CodecError(
                "after the header come bins (0xc6), "
                "each padded with nil so that its contents begin at a multiple of 64 bytes"
            )
        length = int.from_bytes(view[start - 4 : start], "big")
        position = start + length
        if position > len(view):
            raise CodecError(f"a buffer of {length} bytes, {len(view) - start} are left")
        pieces.append(view[start:position])
        if length != BIN_MAX:
            found.append(pieces[0] if len(pieces) == 1 else memoryview(bytearray().join(pieces)))
            pieces = []
            if len(found) > limits.tensors:
                raise LimitExceeded(f"more than Limits(tensors={limits.tensors}) buffers")
    if pieces:
        raise CodecError("a split buffer misses its last part")
    return found


def _check_fields(kind: Kind, fields: Any) -> None:
    wanted = _SHAPES[kind]
    if type(fields) is not list or len(fields) != len(wanted):
        raise CodecError(
            f"the header of a {kind.name.lower()} message is an array of {len(wanted)} fields"
        )
    for field, types in zip(fields, wanted, strict=True):
        if types is not None and type(field) not in types:
            raise CodecError(
                f"the header of a {kind.name.lower()} message has fields of the wrong type"
            )


def _read(
    kind: Kind, fields: Any, leaves: tuple[Any, ...], model: str, method: str
) -> Call | Message:
    _check_fields(kind, fields)
    if kind is Kind.CALL:
        args, kwargs, context = fields
        for name in kwargs:
            if type(name) is not str:
                raise CodecError("a call holds an argument whose name is no string")
        context = read_context(context)
        return Call(model, method, tuple(args), kwargs, context, owned=True, leaves=leaves)
    if kind in (Kind.RESULT, Kind.LEASED):
        graph = _graph(fields[3]) if kind is Kind.LEASED else None
        return Result(fields[0], read_info(fields[1]), fields[2], graph, leaves)
    if kind is Kind.FAILURE:
        return Failure(failures.from_data(fields[0]), fields[1])
    if kind is Kind.ITEM:
        return Item(fields[0])
    if kind is Kind.END:
        return End(read_info(fields[0]), fields[1])
    return Description(fields[0])


def _graph(name: str) -> str:
    if not (0 < len(name) <= _MAX_GRAPH and name.isascii() and name.isprintable()):
        raise CodecError(f"a graph is named by 1 to {_MAX_GRAPH} printable ASCII characters")
    return name


_MAX_GRAPH = 256
_Types = tuple[type, ...]
_OPTIONAL_BYTES: _Types = (bytes, type(None))
_SHAPES: dict[Kind, tuple[_Types | None, ...]] = {
    Kind.CALL: ((list,), (dict,), (dict,)),
    Kind.RESULT: (None, (list,), _OPTIONAL_BYTES),
    Kind.FAILURE: ((dict,), _OPTIONAL_BYTES),
    Kind.ITEM: (None,),
    Kind.END: ((list,), _OPTIONAL_BYTES),
    Kind.DESCRIPTION: ((dict,),),
    Kind.LEASED: (None, (list,), _OPTIONAL_BYTES, (str,)),
}
