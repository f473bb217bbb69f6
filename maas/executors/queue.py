"""Who waits, who goes together, and who is turned away: a state machine without clock or thread.

Whoever drives it says what time it is and holds a lock. The model is free or it runs:

    claim() ───────────────> runs      a lone caller goes at once
    offer() ──> waits ──take()──> runs ──done()──> free
                  │
                  └── withdraw(), or the deadline: never runs

What waits is bounded in calls, rows and age, so that a call that is taken in is also answered
in time; the rest hears at once when to come back.
"""

from collections.abc import Hashable, Iterator
from typing import Any

import attrs

from maas.batching import Batching
from maas.errors import Overloaded

__all__ = ["Queue", "Taken", "Waiting"]

_LONGEST_RETRY = 60.0
_UNMEASURED = 1.0
"""Seconds after which to come back to a model that has not run yet."""
_SMOOTHING = 0.2
"""Weight of the newest run in the running mean of how long a run takes."""


@attrs.define(eq=False)
class Waiting:
    """One call that waits.

    Attributes
    ----------
    bucket : shared by calls that may go together; None goes alone.
    rows : what it takes of a batch, of which `most` fit in one.
    arrived, deadline : in the driver's time; at its deadline it is dropped.
    work : the driver's own.
    priority : larger is sooner.
    patience : seconds that it may be held back for others to join it.
    """

    bucket: Hashable
    rows: int
    arrived: float
    work: Any
    deadline: float | None = None
    priority: int = 0
    most: int = 1
    patience: float = 0.0


@attrs.frozen
class Taken:
    """Calls that left the queue: to be run together, and those whose deadline has passed."""

    batch: list[Waiting]
    late: list[Waiting]


_Line = dict[Waiting, None]
"""Calls in the order of their arrival; leaving from the middle costs no walk."""


