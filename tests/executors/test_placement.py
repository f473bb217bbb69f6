"""Where runs go: the rule that brings short models to the loop, and how batches gather there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas.executors.placement import (
    HOLDS,
    RUNS,
    SHORT,
    STALLS,
    TURNS,
    Cost,
    Gathering,
    Placement,
    Places,
)

QUICK = Cost(seconds=0.0001, busy=0.0001, waited=False)
LONG = Cost(seconds=HOLDS, busy=HOLDS, waited=False)
STALL = Cost(seconds=STALLS, busy=STALLS, waited=False)
PAUSED = Cost(seconds=SHORT, busy=0.0, waited=True)
ASLEEP = Cost(seconds=HOLDS, busy=0.0, waited=True)
PREEMPTED = Cost(seconds=1.0, busy=0.0001, waited=False)
TENTH = [LONG] * (RUNS // 10)


def after(*costs: Cost) -> Placement:
    place = Placement()
    for cost in costs:
        place.ran(cost)
    return place


@pytest.mark.parametrize(
    ("costs", "here"),
    [
        ([], False),
        ([QUICK] * (RUNS - 1), False),
        ([QUICK] * RUNS, True),
        ([PREEMPTED] * RUNS, True),
        ([PAUSED] * RUNS, True),
        ([LONG] * 12 + [QUICK] * 38, True),
        ([LONG] * 13 + [QUICK] * 37, False),
        ([ASLEEP] * 13 + [QUICK] * 37, False),
        ([STALL] + [QUICK] * (RUNS - 1), False),
        ([STALL] + [QUICK] * 99, True),
        ([ASLEEP] * 900, False),
        ([QUICK] * RUNS + TENTH, True),
        ([QUICK] * RUNS + [PREEMPTED], True),
        ([QUICK] * RUNS + [*TENTH, LONG], False),
        ([QUICK] * RUNS + [PAUSED] * 6, False),
        ([QUICK] * RUNS + [STALL], False),
        ([QUICK] * RUNS + [STALL] + [QUICK] * RUNS, False),
        ([QUICK] * RUNS + [STALL] + [QUICK] * 2 * RUNS, True),
    ],
)
def test_the_rule(costs, here):
    """Fifty runs that may be short lead to the loop; a tenth that hold it up, away from it."""
    assert after(*costs).here is here


def test_one_that_waits_is_tried_ever_more_seldom():
    """Who waits on the loop as well holds it for less than a hundred of 20,000 runs."""
    place, there = Placement(), 0
    for _ in range(20_000):
        there += place.here
        place.ran(PAUSED)
    assert there < 100


def test_each_return_takes_longer_and_is_forgiven_in_time():
    """Who was sent away twice needs four times the runs; who then stays long, the half again."""
    place = after(*[QUICK] * RUNS, STALL, *[QUICK] * 2 * RUNS, STALL)
    for _ in range(4 * RUNS - 1):
        place.ran(QUICK)
        assert not place.here
    place.ran(QUICK)
    assert place.here
    for _ in range(20 * 4 * RUNS):
        place.ran(QUICK)
    place.ran(STALL)
    for _ in range(4 * RUNS - 1):
        place.ran(QUICK)
    assert not place.here
    place.ran(QUICK)
    assert place.here


COSTS = st.sampled_from([QUICK, LONG, STALL, PAUSED, ASLEEP, PREEMPTED])


@given(st.lists(COSTS, max_size=300))
def test_on_the_loop_only_after_enough_short_runs(costs):
    """Whatever comes, a kind is on the loop only with three in four of fifty runs short since."""
    place, since = Placement(), []
    for cost in costs:
        before = place.here
        place.ran(cost)
        since.append(cost)
        if place.here and not before:
            assert len(since) >= RUNS
            assert 4 * sum(each in (LONG, STALL, ASLEEP) for each in since) <= len(since)
        if before and not place.here:
            assert cost not in (QUICK, PREEMPTED)
        if before is not place.here:
            since.clear()


def test_a_smaller_run_costs_no_more():
    """What is short at one size is short at each smaller one, and unknown at larger ones."""
    places = Places()
    for _ in range(RUNS):
        places.there(8).ran(QUICK)
    assert [places.here(size) is not None for size in (1, 2, 8, 16)] == [True, True, True, False]
    place = places.here(1)
    assert place is not None
    place.ran(STALL)
    assert places.here(1) is None


def turns(gathering: Gathering, sizes: list[int], *, full: bool = False) -> int:
    """How many turns pass until those who wait go."""
    for count, size in enumerate(sizes, 1):
        if gathering.turn(size, full=full):
            return count
    raise AssertionError("they never went")


def test_a_batch_goes_when_nobody_comes_any_more():
    """After ten empty turns, counted anew whenever somebody comes; at once when it is full."""
    assert turns(Gathering(), [1] * 50) == 1 + TURNS
    assert turns(Gathering(), [1, 1, 1, 2, *[3] * 50]) == 5 + TURNS
    assert turns(Gathering(), [64], full=True) == 1


def test_a_lone_caller_is_soon_known_and_now_and_then_looked_at():
    """Who came alone sixteen times waits for nobody, until one of his calls in 64 is held back."""
    gathering = Gathering()
    for _ in range(16):
        assert not gathering.lone
        turns(gathering, [1] * 50)
        assert gathering.turn(0, full=False)  # nobody is there after the run
    assert gathering.lone
    for _ in range(64):
        assert gathering.lone
        gathering.ran_alone()
    assert not gathering.lone
    turns(gathering, [1, *[2] * 50])
    assert not gathering.lone
