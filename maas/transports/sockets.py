"""Requests over sockets: TCP, TLS and unix, blocking and on the I/O loop.

A call on the caller's thread and a call on the I/O loop do not share connections: a socket
belongs to a thread for one call, or to the loop for good.

A connection carries one call at a time. When the call is complete and both sides agree to go
on, it lies idle for the next one; the newest is taken first, so that the others can grow old
and be closed. Any surprise (an error, a deadline, a cancelled call, bytes nobody asked for)
closes it, for nobody knows what would come out of it next.

A server may close an idle connection at any moment, also while the next request is on its
way. That is a `TransportError` with `sent` and without `answered`, and whether to try again is
the executor's decision. Only when not a single byte had left, another connection is taken.
"""

import asyncio
import collections
import contextlib
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from maas.errors import DeadlineExceeded, TransportError
from maas.http import Request, Response
from maas.loops import Home, io_loop
from maas.transports.addresses import Address, adial, dial, in_turn, left, lookup
from maas.transports.base import StreamedResponse
from maas.transports.connections import Flight, Socket, Wire
from maas.transports.exchange import Exchange

__all__ = ["SocketTransport"]

# Servers close idle connections after 5 s (uvicorn) to 75 s (nginx); `alive` sees those that did.
_MOST_IDLE_SECONDS = 60.0


class SocketTransport:
    """Carries requests to one address.

    `host` is what the Host header says. With `tls`, the certificate must be one for
    `server_name`. A connection is given up after `connect_timeout` seconds, or at the
    call's deadline if that is sooner.
    """

    def __init__(
        self,
        address: Address,
        *,
        tls: ssl.SSLContext | None,
        server_name: str | None,
        host: str,
        connect_timeout: float = 10.0,
    ) -> None:
        self._address = address
        self._where = address[1] if address[0] == "unix" else f"{address[1]}:{address[2]}"
        self._tls = tls
        self._server_name = server_name
        self._host = host
        self._connect_timeout = connect_timeout
        self._home = Home()
        self._sockets: _Idle[Socket] = _Idle()
        self._wires: _Idle[Wire] = _Idle()
        self._let_go = weakref.finalize(self, _close_all, self._sockets, self._wires)

    def close(self) -> None:
        """Closes idle connections; calls under way end by themselves, new ones are refused."""
        self._let_go()

    def send(self, request: Request, deadline: float | None, cap: int) -> Response:
        """The whole reply, waited for on the caller's thread."""
        exchange = self._exchange(request, deadline, cap)
        while True:
            idle = self._sockets.take()
            connection = idle or self._connect(deadline)
            try:
                connection.carry(exchange, deadline)
            except TransportError:
                connection.drop()
                if idle is None or exchange.sent:
                    raise
            except BaseException:
                connection.drop()
                raise
            else:
                self._sockets.give(connection)
                return _response(exchange)

    async def asend(self, request: Request, deadline: float | None, cap: int) -> Response:
        """The whole reply, on the I/O loop."""
        flight = await self._depart(self._exchange(request, deadline, cap), deadline)
        await flight.landed()
        return _response(flight.exchange)

    async def stream(
        self, request: Request, deadline: float | None, cap: int
    ) -> Response | StreamedResponse:
        """A reply of status 200 as it comes, any other one whole; on the I/O loop."""
        exchange = self._exchange(request, deadline, cap, streamed=True)
        flight = await self._depart(exchange, deadline)
        await flight.landed()
        if not exchange.streaming:
            return _response(exchange)
        return StreamedResponse(exchange.status, exchange.headers, flight)

    def _exchange(
        self, request: Request, deadline: float | None, cap: int, *, streamed: bool = False
    ) -> Exchange:
        self._home.check(f"the connection to {self._where}")
        if not self._let_go.alive:
            raise RuntimeError(f"the connection to {self._where} was closed; connect again")
        exchange = Exchange(request, self._host, cap=cap, streamed=streamed)
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlineExceeded("the deadline passed before the request was sent")
        return exchange

    async def _depart(self, exchange: Exchange, deadline: float | None) -> Flight:
        if asyncio.get_running_loop() is not io_loop():
            raise RuntimeError("only the I/O loop may do this; use maas.loops.run")
        wire = self._wires.take() or await self._open_wire(deadline)
        return Flight(exchange, wire, self._wires.give, deadline)

    def _connect(self, deadline: float | None) -> Socket:
        until = self._until(deadline)
        with self._connecting(until, deadline):
            found = lookup(self._address).result(left(until))
            for (family, address), share, last in in_turn(found, until):
                try:
                    sock = dial(family, address, share)
                    return Socket(self._secured(sock, share))
                except OSError:
                    if last:
                        raise
        raise TransportError(f"{self._where} has no address")

    def _secured(self, sock: socket.socket, until: float) -> socket.socket:
        if self._tls is None:
            return sock
        try:
            sock.settimeout(left(until))
            # A reply that ends with the connection must not be cut short by whoever can cut it.
            return self._tls.wrap_socket(
                sock, server_hostname=self._server_name, suppress_ragged_eofs=False
            )
        except BaseException:
            sock.close()
            raise

    async def _open_wire(self, deadline: float | None) -> Wire:
        until = self._until(deadline)
        with self._connecting(until, deadline):
            async with asyncio.timeout(left(until)):
                found = await asyncio.wrap_future(lookup(self._address))
            for (family, address), share, last in in_turn(found, until):
                try:
                    async with asyncio.timeout(left(share)):
                        return await self._adopt(await adial(family, address))
                except OSError:
                    if last:
                        raise
        raise TransportError(f"{self._where} has no address")

    async def _adopt(self, sock: socket.socket) -> Wire:
        loop = asyncio.get_running_loop()
        unix = sock.family == socket.AF_UNIX
        create = loop.create_unix_connection if unix else loop.create_connection
        name = self._server_name if self._tls is not None else None
        try:
            _, wire = await create(Wire, sock=sock, ssl=self._tls, server_hostname=name)
        except BaseException:
            sock.close()
            raise
        return wire

    def _until(self, deadline: float | None) -> float:
        until = time.monotonic() + self._connect_timeout
        return until if deadline is None else min(until, deadline)

    @contextlib.contextmanager
    def _connecting(self, until: float, deadline: float | None) -> Iterator[None]:
        try:
            yield
        # UnicodeError: a host name that DNS could not spell.
        except (OSError, UnicodeError) as error:
            # By which of the two it was, not by the clock: uvloop's timers may be 1 ms early.
            if isinstance(error, TimeoutError) and until == deadline:
                raise DeadlineExceeded(
                    f"no connection to {self._where} before the deadline"
                ) from error
            raise TransportError(
                f"cannot connect to {self._where}: {_reason(error, self._connect_timeout)}"
            ) from error


