"""Traces across processes: the W3C `traceparent` read, continued and handed on.

Who sends one gets it continued: each server gives the hop a span id of its own, and what a model
asks of other models while it runs belongs to the same trace. Where the program has loaded the
API of OpenTelemetry, its current span is the parent and each hop is a span of its own; nothing
here imports it, and without it only the header travels.

https://www.w3.org/TR/trace-context/ (the `tracestate` beside it is not carried).
"""

import concurrent.futures
import contextlib
import contextvars
import random
import re
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import attrs

from maas.calls import CALL, Call

__all__ = [
    "NO_HOP",
    "Hop",
    "applied",
    "captured",
    "child",
    "continued",
    "incoming",
    "loaded",
    "outgoing",
    "pending",
]

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ZERO = re.compile(r"0+")
_SCOPE = "maas"
_MODULE = "opentelemetry.trace"

_here: contextvars.ContextVar[str | None] = contextvars.ContextVar("maas-trace", default=None)
"""What the model that runs on this thread, or in this task, is part of."""


def _parts(text: str | None) -> tuple[str, str, str] | None:
    """Trace id, span id and flags; None for what is no traceparent, as the standard has it."""
    if text is None:
        return None
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or _ZERO.fullmatch(trace):
        return None
    return None if _ZERO.fullmatch(span) else (trace, span, flags)


def child(text: str | None) -> str | None:
    """The same trace under a new span id; None for what is no traceparent."""
    parts = _parts(text)
    if parts is None:
        return None
    trace, _, flags = parts
    # Ids need to differ, not to be hard to guess.
    return f"00-{trace}-{random.getrandbits(64) or 1:016x}-{flags}"


def loaded() -> bool:
    """Whether somebody loaded OpenTelemetry."""
    return _MODULE in sys.modules


def pending() -> bool:
    """Whether a call that leaves here may be part of a trace."""
    return _MODULE in sys.modules or _here.get() is not None


def _otel() -> Any:
    """`opentelemetry.trace`, once it is loaded whole; another thread may be importing it."""
    module = sys.modules.get(_MODULE)
    return None if module is None or not hasattr(module, "get_tracer") else module


# Hops.


class Hop:
    """One hop as a span of OpenTelemetry; `end` it once, or leave its `with`."""

    __slots__ = ("_span",)

    def __init__(self, span: Any = None) -> None:
        self._span = span

    @property
    def recorded(self) -> bool:
        """Whether anybody wants to know more of it."""
        return self._span is not None

    def note(self, facts: Mapping[str, Any]) -> None:
        """Adds facts."""
        if self._span is not None:
            self._span.set_attributes(facts)

    def end(self, error: str | None = None) -> None:
        """Ends it; `error` is a class or code. Messages may hold arguments, so none is kept."""
        if self._span is None:
            return
        span, self._span = self._span, None
        if error is not None:
            otel = sys.modules[_MODULE]
            span.set_attribute("error.type", error)
            span.set_status(otel.Status(otel.StatusCode.ERROR))
        span.end()

    def follow(self, future: concurrent.futures.Future[Any]) -> None:
        """Ends it as the future ended: to be its callback."""
        error = concurrent.futures.CancelledError() if future.cancelled() else future.exception()
        self.end(None if error is None else type(error).__qualname__)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.end(None if kind is None else kind.__qualname__)


NO_HOP = Hop()
"""Where nobody records."""


def outgoing(call: Call, model: str) -> tuple[Call, Hop]:
    """The call as part of the caller's trace, and the hop to where it is answered."""
    otel = _otel()
    if otel is None:
        return captured(call), NO_HOP
    name = model if call.method == CALL else f"{model}.{call.method}"
    span = _started(otel, f"call {name}", otel.SpanKind.CLIENT, call.context.trace, None)
    hop = Hop(span) if span.is_recording() else NO_HOP
    hop.note({"maas.model": model, "maas.method": call.method})
    return continued(call, _text(span.get_span_context()) or call.context.trace), hop


def incoming(trace: str | None, name: str, began: int) -> tuple[str | None, Hop]:
    """A request that came with `trace`: what it is from here on, and its hop.

    `began` is when it came, in nanoseconds of `time.time_ns()`; 0 for now.
    """
    otel = _otel()
    if otel is None:
        return child(trace), NO_HOP
    span = _started(otel, name, otel.SpanKind.SERVER, trace or "", began or None)
    if span.is_recording():
        return _text(span.get_span_context()), Hop(span)
    return child(trace), NO_HOP


def _started(otel: Any, name: str, kind: Any, trace: str | None, began: int | None) -> Any:
    """A span under `trace`; under the current one if that is None."""
    parent = None if trace is None else _context(otel, trace)
    return otel.get_tracer(_SCOPE).start_span(name, parent, kind, start_time=began)


def _context(otel: Any, trace: str, *, remote: bool = True) -> Any:
    """OpenTelemetry's context for a traceparent; an empty one for what is none."""
    empty = sys.modules["opentelemetry.context"].Context()
    parts = _parts(trace)
    if parts is None:
        return empty
    trace_id, span_id, flags = (int(part, 16) for part in parts)
    context = otel.SpanContext(trace_id, span_id, remote, otel.TraceFlags(flags))
    return otel.set_span_in_context(otel.NonRecordingSpan(context), empty)


def _text(context: Any) -> str | None:
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


# What runs, and what it asks of others.


def captured(call: Call) -> Call:
    """The call as part of what this thread or task is doing, unless it says so itself."""
    if call.context.trace is not None or not pending():
        return call
    otel = _otel()
    current = None if otel is None else _text(otel.get_current_span().get_span_context())
    return continued(call, current or _here.get())


def continued(call: Call, trace: str | None) -> Call:
    """The call as part of `trace`."""
    if trace == call.context.trace:
        return call
    return attrs.evolve(call, context=attrs.evolve(call.context, trace=trace))


@contextlib.contextmanager
def applied(trace: str | None) -> Iterator[None]:
    """Makes what is done here part of `trace`: calls to other models, and others' spans."""
    if trace is None:
        yield
        return
    token = _here.set(trace)
    otel = _otel()
    try:
        if otel is None:
            yield
            return
        context = sys.modules["opentelemetry.context"]
        attached: Any = context.attach(_context(otel, trace, remote=False))
        try:
            yield
        finally:
            context.detach(attached)
    finally:
        _here.reset(token)
