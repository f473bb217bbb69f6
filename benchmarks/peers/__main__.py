"""Requests a second of this server and of others, in one run and in turn, on one small network.

Each request is a row of 1000 float32 of its own, and every answer is compared with the bare
module's, so a row mixed up in a batch ends the program. Ours is one configuration with all on: a
key, deadlines, limits, metrics, batching. Of a peer the best configuration at each point counts.

python -m benchmarks.peers            make their environments where missing, measure, print
python -m benchmarks.peers --keep     and keep it in benchmarks/peers.txt, which the docs show
python -m benchmarks.peers --only mosec FastAPI
"""

import argparse
import contextlib
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.big_model import fixed
from benchmarks.callers import Callers, Load
from benchmarks.peers.environments import Missing
from benchmarks.peers.systems import FLOOR, OURS, PEERS, Asked, System

KEPT = Path(__file__).parents[1] / "peers.txt"
CONNECTIONS = (1, 8, 64)
ROUNDS = 3
WARM_UP = 1.0
SECONDS = 2.0
ROWS = 256

Told = dict[tuple[str, int], list[Load]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--keep", action="store_true", help=f"write {KEPT.name} as well")
    parser.add_argument("--only", nargs="*", metavar="PEER", help="these peers alone")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    # Whoever ends this program ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    rows = list(torch.randn(ROWS, 1, 1000, generator=torch.Generator().manual_seed(1)))
    with torch.inference_mode():
        wanted = fixed()(torch.cat(rows))
    systems = [OURS, FLOOR, *(each for each in PEERS if _chosen(each, options.only))]
    with contextlib.ExitStack() as stack:
        here, missing = _started(systems, rows, stack)
        loads = _measured(here, wanted, options.rounds)
    lines = list(_lines([each for each in systems if each.name in here], missing, loads))
    print("\n".join(lines))
    if options.keep:
        KEPT.write_text("\n".join([*lines, ""]))


def _chosen(system: System, only: Sequence[str] | None) -> bool:
    return only is None or system.peer.casefold() in {name.casefold() for name in only}


def _started(
    systems: Sequence[System], rows: Sequence[Tensor], stack: contextlib.ExitStack
) -> tuple[dict[str, Asked], dict[str, str]]:
    """Those that run, and why the others do not."""
    here: dict[str, Asked] = {}
    missing: dict[str, str] = {}
    for system in systems:
        try:
            here[system.name] = stack.enter_context(system.started(rows))
        except Missing as error:
            missing[system.name] = str(error)
    return here, missing


def _measured(here: dict[str, Asked], wanted: Tensor, rounds: int) -> Told:
    told: Told = {}
    for turn in range(rounds):
        for connections in CONNECTIONS:
            names = list(here)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                load = _asked(name, here[name], connections, wanted)
                told.setdefault((name, connections), []).append(load)
    return told


def _asked(name: str, asked: Asked, connections: int, wanted: Tensor) -> Load:
    with Callers(asked.place, connections) as callers:
        callers.ask(asked.requests, WARM_UP)
        load = callers.ask(asked.requests, SECONDS)
    answers = torch.tensor([asked.answer(body) for _, body in load.replies])
    right = wanted.flatten()[[index for index, _ in load.replies]]
    worst = float((answers - right).abs().max())
    if worst > 1e-4:
        sys.exit(f"{name} gave a wrong answer at {connections} connections: {worst:g} off")
    return load


# The table.


def _lines(systems: Sequence[System], missing: dict[str, str], loads: Told) -> Iterator[str]:
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    busy = os.getloadavg()[0]
    yield (
        f"{time.strftime('%Y-%m-%d')}, {where} shared with the load generator, "
        f"Python {platform.python_version()}, torch {version('torch')}, load average {busy:.1f}"
    )
    yield ""
    yield f"{'requests/s and 99th percentile':38}" + "".join(
        f"{f'{count} connections':>26}" for count in CONNECTIONS
    )
    for system in systems:
        cells = [_cell(loads[system.name, count]) for count in CONNECTIONS]
        yield f"{system.name:38}" + "".join(f"{cell:>26}" for cell in cells)
    for name, why in missing.items():
        yield f"{name:38}  not measured: {why}"
    yield ""
    yield "ours over"
    for peer in dict.fromkeys(system.peer for system in systems if system is not OURS):
        mine = [system.name for system in systems if system.peer == peer]
        cells = [f"{_ratio(loads, mine, count):.2f}" for count in CONNECTIONS]
        yield f"{f'  {peer}':38}" + "".join(f"{cell:>26}" for cell in cells)


def _cell(loads: Sequence[Load]) -> str:
    rate = statistics.median(load.rate for load in loads)
    slowest = statistics.median(load.percentile(99) for load in loads)
    return f"{rate:,.0f}  {slowest * 1e3:.2f} ms"


def _ratio(loads: Told, names: Sequence[str], count: int) -> float:
    """Our requests a second over those of the best of these, round by round; the median."""
    ours = loads[OURS.name, count]
    ratios = [
        mine.rate / max(loads[name, count][turn].rate for name in names)
        for turn, mine in enumerate(ours)
    ]
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
