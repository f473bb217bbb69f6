"""The life of a worker process, as a state machine without processes and without a clock.

    STOPPED ──> STARTING ──> READY <──> BUSY
       ^           │           │         │
       │           v           v         v
       │          LOST <───────┴─────────┤    the connection broke: the process is killed
       │           │                     │
       │           v                     v
       │<──── BACKING_OFF            DRAINING    no new calls; leaves after the last
       │           │                     │
       │           └──> STARTING         │
       └─────────────────────────────────┘

Whoever owns the process tells what happened and when (`time.monotonic()` seconds), and does
what he is told by the answer. Nothing else decides when a worker is started or killed, so
nothing else must be right for restarts to be bounded.
"""

import enum

import attrs

__all__ = ["Act", "Life", "Pace", "Phase"]


class Phase(enum.Enum):
    """What a worker is doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    LOST = "lost"
    BACKING_OFF = "backing off"
    DRAINING = "draining"


class Act(enum.Enum):
    """What is to be done about it."""

    START = "start a process"
    DISMISS = "tell the process to leave"
    KILL = "kill the process"


@attrs.frozen(kw_only=True)
class Pace:
    """How long each phase may last.

    Attributes
    ----------
    start : seconds from the start of a process to its being ready; weights may be large.
    first_pause, longest_pause : seconds before a new start, doubled at each death in a row.
    steady : seconds of readiness after which a death is the first in a row again.
    drain : seconds for calls under way once a worker drains.
    leave : seconds for a process to end once it was dismissed.
    """

    start: float = 300.0
    first_pause: float = 0.05
    longest_pause: float = 30.0
    steady: float = 10.0
    drain: float = 30.0
    leave: float = 5.0

    def pause(self, deaths: int) -> float:
        """Seconds to wait after so many deaths in a row."""
        return min(self.longest_pause, self.first_pause * 2.0 ** min(deaths - 1, 60))


@attrs.define
class Life:
    """One worker, through all its processes.

    Attributes
    ----------
    phase : what it is doing.
    calls : how many it runs.
    until : when `tick` must be called at the latest; None where time changes nothing.
    deaths : processes that were lost in a row.
    """

    pace: Pace = Pace()
    phase: Phase = Phase.STOPPED
    calls: int = 0
    until: float | None = None
    deaths: int = 0
    _ending: bool = False
    _since: float = 0.0

    @property
    def takes_calls(self) -> bool:
        """Whether a call may be given to it."""
        return self.phase in (Phase.READY, Phase.BUSY)

    def start(self, now: float) -> Act | None:
        """It is wanted: from `STOPPED`, for good or for the first time."""
        if self.phase is not Phase.STOPPED:
            return None
        self._ending = False
        return self._begin(now)

    def _begin(self, now: float) -> Act:
        self._enter(Phase.STARTING, now + self.pace.start)
        return Act.START

    def ready(self, now: float) -> None:
        """The process says that it takes calls."""
        if self.phase is Phase.STARTING:
            self._since = now
            self._enter(Phase.READY)

    def take(self) -> None:
        """A call is given to it."""
        self.calls += 1
        self._enter(Phase.BUSY)

    def give_back(self, now: float) -> Act | None:
        """A call has ended, with whatever came of it; one of a lost process ended with that."""
        if self.phase not in (Phase.BUSY, Phase.DRAINING):
            return None
        self.calls -= 1
        if self.calls:
            return None
        if self.phase is Phase.BUSY:
            self._enter(Phase.READY)
            return None
        return self._dismiss(now)

    def lose(self, now: float) -> Act | None:
        """The process cannot be talked to any more, or said that it cannot start."""
        if self.phase in (Phase.STOPPED, Phase.LOST, Phase.BACKING_OFF):
            return None
        steady = self.phase is not Phase.STARTING and now - self._since >= self.pace.steady
        self.deaths = 1 if steady else self.deaths + 1
        self.calls = 0
        self._enter(Phase.LOST)
        return Act.KILL

    def end(self, now: float) -> None:
        """The process has ended, and nothing is left of it."""
        if self.phase is Phase.STOPPED:
            return
        if self.phase is not Phase.LOST:
            self.lose(now)
        if self._ending:
            self._enter(Phase.STOPPED)
        else:
            self._enter(Phase.BACKING_OFF, now + self.pace.pause(self.deaths))

    def drain(self, now: float) -> Act | None:
        """It is not wanted any more: calls under way may end."""
        self._ending = True
        if self.phase is Phase.BACKING_OFF:
            self._enter(Phase.STOPPED)
        elif self.phase is Phase.STARTING:
            return self.lose(now)
        elif self.phase is Phase.BUSY:
            self._enter(Phase.DRAINING, now + self.pace.drain)
        elif self.phase is Phase.READY:
            self._enter(Phase.DRAINING)
            return self._dismiss(now)
        return None

    def _dismiss(self, now: float) -> Act:
        self.until = now + self.pace.leave
        return Act.DISMISS

    def tick(self, now: float) -> Act | None:
        """Time has passed: what took too long is ended, what waited long enough is begun."""
        if self.until is None or now < self.until:
            return None
        if self.phase is Phase.BACKING_OFF:
            return self._begin(now)
        return self.lose(now)

    def _enter(self, phase: Phase, until: float | None = None) -> None:
        self.phase = phase
        self.until = until
