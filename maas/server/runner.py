"""The server's own HTTP/1.1 runner: sockets, deadlines, start and stop.

It exists because a general ASGI server has no deadline for *receiving* a
request, and middleware cannot add one, since it runs after the head is parsed.

What a connection does is in `connection.py`; how bytes become requests is in
`framing.py`, and how replies become bytes in `replies.py`; what is served is a
`Front`, and no part of this.
"""

import asyncio
import contextlib
import errno
import gc
import signal
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from maas.server.connection import Connection, Shared
from maas.server.front import Front
from maas.server.patience import Patience

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

try:
    import uvloop
except ImportError:  # as on Windows; asyncio's own loop does it, at about half the rate
    uvloop = None  # type: ignore[assignment]

__all__ = ["Background", "Patience", "Runner", "run"]

BACKLOG = 1024
SPARE_FILES = 64  # descriptors left for what is served: weights, logs, pipes
_TURNS = 3  # of the loop, from a connection's being accepted to its protocol's hearing of it
SIGNALS = (signal.SIGTERM, signal.SIGINT)
CLEANUP = 1.0  # seconds for cancelled tasks to end
GRACE = 5.0  # seconds beyond the drain for a thread to end

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
fastest_loop: LoopFactory = getattr(uvloop, "new_event_loop", asyncio.new_event_loop)


class Runner:
    """Serves a front on a TCP port or a unix socket.

    Parameters
    ----------
    front
        What is served.
    host, port
        Where to listen; port 0 takes a free one, and `port` and `url` tell which.
    uds
        Path of a unix socket to listen on instead, for this user alone.
        A file left by a dead server is replaced; a live server's is an error.
    tls
        Certificates to speak TLS with.
    patience
        How long, and for how many, to wait.
    """

    def __init__(
        self,
        front: Front,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        uds: str | None = None,
        tls: ssl.SSLContext | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.front = front
        self.host = host
        self.port = port
        self.uds = uds
        self.patience = patience or Patience()
        self._tls = tls
        self._shared = Shared(front, self.patience)
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._inode: int | None = None

    @property
    def url(self) -> str:
        """Where clients reach this server."""
        scheme = "http" if self._tls is None else "https"
        if self.uds is not None:
            return f"{scheme}+unix://{quote(self.uds, safe='')}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    def connections(self) -> tuple[int, int, dict[int, int]]:
        """Connections that are open, those ever accepted, and requests refused, by status."""
        shared = self._shared
        return len(shared.connections), shared.accepted, shared.refusals

    async def start(self) -> None:
        """Listen; once this returns, connections are accepted.

        Raises
        ------
        OSError
            The address is taken, or is not this machine's.
        """
        self._shared.most = min(self.patience.max_connections, _spare_descriptors())
        if self.uds is None:
            self._server = await self._listen_tcp()
        else:
            self._server = await self._listen_unix(_bind_unix(self.uds))
            self._inode = _inode(self.uds)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def drain(self, timeout: float | None = None) -> None:
        """Stop accepting, answer what is in flight, close.

        What is not answered after `timeout` seconds (`patience.drain` if not
        given) is cut off.
        """
        if self._server is None or self._shared.draining:
            return
        self._shared.draining = True
        self.front.draining()
        await asyncio.sleep(self.patience.delay)
        self._stop_listening(self._server)
        self._shared.closing = True
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        for connection in tuple(self._shared.connections):
            connection.drain()
        await self._wait_for_connections(self.patience.drain if timeout is None else timeout)
        await self._cut_off()

    async def _listen_tcp(self) -> asyncio.Server:
        server = await asyncio.get_running_loop().create_server(
            self._connection,
            self.host,
            self.port,
            backlog=BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=self.patience.header if self._tls else None,
        )
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _listen_unix(self, listener: socket.socket) -> asyncio.Server:
        return await asyncio.get_running_loop().create_unix_server(
            self._connection,
            sock=listener,
            backlog=BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=self.patience.header if self._tls else None,
        )

    def _connection(self) -> Connection:
        return Connection(self._shared)

    async def _sweep(self) -> None:
        loop, tick = asyncio.get_running_loop(), self.patience.tick
        before = loop.time()
        while True:
            await asyncio.sleep(tick)
            now = loop.time()
            # A longer step means that this process stood still, not that its peers did.
            step = min(now - before, 2 * tick)
            before = now
            self._shared.clock += step
            for connection in tuple(self._shared.connections):
                connection.expire(step)

    def _stop_listening(self, server: asyncio.Server) -> None:
        server.close()
        if self.uds is not None and _inode(self.uds) == self._inode:
            Path(self.uds).unlink()

    async def _wait_for_connections(self, timeout: float) -> None:
        self._shared.emptied.clear()
        if self._shared.connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._shared.emptied.wait(), timeout)

    async def _cut_off(self) -> None:
        for connection in tuple(self._shared.connections):
            connection.abort()
        await self._wait_for_connections(CLEANUP)
        if self._shared.tasks:
            await asyncio.wait(self._shared.tasks, timeout=CLEANUP)
        if self._sweeper is not None:
            self._sweeper.cancel()


