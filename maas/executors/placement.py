"""Where runs of one kind go: on the loop that reads and writes, or to a thread.

To hand a run to a thread and its answer back costs more than a short model takes, and while both
have work, each waits for the interpreter of the other. But whatever runs on the loop holds up all
that is read and written there. So it is measured: a state machine without clock or thread.

           50 runs, of which three in four took less than 5 ms, and 99 in 100 less than 20
    thread  ────────────────────────────────────────────────────────────────────────────>  loop
            <────────────────────────────────────────────────────────────────────────────
           one that held it for 20 ms, or more than a tenth for 5; then twice the runs

A thread cannot tell a run that waits for a file from one that waits for the interpreter, and it
finds its caches emptied by the loop: BigModel's 14 rows took 2.4 ms there, 64 took 3.2 on the loop.
So the thread tells what may be tried, and the loop, where nobody is in the way, what is short.
"""

import attrs

__all__ = ["HOLDS", "RUNS", "SHORT", "STALLS", "TURNS", "Cost", "Gathering", "Placement", "Places"]

SHORT = 0.002
"""Seconds that a run on the loop may wait for others."""
HOLDS = 0.005
"""Seconds from which a run holds the loop up."""
STALLS = 0.020
"""Seconds for which no run may hold it up."""
RUNS = 50
"""Runs after which a kind is known."""
_FORGETS = 20
"""After so many times the runs that are wanted, those of the past count half."""
_MOST_RUNS = 64 * RUNS


@attrs.frozen
class Cost:
    """What a run took.

    Attributes
    ----------
    seconds : by the clock.
    busy : of these, on the processor.
    waited : it gave the processor up, for a lock, a file or another process; on a thread it may
        have been for the interpreter.
    """

    seconds: float
    busy: float
    waited: bool

    @property
    def held(self) -> float:
        """Seconds that the run itself would hold a loop up.

        What was taken from it for other programs would have been taken from the loop as well.
        """
        return self.seconds if self.waited else self.busy


class Placement:
    """Where runs of one kind go; `here` is on the loop."""

    __slots__ = ("_long", "_runs", "_stalls", "_wanted", "here")

    def __init__(self) -> None:
        self.here = False
        self._runs = 0
        self._long = 0
        self._stalls = 0
        self._wanted = RUNS

    def ran(self, cost: Cost) -> None:
        """Hears of a run, wherever it was."""
        self._runs += 1
        if self.here:
            self._ran_here(cost)
        else:
            self._ran_there(cost)

    def _ran_there(self, cost: Cost) -> None:
        idle = cost.seconds - cost.busy if cost.waited else 0.0
        self._long += max(cost.busy, idle) >= HOLDS
        self._stalls += cost.held >= STALLS
        if self._runs < self._wanted:
            return
        if 4 * self._long <= self._runs and 100 * self._stalls <= self._runs:
            self._move(here=True)
        elif self._runs >= _FORGETS * self._wanted:
            self._forget()

    def _ran_here(self, cost: Cost) -> None:
        self._long += cost.held >= HOLDS or (cost.waited and cost.held >= SHORT)
        if cost.held >= STALLS or 10 * self._long > max(self._runs, RUNS):
            self._wanted = min(2 * self._wanted, _MOST_RUNS)
            self._move(here=False)
        elif self._runs >= _FORGETS * self._wanted:
            self._wanted = max(RUNS, self._wanted // 2)
            self._forget()

    def _forget(self) -> None:
        self._runs //= 2
        self._long //= 2
        self._stalls //= 2

    def _move(self, *, here: bool) -> None:
        self.here = here
        self._runs = self._long = self._stalls = 0


class Places:
    """Placements of one kind of run by its size; a smaller one is taken to cost no more."""

    __slots__ = ("_by_size",)

    def __init__(self) -> None:
        self._by_size: dict[int, Placement] = {}

    def here(self, size: int) -> Placement | None:
        """What says that a run of this size goes on the loop; None where it goes to a thread."""
        for known, place in self._by_size.items():
            if place.here and known >= size:
                return place
        return None

    def there(self, size: int) -> Placement:
        """What hears of runs of this size on a thread."""
        found = self._by_size.get(size)
        if found is None:
            found = self._by_size.setdefault(size, Placement())
        return found


TURNS = 10
"""Turns of the loop, about 50 microseconds in all, in which nobody came: then nobody is coming."""
_STREAK = 16
_PROBE = 64


class Gathering:
    """How long a run on the loop waits for company: for some empty turns, and a lone caller never.

    Whoever came alone so many times in a row is taken to be alone; of his next calls one waits
    again, to see if that still holds.
    """

    __slots__ = ("_alone", "_empty", "_seen")

    def __init__(self) -> None:
        self._seen = 0
        self._empty = 0
        self._alone = 0

    @property
    def lone(self) -> bool:
        """Whether nobody else is expected."""
        return self._alone >= _STREAK

    def ran_alone(self) -> None:
        """A call ran at once, since nobody else was expected."""
        self._alone += 1
        if self._alone >= _STREAK + _PROBE:
            self._alone = _STREAK - 1

    def turn(self, calls: int, *, full: bool) -> bool:
        """Whether those who wait go now; told once in each turn of the loop."""
        self._empty = 0 if calls > self._seen else self._empty + 1
        self._seen = calls
        if calls and not full and self._empty < TURNS:
            return False
        self._seen = self._empty = 0
        if calls:  # else a run has ended, and nobody came meanwhile
            self._alone = self._alone + 1 if calls == 1 else 0
        return True
