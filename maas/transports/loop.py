"""The process's one private I/O loop.

All background traffic of all remote models runs on a single asyncio loop in a daemon thread.
It starts with the first call that needs it, and the caller's own loop, if there is one,
stays out of it: a `Job` can be awaited from any loop, or from none.

A thread does not survive `fork()`. In the child the loop is gone and a new one starts for
new objects; what had been used before the fork raises `ForkError` (`Home`), because its
sockets are shared with the parent and two processes writing to one connection garble both.
"""

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from maas.errors import ForkError

__all__ = ["Home", "io_loop", "run"]

T = TypeVar("T")

# At exit the loop gets this long to let its tasks unwind. They only have to hear of their
# cancellation; the thread is a daemon, so one that does not listen cannot keep the process.
_FAREWELL_SECONDS = 1.0


class Home:
    """Remembers in which process an object was first used."""

    def __init__(self) -> None:
        self._pid: int | None = None

    def check(self, what: str) -> None:
        """Settles here at the first call.

        Raises
        ------
        ForkError
            `what` was used in another process before.
        """
        pid = os.getpid()
        if self._pid is None:
            self._pid = pid
        elif self._pid != pid:
            raise ForkError(
                f"{what} was used before this process was forked, and its connections belong "
                "to the parent; connect again in the child, or start children by 'spawn'"
            )


class _Thread:
    """One loop on one daemon thread."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self._thread = threading.Thread(target=self._serve, name="maas-io", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def leave(self) -> None:
        """Cancels what is in flight and stops the loop, so that interpreter exit is silent."""
        self.loop.call_soon_threadsafe(self.loop.create_task, self._unwind())
        self._thread.join(_FAREWELL_SECONDS)

    async def _unwind(self) -> None:
        # Nobody is left to read a complaint about a connection that broke at exit.
        self.loop.set_exception_handler(lambda _loop, _context: None)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Dropped connections hear of it in the turn after.
        await asyncio.sleep(0)
        self.loop.stop()


def _new_loop() -> asyncio.AbstractEventLoop:
    """A loop of uvloop where that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _Process:
    """The loop of this process, and those it inherited."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: _Thread | None = None
        # Collecting a parent's loop would close its selector, which the parent still uses:
        # epoll registrations belong to the shared open file, not to the process.
        self._inherited: list[_Thread | None] = []

    def loop(self) -> asyncio.AbstractEventLoop:
        if self._thread is not None:
            return self._thread.loop
        with self._lock:
            if self._thread is None:
                self._thread = _Thread()
            return self._thread.loop

    def begin_again(self) -> None:
        """In a forked child. The parent's other thread may have held the lock at that moment."""
        self._lock = threading.Lock()
        self._inherited.append(self._thread)
        self._thread = None

    def leave(self) -> None:
        if self._thread is not None:
            self._thread.leave()


_here = _Process()
atexit.register(_here.leave)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_here.begin_again)


def io_loop() -> asyncio.AbstractEventLoop:
    """The I/O loop of this process, running; the first call starts it."""
    return _here.loop()


def run(coroutine: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
    """Runs a coroutine on the I/O loop; cancelling the future cancels the coroutine."""
    return asyncio.run_coroutine_threadsafe(coroutine, io_loop())
