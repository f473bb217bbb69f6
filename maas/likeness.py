"""Messages that repeat an earlier one but for what is in their arrays: read once, then recognised.

Who asks a model again and again sends the same header each time: as many arrays of the same dtypes
and shapes, the same other arguments, the same context. Only the contents differ, and the seconds
that are left, which stand at the header's end. A header that was read, charged and checked once
need not be read again; its `Likeness` tells where the arrays lie in the message. Whoever handles
such calls may remember what was found out about one of them, for it holds for all. So it is with
the answers that come back, of which nearly all are one array; they end in the seconds it took.
How such messages are written is in `writers.py`.

A header is recognised by all of its bytes, the prefix before it and the frames between the arrays
included; whatever is not the same is read as if nothing had come before.
"""

import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from maas import tensors
from maas.buffers import Body, Buffer
from maas.calls import Call, Context, Info, Result
from maas.errors import CodecError
from maas.limits import Limits
from maas.values import Unpacker
from maas.wire import (
    ALIGNMENT,
    BIN_MAX,
    PREFIX,
    Message,
    decode,
    read_prefix,
    unpack_header,
)

__all__ = [
    "DEADLINE",
    "FACTS",
    "FLOAT",
    "LATEST",
    "MOST",
    "NIL",
    "SECONDS",
    "AnswerReader",
    "Likeness",
    "Reader",
]

MOST = 256
"""Headers that are known at a time; beyond, all are forgotten, which costs no more than reading."""
_LONGEST = 1_024
"""Bytes of a header that is remembered."""
SECONDS = struct.Struct(">d")
DEADLINE = b"\xa8deadline\xcb"
LATEST = 1e9  # seconds, as `surroundings.py` has it
FACTS = struct.Struct(">BdBdB")
"""An answer's last bytes: seconds in the queue, seconds computed, and no generator's state."""
FLOAT, NIL = 0xCB, 0xC0
_SCALARS = frozenset({type(None), bool, int, float, str, bytes})


@attrs.frozen
class _Array:
    """An argument that is an array, what restores it, and where its contents lie in the message."""

    restore: Callable[[str, tuple[int, ...], tuple[str, ...], memoryview], Any]
    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    end: int = 0


@attrs.frozen(eq=False)
class Likeness:
    """What such calls have in common.

    Attributes
    ----------
    arguments : arrays by where they lie, everything else by its value.
    names : of the last of them, those that were given by name.
    context : what surrounds the calls; of a deadline it tells only that there is one.
    frames : where in the message what stands before the contents of each array.
    """

    arguments: tuple[Any, ...]
    names: tuple[str, ...]
    context: Context
    frames: "_Frames"

    @property
    def arrays(self) -> int:
        """How many of the arguments are arrays."""
        return len(self.frames)


class Reader:
    """Reads calls under some limits, and remembers the headers of those that may come again."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[tuple[str, str, bytes], Likeness] = {}

    def read(self, data: Body, *, model: str, method: str, caller: str = "") -> Call:
        """The call that the message holds; it tells its likeness, where it may come again.

        Raises
        ------
        CodecError
            As `wire.decode` does; and another kind of message came.
        """
        end = PREFIX + int.from_bytes(data[8:12], "big")
        known = PREFIX < end <= PREFIX + _LONGEST and len(data) >= end
        # A large body is no bytearray; beside its size, to read its header is nothing.
        if not known or type(data) is not bytearray:
            return self._decoded(data, model, method, caller)
        # The header ends with the context. Of what a context that is remembered may hold, only its
        # deadline can be what ends in these bytes, if it has one.
        deadline, start = None, end - SECONDS.size
        if data.startswith(DEADLINE, start - len(DEADLINE)):
            (seconds,) = SECONDS.unpack_from(data, start)
            if -LATEST <= seconds <= LATEST:
                deadline, end = time.monotonic() + seconds, start
        header = bytes(data[:end])
        likeness = self._known.get((model, method, header))
        if likeness is None or not _framed(likeness.frames, data):
            call = self._decoded(data, model, method, caller)
            if (call.context.deadline is None) is (deadline is None):
                return self._remembered(call, data, header)
            return call
        context = likeness.context
        if deadline is not None:
            context = Context(
                grad=context.grad,
                training=context.training,
                priority=context.priority,
                deadline=deadline,
            )
        view, values = memoryview(data), []
        for each in likeness.arguments:
            if type(each) is _Array:
                contents = view[each.start : each.end]
                values.append(each.restore(each.dtype, each.shape, (), contents))
            else:
                values.append(each)
        kwargs: dict[str, Any] = {}
        if likeness.names:
            placed = len(values) - len(likeness.names)
            kwargs = dict(zip(likeness.names, values[placed:], strict=True))
            del values[placed:]
        return Call(model, method, tuple(values), kwargs, context, True, caller, (), likeness)

    def _decoded(self, data: Body, model: str, method: str, caller: str) -> Call:
        message = decode(data, self._limits, model=model, method=method)
        if not isinstance(message, Call):
            raise CodecError("this address takes a call, and another kind of message came")
        return attrs.evolve(message, caller=caller) if caller else message

    def _remembered(self, call: Call, data: bytearray, header: bytes) -> Call:
        likeness = _likeness(call, data, self._limits)
        if likeness is None:
            return call
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[call.model, call.method, header] = likeness
        return attrs.evolve(call, likeness=likeness)


def _framed(frames: "_Frames", data: bytearray) -> bool:
    # The prefix tells the length of the whole, and is part of the key: it only has to be true.
    if int.from_bytes(data[13:21], "big") != len(data):
        return False
    for start, frame in frames:  # noqa: SIM110 - a generator costs as much as all of this
        if not data.startswith(frame, start):
            return False
    return True


@attrs.frozen(eq=False)
class _Answer:
    """What answers that are one array have in common."""

    array: _Array
    info: Info
    frames: "_Frames"


class AnswerReader:
    """Reads answers under some limits, and remembers the headers of those that may come again."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[bytes, _Answer] = {}

    def read(self, data: Buffer) -> Call | Message:
        """As `wire.decode`."""
        if type(data) is not bytearray:
            return decode(data, self._limits)
        size = int.from_bytes(data[8:12], "big")
        end = PREFIX + size
        if not FACTS.size < size <= _LONGEST or len(data) < end:
            return decode(data, self._limits)
        mark, queued, second_mark, computed, last = FACTS.unpack_from(data, end - FACTS.size)
        if (mark, second_mark, last) != (FLOAT, FLOAT, NIL):
            return decode(data, self._limits)
        header = bytes(data[: end - FACTS.size])
        known = self._known.get(header)
        if known is None or not _framed(known.frames, data):
            message = decode(data, self._limits)
            if type(message) is Result and not message.leaves:
                self._remember(message, data, header)
            return message
        array, info = known.array, known.info
        contents = memoryview(data)[array.start : array.end]
        return Result(
            array.restore(array.dtype, array.shape, (), contents),
            Info(info.where, info.device, info.batch_size, queued, computed),
        )

    def _remember(self, answer: Result, data: bytearray, header: bytes) -> None:
        # Of all results, only what has no note, no generator and no graph ends in these bytes.
        if tensors.facts(answer.value) is None:
            return
        outline = None if len(data) >= BIN_MAX else _outline(data, self._limits)
        if outline is None:
            return
        (value, *_), frames, spans = outline
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[header] = _Answer(_placed(value, spans), answer.info, frames)


