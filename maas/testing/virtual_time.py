"""Time that passes only when nothing else can happen, for what waits on an event loop.

Under `virtual_time()` a loop made by `virtual_loop` never sleeps: where it would wait for a
timer, its clock is set to that timer's time. An hour of waits takes as long as what is computed
in it, and happens again in the same order.
"""

import asyncio
import contextlib
import selectors
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

__all__ = ["VirtualClock", "virtual_loop", "virtual_time"]

_START = 1000.0
_STUCK = 10.0
"""Real seconds in which another thread must say something where no timer is set."""


class VirtualClock:
    """What `time.monotonic` is meanwhile."""

    def __init__(self) -> None:
        self.now = _START

    def __call__(self) -> float:
        """The time."""
        return self.now


@contextlib.contextmanager
def virtual_time() -> Iterator[VirtualClock]:
    """`time.monotonic` is a clock that only `virtual_loop` moves.

    That is so for the whole process: nothing else that looks at the time may run beside it.
    """
    clock = VirtualClock()
    with mock.patch.object(time, "monotonic", clock):
        yield clock


class _Selector(selectors.SelectSelector):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if found or timeout == 0:
            return found
        if timeout is None:
            found = super().select(_STUCK)
            if not found:
                raise RuntimeError("everything waits, and nothing will happen")
            return found
        self._clock.now += max(0.0, timeout)
        return found


def virtual_loop(clock: VirtualClock) -> asyncio.SelectorEventLoop:
    """A loop whose time is the clock's."""
    return asyncio.SelectorEventLoop(_Selector(clock))