class Queue:
    """Calls to one model under one `Batching`; see the module's docstring."""

    def __init__(self, batching: Batching, name: str = "model") -> None:
        self._batching = batching
        self._name = name
        self._lines: dict[tuple[int, Hashable], _Line] = {}
        self._rows_at: dict[int, int] = {}
        self._since: float | None = None
        self._seconds = 0.0
        self._measured = 0
        self.calls = 0
        self.rows = 0

    @property
    def running(self) -> bool:
        """Whether the model is at work."""
        return self._since is not None

    def claim(self, now: float) -> bool:
        """Takes the model for one call that waited for nobody; False where somebody is before."""
        if self._since is not None or self.calls:
            return False
        self._since = now
        return True

    def done(self, now: float) -> None:
        """The run has really ended, whether or not anybody waited for it that long."""
        assert self._since is not None  # noqa: S101 - every run was begun here
        seconds = now - self._since
        self._since = None
        weight = _SMOOTHING if self._measured else 1.0
        self._measured += 1
        self._seconds += weight * (seconds - self._seconds)

    # In.

    def offer(self, entry: Waiting, now: float) -> list[Waiting]:
        """Takes the call in; gives those of less priority that had to leave for it.

        Raises
        ------
        Overloaded
            Too much waits, or what is ahead of the call would make it late.
        """
        evicted = self._make_room(entry, now)
        self._check_age(entry, now)
        for other in evicted:
            self.withdraw(other)
        self._lines.setdefault((entry.priority, entry.bucket), {})[entry] = None
        self._count(entry, 1)
        return evicted

    def _make_room(self, entry: Waiting, now: float) -> list[Waiting]:
        calls = self.calls + 1 - self._batching.max_queue
        rows = self.rows + entry.rows - self._batching.max_queue_rows
        evicted: list[Waiting] = []
        if calls > 0 or (rows > 0 and self.calls):
            for other in self._below(entry.priority):
                if calls <= 0 and rows <= 0:
                    break
                evicted.append(other)
                calls -= 1
                rows -= other.rows
            if calls > 0 or (rows > 0 and self.calls > len(evicted)):
                raise self.overloaded(f"{self.calls} calls of {self.rows} rows wait", now)
        return evicted

    def _below(self, priority: int) -> Iterator[Waiting]:
        """Calls of less priority: the least first, of those the newest first."""
        lower = [each for key, line in self._lines.items() if key[0] < priority for each in line]
        return iter(sorted(lower, key=lambda each: (each.priority, -each.arrived)))

    def _check_age(self, entry: Waiting, now: float) -> None:
        if not self.calls:
            return
        oldest = now
        for (priority, _bucket), line in self._lines.items():
            if priority >= entry.priority:
                oldest = min(oldest, next(iter(line)).arrived)
        if now - oldest > max(self._batching.max_age, 2 * self._seconds):
            raise self.overloaded(f"the oldest call has waited {now - oldest:.3g} s", now)
        if entry.deadline is not None:
            # Only whole batches ahead count: what goes in the next one waits for one run at most.
            rows = sum(
                count for priority, count in self._rows_at.items() if priority >= entry.priority
            )
            wait = rows // self._batching.max_batch_size * self._seconds
            if wait > entry.deadline - now:
                raise self.overloaded(f"{wait:.3g} s of work are ahead of the deadline", now)

    def overloaded(self, why: str, now: float) -> Overloaded:
        """A refusal that says when to come back: once what waits will have been answered."""
        seconds = self.backlog(now) if self._measured else _UNMEASURED
        return Overloaded(
            f"{self._name} has more work than it can do: {why}; come back later",
            retry_after=round(min(max(seconds, 1e-3), _LONGEST_RETRY), 3),
        )

    def backlog(self, now: float) -> float:
        """Seconds until what waits and runs will have been answered, as runs took so far."""
        runs = -(-self.rows // self._batching.max_batch_size)
        left = 0.0 if self._since is None else max(0.0, self._seconds - (now - self._since))
        return left + runs * self._seconds

    # Out.

    def withdraw(self, entry: Waiting) -> bool:
        """The call leaves; False where it does not wait any more."""
        key = (entry.priority, entry.bucket)
        line = self._lines.get(key, {})
        if entry not in line:
            return False
        del line[entry]
        if not line:
            del self._lines[key]
        self._count(entry, -1)
        return True

    def _count(self, entry: Waiting, sign: int) -> None:
        self.calls += sign
        self.rows += sign * entry.rows
        left = self._rows_at.get(entry.priority, 0) + sign * entry.rows
        self._rows_at[entry.priority] = left
        if not left:
            del self._rows_at[entry.priority]

    def everyone(self) -> list[Waiting]:
        """Empties the queue: all who waited."""
        found = [entry for line in self._lines.values() for entry in line]
        self._lines.clear()
        self._rows_at.clear()
        self.calls = self.rows = 0
        return found

    def take(self, now: float) -> Taken:
        """Begins a run of what may go together, if the model is free and somebody is due."""
        late: list[Waiting] = []
        if self._since is not None or not self.calls:
            return Taken([], late)
        self._drop_late(now, late)
        bucket = self._next(now)
        if bucket is None:
            return Taken([], late)
        batch = self._together(*bucket)
        for entry in batch:
            self.withdraw(entry)
        self._since = now
        return Taken(batch, late)

    def _drop_late(self, now: float, late: list[Waiting]) -> None:
        for line in list(self._lines.values()):
            late += [
                entry for entry in line if entry.deadline is not None and entry.deadline <= now
            ]
        for entry in late:
            self.withdraw(entry)

    def _next(self, now: float) -> tuple[int, Hashable] | None:
        """The line of the first that is due: by priority, then by arrival."""
        due = [key for key in self._lines if self._due_at(key) <= now]
        return min(due, key=self._rank, default=None)

    def _rank(self, key: tuple[int, Hashable]) -> tuple[int, float]:
        return -key[0], next(iter(self._lines[key])).arrived

    def _due_at(self, key: tuple[int, Hashable]) -> float:
        line = self._lines[key]
        first = next(iter(line))
        full = key[1] is None or not first.patience
        if full or sum(entry.rows for entry in line) >= first.most:
            return first.arrived
        return first.arrived + first.patience

    def due(self, now: float) -> float | None:
        """Seconds until `take` will give something; None where only an event can bring that."""
        if self._since is not None or not self.calls:
            return None
        return max(0.0, min(map(self._due_at, self._lines)) - now)

    def _together(self, priority: int, bucket: Hashable) -> list[Waiting]:
        """The first of the line, and who fits beside it, those of less priority last."""
        if bucket is None:
            return [next(iter(self._lines[priority, bucket]))]
        lines = (
            sorted(
                (key for key in self._lines if key[1] == bucket and key[0] <= priority),
                reverse=True,
            )
            if len(self._lines) > 1
            else [(priority, bucket)]
        )
        batch: list[Waiting] = []
        room = next(iter(self._lines[priority, bucket])).most
        for key in lines:
            for entry in self._lines[key]:
                if batch and entry.rows > room:
                    # Whoever comes after does not overtake.
                    return batch
                batch.append(entry)
                room -= entry.rows
        return batch
