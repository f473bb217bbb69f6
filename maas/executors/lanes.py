"""The compute threads of one model: work begins in the order of its arrival, on a few threads.

A thread that was given nothing for some seconds ends. Those of
`concurrent.futures.ThreadPoolExecutor` stay until somebody shuts it down, and a process that wraps
models by the hundred would keep threads by the hundred. One pool for all models would be bounded
as well, but a model that waits for another one would hold the very thread that the other one waits
for.
"""

import atexit
import concurrent.futures
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from maas.errors import Cancelled

__all__ = ["Lane"]

_IDLE = 5.0
"""Seconds; a thread starts in 0.1 ms, so that one in five seconds is not noticed."""

_Work = tuple[Callable[[], object], Callable[[Exception], object]]


class Lane:
    """Threads for the work of one model; they start as work comes, and end when none does.

    Parameters
    ----------
    width : how much is worked on at once; with 1, one after the other.
    name : what the threads are called.
    idle : seconds without work after which a thread ends.
    """

    def __init__(self, width: int, name: str, *, idle: float = _IDLE) -> None:
        self._width = width
        self._name = name
        self._idle = idle
        self._waiting: deque[_Work] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._resting = 0
        self._closed = False
        self._threads: set[threading.Thread] = set()
        _lanes.add(self)

    def put(self, work: Callable[[], object], given_up: Callable[[Exception], object]) -> None:
        """Has `work()` done, which raises nothing; `given_up(error)` if it is never begun."""
        with self._changed:
            self._waiting.append((work, given_up))
            if len(self._waiting) <= self._resting:
                self._changed.notify()
            elif len(self._threads) < self._width:
                self._begin()

    def _begin(self) -> None:
        # A daemon, since Python waits for others without waking them; `_finish` waits.
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._threads.add(thread)
        _begun.add(thread)
        try:
            thread.start()
        except RuntimeError:  # this process may have no more
            self._threads.discard(thread)
            _begun.discard(thread)
            if not self._threads:
                self._waiting.pop()
                raise

    def ask(self, function: Callable[[], Any]) -> "concurrent.futures.Future[Any]":
        """What `function()` gives, as a future."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                value = function()
            except BaseException as error:  # noqa: BLE001 - the future's to raise
                future.set_exception(error)
            else:
                future.set_result(value)

        def given_up(error: Exception) -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

        self.put(work, given_up)
        return future

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            work, _ = taken
            work()
            # What it holds, a model's arguments, is not kept while this thread rests.
            del work, taken

    def _take(self) -> _Work | None:
        """The next work; None for a thread that is to end."""
        with self._changed:
            if not self._waiting and not self._closed:
                self._resting += 1
                try:
                    self._changed.wait_for(lambda: self._waiting or self._closed, self._idle)
                finally:
                    self._resting -= 1
            if self._waiting:
                return self._waiting.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def close(self) -> None:
        """Gives up what has not begun, and ends each thread once it has nothing to do.

        What comes afterwards, such as the end of a stream, is still done.
        """
        with self._changed:
            dropped = list(self._waiting)
            self._waiting.clear()
            self._closed = True
            self._changed.notify_all()
        for _, given_up in dropped:
            given_up(Cancelled("the model was closed before this call began"))

    def finish(self) -> None:
        """Does what has been put, and lets its threads end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


_lanes: "weakref.WeakSet[Lane]" = weakref.WeakSet()
_begun: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    # Their threads stayed with the parent.
    os.register_at_fork(after_in_child=_lanes.clear)
    os.register_at_fork(after_in_child=_begun.clear)


@atexit.register
def _finish() -> None:
    """At the end of the process, what was submitted is still done, and every thread is gone.

    Python would cut off one that is about to end where it stands. If that is in C++, as where
    torch's thread-local memory goes, the process is aborted: "terminate called without an active
    exception".
    """
    for lane in list(_lanes):
        lane.finish()
    for thread in list(_begun):
        thread.join()
