"""What a server counts of itself: plain numbers, without a dependency and without a lock.

One `Tally` for each method of each version of a model, found by a dictionary; an observation is
an increment in a list. Event loops call this, and threads read it: between reading and writing
back one item of a list CPython lets no other thread in, and a reader may see one request counted
here and not yet there.

A tally also keeps its own last minutes, by remembering what it had counted at the end of
each step in which it was busy. Nothing runs while nothing is asked, and nothing grows.
"""

import time
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from maas.calls import Info

__all__ = ["FIELDS", "ROWS", "SECONDS", "STEP", "STEPS", "WIDTH", "Histogram", "Metrics", "Tally"]

_R10 = (1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.3, 8.0)
SECONDS = (*(round(base * 10.0**power, 7) for power in range(-5, 2) for base in _R10), 100.0)
"""Bounds of seconds, 10 microseconds to 100 seconds: ten a decade (Renard's series R10), so that
a percentile read off them is off by an eighth at most."""

ROWS = tuple(float(2**power) for power in range(13))
"""Bounds of batch sizes."""

STEP = 2.0
STEPS = 60
"""What is remembered: so many steps of so many seconds."""

MAX_TALLIES = 256
"""Versions come and go; what is beyond is counted together, without a name."""

_ERRORS = frozenset(
    {"cancelled", "codec", "conflict", "content-type", "deadline", "forbidden", "fork", "internal",
     "limit", "misdirected", "model-exit", "not-found", "not-ready", "overloaded", "protocol",
     "signature", "stream-interrupted", "transport", "unauthenticated", "unsupported", "version"}
)  # fmt: skip


class Histogram:
    """How many values were at most each bound, and the sum of all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Counts a value; what is none (a gateway hears facts from strangers) is passed over."""
        if 0.0 <= value < 1e9:
            self.counts[bisect_left(self.bounds, value)] += 1
            self.total += value


class Tally:
    """What is counted for one method of one version of a model.

    Attributes
    ----------
    active : calls that are being answered.
    codes : requests by the HTTP status of their answer.
    errors : failures by their code on the wire; "model" for what the model itself raised.
    requests : all of them.
    failed : requests that did not get what they asked for.
    received, sent : bytes of bodies.
    items : items of streams.
    on_loop : requests whose model ran on the loop of the connections.
    """

    __slots__ = (
        "_history", "_step", "_until", "active", "codes", "compute", "duration", "errors", "failed",
        "items", "on_loop", "queue", "received", "requests", "rows", "sent",
    )  # fmt: skip

    def __init__(self) -> None:
        self.duration = Histogram(SECONDS)
        self.queue = Histogram(SECONDS)
        self.compute = Histogram(SECONDS)
        self.rows = Histogram(ROWS)
        self.codes: dict[int, int] = {}
        self.errors: dict[str, int] = {}
        self.active = self.requests = self.failed = self.received = self.sent = self.items = 0
        self.on_loop = 0
        self._history: deque[tuple[int, array[float]]] = deque(maxlen=STEPS + 2)
        self._step = 0
        self._until = 0.0

    def ran(self, info: Info, *, queued: bool = True) -> None:
        """Counts a run of the model, of which `info` tells; a stream is produced as it is read."""
        if queued:
            self.queue.observe(info.queue_seconds)
        self.compute.observe(info.compute_seconds)
        if info.batch_size == 1:  # as where nothing is batched; the first bound
            self.rows.counts[0] += 1
            self.rows.total += 1
        else:
            self.rows.observe(info.batch_size)

    def failure(self, error: str) -> None:
        """Counts a failure; codes of a model's own making are not told apart."""
        self.failed += 1
        code = error if error in _ERRORS else "model"
        self.errors[code] = self.errors.get(code, 0) + 1

    def answered(self, now: float, code: int) -> None:
        """Counts an answer; `now` is the clock's."""
        if now >= self._until:
            self._turn(now)
        self.codes[code] = self.codes.get(code, 0) + 1
        self.requests += 1

    # The last minutes.

    def _turn(self, now: float) -> None:
        """Remembers what was counted until the last busy step ended."""
        if self._until:
            self._history.append((self._step, self.state()))
        self._step = int(now / STEP)
        self._until = (self._step + 1) * STEP

    def state(self) -> "array[float]":
        """All that is shown over time, as one row of numbers; `FIELDS` says where what is."""
        return array(
            "d",
            [
                *self.duration.counts, *self.queue.counts, *self.rows.counts,
                self.requests, self.failed, self.queue.total, self.compute.total, self.rows.total,
            ],
        )  # fmt: skip

    def history(self, last: int) -> "list[array[float]]":
        """The state at the end of each of `STEPS` steps up to `last`, and of the one before."""
        kept = list(self._history)
        if self._until:
            kept.append((self._step, self.state()))
        states = [array("d", bytes(8 * WIDTH))]  # nothing was counted before all this
        found, at = [], 0
        for step in range(last - STEPS, last + 1):
            while at < len(kept) and kept[at][0] <= step:
                states.append(kept[at][1])
                at += 1
            found.append(states[-1])
        return found


_TIMES = len(SECONDS) + 1
_SIZES = len(ROWS) + 1
FIELDS: dict[str, Any] = {
    "duration": slice(0, _TIMES),
    "queue": slice(_TIMES, 2 * _TIMES),
    "rows": slice(2 * _TIMES, 2 * _TIMES + _SIZES),
    "requests": 2 * _TIMES + _SIZES,
    "failed": 2 * _TIMES + _SIZES + 1,
    "queue_total": 2 * _TIMES + _SIZES + 2,
    "compute_total": 2 * _TIMES + _SIZES + 3,
    "rows_total": 2 * _TIMES + _SIZES + 4,
}
"""Where what is in a state."""
WIDTH = 2 * _TIMES + _SIZES + 5


class Metrics:
    """The tallies of one server.

    Parameters
    ----------
    clock : seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.began = clock()
        self.connections: Callable[[], tuple[int, int, dict[int, int]]] | None = None
        """Open now, accepted ever, and refusals; None where another program holds them."""
        self._tallies: dict[tuple[str, str, str], Tally] = {}

    def tally(self, model: str, version: str, method: str) -> Tally:
        """The tally for these labels, which must be names that the server knows, or empty."""
        key = (model, version, method)
        found = self._tallies.get(key)
        if found is None:
            if len(self._tallies) >= MAX_TALLIES:
                key = ("", "", "")
            found = self._tallies.setdefault(key, Tally())
        return found

    def __iter__(self) -> Iterator[tuple[tuple[str, str, str], Tally]]:
        yield from list(self._tallies.items())
