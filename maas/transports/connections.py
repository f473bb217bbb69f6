"""Connections that carry exchanges: one for a thread that blocks, one for the I/O loop.

Both drive the same `Exchange`, which knows HTTP; what is here is waiting.
`Socket` waits in `poll` on its caller's thread. `Wire` is called by the loop, and a `Flight`
is what a coroutine waits for: one exchange under way on one wire.
"""

import asyncio
import collections
import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import cast

from maas.errors import DeadlineExceeded, Error, StreamInterrupted, TransportError
from maas.transports.exchange import Exchange

__all__ = ["Flight", "Socket", "Wire"]

# Linux takes 1,024 buffers in one sendmsg.
_MOST_BUFFERS = 512

_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Socket:
    """A connection that blocks its caller's thread."""

    def __init__(self, sock: socket.socket) -> None:
        # Non-blocking underneath: while a large request is being sent, its refusal may arrive.
        sock.setblocking(False)
        self._socket = sock
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self.reusable = False

    def alive(self) -> bool:
        """Nothing has come, not even the end: whatever came would not belong to the next call."""
        self._poll.modify(self._socket, select.POLLIN)
        return not self._poll.poll(0)

    def drop(self) -> None:
        """Closes the connection."""
        self._socket.close()

    def carry(self, exchange: Exchange, deadline: float | None) -> None:
        """Sends the request and receives the reply."""
        whole = self._send(exchange, deadline)
        while not exchange.done:
            if self._tls is None or not self._tls.pending():
                self._wait(select.POLLIN, exchange, deadline)
            self._receive(exchange)
        self.reusable = whole and exchange.reusable

    def _send(self, exchange: Exchange, deadline: float | None) -> bool:
        """Whether all was sent; a reply, or its half, may have come meanwhile."""
        unsent = collections.deque([memoryview(part) for part in exchange.parts])
        while unsent and not exchange.done:
            try:
                n = self._write(unsent)
            except _NOT_NOW as error:
                # Half a TLS record may be on its way; nothing of any other failed write is.
                exchange.sent = exchange.sent or isinstance(error, ssl.SSLError)
                events = self._wait(select.POLLIN | select.POLLOUT, exchange, deadline)
                if events & select.POLLIN:
                    self._receive(exchange)
            except OSError as error:
                if not exchange.sent:
                    raise exchange.broken(f"the connection broke ({error})") from error
                # A server that refuses a large request closes; what it said may be here.
                return False
            else:
                exchange.sent = True
                _advance(unsent, n)
        return not unsent

    def _write(self, unsent: "collections.deque[memoryview]") -> int:
        if self._tls is not None or len(unsent) == 1:
            return self._socket.send(unsent[0])
        if len(unsent) <= _MOST_BUFFERS:
            return self._socket.sendmsg(unsent)
        return self._socket.sendmsg([unsent[i] for i in range(_MOST_BUFFERS)])

    def _receive(self, exchange: Exchange) -> None:
        try:
            n = self._socket.recv_into(exchange.buffer())
        except _NOT_NOW:
            return
        except OSError as error:
            raise exchange.broken(f"the connection broke ({error})") from error
        if n:
            exchange.received(n)
        else:
            exchange.eof()

    def _wait(self, events: int, exchange: Exchange, deadline: float | None) -> int:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        self._poll.modify(self._socket, events)
        ready = self._poll.poll(left)
        if not ready:
            raise DeadlineExceeded(f"the deadline of the call passed {exchange.progress()}")
        # An error or a hang-up shows at the next read or write.
        return ready[0][1]


def _advance(unsent: "collections.deque[memoryview]", n: int) -> None:
    while unsent and n >= len(unsent[0]):
        n -= len(unsent.popleft())
    if n:
        unsent[0] = unsent[0][n:]


