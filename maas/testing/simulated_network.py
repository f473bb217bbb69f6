"""A network in one process: servers, and connections to them, with every delay and fault drawn.

Both ends are asyncio protocols that know no better, so a server's own `Connection` and a
client's own `Wire` talk over it. Each connection draws from dice of its own, so that what
happens to one does not change what happens to another.
"""

import asyncio
import random
import socket
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import attrs

from maas.errors import DeadlineExceeded, TransportError
from maas.http import Request, Response
from maas.transports.base import StreamedResponse
from maas.transports.connections import Flight, Wire
from maas.transports.exchange import Exchange

__all__ = ["Host", "Network", "Road", "Weather"]


@attrs.frozen(kw_only=True)
class Weather:
    """What the network does.

    Attributes
    ----------
    latency : the least and the most seconds on the way.
    cuts : chance that the connection breaks in the midst of what is sent at once.
    stalls : chance that it takes `stall` seconds more.
    """

    latency: tuple[float, float] = (0.0002, 0.005)
    cuts: float = 0.0
    stalls: float = 0.0
    stall: float = 3.0


class _Socket(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, weather: Weather, dice: random.Random) -> None:
        super().__init__({"socket": SimpleNamespace(family=socket.AF_INET, fileno=lambda: -1)})
        self._loop = asyncio.get_running_loop()
        self._weather = weather
        self._dice = dice
        self._arrival = 0.0
        self._under_way: deque[bytes | None] = deque()
        self._incoming: list[bytes | None] = []  # None is the end
        self._paused = False
        self._closing = False
        self._finished = False
        self._lost = False
        self.peer: _Socket
        self.protocol: asyncio.BufferedProtocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return ("127.0.0.1", 1)
        return super().get_extra_info(name, default)

    def begin(self, protocol: asyncio.BufferedProtocol) -> None:
        self.protocol = protocol
        protocol.connection_made(self)

    # Out.

    def write(self, data: Any) -> None:
        data = bytes(data)
        if self._closing or self._finished or not data:
            return
        if self._dice.random() < self._weather.cuts:
            self._send(data[: self._dice.randrange(len(data))] or None, breaks=True)
        else:
            self._send(data)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(map(bytes, list_of_data)))

    def _send(self, data: bytes | None, *, breaks: bool = False) -> None:
        least, most = self._weather.latency
        delay = self._dice.uniform(least, most)
        if self._dice.random() < self._weather.stalls:
            delay += self._weather.stall
        # What was sent later does not come sooner.
        self._arrival = max(self._arrival, self._loop.time() + delay)
        if data is not None or not breaks:
            # Of what arrives at one time a loop may call any first, so the oldest is taken then.
            self._under_way.append(data)
            self._loop.call_at(self._arrival, self._deliver)
        if breaks:
            self._loop.call_at(self._arrival, self._break)

    def _deliver(self) -> None:
        self.peer._arrives(self._under_way.popleft())

    def _break(self) -> None:
        for end in (self, self.peer):
            end._lose(ConnectionResetError("the network broke the connection"))

    def write_eof(self) -> None:
        if not self._finished and not self._closing:
            self._finished = True
            self._send(None)

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        if not self._closing:
            self.write_eof()
            self._closing = True
            self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        if not self._lost:
            self._closing = True
            self._loop.call_soon(self._lose, None)
            error = ConnectionResetError("the peer broke the connection")
            self._arrival = max(self._arrival, self._loop.time() + self._weather.latency[0])
            self._loop.call_at(self._arrival, self.peer._lose, error)

    def is_closing(self) -> bool:
        return self._closing

    # In.

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._loop.call_soon(self._read)

    def _arrives(self, data: bytes | None) -> None:
        self._incoming.append(data)
        self._read()

    def _read(self) -> None:
        while self._incoming and not (self._paused or self._closing):
            data = self._incoming.pop(0)
            if data is None:
                if not self.protocol.eof_received():
                    self.close()
                return
            # asyncio: get_buffer and buffer_updated are called once for each read.
            buffer = memoryview(cast("Any", self.protocol.get_buffer(-1)))
            n = min(len(buffer), len(data))
            buffer[:n] = data[:n]
            if len(data) > n:
                self._incoming.insert(0, data[n:])
            self.protocol.buffer_updated(n)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = self._closing = True
            self.protocol.connection_lost(error)