_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}
"""OpenSSL's names for an answer that is no TLS, until 3.1 and since."""

_NO_AUTHORITY = {18, 19, 20}
"""OpenSSL's codes for a certificate that signed itself, alone or in a chain, and for an issuer that
is not among those trusted here."""


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer for {timeout:g} s"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "nobody listens there; is the server running, and is this its address?"
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "; verify= names an authority to trust" if error.verify_code in _NO_AUTHORITY else ""
        return f"certificate verify failed: {error.verify_message}{hint}"
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
        return "it does not answer in TLS; is it http:// there?"
    return str(error)


def _response(exchange: Exchange) -> Response:
    return Response(exchange.status, exchange.headers, (exchange.body,))


class _Connection(Protocol):
    reusable: bool

    def alive(self) -> bool: ...

    def drop(self) -> None: ...


C = TypeVar("C", bound=_Connection)


class _Idle(Generic[C]):
    """Connections nobody uses at the moment, the newest last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: collections.deque[tuple[float, C]] = collections.deque()
        self._closed = False

    def take(self) -> C | None:
        """The newest that is still open, or None."""
        while True:
            with self._lock:
                if not self._since:
                    return None
                since, connection = self._since.pop()
            if time.monotonic() - since < _MOST_IDLE_SECONDS and connection.alive():
                return connection
            connection.drop()

    def give(self, connection: C) -> None:
        """Keeps a connection for the next call, if there may be one."""
        now = time.monotonic()
        old = []
        with self._lock:
            while self._since and now - self._since[0][0] >= _MOST_IDLE_SECONDS:
                old.append(self._since.popleft()[1])
            if connection.reusable and not self._closed:
                self._since.append((now, connection))
            else:
                old.append(connection)
        for unwanted in old:
            unwanted.drop()

    def close(self) -> None:
        """Drops what lies idle, and from now on whatever is given."""
        with self._lock:
            self._closed = True
            idle = list(self._since)
            self._since.clear()
        for _, connection in idle:
            connection.drop()


def _close_all(sockets: _Idle[Socket], wires: _Idle[Wire]) -> None:
    sockets.close()
    wires.close()
