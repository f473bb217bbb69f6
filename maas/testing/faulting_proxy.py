"""A proxy in front of a server that does to connections what networks do to them.

    with maas.testing.FaultingProxy(running.url, seed=7) as proxy:
        model = maas.connect(f"{proxy.url}/net")

It knows bytes and whose turn it is, and no HTTP, so anything that asks and answers can stand
behind it. An *exchange* begins with the first byte of the client after one of the server (or
after the connect); for each a fault is drawn, or none. The kinds are those of toxiproxy, which is
a checklist worth keeping to. What is drawn depends on the seed and the numbers of the connection
and the exchange alone; which call meets it depends on whoever calls.
"""

import asyncio
import contextlib
import random
import shutil
import socket
import struct
import tempfile
import threading
import urllib.parse
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Literal, Self

import attrs
from attrs.validators import ge, in_, optional

__all__ = ["FAULTS", "Fault", "FaultingProxy"]

Cut = Literal["before the request", "in the request", "before the reply", "in the reply", "after"]
CUTS: tuple[Cut, ...] = (
    "before the request",
    "in the request",
    "before the reply",
    "in the reply",
    "after",
)

_READ = 2**16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds: a close is a reset


@attrs.frozen(kw_only=True)
class Fault:
    """What happens to one exchange.

    Attributes
    ----------
    latency : seconds before what came is passed on, each way.
    piece : bytes that are passed on at once, at most; 0 as they come.
    rate : bytes per second, at most; 0 as fast as it goes.
    cut : where the connection breaks. "after" is when the next request is on its way, as it is
        with a server that closes what lay idle too long.
    gently : it breaks by a close, which the peer may take for the end, and not by a reset.
    held : seconds that the server's close is not passed on.
    """

    latency: float = attrs.field(default=0.0, validator=ge(0))
    piece: int = attrs.field(default=0, validator=ge(0))
    rate: float = attrs.field(default=0.0, validator=ge(0))
    cut: Cut | None = attrs.field(default=None, validator=optional(in_(CUTS)))
    gently: bool = False
    held: float = attrs.field(default=0.0, validator=ge(0))


FAULTS: Mapping[str, Fault] = {
    "latency": Fault(latency=0.02),
    "one byte at a time": Fault(piece=1),
    "bandwidth": Fault(piece=256, rate=64 * 1024),
    "reset before the request": Fault(cut="before the request"),
    "reset in the request": Fault(cut="in the request"),
    "reset before the reply": Fault(cut="before the reply"),
    "reset in the reply": Fault(cut="in the reply"),
    "reset after the reply": Fault(cut="after"),
    "truncated reply": Fault(cut="in the reply", gently=True),
    "closed before the reply": Fault(cut="before the reply", gently=True),
    "held-back FIN": Fault(cut="after", gently=True, held=0.02),
}
"""One of each kind."""

NO_FAULT = Fault()