class Host:
    """A server that listens, as the network knows it: `ready` is what a probe was told last."""

    def __init__(
        self, factory: Callable[[], asyncio.BaseProtocol], probe: Callable[[], bool]
    ) -> None:
        self.factory = factory
        self.probe = probe
        self.listening = True
        self.ready = True
        self.sockets = [SimpleNamespace(getsockname=lambda: ("127.0.0.1", 1))]

    def close(self) -> None:
        """Listens no more."""
        self.listening = False


class Network:
    """Where servers listen and clients connect; in front of them a balancer that probes.

    Attributes
    ----------
    connections : how many there were.
    """

    def __init__(self, seed: int, weather: Weather) -> None:
        self.hosts: list[Host] = []
        self.connections = 0
        self._seed = seed
        self._weather = weather

    def listen(
        self, factory: Callable[[], asyncio.BaseProtocol], probe: Callable[[], bool]
    ) -> Host:
        """A new server."""
        host = Host(factory, probe)
        self.hosts.append(host)
        return host

    def look(self) -> None:
        """What the balancer does now and then: asks each server whether it is ready."""
        for host in self.hosts:
            host.ready = host.listening and host.probe()

    async def connect(self, wire: Wire) -> Host:
        """Connects to a server that is ready.

        Raises
        ------
        TransportError
            There is none, or it listens no more.
        """
        self.connections += 1
        dice = random.Random(f"{self._seed}:{self.connections}")  # noqa: S311 - to be repeated
        await asyncio.sleep(dice.uniform(*self._weather.latency))
        ready = [host for host in self.hosts if host.ready]
        if not ready or not ready[-1].listening:
            raise TransportError("connection refused")
        host = ready[-1]
        near, far = _Socket(self._weather, dice), _Socket(self._weather, dice)
        near.peer, far.peer = far, near
        # A server hears of a connection some turns of its loop after it was accepted.
        near.begin(wire)
        far.begin(cast("asyncio.BufferedProtocol", host.factory()))
        return host


class Road:
    """A client's transport over the network, with connections that it keeps; see `Transport`.

    Attributes
    ----------
    sent : requests.
    broken : those to which the connection broke.
    """

    def __init__(self, network: Network) -> None:
        self.sent = 0
        self.broken = 0
        self._network = network
        self._idle: list[tuple[Wire, Host]] = []

    async def asend(self, request: Request, deadline: float | None, cap: int) -> Response:
        """The whole reply."""
        exchange = Exchange(request, "simulated", cap=cap)
        wire, host = self._kept() or await self._open(deadline)
        self.sent += 1

        def give_back(wire: Wire) -> None:
            if wire.reusable:
                self._idle.append((wire, host))
            else:
                wire.transport.close()

        flight = Flight(exchange, wire, give_back, deadline)
        try:
            await flight.landed()
        except TransportError:
            self.broken += 1
            raise
        return Response(exchange.status, exchange.headers, (exchange.body,))

    def _kept(self) -> tuple[Wire, Host] | None:
        while self._idle:
            wire, host = self._idle.pop()
            # Whoever honours readiness sends nothing new to a server that says it is not ready.
            if wire.alive() and host.ready:
                return wire, host
            wire.transport.close()
        return None

    async def _open(self, deadline: float | None) -> tuple[Wire, Host]:
        wire, loop = Wire(), asyncio.get_running_loop()
        left = None if deadline is None else deadline - loop.time()
        try:
            async with asyncio.timeout(left):
                return wire, await self._network.connect(wire)
        except TimeoutError:
            raise DeadlineExceeded("no connection before the deadline") from None

    def send(self, request: Request, deadline: float | None, cap: int) -> Response:
        """Nobody blocks in a simulation."""
        raise NotImplementedError

    async def stream(
        self, request: Request, deadline: float | None, cap: int
    ) -> Response | StreamedResponse:
        """Nothing streams in it."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes what is kept."""
        while self._idle:
            self._idle.pop()[0].transport.close()
