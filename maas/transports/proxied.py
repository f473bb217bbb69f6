"""Requests through a caller's own httpx client: proxies, HTTP/2, custom authentication.

What httpx can do beyond sockets is its own; this file holds it to the same promises. A reply
is bounded while it is read, never decompressed and never followed elsewhere. The cost per
call is several times that of `sockets.py`, so it is for those who need what httpx brings.

Two promises are weaker here. httpx times each wait for bytes and not a whole call, so on
the caller's thread a reply that trickles may overrun its deadline by one such wait. And httpx
does not tell a malformed reply from one cut short, so both are plain `TransportError`s.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Iterator

import httpx

from maas.errors import DeadlineExceeded, LimitExceeded, StreamInterrupted, TransportError
from maas.http import Headers, Request, Response, header
from maas.loops import Home, run
from maas.transports.base import StreamedResponse
from maas.transports.exchange import check_encoding, written_headers

__all__ = ["HttpxTransport", "through"]

# As in `sockets.py`; without a deadline nothing else bounds a connection that nobody accepts.
_CONNECT_SECONDS = 10.0

_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class HttpxTransport:
    """Carries requests to `base_url`, and stays within what the caller's clients allow.

    `aclient` is used on the I/O loop of maas alone, for an `httpx.AsyncClient` serves one
    loop. Both clients remain the caller's to close, unless they are `owned`.
    """

    def __init__(
        self,
        client: httpx.Client,
        aclient: httpx.AsyncClient,
        base_url: str,
        *,
        owned: bool = False,
    ) -> None:
        self._owned = owned
        self._client = client
        self._aclient = aclient
        self._base = httpx.URL(base_url)
        self._home = Home()
        self._closed = False

    def close(self) -> None:
        """Refuses new calls."""
        if self._owned and not self._closed:
            self._client.close()
            run(self._aclient.aclose())
        self._closed = True

    def send(self, request: Request, deadline: float | None, cap: int) -> Response:
        """The whole reply, waited for on the caller's thread."""
        left = _left(deadline)
        connect = _CONNECT_SECONDS if left is None else min(left, _CONNECT_SECONDS)
        asked = self._build(self._client, request, httpx.Timeout(left, connect=connect))
        _check_time(deadline)
        with _translated(deadline):
            reply = self._client.send(asked, stream=True, follow_redirects=False)
        with _translated(deadline, answered=True), contextlib.closing(reply):
            body = _Body(reply, cap)
            for chunk in reply.iter_raw():
                _check_time(deadline)
                body.add(chunk)
            return body.response()

    async def asend(self, request: Request, deadline: float | None, cap: int) -> Response:
        """The whole reply, on the I/O loop."""
        reply = await self._depart(request, deadline)
        return await _collect(reply, deadline, cap)

    async def stream(
        self, request: Request, deadline: float | None, cap: int
    ) -> Response | StreamedResponse:
        """A reply of status 200 as it comes, any other one whole; on the I/O loop."""
        reply = await self._depart(request, deadline)
        if reply.status_code != 200:
            return await _collect(reply, deadline, cap)
        return StreamedResponse(200, _headers(reply), _Frames(reply, deadline))

    async def _depart(self, request: Request, deadline: float | None) -> httpx.Response:
        # The deadline is `asyncio.timeout`'s, here and wherever the reply is read.
        timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
        asked = self._build(self._aclient, request, timeout)
        _check_time(deadline)
        with _translated(deadline):
            async with asyncio.timeout(_left(deadline)):
                return await self._aclient.send(asked, stream=True, follow_redirects=False)

    def _build(
        self, client: httpx.Client | httpx.AsyncClient, request: Request, timeout: httpx.Timeout
    ) -> httpx.Request:
        self._home.check(f"the connection to {self._base.host}")
        if self._closed:
            raise RuntimeError(f"the connection to {self._base.host} was closed; connect again")
        path = self._base.raw_path.rstrip(b"/") + request.target.encode("ascii")
        return client.build_request(
            request.method,
            self._base.copy_with(raw_path=path),
            headers=list(written_headers(request)),
            content=b"".join(request.body) if request.body else None,
            timeout=timeout,
        )


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _check_time(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineExceeded("the deadline of the call passed before the end of its reply")


@contextlib.contextmanager
def _translated(deadline: float | None, *, answered: bool = False) -> Iterator[None]:
    """Turns what httpx raises into what a transport raises."""
    try:
        yield
    except TimeoutError as error:
        if isinstance(error, DeadlineExceeded):
            raise
        raise DeadlineExceeded("the deadline of the call passed") from error
    except httpx.HTTPError as error:
        _check_time(deadline)
        sent = answered or not isinstance(error, _UNSENT)
        why = str(error) or type(error).__name__
        raise TransportError(f"httpx failed: {why}", sent=sent, answered=answered) from error


def _headers(reply: httpx.Response) -> Headers:
    pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in reply.headers.raw)
    return tuple((name.lower(), value) for name, value in pairs)


