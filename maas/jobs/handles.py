"""`TrainingJob`, what a user holds of a job, wherever it runs.

It asks a desk: the one in this process for a model here, the one at the server for a model there.
"""

import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from maas.errors import DeadlineExceeded, Unsupported
from maas.executors.base import END, Stream
from maas.executors.lanes import Lane
from maas.jobs.folders import ENDED
from maas.model import Model
from maas.train.history import History, Step

__all__ = ["Events", "Side", "TrainingJob"]


class Side(Protocol):
    """Where a job is asked about."""

    where: str

    def submit(self, name: str, recipe: dict[str, Any], rows: dict[str, Any], resume: bool) -> None:
        """Has the job of that name begun if it is new; raises as `Keeper.submit` does."""

    def rows(self, packed: dict[str, Any] | None) -> dict[str, Any] | None:
        """Rows as `submit` takes them: by their name where they are too many for a message."""

    def copy(self, name: str) -> None:
        """Keeps the model as it is, as the result of a job of that name."""

    def publish(self, name: str) -> None:
        """Lets a name mean this version of the model; its own name by default ("")."""

    def ask(self, operation: str, *args: Any, deadline: float | None = None) -> Any:
        """The answer to a question of `desk.py`; raises `DeadlineExceeded`."""

    def made(self, name: str) -> Model[..., Any]:
        """The model that a job has made."""

    def forgetting(self, name: str) -> Callable[[], None]:
        """What deletes a job, and holds nothing but what it needs for that."""


class Events(Stream[Step]):
    """The steps of a job as they come: for `for` and for `async for`; it ends when the job does.

    `next` is the number of the event that comes next, to begin from another time.
    """

    def __init__(self, side: Side, name: str, start: int) -> None:
        self.next = start
        self._side = side
        self._name = name
        self._here: deque[dict[str, Any]] = deque()
        self._lane = Lane(1, "maas-job-events")
        self._ended = False

    def _step(self) -> Any:
        while not self._here and not self._ended:
            told = self._side.ask("events", self._name, self.next)
            self._here.extend(told["events"])
            self._ended = not told["events"] and told["state"] in ENDED
        if not self._here:
            return END
        if "step" not in self._here[0]:
            raise Unsupported(f"job {self._name!r} trains nothing, so it has no steps")
        self.next += 1
        return Step(**self._here.popleft())

    def _pull(self) -> "Future[Any]":
        return self._lane.ask(self._step)

    def _stop(self) -> "Future[None]":
        self._ended = True
        self._here.clear()
        done: Future[None] = Future()
        done.set_result(None)
        return done


class TrainingJob:
    """Training in a process of its own, which goes on when this program or a server has ended.

    Attributes
    ----------
    name : what it is called; the same name and arguments are the same job.
    total : its steps in all, where that is known.
    """

    def __init__(self, side: Side, name: str, total: int | None = None) -> None:
        self.name = name
        self.total = total
        self._side = side

    @property
    def state(self) -> str:
        """One of "queued", "running", "done", "failed" and "cancelled"."""
        state: str = self.told()["state"]
        return state

    def told(self) -> dict[str, Any]:
        """What is known of it: name, model, state, steps so far, recipe, and why it failed."""
        told: dict[str, Any] = self._side.ask("told", self.name)
        return told

    def events(self, start: int = 0) -> Events:
        """Its steps from that number on, those that were and those to come."""
        return Events(self._side, self.name, start)

    def cancel(self) -> None:
        """Asks it to stop, with a checkpoint; it can be resumed."""
        self._side.ask("cancel", self.name)

    def resume(self) -> "TrainingJob":
        """Lets it go on from its last checkpoint, if it was cancelled or has failed."""
        self._side.ask("resume", self.name)
        return self

    def wait(self, timeout: float | None = None) -> str:
        """The state that it ended in.

        Raises
        ------
        DeadlineExceeded
            It has not ended within `timeout` seconds; it goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                state: str = self._side.ask("events", self.name, -1, deadline=deadline)["state"]
            except DeadlineExceeded:
                state = ""
            if state in ENDED:
                return state
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineExceeded(f"job {self.name!r} has not ended in time; it goes on")

    def result(self, timeout: float | None = None) -> Model[..., Any]:
        """The model that it has made, once it is done.

        At a server this is a version of the model, `net@run-42`; others see it by that address
        alone, until it is published.

        Raises
        ------
        Exception
            What the job failed by; `WorkerLost` if its process could not be kept alive.
        Cancelled
            It was cancelled.
        DeadlineExceeded
            As `wait`.
        """
        self.wait(timeout)
        return self._side.made(self.name)

    def history(self) -> History:
        """Of the steps that were taken so far; complete once it has ended."""
        told = self.told()
        taken = zip(range(told["steps"]), self.events(), strict=False)
        history = History.of(step for _, step in taken)
        history.stopped, history.best = told["stopped"], told["best"]
        return history

    def hand_over(self, model: Model[..., Any]) -> History:
        """Lets this handle of the model be what the job has made; the job goes with it.

        Raises
        ------
        Exception
            As `result`.
        """
        result = self.result()
        model._executor = result.executor
        finalizer = weakref.finalize(result.executor, self._side.forgetting(self.name))
        finalizer.atexit = False
        return self.history()

    def delete(self) -> None:
        """Forgets it, its checkpoints and its result.

        Raises
        ------
        Conflict
            It has not ended.
        ValueError
            A name means its result.
        """
        self._side.ask("delete", self.name)

    def __repr__(self) -> str:
        return f"<maas job {self.name!r} {self._side.where}>"