class Wire(asyncio.BufferedProtocol):
    """A connection of the I/O loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._spare = bytearray(1)
        self.transport: asyncio.Transport
        self.flight: Flight | None = None
        self.reusable = False

    def alive(self) -> bool:
        """The loop has heard nothing of an end."""
        return not self.transport.is_closing()

    def drop(self) -> None:
        """Closes the connection, from any thread."""
        # The loop may have ended before its last connection.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.transport.abort)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop has connected."""
        self.transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Where the loop receives next."""
        return memoryview(self._spare) if self.flight is None else self.flight.exchange.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come; to an idle connection they may not."""
        if self.flight is None:
            self.transport.abort()
        else:
            self.flight.step(self.flight.exchange.received, nbytes)

    def eof_received(self) -> None:
        """The peer will send no more; the loop closes the connection after this."""
        if self.flight is not None:
            self.flight.step(self.flight.exchange.eof)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, by whoever's doing."""
        if self.flight is not None:
            what = f"the connection broke ({exc})" if exc else "the connection was closed"
            self.flight.fail(self.flight.exchange.broken(what))


class Flight:
    """One exchange under way on one wire; the frames of its reply if that is streamed."""

    def __init__(
        self,
        exchange: Exchange,
        wire: Wire,
        release: Callable[[Wire], None],
        deadline: float | None,
    ) -> None:
        self.exchange = exchange
        self._wire = wire
        self._give_back = release
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._error: Error | None = None
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        if deadline is not None:
            self._timer = self._loop.call_later(deadline - time.monotonic(), self._expire)
        wire.flight = self
        exchange.sent = True
        wire.transport.writelines(exchange.parts)

    async def landed(self) -> None:
        """Returns when the reply is complete, or its head if it is streamed."""
        while not (self.exchange.done or self.exchange.streaming):
            await self._more()

    async def read(self, n: int) -> bytearray:
        """Exactly `n` bytes of a streamed reply; one reader at a time."""
        read = self.exchange.take(n)
        while len(read) < n:
            self._resume()
            if not self.exchange.body:
                await self._more()
            read += self.exchange.take(n - len(read))
        self._resume()
        return read

    async def close(self) -> None:
        """Lets go of the rest of a streamed reply."""
        self.fail(StreamInterrupted("the stream was closed", sent=True, answered=True))

    def step(self, event: Callable[..., None], *args: int) -> None:
        """Tells the exchange what happened on the wire, and whoever waits what came of it."""
        try:
            event(*args)
        except Error as error:
            self.fail(error)
            return
        if self.exchange.done:
            self._release()
        elif self.exchange.paused and not self._paused:
            self._paused = True
            self._wire.transport.pause_reading()
        if self.exchange.done or self.exchange.streaming:
            self._wake()

    def fail(self, error: Error) -> None:
        """Ends the exchange with an error, and the connection with it."""
        # Once done, the wire may carry the next call already.
        if self._error is None and not self.exchange.done:
            self._error = error
            self._paused = False
            self._detach()
            self._wire.transport.abort()
            self._wake()

    def _expire(self) -> None:
        self.fail(DeadlineExceeded(f"the deadline of the call passed {self.exchange.progress()}"))

    def _release(self) -> None:
        self._detach()
        if self._paused:
            self._paused = False
            self._wire.transport.resume_reading()
        # A reply that came before its request was sent leaves the rest of it in the way.
        unsent = self._wire.transport.get_write_buffer_size()
        self._wire.reusable = self.exchange.reusable and not unsent
        self._give_back(self._wire)

    def _detach(self) -> None:
        self._wire.flight = None
        if self._timer is not None:
            self._timer.cancel()

    def _resume(self) -> None:
        if self._paused and not self.exchange.paused:
            self._paused = False
            self._wire.transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _more(self) -> None:
        """Returns when something has come, raises when nothing will."""
        self._check()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.fail(self.exchange.broken("the call was cancelled"))
            raise
        finally:
            self._waiter = None

    def _check(self) -> None:
        broken = type(self._error) is TransportError
        if broken and self.exchange.streaming:
            raise StreamInterrupted(str(self._error), sent=True, answered=True) from self._error
        if self._error is not None:
            raise self._error
        if self.exchange.done:
            raise StreamInterrupted("the stream ended early", sent=True, answered=True)
