"""Processes that are killed and paused, to see who notices."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from maas.executors.workers import WorkerExecutor
from maas.model import Model

__all__ = ["Processes"]


class Processes:
    """Some processes, by their number here; `pids` gives those that there are at the moment.

    `Processes.of(model)` are the workers of a model, `Processes.these(pid, ...)` any others. POSIX
    only.
    """

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        self._pids = pids

    @classmethod
    def of(cls, model: Model[..., Any]) -> Self:
        """The workers of a model that runs at `workers:`.

        Raises
        ------
        TypeError
            The model has no workers.
        """
        executor = model.executor
        if not isinstance(executor, WorkerExecutor):
            raise TypeError(f"{model!r} has no workers; connect to 'workers:module:name'")
        return cls(lambda: executor.crew.pids)

    @classmethod
    def these(cls, *pids: int) -> Self:
        """Processes of those ids."""
        return cls(lambda: pids)

    @property
    def pids(self) -> Sequence[int]:
        """Their ids now; a worker that is being started anew is not among them."""
        return self._pids()

    def kill(self, number: int) -> int:
        """Ends a process as `kill -9` does, and gives its id."""
        return self._send(number, signal.SIGKILL)

    def pause(self, number: int) -> int:
        """Lets a process stand still until `resume`, with its sockets open, and gives its id."""
        return self._send(number, signal.SIGSTOP)

    def resume(self, number: int) -> int:
        """Lets a process go on, and gives its id."""
        return self._send(number, signal.SIGCONT)

    @contextlib.contextmanager
    def paused(self, number: int) -> Iterator[int]:
        """A process stands still meanwhile."""
        pid = self.pause(number)
        try:
            yield pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _send(self, number: int, what: signal.Signals) -> int:
        pid = self.pids[number]
        os.kill(pid, what)
        return pid
