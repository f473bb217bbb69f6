"""Where runs go: the rule that brings short models to the loop, and how batches gather there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas.executors.placement import HOLDS, RUNS, SHORT, TURNS, Cost, Gathering, Placement, Places

QUICK = Cost(seconds=0.0001, busy=0.0001, waited=False)
LONG = Cost(seconds=SHORT, busy=SHORT, waited=False)
HELD = Cost(seconds=HOLDS, busy=HOLDS, waited=False)
ASLEEP = Cost(seconds=HOLDS, busy=0.0, waited=True)
PREEMPTED = Cost(seconds=1.0, busy=0.0001, waited=False)


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
        ([LONG] + [QUICK] * (RUNS - 1), False),
        ([LONG] + [QUICK] * 99, True),
        ([LONG] * 2 + [QUICK] * 99, False),
        ([ASLEEP] * 1000, False),
        ([ASLEEP] * 1000 + [QUICK] * RUNS, True),
        ([QUICK] * RUNS + [LONG], True),
        ([QUICK] * RUNS + [PREEMPTED], True),
        ([QUICK] * RUNS + [HELD], False),
        ([QUICK] * RUNS + [ASLEEP], False),
        ([QUICK] * RUNS + [HELD] + [QUICK] * RUNS, False),
        ([QUICK] * RUNS + [HELD] + [QUICK] * 2 * RUNS, True),
    ],
)
def test_the_rule(costs, here):
    """Fifty runs with a 99th percentile below 2 ms lead to the loop, one of 5 ms away from it."""
    assert after(*costs).here is here


def test_one_that_waits_is_never_brought_to_the_loop():
    """A run that waited is no proof, since it may have waited for the very loop."""
    assert not after(*[Cost(0.0001, 0.0001, waited=True)] * 10_000).here


def test_each_return_takes_longer_and_is_forgiven_in_time():
    """Who was sent away twice needs four times the runs; who then stays long, the half again."""
    place = after(*[QUICK] * RUNS, HELD, *[QUICK] * 2 * RUNS, HELD)
    for _ in range(4 * RUNS - 1):
        place.ran(QUICK)
        assert not place.here
    place.ran(QUICK)
    assert place.here
    for _ in range(20 * 4 * RUNS):
        place.ran(QUICK)
    place.ran(HELD)
    for _ in range(4 * RUNS - 1):
        place.ran(QUICK)
    assert not place.here
    place.ran(QUICK)
    assert place.here


COSTS = st.sampled_from([QUICK, LONG, HELD, ASLEEP, PREEMPTED])


@given(st.lists(COSTS, max_size=300))
def test_on_the_loop_only_after_enough_short_runs(costs):
    """Whatever comes, a kind is on the loop only with fifty good runs since it last was not."""
    place, good = Placement(), 0
    for cost in costs:
        before = place.here
        place.ran(cost)
        good = good + 1 if cost in (QUICK, PREEMPTED) else good
        if before and not place.here:
            assert cost.held >= HOLDS
            good = 0
        if place.here and not before:
            assert good >= RUNS


def test_a_smaller_run_costs_no_more():
    """What is short at one size is short at each smaller one, and unknown at larger ones."""
    places = Places()
    for _ in range(RUNS):
        places.there(8).ran(QUICK)
    assert [places.here(size) is not None for size in (1, 2, 8, 16)] == [True, True, True, False]
    place = places.here(1)
    assert place is not None
    place.ran(HELD)
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
    assert gathering.lone
    for _ in range(64):
        assert gathering.lone
        gathering.ran_alone()
    assert not gathering.lone
    turns(gathering, [1, *[2] * 50])
    assert not gathering.lone
