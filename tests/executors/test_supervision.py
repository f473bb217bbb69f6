import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from maas.executors.supervision import Act, Life, Pace, Phase

PACE = Pace(start=10.0, first_pause=1.0, longest_pause=8.0, steady=20.0, drain=5.0, leave=2.0)


def started(now=0.0, pace=PACE):
    life = Life(pace)
    assert life.start(now) is Act.START
    return life


def ready(now=0.0):
    life = started(now)
    life.ready(now)
    return life


def test_a_worker_through_a_good_day():
    """Started, ready, busy with calls, ready again, drained when idle, gone."""
    life = started()
    assert (life.phase, life.until, life.takes_calls) == (Phase.STARTING, 10.0, False)
    life.ready(1.0)
    assert (life.phase, life.until, life.takes_calls) == (Phase.READY, None, True)
    life.take()
    life.take()
    assert (life.phase, life.calls, life.takes_calls) == (Phase.BUSY, 2, True)
    assert life.give_back(2.0) is None
    assert (life.phase, life.give_back(2.0), life.phase) == (Phase.BUSY, None, Phase.READY)
    assert life.drain(3.0) is Act.DISMISS
    assert (life.phase, life.until) == (Phase.DRAINING, 5.0)
    life.end(3.5)
    assert (life.phase, life.until) == (Phase.STOPPED, None)


def test_deaths_in_a_row_are_followed_by_longer_pauses_up_to_a_bound():
    """1, 2, 4, 8 seconds, and never more."""
    life, now, pauses = started(), 0.0, []
    for _ in range(6):
        assert life.lose(now) is Act.KILL
        assert (life.phase, life.until) == (Phase.LOST, None)
        life.end(now)
        assert life.phase is Phase.BACKING_OFF
        pauses.append(life.until - now)
        assert life.tick(life.until - 0.01) is None
        now = life.until
        assert life.tick(now) is Act.START
        assert life.phase is Phase.STARTING
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


@pytest.mark.parametrize(("served", "pause"), [(19.9, 4.0), (20.0, 1.0)])
def test_a_death_after_steady_service_is_the_first_again(served, pause):
    """Who served long enough is not held to what was before."""
    life = started()
    for _ in range(2):
        life.lose(0.0)
        life.end(0.0)
        life.tick(life.until)
    life.ready(100.0)
    life.lose(100.0 + served)
    life.end(200.0)
    assert life.until == 200.0 + pause


def test_a_start_that_takes_too_long_is_a_death():
    """A process that is never ready is killed and started anew."""
    life = started()
    assert life.tick(9.9) is None
    assert life.tick(10.0) is Act.KILL
    life.end(10.1)
    assert life.phase is Phase.BACKING_OFF


def test_draining_waits_for_calls_then_for_the_process_and_for_neither_for_ever():
    """Calls under way get their time, leaving gets its own, and then the process is killed."""
    life = ready()
    life.take()
    life.take()
    assert life.drain(1.0) is None
    assert (life.phase, life.takes_calls, life.until) == (Phase.DRAINING, False, 6.0)
    assert life.give_back(2.0) is None
    assert life.give_back(3.0) is Act.DISMISS
    assert life.until == 5.0
    assert life.tick(5.0) is Act.KILL
    life.end(5.1)
    assert life.phase is Phase.STOPPED

    life = ready()
    life.take()
    life.drain(1.0)
    assert life.tick(5.9) is None
    assert life.tick(6.0) is Act.KILL
    life.end(6.1)
    assert life.phase is Phase.STOPPED


@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.name)
def test_draining_from_every_phase_ends_stopped(phase):
    """Whatever it is doing, a worker that is not wanted ends, and is not started again."""
    life = at(phase)
    act = life.drain(50.0)
    if phase in (Phase.BUSY, Phase.DRAINING):
        assert act is None
        act = life.give_back(51.0)
    assert (
        act
        is {
            Phase.STOPPED: None,
            Phase.STARTING: Act.KILL,
            Phase.READY: Act.DISMISS,
            Phase.BUSY: Act.DISMISS,
            Phase.LOST: None,
            Phase.BACKING_OFF: None,
            Phase.DRAINING: Act.DISMISS,
        }[phase]
    )
    life.end(52.0)
    assert (life.phase, life.until, life.tick(1e9)) == (Phase.STOPPED, None, None)


