"""In this process, through the whole wire: the transport that asks an ASGI app without a socket.

Tests use it to have everything but the network. httpx's own ASGI transport gathers a
reply before it returns it and has no synchronous form, so it can show neither a
stream nor its backpressure.
"""

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from maas.errors import DeadlineExceeded, LimitExceeded, ProtocolError, StreamInterrupted
from maas.http import Headers, Request, Response
from maas.loops import run
from maas.transports.base import StreamedResponse

__all__ = ["ASGIApp", "InProcessTransport"]

_Event = MutableMapping[str, Any]
ASGIApp = Callable[
    [_Event, Callable[[], Awaitable[_Event]], Callable[[_Event], Awaitable[None]]], Awaitable[None]
]


class InProcessTransport:
    """Asks `app` on the I/O loop, as a server would."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._closed = False

    def send(self, request: Request, deadline: float | None, cap: int) -> Response:
        """The whole reply, waited for on the caller's thread."""
        future = run(self.asend(request, deadline, cap))
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ProtocolError("the application gave the request up", sent=True) from None

    async def asend(self, request: Request, deadline: float | None, cap: int) -> Response:
        """The whole reply."""
        exchange = self._begin(request)
        try:
            async with _until(deadline):
                status, headers = await exchange.head()
                body = bytearray()
                while chunk := await exchange.chunk():
                    body += chunk
                    if len(body) > cap:
                        raise LimitExceeded(f"the reply's body has more than {cap} bytes")
                return Response(status, headers, (body,))
        finally:
            exchange.abandon()

    async def stream(
        self, request: Request, deadline: float | None, cap: int
    ) -> Response | StreamedResponse:
        """A reply of status 200 as it comes; any other one whole."""
        exchange = self._begin(request)
        try:
            async with _until(deadline):
                status, headers = await exchange.head()
        except BaseException:
            exchange.abandon()
            raise
        if status == 200:
            return StreamedResponse(status, headers, _Frames(exchange, deadline))
        try:
            body = bytearray()
            while (chunk := await exchange.chunk()) and len(body) <= cap:
                body += chunk
            return Response(status, headers, (body,))
        finally:
            exchange.abandon()

    def _begin(self, request: Request) -> "_Exchange":
        if self._closed:
            raise RuntimeError("the connection to the app was closed; connect again")
        return _Exchange(self._app, request)

    def close(self) -> None:
        """Refuses new calls, as a transport over sockets does; there is nothing to let go of."""
        self._closed = True


@contextlib.asynccontextmanager
async def _until(deadline: float | None) -> AsyncIterator[None]:
    left = None if deadline is None else deadline - time.monotonic()
    try:
        async with asyncio.timeout(left) as timeout:
            yield
    except TimeoutError:
        if timeout.expired():
            raise DeadlineExceeded("no reply in time") from None
        raise


class _Exchange:
    """One request to the app: a task that runs it, and what it sends, one event at a time."""

    def __init__(self, app: ASGIApp, request: Request) -> None:
        self._events: asyncio.Queue[_Event | None] = asyncio.Queue(1)
        self._left = asyncio.Event()
        self._body: list[bytes] = [b"".join(request.body)]
        self._more = True
        self._task = asyncio.ensure_future(self._run(app, request))

    async def _run(self, app: ASGIApp, request: Request) -> None:
        path, _, query = request.target.partition("?")
        headers = [(b"host", b"localhost"), (b"content-length", str(len(self._body[0])).encode())]
        headers += [(name.encode(), value.encode()) for name, value in request.headers]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 0),
            "server": ("localhost", 80),
        }
        try:
            await app(scope, self._receive, self._events.put)
        finally:
            if not self._left.is_set():
                await self._events.put(None)

    async def _receive(self) -> _Event:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _next(self) -> _Event:
        event = await self._events.get()
        if event is None:
            await self._task
            raise ProtocolError(
                "the application ended without a whole reply", sent=True, answered=True
            )
        return event

    async def head(self) -> tuple[int, Headers]:
        event = await self._next()
        headers = tuple((name.decode(), value.decode()) for name, value in event["headers"])
        return event["status"], headers

    async def chunk(self) -> bytes:
        """The next bytes of the body; none at its end."""
        while self._more:
            event = await self._next()
            self._more = event.get("more_body", False)
            if event.get("body"):
                return event["body"]  # type: ignore[no-any-return]
        return b""

    def abandon(self) -> None:
        """Lets the app know that nobody listens any more."""
        self._left.set()
        # Events that nobody takes would hold the app at its next send.
        self._events = asyncio.Queue()
        if not self._task.done() and self._more:
            self._task.cancel()


class _Frames:
    def __init__(self, exchange: _Exchange, deadline: float | None) -> None:
        self._exchange = exchange
        self._deadline = deadline
        self._rest = bytearray()

    async def read(self, n: int) -> bytearray:
        while len(self._rest) < n:
            async with _until(self._deadline):
                chunk = await self._exchange.chunk()
            if not chunk:
                raise StreamInterrupted(
                    "the stream ended without its final frame", sent=True, answered=True
                )
            self._rest += chunk
        taken = self._rest[:n]
        del self._rest[:n]
        return taken

    async def close(self) -> None:
        self._exchange.abandon()
