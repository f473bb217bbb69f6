"""The queue under more load than its model can carry, simulated on a virtual clock from a seed."""

import heapq
import itertools
import random

import attrs
import pytest

import maas
from maas.executors.queue import Queue, Waiting

MOST = 8
RUN = 0.005
CAPACITY = MOST / RUN
"""Rows a second: a run takes 5 ms, whatever is in it."""


@attrs.define
class Load:
    """Calls of one row at random moments, `rate` a second from `start` to `stop`."""

    owner: str
    rate: float
    start: float = 0.0
    stop: float = 10.0
    patience: float = 0.2


@attrs.define
class Outcome:
    """When calls of each owner came and were answered in time; and what should be none."""

    offered: dict[str, list[float]]
    answered: dict[str, list[float]]
    refused: int = 0
    dropped: int = 0
    late: int = 0


def simulated(loads, seed, **bounds):
    """What becomes of the calls; the model begins a run whenever it is free and somebody waits."""
    draw = random.Random(seed)
    queue = Queue(maas.Batching(MOST, **bounds))
    number = itertools.count()
    events = [(load.start, next(number), load) for load in loads]
    heapq.heapify(events)
    names = {load.owner for load in loads}
    outcome = Outcome({name: [] for name in names}, {name: [] for name in names})
    ends, batch = None, []
    while events or batch:
        if batch and (not events or ends <= events[0][0]):
            now = ends
            for call in batch:
                in_time = call.deadline >= now
                outcome.late += not in_time
                if in_time:
                    outcome.answered[call.owner].append(now)
            queue.done(now)
            batch = []
        else:
            now, _, load = heapq.heappop(events)
            outcome.offered[load.owner].append(now)
            call = Waiting("x", 1, now, None, now + load.patience, owner=load.owner, most=MOST)
            try:
                outcome.refused += len(queue.offer(call, now))
            except maas.Overloaded:
                outcome.refused += 1
            soon = now + draw.expovariate(load.rate)
            if soon < load.stop:
                heapq.heappush(events, (soon, next(number), load))
        found = queue.take(now)
        outcome.dropped += len(found.late)
        if found.batch:
            batch, ends = found.batch, now + RUN
    return outcome


def rate(times, start, stop):
    return sum(start <= time < stop for time in times) / (stop - start)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("queued", [32, 4096])
def test_goodput_holds_at_ten_times_the_load(seed, queued):
    """At ten times what the model can do, nine tenths of what it can do is done in time, and
    nothing is run for callers who have left.
    """
    outcome = simulated([Load("", 10 * CAPACITY, stop=3.0)], seed, max_queue=queued)
    assert rate(outcome.answered[""], 0.5, 3.0) >= 0.9 * CAPACITY
    assert outcome.refused > 0
    # A call that is in a run when its deadline passes cannot be taken out of it.
    assert outcome.late <= 0.01 * len(outcome.answered[""])


@pytest.mark.parametrize("seed", range(3))
def test_load_that_goes_leaves_no_trace(seed):
    """Two seconds after a burst of ten times the load, 95 % of a bearable load is answered."""
    loads = [Load("", 0.8 * CAPACITY), Load("", 10 * CAPACITY, start=2.0, stop=5.0)]
    outcome = simulated(loads, seed)
    offered, answered = (rate(each[""], 7.0, 10.0) for each in (outcome.offered, outcome.answered))
    assert answered >= 0.95 * offered


@pytest.mark.parametrize("seed", range(3))
def test_a_greedy_owner_leaves_others_their_goodput(seed):
    """While one of five asks twenty times its share, the others have 95 % of theirs."""
    share = CAPACITY / 5
    others = [Load(f"modest-{n}", 0.8 * share, stop=3.0) for n in range(4)]
    outcome = simulated([*others, Load("greedy", 20 * share, stop=3.0)], seed, max_queue=256)
    for load in others:
        answered, offered = outcome.answered[load.owner], outcome.offered[load.owner]
        assert len(answered) >= 0.95 * len(offered)
    assert rate(outcome.answered["greedy"], 0.5, 3.0) >= 0.9 * (CAPACITY - 4 * 0.8 * share)
