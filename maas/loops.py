"""Event loops on threads of their own, for callers who have none.

Two kinds of work live on such loops: all background traffic of all remote models
(`io_loop`), and models that are coroutines. They are apart, because a coroutine that blocks
must not hold up the traffic. A loop starts with the first work that needs it, and a
caller's own loop, if there is one, stays out of it: a `Job` can be awaited from any, or from none.

A thread does not survive `fork()`. In the child the loop is gone and a new one starts for
new objects; what had been used before the fork raises `ForkError` (`Home`), because its
sockets are shared with the parent and two processes writing to one connection garble both.
"""

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from maas.errors import ForkError

__all__ = ["Home", "LoopThread", "begin", "call_at", "io_loop", "run"]

T = TypeVar("T")


class Home:
    """Remembers in which process an object was first used, and whether it was closed."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._closed = False

    def check(self, what: str) -> None:
        """Settles here at the first call.

        Raises
        ------
        ForkError
            `what` was used in another process before.
        RuntimeError
            It was closed.
        """
        if self._closed:
            raise RuntimeError(f"the connection to {what} was closed; connect again")
        pid = os.getpid()
        if self._pid is None:
            self._pid = pid
        elif self._pid != pid:
            raise ForkError(
                f"{what} was used before this process was forked, and its connections belong "
                "to the parent; connect again in the child, or start children by 'spawn'"
            )

    def close(self) -> None:
        """From now on, every check fails."""
        self._closed = True


def _new_loop() -> asyncio.AbstractEventLoop:
    """A loop of uvloop where that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class LoopThread:
    """One loop on one daemon thread, in each process that needs it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Collecting a parent's loop would close its selector, which the parent still uses:
        # epoll registrations belong to the shared open file, not to the process.
        self._inherited: list[asyncio.AbstractEventLoop | None] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_again)

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, running; the first call starts it."""
        if self._loop is not None:
            return self._loop
        with self._lock:
            if self._loop is None:
                loop = _new_loop()
                threading.Thread(target=loop.run_forever, name=self._name, daemon=True).start()
                self._loop = loop
            return self._loop

    def _begin_again(self) -> None:
        """In a forked child. The parent's other thread may have held the lock at that moment."""
        self._lock = threading.Lock()
        self._inherited.append(self._loop)
        self._loop = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Runs a coroutine on the loop; cancelling the future cancels the coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop())

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> Callable[[], object]:
        """Begins a coroutine on the loop; what is given cancels it, from any thread.

        Whoever needs to know of its end has it tell: a future for that takes as long as a call.
        """
        loop = self.loop()
        task: asyncio.Task[None]

        def begun() -> None:
            nonlocal task
            task = loop.create_task(coroutine)

        def end() -> None:
            task.cancel()

        loop.call_soon_threadsafe(begun)
        return lambda: loop.call_soon_threadsafe(end)

    def call_at(self, deadline: float, function: Callable[[], object]) -> None:
        """Calls the function on the loop once `time.monotonic()` has reached the deadline."""
        loop = self.loop()
        loop.call_soon_threadsafe(loop.call_later, deadline - time.monotonic(), function)


_traffic = LoopThread("maas-io")


def io_loop() -> asyncio.AbstractEventLoop:
    """The loop of all traffic in this process, running."""
    return _traffic.loop()


def run(coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Runs a coroutine on the loop of all traffic."""
    return _traffic.run(coroutine)


def begin(coroutine: Coroutine[Any, Any, None]) -> Callable[[], object]:
    """Begins a coroutine on the loop of all traffic; what is given cancels it."""
    return _traffic.begin(coroutine)


def call_at(deadline: float, function: Callable[[], object]) -> None:
    """Calls a short function on that loop once `time.monotonic()` has reached the deadline."""
    _traffic.call_at(deadline, function)
