"""Calls that repeat an earlier one but for what is in their arrays: read once, then recognised.

Who asks a model again and again sends the same header each time: as many arrays of the same dtypes
and shapes, the same other arguments, the same context. Only the contents differ, and the seconds
that are left, which stand at the header's end. A header that was read, charged and checked once
need not be read again; its `Likeness` tells where the arrays lie in the message. Whoever handles
such calls may remember what was found out about one of them, for it holds for all.

A header is recognised by all of its bytes, the prefix before it and the frames between the arrays
included; whatever is not the same is read as if nothing had come before.
"""

import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from maas import tensors
from maas.calls import Call, Context
from maas.limits import Limits
from maas.values import Unpacker
from maas.wire import ALIGNMENT, BIN_MAX, PREFIX, Message, decode, read_prefix, unpack_header

__all__ = ["Likeness", "Reader"]

_MOST = 256
"""Headers that are known at a time; beyond, all are forgotten, which costs no more than reading."""
_LONGEST = 1_024
"""Bytes of a header that is remembered."""
_SECONDS = struct.Struct(">d")
_DEADLINE = b"\xa8deadline\xcb"
_LATEST = 1e9  # seconds, as `surroundings.py` has it
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
    frames : what stands in the message before the contents of each array, and where.
    """

    arguments: tuple[Any, ...]
    names: tuple[str, ...]
    context: Context
    frames: tuple[tuple[int, int, bytes], ...]

    @property
    def arrays(self) -> int:
        """How many of the arguments are arrays."""
        return len(self.frames)


class Reader:
    """Reads calls under some limits, and remembers the headers of those that may come again."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[tuple[str, str, bytes], Likeness] = {}

    def read(self, data: bytearray, *, model: str, method: str) -> Call | Message:
        """As `wire.decode`; the call tells its likeness, where it may come again."""
        size = int.from_bytes(data[8:12], "big")
        if not 0 < size <= _LONGEST:
            return decode(data, self._limits, model=model, method=method)
        end = PREFIX + size
        header, deadline = _header(data, end)
        likeness = self._known.get((model, method, header))
        if likeness is None or not _framed(likeness, data):
            message = decode(data, self._limits, model=model, method=method)
            if type(message) is Call and (message.context.deadline is None) is (deadline is None):
                return self._remembered(message, data, header)
            return message
        context = likeness.context
        if deadline is not None:
            context = Context(
                grad=context.grad,
                training=context.training,
                priority=context.priority,
                deadline=deadline,
            )
        args, kwargs = _arguments(likeness, data)
        return Call(model, method, args, kwargs, context, owned=True, likeness=likeness)

    def _remembered(self, call: Call, data: bytearray, header: bytes) -> Call:
        likeness = _likeness(call, data, self._limits)
        if likeness is None:
            return call
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[call.model, call.method, header] = likeness
        return attrs.evolve(call, likeness=likeness)


def _header(data: bytearray, end: int) -> tuple[bytes, float | None]:
    """Prefix and header without the seconds that are left at its end; and when these have passed.

    The header ends with the context. Of what a context that is remembered may hold, only its
    deadline can be what ends in these bytes, if it has one.
    """
    start = end - _SECONDS.size
    if data[start - len(_DEADLINE) : start] == _DEADLINE and len(data) >= end:
        (seconds,) = _SECONDS.unpack_from(data, start)
        if -_LATEST <= seconds <= _LATEST:
            return bytes(data[:start]), time.monotonic() + seconds
    return bytes(data[:end]), None


def _framed(likeness: Likeness, data: bytearray) -> bool:
    # The prefix tells the length of the whole, and is part of the key: it only has to be true.
    total = int.from_bytes(data[13:21], "big")
    return total == len(data) and all(
        data[start:stop] == frame for start, stop, frame in likeness.frames
    )


def _arguments(likeness: Likeness, data: bytearray) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    view = memoryview(data)
    values = [
        each.restore(each.dtype, each.shape, (), view[each.start : each.end])
        if type(each) is _Array
        else each
        for each in likeness.arguments
    ]
    if not likeness.names:
        return tuple(values), {}
    placed = len(values) - len(likeness.names)
    return tuple(values[:placed]), dict(zip(likeness.names, values[placed:], strict=True))


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
    size = read_prefix(data, limits).header
    frames, spans = _frames(data, PREFIX + size)
    outline = _Outline([memoryview(b"")] * len(frames), limits)
    try:
        args, kwargs, _ = unpack_header(memoryview(data)[PREFIX : PREFIX + size], outline)
    except _Unlike:
        return None
    arguments = []
    for value in (*args, *kwargs.values()):
        if type(value) is tuple:
            index, array = value
            arguments.append(attrs.evolve(array, start=spans[index][0], end=spans[index][1]))
        elif type(value) in _SCALARS:
            arguments.append(value)
        else:
            return None  # a container belongs to one call alone
    return Likeness(
        tuple(arguments), tuple(kwargs), attrs.evolve(context, deadline=None), tuple(frames)
    )


def _frames(data: bytearray, position: int) -> tuple[list[Any], list[tuple[int, int]]]:
    """What stands before each buffer, and where the buffers lie, of a message that is whole."""
    frames, spans = [], []
    while position < len(data):
        start = position + 5 + -(position + 5) % ALIGNMENT
        length = int.from_bytes(data[start - 4 : start], "big")
        frames.append((position, start, bytes(data[position:start])))
        position = start + length
        spans.append((start, position))
    return frames, spans
