import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas.calls import CALL, Info
from maas.server.metrics import (
    FIELDS,
    MAX_TALLIES,
    ROWS,
    SECONDS,
    STEP,
    STEPS,
    WIDTH,
    Histogram,
    Metrics,
)
from maas.server.status import status

times = st.floats(0.0, 200.0)


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def answer(metrics: Metrics, seconds: float, *, code: int = 200, model: str = "net") -> None:
    tally = metrics.tally(model, "", CALL)
    tally.duration.observe(seconds)
    tally.answered(metrics.clock(), code)


# Histograms.


@given(st.lists(times))
def test_a_histogram_counts_each_value_once(values):
    """Each value is counted below the first bound that it does not exceed, and all are summed."""
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.observe(value)
    assert sum(histogram.counts) == len(values)
    assert histogram.total == pytest.approx(sum(values))
    for bound, count in zip(SECONDS, itertools.accumulate(histogram.counts), strict=False):
        assert count == sum(value <= bound for value in values)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_a_histogram_passes_over_what_is_no_measure(value):
    """Facts that a stranger made up, behind a gateway, do not spoil the sums."""
    histogram = Histogram(SECONDS)
    histogram.observe(value)
    assert (sum(histogram.counts), histogram.total) == (0, 0.0)


@pytest.mark.parametrize("bounds", [SECONDS, ROWS])
def test_bounds_rise(bounds):
    """Bounds are in order, and none is there twice."""
    assert list(bounds) == sorted(set(bounds))


def test_facts_of_a_gateway_do_not_raise():
    """Whatever numbers a run's facts hold, counting them raises nothing."""
    tally = Metrics().tally("net", "", CALL)
    for odd in (math.nan, -1.0, 1e308, 2**200):
        tally.ran(Info(queue_seconds=odd, compute_seconds=odd, batch_size=odd))
    assert tally.rows.total == 0.0


# Tallies.


def test_memory_is_bounded():
    """However many versions come and go, the tallies are no more than their bound."""
    metrics = Metrics()
    for version in range(MAX_TALLIES + 100):
        metrics.tally("net", str(version), CALL).answered(metrics.clock(), 200)
    assert len(dict(metrics)) == MAX_TALLIES + 1
    assert sum(tally.requests for _, tally in metrics) == MAX_TALLIES + 100
    assert dict(metrics)["", "", ""].requests == 100


@pytest.mark.parametrize("made", ["x" * 99, "owned\n", "", "model"])
def test_codes_of_a_models_own_making_are_not_told_apart(made):
    """An error code that is none of ours counts as the model's error, so labels stay few."""
    tally = Metrics().tally("net", "", CALL)
    tally.failure(made)
    tally.failure("deadline")
    assert tally.errors == {"model": 1, "deadline": 1}


@given(st.lists(st.tuples(st.floats(0.0, 30.0), times), max_size=60), st.floats(0.0, 300.0))
def test_the_last_minutes_add_up(calls, rest):
    """The steps hold exactly the calls that were answered in them, whenever one looks."""
    clock = Clock()
    metrics = Metrics(clock)
    answered = []
    for pause, seconds in calls:
        clock.now += pause
        answer(metrics, seconds)
        answered.append(int(clock.now / STEP))
    clock.now += rest
    last = int(clock.now / STEP) - 1
    rates = status(metrics, ["net"])["models"]["net"]["steps"]["rate"]
    wanted = [answered.count(step) / STEP for step in range(last - STEPS + 1, last + 1)]
    assert rates == wanted


def test_history_is_bounded():
    """A tally that is busy for hours remembers only the last steps."""
    clock = Clock()
    metrics = Metrics(clock)
    for _ in range(10 * STEPS):
        answer(metrics, 0.01)
        clock.now += STEP
    tally = metrics.tally("net", "", CALL)
    assert len(tally._history) == STEPS + 2
    rows = tally.history(int(clock.now / STEP) - 1)
    assert len(rows) == STEPS + 1
    assert {len(row) for row in rows} == {WIDTH}
    assert np.diff([row[FIELDS["requests"]] for row in rows]).tolist() == [1.0] * STEPS


# Status.


def test_status_of_nothing_is_empty():
    """A model that was never called has zeros, and None for what was not measured."""
    figures = status(Metrics(), ["net"])["models"]["net"]
    assert (figures["requests"], figures["in_flight"]) == (0, 0)
    assert figures["recent"]["latency"] == dict.fromkeys(("p50", "p90", "p99", "p99.9"))
    assert figures["recent"]["queue_mean"] is None


@given(st.lists(st.floats(1.1e-5, 99.0), min_size=1, max_size=200))
def test_percentiles_are_near(values):
    """A percentile lies within the bounds around the true one, a quarter apart at most."""
    clock = Clock()
    metrics = Metrics(clock)
    for value in values:
        answer(metrics, value)
    clock.now += STEP
    latency = status(metrics, ["net"])["models"]["net"]["recent"]["latency"]
    for percent in (50.0, 90.0, 99.0, 99.9):
        true = float(np.percentile(values, percent, method="inverted_cdf"))
        assert true / 1.3 <= latency[f"p{percent:g}"] <= true * 1.3


def test_methods_of_a_model_are_put_together():
    """A model's figures are the sums over its methods and versions, and of no other model."""
    clock = Clock()
    metrics = Metrics(clock)
    for labels in (("net", "1", CALL), ("net", "2", CALL), ("net", "", "encode"), ("b", "", CALL)):
        tally = metrics.tally(*labels)
        tally.ran(Info(queue_seconds=0.5, compute_seconds=1.5, batch_size=4))
        tally.failure("overloaded")
        tally.answered(clock.now, 429)
    clock.now += STEP
    figures = status(metrics, ["net"])["models"]
    assert set(figures) == {"net"}
    assert (figures["net"]["requests"], figures["net"]["failures"]) == (3, 3)
    assert (figures["net"]["codes"], figures["net"]["errors"]) == ({"429": 3}, {"overloaded": 3})
    recent = figures["net"]["recent"]
    assert (recent["queue_mean"], recent["compute_mean"], recent["batch_mean"]) == (0.5, 1.5, 4.0)
    assert recent["batches"] == {"1": 0, "2": 0, "4": 3}
    assert recent["latency"]["p50"] is None
