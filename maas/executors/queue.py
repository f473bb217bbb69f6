"""Who waits, who goes together, and who is turned away: a state machine without clock or thread.

Whoever drives it says what time it is and holds a lock. The model is free or it runs:

    claim() ───────────────> runs      a lone caller goes at once
    offer() ──> waits ──take()──> runs ──done()──> free
                  │
                  └── withdraw(), or the deadline: never runs

What waits is bounded in calls, rows and age, so that a call that is taken in is also answered
in time; the rest hears at once when to come back. Callers take turns by rows (start-time
fair queueing: Goyal, Vin, Cheng, 1996), so one who asks for much waits for himself.
"""

import heapq
from collections.abc import Hashable, Iterator, Sequence
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
    owner : whose call it is.
    priority : larger is sooner.
    patience : seconds that it may be held back for others to join it.
    turn : the queue's own: where its owner's turn puts it.
    """

    bucket: Hashable
    rows: int
    arrived: float
    work: Any
    deadline: float | None = None
    priority: int = 0
    owner: str = ""
    most: int = 1
    patience: float = 0.0
    turn: float = 0.0


@attrs.frozen
class Taken:
    """Calls that left the queue: to be run together, and those that it is too late for.

    Of these the deadline has passed; or it will have when a run ends, and others wait for the room.
    """

    batch: list[Waiting]
    late: list[Waiting]


@attrs.define(eq=False)
class _Share:
    """What one owner has in the queue, and the turn of his next call.

    `room` is what his calls fill of batches: each that goes alone fills one.
    """

    calls: int = 0
    rows: int = 0
    room: int = 0
    turn: float = 0.0


_Key = tuple[int, Hashable, str]
"""Priority, bucket and owner."""


@attrs.define(eq=False)
class _Line:
    """Calls of one key in the order of their arrival; leaving from the middle costs no walk."""

    entries: dict[Waiting, None] = attrs.field(factory=dict)
    rows: int = 0

    @property
    def first(self) -> Waiting:
        return next(iter(self.entries))

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self.entries)

    def room(self) -> int:
        """Rows of batches that these calls fill; those that go alone fill one each."""
        first = self.first
        return self.rows if first.bucket is not None else len(self.entries) * first.most


class Queue:
    """Calls to one model; the bounds are those of `batching`."""

    def __init__(self, batching: Batching, name: str = "model") -> None:
        self._batching = batching
        self._name = name
        self._lines: dict[_Key, _Line] = {}
        self._shares: dict[str, _Share] = {}
        self._turn = 0.0
        self._since: float | None = None
        self._seconds = 0.0
        self._measured = False
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
        weight = _SMOOTHING if self._measured else 1.0
        self._seconds += weight * (now - self._since - self._seconds)
        self._measured = True
        self._since = None

    # In.

    def offer(self, entry: Waiting, now: float) -> list[Waiting]:
        """Takes the call in; gives those that had to leave for it.

        Raises
        ------
        Overloaded
            Too much waits, or what is ahead of the call would make it late.
        """
        batching, shares = self._batching, self._shares
        share = shares.get(entry.owner)
        if share is not None and share.room >= entry.most:
            self._check_age(entry, share, now)
        evicted: list[Waiting] = []
        if self.calls >= batching.max_queue or self.rows + entry.rows > batching.max_queue_rows:
            evicted = self._make_room(entry, now)
            share = shares.get(entry.owner)
        if share is None:
            share = shares[entry.owner] = _Share()
        entry.turn = turn = max(self._turn, share.turn)
        share.turn = turn + entry.rows
        key = (entry.priority, entry.bucket, entry.owner)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        line.entries[entry] = None
        line.rows += entry.rows
        self.calls += 1
        self.rows += entry.rows
        share.calls += 1
        share.rows += entry.rows
        share.room += entry.rows if entry.bucket is not None else entry.most
        return evicted

    def _check_age(self, entry: Waiting, share: _Share, now: float) -> None:
        """By the caller's own calls: those of others do not hold him up beyond his turn."""
        oldest, own = now, 0
        for (priority, _bucket, owner), line in self._lines.items():
            if owner == entry.owner and priority >= entry.priority:
                oldest = min(oldest, line.first.arrived)
                own += line.room()
        if own < entry.most:
            return  # all of it goes in the next run: a long run is no overload
        if now - oldest > max(self._batching.max_age, 2 * self._seconds):
            raise self.overloaded(f"the oldest call has waited {now - oldest:.3g} s", now)
        if entry.deadline is not None:
            others = sum(min(each.rows, own) for each in self._shares.values()) - share.rows
            # What is ahead, and the call's own run.
            wait = self._left(now) + ((own + others) // entry.most + 1) * self._seconds
            if wait > entry.deadline - now:
                raise self.overloaded(f"it would take {wait:.3g} s, beyond the deadline", now)

    def _make_room(self, entry: Waiting, now: float) -> list[Waiting]:
        """Those that have left so that the call fits; raises where nobody has to."""
        calls = self.calls + 1 - self._batching.max_queue
        rows = self.rows + entry.rows - self._batching.max_queue_rows
        evicted: list[Waiting] = []
        for other in self._displaced_by(entry) if calls > 0 or rows > 0 else ():
            if calls <= 0 and rows <= 0:
                break
            evicted.append(other)
            calls -= 1
            rows -= other.rows
        # A call of more rows than may wait is let in where nothing else waits.
        if calls > 0 or (rows > 0 and self.calls > len(evicted)):
            raise self.overloaded(f"{self.calls} calls of {self.rows} rows wait", now)
        self._remove(evicted)
        return evicted

    def _displaced_by(self, entry: Waiting) -> Iterator[Waiting]:
        """Calls of less priority, the least and newest first; then of who has more than he."""
        entries = [each for line in self._lines.values() for each in line]
        lower = [each for each in entries if each.priority < entry.priority]
        yield from sorted(lower, key=lambda each: (each.priority, -each.arrived))
        greedy = max(self._shares, key=lambda owner: self._shares[owner].calls, default="")
        own = self._shares.get(entry.owner, _Share()).calls
        spare = self._shares[greedy].calls - own - 1 if greedy != entry.owner and greedy else 0
        equal = [
            each for each in entries if each.priority == entry.priority and each.owner == greedy
        ]
        yield from sorted(equal, key=lambda each: -each.turn)[: max(0, spare)]

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
        return self._left(now) + runs * self._seconds

    def _left(self, now: float) -> float:
        """Seconds until the model will be free."""
        return 0.0 if self._since is None else max(0.0, self._seconds - (now - self._since))

    # Out.

    def withdraw(self, entry: Waiting) -> bool:
        """The call leaves; False where it does not wait any more."""
        line = self._lines.get((entry.priority, entry.bucket, entry.owner))
        if line is None or entry not in line.entries:
            return False
        self._remove([entry])
        return True

    def _remove(self, entries: Sequence[Waiting]) -> None:
        lines, shares = self._lines, self._shares
        for entry in entries:
            rows, owner = entry.rows, entry.owner
            key = (entry.priority, entry.bucket, owner)
            line = lines[key]
            del line.entries[entry]
            line.rows -= rows
            if not line.entries:
                del lines[key]
            self.calls -= 1
            self.rows -= rows
            share = shares[owner]
            share.calls -= 1
            share.rows -= rows
            share.room -= rows if entry.bucket is not None else entry.most
            if not share.calls and share.turn <= self._turn:
                del shares[owner]

    def __iter__(self) -> Iterator[Waiting]:
        """All who wait."""
        for line in self._lines.values():
            yield from line

    def everyone(self) -> list[Waiting]:
        """Empties the queue: all who waited."""
        found = list(self)
        self._lines.clear()
        self._shares.clear()
        self.calls = self.rows = 0
        return found

    def take(self, now: float) -> Taken:
        """Begins a run of what may go together, if the model is free and somebody is due."""
        if self._since is not None or not self.calls:
            return Taken([], [])
        late = self._late(now)
        self._remove(late)
        due = [key for key in self._lines if self._due_at(key) <= now]
        if not due:
            return Taken([], late)
        priority, bucket, _owner = min(due, key=self._rank)
        batch = self._together(priority, bucket)
        self._turn = max(self._turn, *(entry.turn for entry in batch))
        self._remove(batch)
        if not self.calls:
            self._shares.clear()
        self._since = now
        return Taken(batch, late)

    def _late(self, now: float) -> list[Waiting]:
        crowded = self.rows > self._batching.max_batch_size
        end = now + self._seconds if crowded else now
        return [
            entry
            for line in self._lines.values()
            for entry in line
            if entry.deadline is not None and (entry.deadline <= now or entry.deadline < end)
        ]

    def _rank(self, key: _Key) -> tuple[int, float, float]:
        first = self._lines[key].first
        return -first.priority, first.turn, first.arrived

    def _due_at(self, key: _Key) -> float:
        """When the line's first has been held back long enough."""
        first = self._lines[key].first
        if key[1] is None or not first.patience:
            return first.arrived
        waiting = sum(line.rows for other, line in self._lines.items() if other[1] == key[1])
        return first.arrived if waiting >= first.most else first.arrived + first.patience

    def due(self, now: float) -> float | None:
        """Seconds until `take` will give something; None where only an event can bring that."""
        if self._since is not None or not self.calls:
            return None
        return max(0.0, min(map(self._due_at, self._lines)) - now)

    def _together(self, priority: int, bucket: Hashable) -> list[Waiting]:
        """Those of the bucket that fit, in the order of their turns; less priority comes last."""
        keys = [key for key in self._lines if key[1] == bucket and key[0] <= priority]
        if len(keys) == 1:
            ordered: Iterator[Waiting] = iter(self._lines[keys[0]])
        else:
            ordered = heapq.merge(
                *(self._lines[key] for key in keys),
                key=lambda entry: (-entry.priority, entry.turn, entry.arrived),
            )
        batch = [next(ordered)]
        room = batch[0].most - batch[0].rows
        for entry in ordered if bucket is not None else ():
            room -= entry.rows
            if room < 0:
                break  # whoever comes after does not overtake
            batch.append(entry)
        return batch
