"""One request, from its body's arrival to its answer's last byte: counted, traced, logged.

The handler says what happens, by a method each, and nothing here can change the answer. What
nobody wants costs nothing: no line is made unless its logger is on, and no span unless
OpenTelemetry is loaded.
"""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from maas import tracing
from maas.buffers import Buffer
from maas.calls import CALL, Call, Info, Result
from maas.errors import Error, NotReady, Overloaded
from maas.executors.base import Stream
from maas.http import Response
from maas.server import access
from maas.server.forms import Route
from maas.server.front import Head
from maas.server.metrics import Metrics, Tally
from maas.server.replies import size
from maas.wire import Failure

__all__ = ["LEFT", "Observation", "code_of", "described", "refused"]

E = TypeVar("E", bound=Exception)

LEFT = 499
"""The status of a request whose caller left before the answer, as nginx has it."""

_TURNED_AWAY = (Overloaded.status, NotReady.status)
"""Answered in no time: among the durations they would make an overloaded server look quick."""


def code_of(error: Exception) -> str:
    """The error's code on the wire; "model" for what is no error of maas."""
    return error.code if isinstance(error, Error) else "model"


class Observation:
    """A call that is being answered; `find` gives its tally once its model is known."""

    __slots__ = (
        "_active", "_began", "_closed", "_error", "_find", "_hop", "_info", "_items", "_metrics",
        "_received", "_route", "_trace", "over",
    )  # fmt: skip

    def __init__(
        self, metrics: Metrics, find: Callable[[str, str], Tally], route: Route, received: int
    ) -> None:
        self._began = metrics.clock()
        self._metrics = metrics
        self._find = find
        self._route = route
        self._received = received
        self._trace: str | None = route.trace
        self._hop = tracing.NO_HOP
        self._error: str | None = None
        self._info: Info | None = None
        self._items = 0
        self._active: Tally | None = None
        self._closed = False
        self.over = False
        """A stream's model has given its last."""

    def asks(self, call: Call, tally: Tally | None = None) -> Call:
        """The call is about to be asked; the call as part of the trace it came with."""
        self._active = tally or self._find(self._route.model, self._route.method)
        self._active.active += 1
        # A header may have been written anew by what stands between; the message is the client's.
        trace = self._trace or call.context.trace
        if trace is None and not tracing.loaded():
            return call
        self._trace, self._hop = tracing.incoming(trace, self._name(), self._since())
        return tracing.continued(call, self._trace)

    @property
    def received(self) -> int:
        """Bytes of the request."""
        return self._received

    def _name(self) -> str:
        route = self._route
        return f"POST /{route.model}" + ("" if route.method == CALL else f"/{route.method}")

    def _since(self) -> int:
        return time.time_ns() - round((self._metrics.clock() - self._began) * 1e9)

    def ran(self, answer: Result | Failure, *, on_loop: bool = False) -> None:
        """The executor has answered."""
        if on_loop and self._active is not None:
            self._active.on_loop += 1
        if type(answer) is Result:
            self._info = answer.info
            if self._active is not None:
                self._active.ran(answer.info)
        else:
            self.fails(answer.error)  # type: ignore[union-attr]

    def fails(self, error: E) -> E:
        """The caller will get this error instead of an answer."""
        self._error = code_of(error)
        return error

    def items(self, stream: Stream[Any]) -> Stream[Any]:
        """The stream, watched."""
        return _Watched(stream, self)

    def item(self) -> None:
        """An item was produced."""
        self._items += 1

    def ended(self, info: Info | None) -> None:
        """The stream's items are all there."""
        self.over = True
        self._info = info or Info()
        if self._active is not None:
            self._active.ran(self._info, queued=False)

    def breaks(self, error: Exception) -> None:
        """The stream ends by an error."""
        self.over = True
        self.fails(error)

    def answers(self, response: Response) -> Response:
        """The answer goes out; a stream is watched until its end."""
        body = response.body
        if not hasattr(body, "__anext__"):
            self.close(response.status, size(body))
            return response
        watched = _Body(body, self, response.status)  # type: ignore[arg-type]
        return Response(response.status, response.headers, watched)

    def withdraws(self) -> None:
        """The call is asked in another way, and counted there."""
        self._closed = True
        if self._active is not None:
            self._active.active -= 1
        self._hop = tracing.NO_HOP  # a span that is not ended is not exported

    def leaves(self, sent: int = 0) -> None:
        """The caller has left, unless it had its answer."""
        if not self._closed:
            self._error = self._error or "cancelled"
            self.close(LEFT, sent)

    def close(self, status: int, sent: int) -> None:
        """All is over: counts, ends the span, writes the line."""
        self._closed = True
        tally = self._active or self._find(self._route.model, self._route.method)
        now = self._metrics.clock()
        seconds = now - self._began
        if self._active is not None:
            tally.active -= 1
        tally.received += self._received
        tally.items += self._items
        if self._error is not None or status >= 400:
            tally.failure(self._error or "internal")
        tally.sent += sent
        if status not in _TURNED_AWAY:
            tally.duration.observe(seconds)
        tally.answered(now, status)
        if self._hop is not tracing.NO_HOP:
            self._end_hop(status)
        if access.wanted():
            self._tell(status, seconds, sent)

    def _end_hop(self, status: int) -> None:
        info = self._info or Info()
        self._hop.note(
            {
                "http.request.method": "POST",
                "http.route": self._name().removeprefix("POST "),
                "http.response.status_code": status,
                "maas.model": self._route.model,
                "maas.method": self._route.method,
                "maas.batch_size": info.batch_size,
                "maas.queue_seconds": info.queue_seconds,
                "maas.compute_seconds": info.compute_seconds,
            }
        )
        self._hop.end(self._error)

    def _tell(self, status: int, seconds: float, sent: int) -> None:
        route, info = self._route, self._info
        trace = self._trace.split("-") if self._trace else [None] * 4
        fields = {
            "model": route.model,
            "method": None if route.method == CALL else route.method,
            "error": self._error,
            "caller": route.caller.id,
            "queue_seconds": info and info.queue_seconds,
            "compute_seconds": info and info.compute_seconds,
            "batch_rows": info and info.batch_size,
            "received_bytes": self._received,
            "sent_bytes": sent,
            "items": self._items or None,
            "trace_id": trace[1],
            "span_id": trace[2],
        }
        access.tell("POST", self._name().removeprefix("POST "), status, seconds, fields)


