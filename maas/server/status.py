"""How a server is doing: the last two minutes and the whole time, model by model, as plain data.

Read off the tallies at once, with numpy, so that nothing is computed while nobody looks.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from maas.server.metrics import FIELDS, ROWS, SECONDS, STEP, STEPS, WIDTH, Metrics, Tally

__all__ = ["PERCENTILES", "RECENT", "status"]

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
RECENT = 30
"""Steps, the last minute, that percentiles and means are taken over."""

_Numbers = npt.NDArray[np.float64]


def status(
    metrics: Metrics, models: Iterable[str], shown: Callable[[str, str], bool] | None = None
) -> dict[str, Any]:
    """Figures of these models, of those of their methods that are `shown`, if not of all.

    Times are in seconds, and None where nothing was measured.
    """
    now = metrics.clock()
    last = int(now / STEP) - 1  # the step that runs is not over
    tallies: dict[str, list[Tally]] = {name: [] for name in models}
    for (model, _, method), tally in metrics:
        if model in tallies and (shown is None or shown(model, method)):
            tallies[model].append(tally)
    connections = None if metrics.connections is None else metrics.connections()
    return {
        "uptime_seconds": now - metrics.began,
        "step_seconds": STEP,
        "connections": None if connections is None else connections[0],
        "models": {name: _figures(found, last) for name, found in tallies.items()},
    }


def _figures(tallies: list[Tally], last: int) -> dict[str, Any]:
    rows = np.zeros((STEPS + 1, WIDTH))
    for tally in tallies:
        rows += np.frombuffer(b"".join(tally.history(last))).reshape(rows.shape)
    steps = np.diff(rows, axis=0)
    recent = steps[-RECENT:].sum(axis=0)
    times = steps[:, FIELDS["duration"]]
    done = steps[:, FIELDS["requests"]]
    queued = recent[FIELDS["queue"]]
    runs = recent[FIELDS["rows"]].sum()
    codes: dict[str, int] = {}
    errors: dict[str, int] = {}
    for tally in tallies:
        for found, counts in ((codes, tally.codes), (errors, tally.errors)):
            for key, count in dict(counts).items():
                found[str(key)] = found.get(str(key), 0) + count
    return {
        "requests": sum(codes.values()),
        "failures": sum(errors.values()),
        "codes": codes,
        "errors": errors,
        "in_flight": sum(tally.active for tally in tallies),
        "received_bytes": sum(tally.received for tally in tallies),
        "sent_bytes": sum(tally.sent for tally in tallies),
        "stream_items": sum(tally.items for tally in tallies),
        "on_loop": sum(tally.on_loop for tally in tallies),
        "recent": {
            "requests": int(done[-RECENT:].sum()),
            "failures": int(recent[FIELDS["failed"]]),
            "latency": _percentiles(recent[FIELDS["duration"]]),
            "queue": _percentiles(queued),
            "queue_mean": _mean(recent[FIELDS["queue_total"]], queued.sum()),
            "compute_mean": _mean(recent[FIELDS["compute_total"]], runs),
            "batch_mean": _mean(recent[FIELDS["rows_total"]], runs),
            "batches": _batches(recent[FIELDS["rows"]]),
        },
        "steps": {
            "rate": (done / STEP).tolist(),
            "failures": (steps[:, FIELDS["failed"]] / STEP).tolist(),
            "p50": _percentile(times, 50.0),
            "p99": _percentile(times, 99.0),
            "queue_p99": _percentile(steps[:, FIELDS["queue"]], 99.0),
        },
    }


def _mean(total: float, count: float) -> float | None:
    return float(total / count) if count else None


def _percentiles(counts: _Numbers) -> dict[str, float | None]:
    return {f"p{percent:g}": _percentile(counts[np.newaxis], percent)[0] for percent in PERCENTILES}


_HIGH = np.array([*SECONDS, SECONDS[-1]])  # what is beyond the last bound is at least that
_LOW = np.array([0.0, *SECONDS])


def _percentile(counts: _Numbers, percent: float) -> list[float | None]:
    """For each row, what so many percent did not exceed: straight between the bounds around it."""
    sums = counts.cumsum(axis=1)
    wanted = sums[:, -1:] * percent / 100
    at = np.minimum((sums < wanted).sum(axis=1), len(SECONDS))
    rows = np.arange(len(counts))
    inside = np.maximum(counts[rows, at], 1.0)
    share = (wanted[:, 0] - sums[rows, at] + counts[rows, at]) / inside
    times = _LOW[at] + (_HIGH[at] - _LOW[at]) * share
    return [float(t) if n else None for t, n in zip(times, sums[:, -1], strict=True)]


def _batches(counts: _Numbers) -> dict[str, int]:
    """How many calls were in batches of up to each size, as far as sizes occurred."""
    names = [f"{bound:g}" for bound in ROWS] + [f">{ROWS[-1]:g}"]
    last = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    return {name: int(count) for name, count in zip(names[:last], counts[:last], strict=True)}