@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.name)
def test_a_kill_in_every_phase_is_survived(phase):
    """A process that vanishes comes back after a pause, or ends where it was to end."""
    life = at(phase)
    wanted = phase not in (Phase.STOPPED, Phase.DRAINING)
    life.end(50.0)
    assert life.phase is (Phase.BACKING_OFF if wanted else Phase.STOPPED)
    assert life.calls == 0
    assert life.tick(1e9) is (Act.START if wanted else None)


def at(phase):
    life = Life(PACE)
    if phase is not Phase.STOPPED:
        life.start(0.0)
    if phase in (Phase.READY, Phase.BUSY, Phase.DRAINING):
        life.ready(0.0)
    if phase in (Phase.BUSY, Phase.DRAINING):
        life.take()
    if phase is Phase.DRAINING:
        life.drain(0.0)
    if phase in (Phase.LOST, Phase.BACKING_OFF):
        life.lose(0.0)
    if phase is Phase.BACKING_OFF:
        life.end(0.0)
    assert life.phase is phase
    return life


def test_calls_of_a_lost_process_are_not_the_next_ones():
    """What comes back late from a process that is gone changes nothing for its successor."""
    life = ready()
    life.take()
    life.lose(1.0)
    assert (life.calls, life.give_back(1.0)) == (0, None)
    life.end(1.0)
    life.tick(life.until)
    life.ready(3.0)
    life.give_back(3.0)
    assert (life.calls, life.phase) == (0, Phase.READY)


class Days(RuleBasedStateMachine):
    """A world that keeps to its orders at its own pace, for any order of events."""

    @initialize()
    def begin(self):
        self.now = 0.0
        self.life = Life(PACE)
        self.process = False
        self.calls = 0
        self.starts: list[float] = []
        self.wanted = True
        self.obey(self.life.start(self.now))

    def obey(self, act):
        if act is Act.START:
            assert not self.process
            assert self.wanted
            self.process = True
            self.starts.append(self.now)
        elif act is Act.KILL:
            self.killed = True
        elif act is Act.DISMISS:
            assert self.calls == 0
        if self.life.phase in (Phase.LOST, Phase.BACKING_OFF, Phase.STOPPED):
            self.calls = 0

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 30.0]))
    def pass_time(self, seconds):
        self.now += seconds
        self.obey(self.life.tick(self.now))

    @precondition(lambda self: self.process)
    @rule()
    def say_ready(self):
        self.life.ready(self.now)

    @precondition(lambda self: self.life.takes_calls)
    @rule()
    def call(self):
        self.life.take()
        self.calls += 1

    @precondition(lambda self: self.calls)
    @rule()
    def answer(self):
        self.calls -= 1
        self.obey(self.life.give_back(self.now))

    @rule()
    def break_connection(self):
        if self.process:
            self.obey(self.life.lose(self.now))

    @precondition(lambda self: self.process)
    @rule()
    def die(self):
        self.obey(self.life.lose(self.now))
        self.process = False
        self.life.end(self.now)
        self.obey(None)

    @precondition(lambda self: self.wanted)
    @rule()
    def drain(self):
        self.wanted = False
        self.obey(self.life.drain(self.now))

    @invariant()
    def holds(self):
        life = self.life
        assert life.calls == self.calls
        assert (life.phase is Phase.BUSY) == (self.calls > 0 and self.wanted and life.takes_calls)
        assert not life.takes_calls or self.process
        assert life.phase is not Phase.STOPPED or not self.process
        # Nothing waits for ever but a ready worker, and what was killed for its death.
        assert life.until is not None or life.phase in (
            Phase.READY, Phase.BUSY, Phase.LOST, Phase.STOPPED,
        )  # fmt: skip
        # 0, 1, 3, 7, 15, 23, ...: so often at most in a minute, however quickly it dies.
        recent = [at for at in self.starts if at > self.now - 60.0]
        assert len(recent) <= 11


TestDays = Days.TestCase
TestDays.settings = settings(max_examples=150, stateful_step_count=40)
