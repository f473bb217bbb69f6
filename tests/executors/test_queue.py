"""The queue on a virtual clock: what waits, what goes together, what is turned away."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import maas
from maas.executors.queue import Queue, Waiting

MOST = 8


def entry(bucket="a", rows=1, at=0.0, **fields):
    return Waiting(bucket, rows, at, None, most=MOST, **fields)


def queue(**bounds):
    return Queue(maas.Batching(MOST, **{"max_age": 60.0, **bounds}))


def taken(waiting, now=0.0):
    return waiting.take(now).batch


class Machine(RuleBasedStateMachine):
    """Calls come, leave, age and are run, in any order; each ends exactly once."""

    def __init__(self):
        super().__init__()
        self.queue = Queue(maas.Batching(MOST, max_queue=12, max_queue_rows=30, max_age=5.0))
        self.now = 0.0
        self.waiting: list[Waiting] = []
        self.running = False

    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(
        bucket=st.sampled_from(["a", "b", None]),
        rows=st.integers(1, MOST + 1),
        priority=st.integers(0, 2),
        owner=st.sampled_from(["", "alice", "bob"]),
        left=st.none() | st.floats(0.1, 6),
        patience=st.sampled_from([0.0, 0.0, 1.0]),
    )
    def offer(self, bucket, rows, priority, owner, left, patience):
        new = Waiting(
            bucket if rows <= MOST else None,
            rows,
            self.now,
            None,
            None if left is None else self.now + left,
            priority,
            owner,
            MOST,
            patience,
        )
        try:
            evicted = self.queue.offer(new, self.now)
        except maas.Overloaded as refusal:
            self._check_refusal(refusal)
            return
        for other in evicted:
            assert other.priority <= new.priority
            self.waiting.remove(other)
        self.waiting.append(new)

    def _check_refusal(self, refusal):
        assert self.waiting  # an empty queue refuses nobody
        assert 0 < refusal.retry_after <= 60

    @rule(data=st.data())
    def withdraw(self, data):
        if self.waiting:
            gone = data.draw(st.sampled_from(self.waiting))
            assert self.queue.withdraw(gone)
            assert not self.queue.withdraw(gone)
            self.waiting.remove(gone)

    @rule()
    def claim(self):
        if self.queue.claim(self.now):
            assert not self.running
            assert not self.waiting
            self.running = True

    @rule()
    def take(self):
        due = self.queue.due(self.now)
        found = self.queue.take(self.now)
        crowded = self.queue.rows + sum(each.rows for each in [*found.late, *found.batch]) > MOST
        for late in found.late:
            assert crowded or late.deadline <= self.now
            self.waiting.remove(late)
        if found.batch:
            self._check(found.batch)
            self.running = True
        elif due == 0 and not found.late:
            pytest.fail("the model is free, somebody is due, and nothing was taken")

    def _check(self, batch):
        assert not self.running
        assert len({each.bucket for each in batch}) == 1
        assert len(batch) == 1 or batch[0].bucket is not None
        assert len(batch) == 1 or sum(each.rows for each in batch) <= MOST
        assert all(each.deadline is None or each.deadline > self.now for each in batch)
        for each in batch:
            self.waiting.remove(each)
        for each in batch:
            # Nobody who came earlier, from the same caller and as urgent, was passed over.
            assert not any(
                other.arrived < each.arrived
                and (other.bucket, other.owner, other.priority)
                == (each.bucket, each.owner, each.priority)
                for other in self.waiting
            )

    @precondition(lambda self: self.running)
    @rule()
    def done(self):
        self.queue.done(self.now)
        self.running = False

    @invariant()
    def counts(self):
        assert self.queue.calls == len(self.waiting) <= 12
        assert self.queue.rows == sum(each.rows for each in self.waiting)
        assert self.queue.running is self.running
        assert self.running or not self.waiting or self.queue.due(self.now) is not None

    def teardown(self):
        assert sorted(map(id, self.queue.everyone())) == sorted(map(id, self.waiting))
        assert (self.queue.calls, self.queue.rows) == (0, 0)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_whatever_waits_goes_together():
    """All of one bucket that fit go in one run, in the order of their arrival."""
    waiting = queue()
    calls = [entry(at=float(n)) for n in range(MOST + 3)]
    for call in calls:
        waiting.offer(call, call.arrived)
    assert taken(waiting, 20.0) == calls[:MOST]
    assert taken(waiting, 20.0) == []  # the model runs
    waiting.done(21.0)
    assert taken(waiting, 21.0) == calls[MOST:]


def test_a_lone_caller_claims_the_model():
    """A free model is claimed at once, by one caller only and by nobody past a queue."""
    waiting = queue()
    assert waiting.claim(0.0)
    assert not waiting.claim(0.0)
    waiting.offer(entry(), 0.0)
    waiting.done(1.0)
    assert not waiting.claim(1.0)


def test_buckets_are_never_mixed():
    """Calls of different buckets run one after the other, and calls without one run alone."""
    waiting = queue()
    for at, bucket in enumerate(["a", "b", None, "a", None, "b"]):
        waiting.offer(entry(bucket, at=float(at)), float(at))
    runs = []
    while batch := taken(waiting, 10.0):
        runs.append([(each.bucket, each.arrived) for each in batch])
        waiting.done(10.0)
    assert runs == [[("a", 0), ("a", 3)], [("b", 1), ("b", 5)], [(None, 2)], [(None, 4)]]


def test_the_urgent_go_first():
    """A larger priority is sooner; what is less urgent fills the room that is left."""
    waiting = queue()
    calm = [entry(at=0.0) for _ in range(MOST)]
    urgent = [entry(at=1.0, priority=1) for _ in range(2)]
    for call in calm + urgent:
        waiting.offer(call, call.arrived)
    assert taken(waiting, 1.0) == [*urgent, *calm[: MOST - 2]]


def test_a_full_queue_gives_way_to_the_urgent():
    """Above the bound a call is refused; a more urgent one displaces the newest of the least."""
    waiting = queue(max_queue=3)
    calm = [entry(at=float(n)) for n in range(3)]
    for call in calm:
        assert waiting.offer(call, call.arrived) == []
    with pytest.raises(maas.Overloaded, match="3 calls of 3 rows wait"):
        waiting.offer(entry(at=3.0), 3.0)
    assert waiting.offer(entry(at=3.0, priority=1), 3.0) == [calm[2]]


def test_rows_are_bounded_too():
    """A few calls of many rows fill the queue as many calls of one row do."""
    waiting = queue(max_queue_rows=10)
    waiting.offer(entry(rows=8), 0.0)
    with pytest.raises(maas.Overloaded):
        waiting.offer(entry(rows=3), 0.0)
    waiting.offer(entry(rows=2), 0.0)


def test_the_late_are_dropped():
    """A call whose deadline has passed is never in a batch."""
    waiting = queue()
    late, timely = entry(deadline=1.0), entry(deadline=3.0)
    waiting.offer(late, 0.0)
    waiting.offer(timely, 0.0)
    found = waiting.take(1.0)
    assert (found.batch, found.late) == ([timely], [late])


def test_who_would_be_late_makes_room():
    """A call that a run would end too late for is dropped where others wait, and run where not."""
    waiting = queue()
    assert waiting.claim(0.0)
    waiting.done(2.0)  # a run takes two seconds
    doomed = entry(at=2.0, deadline=3.0)
    waiting.offer(doomed, 2.0)
    others = [entry(at=2.0) for _ in range(MOST)]
    for call in others:
        waiting.offer(call, 2.0)
    found = waiting.take(2.0)
    assert (found.batch, found.late) == (others, [doomed])
    waiting.done(4.0)
    doomed = entry(at=4.0, deadline=5.0)
    waiting.offer(doomed, 4.0)
    assert waiting.take(4.0).batch == [doomed]


def test_newcomers_are_refused_while_the_oldest_is_old():
    """A queue that grows old takes nobody in until it is young again."""
    waiting = queue(max_age=1.0)
    for _ in range(MOST):
        waiting.offer(entry(at=0.0), 0.0)
    waiting.offer(entry(at=1.0), 1.0)
    with pytest.raises(maas.Overloaded, match=r"waited 1\.1 s"):
        waiting.offer(entry(at=1.1), 1.1)
    waiting.take(1.1)
    waiting.done(1.2)
    waiting.offer(entry(at=1.2), 1.2)


def test_a_long_run_is_no_overload():
    """As long as all that waits goes in the next run nobody is refused, however old it is."""
    waiting = queue(max_age=1.0)
    assert waiting.claim(0.0)
    waiting.offer(entry(at=0.0), 0.0)
    waiting.offer(entry(at=100.0), 100.0)


def test_who_would_be_late_hears_it_at_once():
    """A call whose deadline lies before the work that is ahead of it is refused on arrival."""
    waiting = queue()
    assert waiting.claim(0.0)
    waiting.done(2.0)  # a run takes two seconds
    for _ in range(2 * MOST):
        waiting.offer(entry(at=2.0), 2.0)
    with pytest.raises(maas.Overloaded, match="it would take 6 s") as refused:
        waiting.offer(entry(at=2.0, deadline=7.0), 2.0)
    assert refused.value.retry_after == 4.0
    waiting.offer(entry(at=2.0, deadline=9.0), 2.0)


@pytest.mark.parametrize("rows", [1, 2])
def test_callers_take_turns(rows):
    """A caller with a long queue of his own holds up another one by a turn, not by his queue."""
    waiting = queue()
    for _ in range(100):
        waiting.offer(entry(rows=rows, owner="greedy"), 0.0)
    taken(waiting)
    waiting.done(0.0)
    modest = [entry(owner="modest", at=1.0) for _ in range(3)]
    for call in modest:
        waiting.offer(call, 1.0)
    assert [each for each in taken(waiting, 1.0) if each.owner == "modest"] == modest


def test_a_full_queue_is_shared():
    """Who has less in a full queue than another displaces the newest of the one with most."""
    waiting = queue(max_queue=10)
    for at in range(10):
        waiting.offer(entry(owner="greedy", at=float(at)), float(at))
    for _ in range(5):
        assert [each.owner for each in waiting.offer(entry(owner="modest"), 9.0)] == ["greedy"]
    with pytest.raises(maas.Overloaded):
        waiting.offer(entry(owner="modest"), 9.0)
    with pytest.raises(maas.Overloaded):
        waiting.offer(entry(owner="greedy"), 9.0)


def test_company_is_waited_for_only_so_long():
    """With patience a call is held back until a batch is full or its patience ends."""
    waiting = queue()
    waiting.offer(entry(patience=1.0), 0.0)
    assert taken(waiting, 0.5) == []
    assert waiting.due(0.5) == 0.5
    assert len(taken(waiting, 1.0)) == 1
    waiting.done(1.0)
    for _ in range(MOST):
        waiting.offer(entry(at=1.0, patience=1.0), 1.0)
    assert len(taken(waiting, 1.0)) == MOST


def test_an_unmeasured_model_says_a_second():
    """Before the first run there is nothing to compute a return from."""
    waiting = queue(max_queue=1)
    waiting.offer(entry(), 0.0)
    with pytest.raises(maas.Overloaded) as refused:
        waiting.offer(entry(), 0.0)
    assert refused.value.retry_after == 1.0