class FaultingProxy:
    """Stands in front of the server at `url`, in a thread of its own; `url` is where it listens.

    Parameters
    ----------
    url : the server's, as `maas.connect` takes it: `http://`, `https://` (passed through
        unopened) or `http+unix://`; the proxy's own is of the same kind.
    faults : by name; one of each kind by default. May be replaced while it runs.
    share : of the exchanges that meet one.
    seed : of all that is drawn.

    Attributes
    ----------
    met : how many exchanges met each fault, by name.
    """

    def __init__(
        self,
        url: str,
        faults: Mapping[str, Fault] = FAULTS,
        *,
        share: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share= wants a number from 0 to 1, got {share!r}")
        self.faults = dict(faults)
        self.share = share
        self.seed = seed
        self.met: Counter[str] = Counter()
        self._parts = urllib.parse.urlsplit(url)
        if self._parts.scheme not in ("http", "https", "http+unix") or not self._parts.netloc:
            raise ValueError(f"{url!r} is no server's URL; give http://host:port, or what it says")
        self._folder: str | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._number = 0
        self.url = ""

    # Start and stop.

    def __enter__(self) -> Self:
        started: Future[str] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="faulting-proxy", daemon=True
        )
        self._thread.start()
        self.url = started.result()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Breaks what is open, and stops listening."""
        if self._thread is None or self._loop is None or self._stop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _serve(self, started: "Future[str]") -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        links: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._number += 1
            link = _Link(self, self._number, reader, writer)
            task = asyncio.ensure_future(link.run())
            links.add(task)
            task.add_done_callback(links.discard)

        try:
            if self._parts.scheme == "http+unix":
                self._folder = tempfile.mkdtemp(prefix="maas-")
                path = str(Path(self._folder, "s"))
                server = await asyncio.start_unix_server(accept, path, limit=_READ)
                url = f"http+unix://{urllib.parse.quote(path, safe='')}"
            else:
                server = await asyncio.start_server(
                    accept, "127.0.0.1", 0, backlog=1024, limit=_READ
                )
                port = server.sockets[0].getsockname()[1]
                url = f"{self._parts.scheme}://127.0.0.1:{port}"
        except BaseException as error:  # noqa: BLE001 - whoever started this waits to hear it
            started.set_exception(error)
            return
        started.set_result(url)
        await self._stop.wait()
        server.close()
        for task in links:
            task.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def upstream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server."""
        if self._parts.scheme == "http+unix":
            return await asyncio.open_unix_connection(
                urllib.parse.unquote(self._parts.netloc), limit=_READ
            )
        port = self._parts.port or (443 if self._parts.scheme == "https" else 80)
        return await asyncio.open_connection(self._parts.hostname, port, limit=_READ)

    def drawn(self, dice: random.Random) -> Fault:
        """What the next exchange meets."""
        # Both are drawn each time, so that another share leaves the rest as it was.
        lucky, name = dice.random() >= self.share, dice.choice(sorted(self.faults) or [""])
        if lucky or not name:
            return NO_FAULT
        self.met[name] += 1
        return self.faults[name]


class _Broken(Exception):
    """The connection is to break; `gently` says how."""

    def __init__(self, gently: bool) -> None:
        super().__init__()
        self.gently = gently


class _Link:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(
        self,
        proxy: FaultingProxy,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._dice = random.Random(f"{proxy.seed}:{number}")  # noqa: S311 - to be repeated
        self._client = reader, writer
        self._fault = NO_FAULT
        self._replied = True  # the next byte of the client begins an exchange

    async def run(self) -> None:
        """From the client's connect to the end of both connections."""
        ours = self._client[1]
        theirs: asyncio.StreamWriter | None = None
        try:
            reader, theirs = await self._proxy.upstream()
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._ask(self._client[0], theirs))
                pumps.create_task(self._answer(reader, ours))
        except* _Broken as broken:
            if not (isinstance(broken.exceptions[0], _Broken) and broken.exceptions[0].gently):
                _set_reset(ours)
        except* OSError:
            _set_reset(ours)
        finally:
            for writer in (ours, theirs):
                if writer is not None:
                    writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ):
            if self._replied:
                await self._begin()
            if self._fault.cut == "before the request":
                raise _Broken(self._fault.gently)
            if self._fault.cut == "in the request":
                await self._pass(writer, data[: self._dice.randrange(len(data))])
                raise _Broken(self._fault.gently)
            await self._pass(writer, data)
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _begin(self) -> None:
        """A new exchange; where the one before breaks after itself, it ends here."""
        if self._fault.cut == "after":
            await asyncio.sleep(self._fault.held)
            raise _Broken(self._fault.gently)
        self._replied = False
        self._fault = self._proxy.drawn(self._dice)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ):
            if self._fault.cut == "before the reply":
                raise _Broken(self._fault.gently)
            if self._fault.cut == "in the reply":
                await self._pass(writer, data[: self._dice.randrange(1, len(data) + 1) - 1])
                raise _Broken(self._fault.gently)
            self._replied = True
            await self._pass(writer, data)
        await asyncio.sleep(self._fault.held)
        if writer.can_write_eof():
            writer.write_eof()

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        fault = self._fault
        if fault.latency:
            await asyncio.sleep(fault.latency)
        size = fault.piece or len(data)
        for start in range(0, len(data), size or 1):
            piece = data[start : start + size]
            writer.write(piece)
            await writer.drain()
            # Also where nothing is to be waited for: the peer should see this piece by itself.
            await asyncio.sleep(len(piece) / fault.rate if fault.rate else 0)


def _set_reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family != getattr(socket, "AF_UNIX", None):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
