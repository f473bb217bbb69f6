"""The worker processes of one model: kept alive, and handed out to whoever has a call.

Everything here runs on the I/O loop, so nothing is locked. When a worker is started, killed or
given up is decided by `supervision.Life`; here it is done, and what happens is told to it.
"""

import asyncio
import collections
import contextlib
import errno
import itertools
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import attrs

from maas.calls import Context, Info, Result
from maas.errors import Expired, NotReady, Overloaded, TransportError
from maas.executors.base import ModelInfo, late
from maas.executors.places import Expected, check_expected
from maas.executors.remote import RemoteExecutor
from maas.executors.supervision import Act, Life, Pace, Phase
from maas.failures import REMOTE_TRACEBACK
from maas.http import Headers
from maas.limits import Limits
from maas.transports.handed import HandedTransport
from maas.wire import Failure

__all__ = ["Asked", "Crew", "Launch", "Process", "Worker", "is_models"]

_LOG = logging.getLogger("maas")

_MOST_CALLS = 32
"""Calls given to one worker at once; what waits here may still go to any of them."""

_MOST_WAITING = 4096
_SUSPECT = 3
"""Processes in a row that end without a word before a worker is taken for one that cannot start;
one, or two, may have been killed."""


_NO_ROOM = (errno.EMFILE, errno.ENFILE)
"""For one more connection in this process, which says nothing of the other."""


class Process(Protocol):
    """A process, or what stands for one in a test, at the other end of a socket."""

    control: socket.socket

    @property
    def pid(self) -> int:
        """Its number in this system."""

    def kill(self) -> None:
        """Ends it now."""

    def wait(self) -> None:
        """Returns once it has ended."""


Launch = Callable[[int], Process]
"""Starts the process of the worker of that number; may take its time, raises `OSError`."""


class Worker:
    """One worker: its life, the process that it has at the moment, and why it cannot have one."""

    def __init__(self, number: int, pace: Pace) -> None:
        self.number = number
        self.life = Life(pace)
        self.turn = 0
        self.false_starts = 0
        self.broken = ""
        self.process: Process | None = None
        self.executor: Asked | None = None
        self.moved = asyncio.Event()


class Asked(RemoteExecutor):
    """Asks one process. Whether to ask again is decided by who knows the others."""

    def _runs_twice_as_once(self, *_: Any) -> bool:
        return False

    def put(
        self, method: str, args: tuple[Any, ...], context: Context, *, repeatable: bool
    ) -> Result | Failure:
        """As of any server; what a process kept, a graph or a private copy, has ended with it."""
        with self._keeping():
            return super().put(method, args, context, repeatable=repeatable)

    async def aput(
        self, method: str, args: tuple[Any, ...], context: Context, *, repeatable: bool
    ) -> Result | Failure:
        """As `put`."""
        with self._keeping():
            return await super().aput(method, args, context, repeatable=repeatable)

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        try:
            yield
        except TransportError as error:
            if is_models(error) or getattr(error.__cause__, "errno", None) in _NO_ROOM:
                raise
            raise Expired(
                f"the worker of {self.name} that kept this graph or private copy has ended, and "
                "what it kept is lost; call again, or train anew from the last state that you have"
            ) from None

    def close(self) -> None:
        """Lets go of the connections; for a call that is on its way it is a lost worker."""
        self._let_go()

    def located(self, info: Info, _headers: Headers) -> Info:
        """The facts; a worker's one version is none that anybody chose."""
        return info.seen_from(self.where)


def is_models(error: TransportError) -> bool:
    """Whether the model raised it, and no connection of ours broke."""
    notes = getattr(error, "__notes__", ())
    return any(str(note).startswith(REMOTE_TRACEBACK) for note in notes)


