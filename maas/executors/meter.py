"""What a run costs the thread that it runs on."""

import time

from maas.executors.placement import Cost

try:
    import resource

    _THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)
except ImportError:  # Windows
    _THREAD = None

__all__ = ["Meter"]

_IDLE = 0.5
"""Share of the time off the processor from which a run is taken to have waited, where the system
does not tell."""


class Meter:
    """Begins to measure when it is made."""

    __slots__ = ("_began", "_busy", "_gave_up")

    def __init__(self) -> None:
        self._busy, self._gave_up = _used()
        self._began = time.perf_counter()

    def cost(self) -> Cost:
        """Since then, on the thread that made it."""
        seconds = time.perf_counter() - self._began
        busy, gave_up = _used()
        busy -= self._busy
        waited = gave_up > self._gave_up if _THREAD is not None else busy < _IDLE * seconds
        return Cost(seconds, busy, waited)


def _used() -> tuple[float, int]:
    """Seconds that this thread was on the processor, and how often it gave it up."""
    # Of `getrusage` the seconds would be as old as the last tick of the scheduler, some ms.
    busy = time.thread_time()
    return busy, 0 if _THREAD is None else resource.getrusage(_THREAD).ru_nvcsw
