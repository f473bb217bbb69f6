"""What is asked about jobs, by whoever submitted them: the same questions here and at a server."""

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from maas.errors import Conflict
from maas.jobs.folders import ENDED, JobFolder
from maas.jobs.keeper import Keeper
from maas.jobs.ordering import copy_of, order_for
from maas.model import Model
from maas.train.recipe import Recipe

__all__ = ["OPERATIONS", "Desk", "Operation", "seen"]

_MOST = 2000
"""Events told at once: at 24 nodes each they keep to what a message may hold."""


@attrs.frozen
class Desk:
    """Where one owner asks about the jobs of one model.

    Attributes
    ----------
    keeper, owner : whose jobs, and who has them.
    model : what a new job trains.
    name, address : of the model, and of that version of it.
    """

    keeper: Keeper
    owner: str
    model: Model[..., Any]
    name: str
    address: str

    def found(self, name: str) -> JobFolder:
        """The owner's job of that name; `NotFound` where there is none."""
        return self.keeper.find(self.owner, self.name, name)

    def submitted(
        self, name: str, recipe: dict[str, Any], rows: dict[str, Any], resume: bool
    ) -> dict[str, Any]:
        """The job of that name, begun if it is new, and let go on if that is asked."""
        order = order_for(
            self.model,
            Recipe.of(recipe).to_data(),
            rows,
            name=name,
            owner=self.owner,
            address=self.address,
        )
        folder = self.keeper.submit(order)
        if resume:
            self.keeper.resume(folder)
        return self.told(name)

    def ordered(self, name: str, work: str, recipe: dict[str, Any], rows: dict[str, Any]) -> None:
        """The job of that name which does other work than training, begun if it is new."""
        order = order_for(
            self.model, recipe, rows, name=name, owner=self.owner, address=self.address, work=work
        )
        self.keeper.submit(order)

    def copied(self, name: str) -> None:
        """Keeps the model as it is, as the result of a job of that name."""
        order = copy_of(self.model, name=name, owner=self.owner, address=self.address)
        self.keeper.keep(order)

    def told(self, name: str) -> dict[str, Any]:
        """What is known of a job."""
        folder = self.found(name)
        outcome = self.keeper.outcome(folder)
        return {
            "name": name,
            "model": folder.record.model,
            "state": self.keeper.state(folder),
            "steps": folder.events.count(),
            "recipe": folder.record.recipe,
            "message": "" if outcome is None else outcome.message,
            "stopped": None if outcome is None else outcome.stopped,
            "best": None if outcome is None else outcome.best,
        }

    def names(self) -> list[str]:
        """The owner's jobs of this model, in the order of their submission."""
        return self.keeper.names(self.owner, self.name)

    def events(self, name: str, start: int) -> dict[str, Any] | None:
        """Events from that number on; None while there are none and the job goes on.

        `start` may be -1 for who waits for the end alone.
        """
        return seen(self.keeper, self.found(name), start)

    def cancelled(self, name: str) -> None:
        """Asks it to stop."""
        self.found(name).cancel()

    def resumed(self, name: str) -> None:
        """Lets it go on from its last checkpoint."""
        self.keeper.resume(self.found(name))

    def deleted(self, name: str) -> None:
        """Forgets it."""
        self.keeper.delete(self.found(name))

    def dropped(self, name: str) -> None:
        """Ends it, and forgets it."""
        self.keeper.drop(self.found(name))

    def done(self, name: str) -> JobFolder:
        """The job, once it is done; raises what it failed by, or `Conflict` where it goes on."""
        folder = self.found(name)
        outcome = self.keeper.outcome(folder)
        if outcome is None:
            raise Conflict(f"job {name!r} has not ended; job.wait() returns when it has")
        if (error := outcome.exception) is not None:
            raise error
        return folder


def seen(keeper: Keeper, folder: JobFolder, start: int) -> dict[str, Any] | None:
    """As `Desk.events`."""
    # First the state: what is written after it is told the next time.
    state = keeper.state(folder)
    events = folder.events.read(start, _MOST) if start >= 0 else []
    if not events and state not in ENDED:
        return None
    return {"events": events, "state": "running" if events else state}


@attrs.frozen
class Operation:
    """A question: the types of its arguments, and what answers it."""

    kinds: tuple[type, ...]
    answer: Callable[..., Any]


OPERATIONS: Mapping[str, Operation] = {
    "submit": Operation((str, dict, dict, bool, str), Desk.submitted),
    "copy": Operation((str, str), Desk.copied),
    "told": Operation((str,), Desk.told),
    "names": Operation((), Desk.names),
    "events": Operation((str, int), Desk.events),
    "cancel": Operation((str,), Desk.cancelled),
    "resume": Operation((str,), Desk.resumed),
    "delete": Operation((str,), Desk.deleted),
    "drop": Operation((str,), Desk.dropped),
    "result": Operation((str,), Desk.done),
}