class Crew:
    """The workers of one model; `info` is what they last said of it."""

    def __init__(
        self,
        launch: Launch,
        name: str,
        where: str,
        *,
        count: int,
        limits: Limits,
        pace: Pace,
    ) -> None:
        self.name = name
        self.where = where
        self.info: ModelInfo | None = None
        self.expected: Expected | None = None
        self.closed = False
        self.workers = [Worker(number, pace) for number in range(count)]
        self._launch = launch
        self._limits = limits
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: collections.deque[asyncio.Event] = collections.deque()
        self._watching: set[asyncio.Event] = set()
        self._turns = itertools.count(1)

    @property
    def pids(self) -> tuple[int, ...]:
        """The ids of the processes that there are at the moment."""
        processes = [worker.process for worker in list(self.workers)]
        return tuple(process.pid for process in processes if process is not None)

    # Lives.

    async def open(self) -> None:
        """Starts the workers."""
        for worker in self.workers:
            self._keep(self._supervise(worker))

    def _keep(self, work: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _supervise(self, worker: Worker) -> None:
        life = worker.life
        self._do(worker, life.start(time.monotonic()))
        while life.phase is not Phase.STOPPED:
            left = None if life.until is None else life.until - time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.moved.wait(), left)
            worker.moved.clear()
            starting = life.phase is Phase.STARTING
            act = life.tick(time.monotonic())
            if act is not None:
                if starting:
                    self._fail(worker, f"it was not ready within {life.pace.start:g} s")
                self._do(worker, act)
        self._stir()

    def _do(self, worker: Worker, act: Act | None) -> None:
        """Does what the worker's life says, and lets those who wait look again."""
        if act is Act.START:
            self._keep(self._start(worker))
        elif act is Act.DISMISS and worker.process is not None:
            with contextlib.suppress(OSError):
                worker.process.control.shutdown(socket.SHUT_WR)
        elif act is Act.KILL and worker.process is not None:
            worker.process.kill()
        worker.moved.set()
        self._stir()

    async def _start(self, worker: Worker) -> None:
        """One process, from its start to its end."""
        try:
            await self._live(worker)
        except OSError as error:
            self._fail(worker, f"cannot start a process: {error}")
        except Exception:  # noqa: BLE001 - see below
            # A fault of ours must not leave a worker in a state that nothing moves it from.
            _LOG.exception("a worker of %s is given up", self.name)
        finally:
            worker.process = None
            worker.life.end(time.monotonic())
            self._do(worker, None)

    async def _live(self, worker: Worker) -> None:
        process = await asyncio.to_thread(self._launch, worker.number)
        worker.process = process
        try:
            with process.control:
                if worker.life.phase is not Phase.STARTING:  # it is not wanted any more
                    process.kill()
                await self._attend(worker, process)
        finally:
            self._do(worker, worker.life.lose(time.monotonic()))
            process.kill()
            await asyncio.to_thread(process.wait)

    async def _attend(self, worker: Worker, process: Process) -> None:
        """Returns when the process has closed its end of the control socket."""
        process.control.setblocking(False)
        loop = asyncio.get_running_loop()
        line = bytearray()
        with contextlib.suppress(OSError):
            while part := await loop.sock_recv(process.control, 65_536):
                line += part
                if line.endswith(b"\n"):
                    await self._hear(worker, process, json.loads(line))
        if worker.executor is not None:
            worker.executor.close()
            worker.executor = None
        elif worker.life.phase is Phase.STARTING and not line:
            worker.false_starts += 1
            if worker.false_starts >= _SUSPECT:
                self._fail(worker, "its process ends while it starts")

    async def _hear(self, worker: Worker, process: Process, said: dict[str, Any]) -> None:
        if "failed" in said:
            self._fail(worker, str(said["failed"]), str(said["traceback"]))
            return
        transport = HandedTransport(process.control, f"a worker of {self.name}")
        executor = Asked(transport, f"/{self.name}", self.where, limits=self._limits)
        try:
            info = await asyncio.to_thread(executor.describe)
        except Exception as error:  # noqa: BLE001 - whatever it is, the worker is of no use
            executor.close()
            self._fail(worker, str(error))
            self._do(worker, worker.life.lose(time.monotonic()))
            return
        self.info = attrs.evolve(info, version=None)
        worker.broken = ""
        worker.executor = executor
        worker.false_starts = 0
        worker.life.ready(time.monotonic())
        self._do(worker, None)

    def _fail(self, worker: Worker, reason: str, traceback: str = "") -> None:
        _LOG.error("a worker of %s cannot start: %s\n%s", self.name, reason, traceback)
        worker.broken = reason
        self._stir_all()

    # Whom to ask.

    def _stir(self) -> None:
        """Tells the first of those who wait to look again, and all who watch."""
        if self._waiting:
            self._waiting[0].set()
        for watcher in self._watching:
            watcher.set()

    def _stir_all(self) -> None:
        for waiter in self._waiting:
            waiter.set()
        self._stir()

    def _free(self) -> Worker | None:
        able = [
            worker
            for worker in self.workers
            if worker.life.takes_calls and worker.life.calls < _MOST_CALLS
        ]
        # Of equal ones the one that has rested longest, so that each has its share.
        return min(able, key=lambda worker: (worker.life.calls, worker.turn), default=None)

    async def taken(self, context: Context) -> Worker:
        """A worker that takes the call; waited for in turn, until the deadline."""
        if self._waiting or (worker := self._free()) is None:
            worker = await self._waited_for(context)
        if self.expected is not None and self.info is not None:
            check_expected(self.info, self.expected, self.where)
        worker.life.take()
        worker.turn = next(self._turns)
        return worker

    async def _waited_for(self, context: Context) -> Worker:
        if len(self._waiting) >= _MOST_WAITING:
            raise Overloaded(f"{len(self._waiting)} calls wait for {self.name}", retry_after=1.0)
        turn = asyncio.Event()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(context.remaining()):
                while True:
                    self._check_hope()
                    if self._waiting[0] is turn and (worker := self._free()) is not None:
                        return worker
                    await turn.wait()
                    turn.clear()
        except TimeoutError:
            raise late(self.name) from None
        finally:
            self._waiting.remove(turn)
            self._stir()

    def _check_hope(self) -> None:
        """Raises where no worker will be free, or none that can be waited for."""
        if self.closed:
            raise RuntimeError(f"model {self.name!r} was closed; connect anew")
        if all(worker.broken and not worker.life.takes_calls for worker in self.workers):
            raise NotReady(
                f"{self.name} cannot be started; model.ready() and the log tell why",
                retry_after=1.0,
            )

    def give_back(self, worker: Worker, executor: Asked) -> None:
        """The call that was given to that process has ended."""
        if worker.executor is executor:
            self._do(worker, worker.life.give_back(time.monotonic()))

    def lost(self, worker: Worker, executor: Asked) -> None:
        """That process could not be talked to; another may be there in its place already."""
        if worker.executor is executor:
            self._do(worker, worker.life.lose(time.monotonic()))

    async def until_ready(self, context: Context) -> None:
        """Returns once a worker takes calls, be they more than it can take at the moment."""

        def ready() -> bool:
            able = any(worker.life.takes_calls for worker in self.workers)
            if not able or self.closed:
                self._check_hope()
            return able

        try:
            async with asyncio.timeout(context.remaining()):
                await self._watch(ready)
        except TimeoutError:
            raise late(self.name) from None

    async def _watch(self, done: Callable[[], bool]) -> None:
        """Returns when it is so; looks again whenever anything moves."""
        moved = asyncio.Event()
        self._watching.add(moved)
        try:
            while not done():
                await moved.wait()
                moved.clear()
        finally:
            self._watching.discard(moved)

    async def close(self) -> None:
        """Gives no new calls out, and returns once the processes have ended.

        Those that still have calls end after the last of them, which nobody waits for here.
        """
        self.closed = True
        self._stir_all()
        for worker in self.workers:
            self._do(worker, worker.life.drain(time.monotonic()))
        await self._watch(
            lambda: all(one.life.calls or one.life.phase is Phase.STOPPED for one in self.workers)
        )