def _spare_descriptors() -> int:
    if resource is None:
        return 2**31
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else max(1, soft - SPARE_FILES)


def _bind_unix(path: str) -> socket.socket:
    _clear_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        Path(path).chmod(0o600)  # before listen(): until then nobody can connect
    except BaseException:
        listener.close()
        raise
    return listener


def _inode(path: str) -> int | None:
    """Which file is at `path`: another server may have put its own there."""
    try:
        return Path(path).stat().st_ino
    except FileNotFoundError:
        return None


def _clear_stale(path: str) -> None:
    """Remove the socket file of a server that is gone."""
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "this file is no socket; choose another path", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
    raise OSError(errno.EADDRINUSE, "a live server listens here; choose another path", path)


def run(runner: Runner, on_ready: Callable[[Runner], object] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once.

    To be called from the main thread; `on_ready` hears when connections are accepted.
    """
    with asyncio.Runner(loop_factory=fastest_loop) as loop_runner, _settled_heap():
        loop_runner.run(_run(runner, on_ready))


@contextlib.contextmanager
def _settled_heap() -> Iterator[None]:
    """What was loaded before is there to stay, and is not searched for garbage meanwhile.

    With torch it is 170,000 objects, and a full collection holds up everybody: half of the 169 ms
    that the loop was held at most under load (benchmarks/bench_loop.py).
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _run(runner: Runner, on_ready: Callable[[Runner], object] | None) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, asked.set)
    await runner.start()
    if on_ready is not None:
        on_ready(runner)
    await asked.wait()
    for number in SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    await runner.drain()


class Background:
    """Serves in a thread of its own; also a context manager.

    The thread is a daemon: a program that forgets to stop it still ends.
    """

    def __init__(self, runner: Runner, *, loop_factory: LoopFactory = fastest_loop) -> None:
        self.runner = runner
        self._loop_factory = loop_factory
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._timeout: float | None = None

    @property
    def url(self) -> str:
        """Where clients reach the server."""
        return self.runner.url

    def start(self) -> None:
        """Serve; returns once connections are accepted, raises what kept them from it."""
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._main, args=(started,), name="maas-server", daemon=True
        )
        self._thread.start()
        started.result()

    def stop(self, timeout: float | None = None) -> None:
        """Drain, for `timeout` seconds at most, and wait for the thread to end.

        Raises
        ------
        TimeoutError
            Something that is served does not let go of the thread.
        """
        if self._thread is None or self._loop is None or self._stop is None:
            return
        self._timeout = timeout
        with contextlib.suppress(RuntimeError):  # the loop has closed: it was stopped before
            self._loop.call_soon_threadsafe(self._stop.set)
        patience = self.runner.patience
        self._thread.join(patience.delay + (patience.drain if timeout is None else timeout) + GRACE)
        if self._thread.is_alive():
            raise TimeoutError("the server's thread still runs, as what it serves does not end")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _main(self, started: Future[None]) -> None:
        with asyncio.Runner(loop_factory=self._loop_factory) as loop_runner:
            loop_runner.run(self._serve(started))

    async def _serve(self, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            await self.runner.start()
        except BaseException as error:  # noqa: BLE001  whoever started this waits to hear it
            started.set_exception(error)
            return
        started.set_result(None)
        await self._stop.wait()
        await self.runner.drain(self._timeout)
