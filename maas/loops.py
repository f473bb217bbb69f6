"""Event loops on threads of their own: asyncio for callers who have no loop.

Such a thread is started at the first use and dies with the process. It does not
survive `fork()`: what was inherited raises at once instead of waiting for a thread that is not there.
"""

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from maas.errors import ForkError

try:
    import uvloop
except ImportError:  # not built for Windows
    uvloop = None  # type: ignore[assignment]

__all__ = ["LoopThread", "new_event_loop"]

T = TypeVar("T")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where there is one, else asyncio's."""
    return asyncio.new_event_loop() if uvloop is None else uvloop.new_event_loop()


class LoopThread:
    """One event loop on one daemon thread, started when it is first needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, running.

        Raises
        ------
        ForkError
            It ran in the process that this one was forked from.
        """
        if self._loop is None:
            with self._lock:
                if self._loop is None:
                    self._start()
        if self._pid != os.getpid():
            raise ForkError(
                f"{self._name} ran before fork(), and its thread stayed behind; use maas first after the fork, or spawn"
            )
        assert self._loop is not None  # noqa: S101 - for the type checker
        return self._loop

    def _start(self) -> None:
        loop = new_event_loop()
        threading.Thread(target=loop.run_forever, name=self._name, daemon=True).start()
        self._pid = os.getpid()
        self._loop = loop

    def call_at(self, deadline: float, function: Callable[[], object]) -> None:
        """Calls the function on the loop once `time.monotonic()` has reached the deadline."""
        loop = self.loop()
        left = deadline - time.monotonic()
        loop.call_soon_threadsafe(loop.call_later, left, function)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts the coroutine on the loop; its future can be cancelled."""
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop())
        except BaseException:
            coroutine.close()
            raise