class _Body:
    """A reply that is gathered within its cap."""

    def __init__(self, reply: httpx.Response, cap: int) -> None:
        self._status = reply.status_code
        self._headers = _headers(reply)
        self._cap = cap
        self._bytes = bytearray()
        check_encoding(self._headers)
        announced = header(self._headers, "content-length") or ""
        if announced.isdecimal():
            self._check(int(announced))

    def _check(self, size: int) -> None:
        if size > self._cap:
            raise LimitExceeded(
                f"the reply's body has {size} bytes or more; Limits(body=...) allows {self._cap}"
            )

    def add(self, chunk: bytes) -> None:
        self._check(len(self._bytes) + len(chunk))
        self._bytes += chunk

    def response(self) -> Response:
        return Response(self._status, self._headers, (self._bytes,))


async def _collect(reply: httpx.Response, deadline: float | None, cap: int) -> Response:
    with _translated(deadline, answered=True):
        async with contextlib.aclosing(reply), asyncio.timeout(_left(deadline)):
            body = _Body(reply, cap)
            async for chunk in reply.aiter_raw():
                body.add(chunk)
            return body.response()


class _Frames:
    """The body of a streamed reply; httpx asks the socket only when it is asked."""

    def __init__(self, reply: httpx.Response, deadline: float | None) -> None:
        self._reply = reply
        self._deadline = deadline
        self._chunks: AsyncIterator[bytes] = reply.aiter_raw()
        self._waiting = bytearray()

    async def read(self, n: int) -> bytearray:
        """Exactly `n` bytes; one reader at a time."""
        with _translated(self._deadline, answered=True):
            while len(self._waiting) < n:
                self._waiting += await self._chunk()
        read = self._waiting[:n]
        del self._waiting[:n]
        return read

    async def _chunk(self) -> bytes:
        try:
            async with asyncio.timeout(_left(self._deadline)):
                return await anext(self._chunks)
        except StopAsyncIteration:
            why = "the stream ended early"
            raise StreamInterrupted(why, sent=True, answered=True) from None
        except httpx.HTTPError as error:
            _check_time(self._deadline)
            why = f"the stream broke: {error}"
            raise StreamInterrupted(why, sent=True, answered=True) from error

    async def close(self) -> None:
        """Lets go of the rest."""
        await self._reply.aclose()


def through(
    proxy: str, url: str, *, tls: ssl.SSLContext | None, connect_timeout: float
) -> HttpxTransport:
    """The transport to the origin of `url`, through this proxy; the environment is not asked."""
    origin = httpx.URL(url).copy_with(path="/")
    verify = True if tls is None else tls
    timeout = httpx.Timeout(None, connect=connect_timeout)
    return HttpxTransport(
        httpx.Client(proxy=proxy, verify=verify, trust_env=False, timeout=timeout),
        httpx.AsyncClient(proxy=proxy, verify=verify, trust_env=False, timeout=timeout),
        str(origin),
        owned=True,
    )
