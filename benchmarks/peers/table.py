"""What was measured, as text: the rates, ours over each peer's with what is promised, clients."""

import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from benchmarks.peers.environments import installed
from benchmarks.peers.measuring import MANNERS, OPEN_INFERENCE_CLIENT, Measuring, Point
from benchmarks.peers.roster import CONNECTIONS, PEERS
from benchmarks.peers.systems import FLOOR, OURS

__all__ = ["lines"]

_PROMISED = {FLOOR.name: (0.7, 0.7, 0.7)} | {peer.name: peer.wanted for peer in PEERS}
_CALLS_PROMISED = 8.0
_NOTES = """\
Each row of numbers is a request of its own; every answer was compared with the bare module's.
maas is one configuration with all on; of a peer, the best of its configurations counts.
A peer is measured in turn with maas; a ratio is the median of the ratios of its rounds.
Triton has no package for pip: this is the server that pytriton's wheel brings, which has the Python
backend only. MLServer and BentoML take no binary tensors from outside by HTTP: rows travel in
base64, a quarter of their length as JSON. KServe has no batcher in its process.
"""


def lines(measured: Measuring) -> Iterator[str]:
    """The whole table."""
    yield _head(measured)
    yield _NOTES
    yield from _rates(measured)
    yield ""
    yield from _ratios(measured)
    if measured.calls:
        yield ""
        yield from _calls(measured)
    if measured.missing:
        yield ""
    for name, why in measured.missing.items():
        yield f"{name} is not measured, or not at all points: {why}"


def _head(measured: Measuring) -> str:
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    took = f"{measured.pace.seconds:g} s a figure"
    return (
        f"{time.strftime('%Y-%m-%d')}, {where} shared with the load generator, "
        f"Python {platform.python_version()}, torch {version('torch')}, {took}, "
        f"load average {os.getloadavg()[2]:.1f}"
    )


def _rates(measured: Measuring) -> Iterator[str]:
    yield _row("requests/s, 99th percentile", [f"{count} connections" for count in CONNECTIONS])
    names = list(dict.fromkeys(name for name, _ in measured.loads))
    yield _row(OURS.name, [_of(measured, names, OURS.name, count) for count in CONNECTIONS])
    for name in names:
        told = [turn for count in CONNECTIONS for turn in measured.loads.get((name, count), [])]
        for how in dict.fromkeys(how for turn in told for how in turn if how != OURS.name):
            yield _row(
                _title(name, how), [_of(measured, [name], how, count) for count in CONNECTIONS]
            )


def _title(name: str, how: str) -> str:
    package = {peer.name: peer.package for peer in PEERS}.get(name)
    return f"{name} {installed(package, package)}, {how}" if package else how


def _of(measured: Measuring, names: Sequence[str], how: str, count: int) -> str:
    turns = [turn for name in names for turn in measured.loads.get((name, count), [])]
    points = [turn[how] for turn in turns if how in turn]
    if not points:
        return "-"
    return str(
        Point(
            statistics.median(point.rate for point in points),
            statistics.median(point.slowest for point in points),
        )
    )


def _ratios(measured: Measuring) -> Iterator[str]:
    yield _row("requests/s of maas over the best of", [])
    for name in dict.fromkeys(name for name, _ in measured.loads):
        promised = _PROMISED[name] or (0.0,) * len(CONNECTIONS)
        ratios = [
            _judged([_over(turn) for turn in measured.loads.get((name, count), [])], least)
            for count, least in zip(CONNECTIONS, promised, strict=True)
        ]
        yield _row(f"  {name}", ratios)


def _over(turn: dict[str, Point]) -> float:
    return turn[OURS.name].rate / max(turn[how].rate for how in turn if how != OURS.name)


def _calls(measured: Measuring) -> Iterator[str]:
    yield _row("64 calls in flight, calls/s", [*MANNERS, "maas over, threads", "loop"])
    names = list(dict.fromkeys(name for name, _ in measured.calls))
    ours = [
        [mine for name in names for mine, _ in measured.calls.get((name, manner), [])]
        for manner in MANNERS
    ]
    yield _row("maas: its own client", [f"{statistics.median(each):,.0f}/s" for each in ours])
    for name in names:
        rounds = [measured.calls.get((name, manner), []) for manner in MANNERS]
        rates = [statistics.median(its for _, its in each) for each in rounds if each]
        promised = 0.0 if name == OPEN_INFERENCE_CLIENT else _CALLS_PROMISED
        ratios = [_judged([mine / its for mine, its in each], promised) for each in rounds]
        yield _row(name, [*(f"{rate:,.0f}/s" for rate in rates), *ratios])


def _judged(ratios: Sequence[float], least: float) -> str:
    if not ratios:
        return "-"
    ratio = statistics.median(ratios)
    if not least:
        return f"{ratio:.2f}"
    return f"{ratio:.2f}, >= {least:g} {'holds' if ratio >= least else 'BROKEN'}"


def _row(title: str, cells: Sequence[str]) -> str:
    return (f"{title:38}" + "".join(f"{cell:>22}" for cell in cells)).rstrip()
