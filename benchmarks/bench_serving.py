"""Requests a second of the server with all on, over a bare batching protocol with nothing on.

Ours checks messages, keys, limits and deadlines, counts, and batches what waits; the floor takes
raw numbers and only batches. Both in turn, from 1, 8 and 64 connections; every answer is checked.
`python -m benchmarks.peers` sets other servers beside them.
"""

import contextlib
import statistics
import sys

import torch
from torch import Tensor

from benchmarks.big_model import fixed
from benchmarks.callers import Callers
from benchmarks.comparison import Bound, Report
from benchmarks.peers.systems import FLOOR, OURS, Asked

CONNECTIONS = (1, 8, 64)
ROWS = 256


def main() -> None:
    report = Report(__doc__)
    rows = list(torch.randn(ROWS, 1, 1000))
    with torch.inference_mode():
        wanted = fixed()(torch.cat(rows))
    rounds, seconds = (1, 0.1) if report.quick else (7, 1.0)
    with contextlib.ExitStack() as stack:
        ours, floor = (stack.enter_context(each.started(rows)) for each in (OURS, FLOOR))
        for connections in CONNECTIONS:
            ratios, rates = [], []
            for _ in range(rounds):
                rates.append(rate(floor, connections, seconds, wanted))
                ratios.append(rate(ours, connections, seconds, wanted) / rates[-1])
            report.quantity(
                f"{connections} connections, requests/s over the floor",
                statistics.median(ratios),
                f"{statistics.median(rates):,.0f}/s",
                Bound(least=0.7),
            )
    report.close()


def rate(asked: Asked, connections: int, seconds: float, wanted: Tensor) -> float:
    """Requests a second, once it is warm; a wrong answer ends the program."""
    with Callers(asked.place, connections) as callers:
        callers.ask(asked.requests, seconds / 2)
        load = callers.ask(asked.requests, seconds)
    answers = torch.tensor([asked.answer(body) for _, body in load.replies])
    right = wanted.flatten()[[index for index, _ in load.replies]]
    if not torch.allclose(answers, right, atol=1e-4):
        sys.exit(f"a wrong answer at {connections} connections")
    return load.rate


if __name__ == "__main__":
    main()
