"""Who waits for the events of jobs, on one thread for all of them."""

import threading
import time
from collections.abc import Callable
from typing import Any

import attrs

from maas.calls import Result
from maas.executors.base import Job
from maas.failures import presentable
from maas.wire import Failure

__all__ = ["LOOK", "NOTHING", "Followers"]

LOOK = 0.02
"""Seconds between two looks into the files of a job that is followed."""
_PATIENCE = 10.0
"""Seconds after which a follower is told that there was nothing, and asks again."""
NOTHING: dict[str, Any] = {"events": [], "state": "running"}
"""What is told to who has waited long enough."""


@attrs.frozen
class _Follower:
    look: Callable[[], dict[str, Any] | None]
    until: float
    job: Job[Any]

    def served(self) -> bool:
        """Whether it need not wait any longer."""
        if self.job.done():
            return True
        try:
            told = self.look()
        except Exception as error:  # noqa: BLE001 - the folder may have gone
            self.job.settle(Failure(presentable(error)))
            return True
        if told is None and time.monotonic() >= self.until:
            told = NOTHING
        if told is not None:
            self.job.settle(Result(told))
        return told is not None


class Followers:
    """Those who wait; the thread ends when nobody does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Follower] = []
        self._thread: threading.Thread | None = None

    def follow(self, look: Callable[[], dict[str, Any] | None]) -> Job[Any]:
        """What `look` gives once it gives something, or that there was nothing for ten seconds."""
        follower = _Follower(look, time.monotonic() + _PATIENCE, Job())
        with self._lock:
            self._waiting.append(follower)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="maas-job-followers", daemon=True
                )
                self._thread.start()
        return follower.job

    def _watch(self) -> None:
        while True:
            with self._lock:
                waiting = list(self._waiting)
            served = {id(each) for each in waiting if each.served()}
            with self._lock:
                self._waiting = [each for each in self._waiting if id(each) not in served]
                if not self._waiting:
                    self._thread = None
                    return
            time.sleep(LOOK)