# What a header that was read tells of its like.


class _Unlike(Exception):
    """Such a call is not recognised when it comes again."""


class _Outline(Unpacker):
    """Reads a header for where its arrays are, and nothing else that has a tag."""

    __slots__ = ()

    def _load(self, tag: str, payload: Any) -> Any:
        # What a bool tensor holds must be looked at each time; other flags change what it is.
        if tag not in ("$tensor", "$array") or len(payload) != 3 or payload[1] == "bool":
            raise _Unlike
        index, dtype, shape = payload
        adapter = tensors.restorer(tag, dtype)
        if adapter is None:
            raise _Unlike
        self.take(index)
        return index, _Array(adapter.restore, dtype, tuple(shape))


def _likeness(call: Call, data: bytearray, limits: Limits) -> Likeness | None:
    context = call.context
    plain = Context(
        grad=context.grad,
        training=context.training,
        priority=context.priority,
        deadline=context.deadline,
    )
    if context != plain or len(data) >= BIN_MAX:
        return None  # a key or a trace is another one each time, and so is what was drawn
    outline = _outline(data, limits)
    if outline is None:
        return None
    (args, kwargs, _), frames, spans = outline
    arguments = []
    for value in (*args, *kwargs.values()):
        if type(value) is tuple:
            arguments.append(_placed(value, spans))
        elif type(value) in _SCALARS:
            arguments.append(value)
        else:
            return None  # a container belongs to one call alone
    return Likeness(tuple(arguments), tuple(kwargs), attrs.evolve(context, deadline=None), frames)


_Span = tuple[int, int]
_Frames = tuple[tuple[int, bytes], ...]
"""Where a frame begins in a message, and its bytes."""


def _outline(data: bytearray, limits: Limits) -> tuple[Any, _Frames, list[_Span]] | None:
    """A header's fields, an array by its index and its kind; the frames, and where arrays lie."""
    size = read_prefix(data, limits).header
    frames, spans = _frames(data, PREFIX + size)
    outline = _Outline([memoryview(b"")] * len(frames), limits)
    try:
        fields = unpack_header(memoryview(data)[PREFIX : PREFIX + size], outline)
    except _Unlike:
        return None
    return fields, frames, spans


def _placed(value: tuple[int, _Array], spans: Sequence[_Span]) -> _Array:
    index, array = value
    start, end = spans[index]
    return attrs.evolve(array, start=start, end=end)


def _frames(data: bytearray, position: int) -> tuple[_Frames, list[_Span]]:
    """What stands before each buffer, and where the buffers lie, of a message that is whole."""
    frames, spans = [], []
    while position < len(data):
        start = position + 5 + -(position + 5) % ALIGNMENT
        length = int.from_bytes(data[start - 4 : start], "big")
        frames.append((position, bytes(data[position:start])))
        position = start + length
        spans.append((start, position))
    return tuple(frames), spans
