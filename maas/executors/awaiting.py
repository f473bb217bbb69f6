"""Futures that are settled on other threads, awaited on an event loop.

`asyncio.wrap_future` wakes the loop for each one, which takes a byte through a pipe, and chains
two futures by forty calls. Here, whatever is settled before the loop looks is given in one turn.
"""

import concurrent.futures
import contextlib
import sys
import weakref
from collections import deque
from collections.abc import Awaitable
from functools import partial
from typing import Any, TypeVar

__all__ = ["in_loop"]

T = TypeVar("T")


def in_loop(future: concurrent.futures.Future[T]) -> Awaitable[T]:
    """The future, for the event loop that runs now; cancelling what is given cancels it."""
    # Whoever awaits has loaded asyncio; whoever does not is spared its 40 ms.
    loop: Any = sys.modules["asyncio"].get_running_loop()
    box = _boxes.get(loop)
    if box is None:
        box = _boxes[loop] = _Box()
    waiter: Any = loop.create_future()
    waiter.add_done_callback(partial(_follow, future))
    future.add_done_callback(partial(box.put, waiter))
    return waiter  # type: ignore[no-any-return]


def _follow(future: concurrent.futures.Future[Any], waiter: Any) -> None:
    if waiter.cancelled():
        future.cancel()


class _Box:
    """What was settled for one loop since it last looked."""

    __slots__ = ("__weakref__", "_rung", "_settled")

    def __init__(self) -> None:
        self._settled: deque[tuple[Any, concurrent.futures.Future[Any]]] = deque()
        self._rung = False

    def put(self, waiter: Any, future: concurrent.futures.Future[Any]) -> None:
        """Takes a future that is settled; called on any thread."""
        self._settled.append((waiter, future))
        # If it was rung, the loop has yet to say that it looks, and then sees this one too.
        if not self._rung:
            self._rung = True
            with contextlib.suppress(RuntimeError):  # it has closed: nobody waits there
                waiter.get_loop().call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._rung = False
        while self._settled:
            waiter, future = self._settled.popleft()
            if not waiter.done():
                _give(waiter, future)


def _give(waiter: Any, future: concurrent.futures.Future[Any]) -> None:
    if future.cancelled():
        waiter.cancel()
        return
    error = future.exception()
    if error is None:
        waiter.set_result(future.result())
    elif isinstance(error, StopIteration):
        # As Python has it for coroutines, whose own end this would be.
        wrapped = RuntimeError("the call raised StopIteration")
        wrapped.__cause__ = error
        waiter.set_exception(wrapped)
    else:
        waiter.set_exception(error)


_boxes: "weakref.WeakKeyDictionary[Any, _Box]" = weakref.WeakKeyDictionary()