def refused(head: Head, error: Error, find: Callable[[str, str], Tally], metrics: Metrics) -> None:
    """A request was turned away by its head; only calls are counted."""
    if head.method == "POST":
        _, model, method, *_ = *head.path.split("/", 2), "", ""
        tally = find(model, method or CALL)
        tally.failure(error.code)
        tally.answered(metrics.clock(), error.status)
    if access.wanted():
        access.tell(head.method, head.path, error.status, 0.0, {"error": error.code})


def described(route: Route, status: int, seconds: float) -> None:
    """A model, or the server, was looked at."""
    if access.wanted():
        access.tell("GET", f"/{route.model}", status, seconds, {"caller": route.caller.id})


class _Watched(Stream[Any]):
    """A stream whose items and end are noticed on their way to a form."""

    def __init__(self, stream: Stream[Any], seen: Observation) -> None:
        self._stream = stream
        self._seen = seen

    @property
    def rng(self) -> bytes | None:
        """The advanced generator of a stochastic method."""
        return getattr(self._stream, "rng", None)

    async def __anext__(self) -> Any:
        try:
            item = await self._stream.__anext__()
        except StopAsyncIteration:
            self.info = self._stream.info
            self._seen.ended(self.info)
            raise
        except Exception as error:
            self._seen.breaks(error)
            raise
        self._seen.item()
        return item

    async def aclose(self) -> None:
        """Ends the stream and the generator behind it."""
        await self._stream.aclose()


class _Body:
    """The frames of a stream's reply, counted; closed or left, the request is over."""

    def __init__(
        self, frames: AsyncIterator[Sequence[Buffer]], seen: Observation, status: int
    ) -> None:
        self._frames = frames
        self._seen = seen
        self._status = status
        self._sent = 0

    def __aiter__(self) -> AsyncIterator[Sequence[Buffer]]:
        return self

    async def __anext__(self) -> Sequence[Buffer]:
        frame = await self._frames.__anext__()
        self._sent += size(frame)
        if self._seen.over:
            # Its caller may leave once this frame is read.
            self._seen.close(self._status, self._sent)
        return frame

    async def aclose(self) -> None:
        """Ends the stream; the caller has left, unless it is over already."""
        try:
            close = getattr(self._frames, "aclose", None)
            if close is not None:
                await close()
        finally:
            self._seen.leaves(self._sent)
