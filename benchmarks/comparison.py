"""Two ways to do one thing, measured in turn, so that a busy moment of the machine strikes both.

A round measures one way, then at once the other; which goes first alternates. The ratio is
taken within each round, and the median over all rounds is what is told, with the quartiles.
Absolute times are shown to make the ratio imaginable; they belong to this machine and minute.
"""

import argparse
import math
import operator
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import attrs

__all__ = ["Bound", "Comparison", "Report", "compared"]

Way = Callable[[], object]


@attrs.frozen
class Bound:
    """What a ratio is meant to keep to."""

    most: float = math.inf
    least: float = 0.0

    def holds(self, ratio: float) -> bool:
        """Whether the ratio keeps to it."""
        return self.least <= ratio <= self.most

    def __str__(self) -> str:
        return f">= {self.least:g}" if self.least else f"<= {self.most:g}"


@attrs.frozen
class Comparison:
    """Seconds a call of ours and of the peer's, round by round."""

    ours: Sequence[float]
    peers: Sequence[float]

    def ratio(self, *, inverted: bool = False) -> tuple[float, float, float]:
        """Median and quartiles of ours over the peer's; inverted, of speed over speed."""
        pairs = (self.peers, self.ours) if inverted else (self.ours, self.peers)
        ratios = [above / below for above, below in zip(*pairs, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return middle, low, high


def compared(ours: Way, peer: Way, *, rounds: int, number: int) -> Comparison:
    """Both ways in turn; `number` calls of each make a round."""
    taken: tuple[list[float], list[float]] = ([], [])
    ways = [(ours, taken[0]), (peer, taken[1])]
    for _ in range(rounds):
        for way, seconds in ways:
            seconds.append(_seconds(way, number))
        ways.reverse()
    return Comparison(*taken)


def _seconds(way: Way, number: int) -> float:
    started = time.perf_counter()
    for _ in range(number):
        way()
    return (time.perf_counter() - started) / number


class Report:
    """A benchmark's table, line by line, and what became of its bounds.

    Attributes
    ----------
    quick : the least work that still runs every line; the figures then mean nothing.
    """

    def __init__(self, doc: str) -> None:
        parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
        parser.add_argument("--quick", action="store_true", help="run each line a few times")
        parser.add_argument("--check", action="store_true", help="fail if a bound is broken")
        options = parser.parse_args()
        self.quick: bool = options.quick
        self._check: bool = options.check
        self._broken: list[str] = []
        print(doc.partition("\n")[0])
        print(f"{'':46}{'ours':>12}{'peer':>14}{'ratio':>8}  {'quartiles':13}bound")

    def compare(
        self,
        what: str,
        ours: Way,
        peer: Way,
        *,
        bound: Bound | None = None,
        calls: int = 1,
        rounds: int = 100,
        speed: bool = False,
    ) -> None:
        """One line: seconds of ours over those of the peer, or the other way round for `speed`.

        `calls` is how many calls one run of either way makes, where it makes many at once.
        """
        for way in (ours, peer):
            way()
        number = 1 if self.quick else _number(ours, peer)
        done = compared(ours, peer, rounds=2 if self.quick else rounds, number=number)
        ratio, low, high = done.ratio(inverted=speed)
        ours_time, peer_time = (
            _time(statistics.median(each) / calls) for each in (done.ours, done.peers)
        )
        self._line([what, ours_time, peer_time, f"{low:.2f}-{high:.2f}"], ratio, bound)

    def excess(self, what: str, whole: Way, part: Way, bound: Bound, *, rounds: int = 100) -> None:
        """One line of a time that is bounded in itself, in microseconds: the whole less a part."""
        number = 1 if self.quick else _number(whole, part)
        done = compared(whole, part, rounds=2 if self.quick else rounds, number=number)
        extra = statistics.median(map(operator.sub, done.ours, done.peers))
        whole_time, part_time = map(_time, map(statistics.median, (done.ours, done.peers)))
        self._line([what, whole_time, part_time, ""], extra * 1e6, bound)

    def quantity(self, what: str, ours: float, beside: str, bound: Bound | None = None) -> None:
        """One line of a quantity that is bounded in itself, with another one beside it."""
        self._line([what, f"{ours:.2f}", beside, ""], ours, bound)

    def _line(self, cells: Sequence[str], ratio: float, bound: Bound | None) -> None:
        what, ours, peer, spread = cells
        told = "" if bound is None else f"{bound} {'holds' if bound.holds(ratio) else 'BROKEN'}"
        if bound is not None and not bound.holds(ratio):
            self._broken.append(what)
        print(f"{what:46}{ours:>12}{peer:>14}{ratio:8.2f}  {spread:13}{told}", flush=True)

    def close(self) -> None:
        """Ends the program; by 1 if a bound is broken and `--check` asked for that."""
        sys.exit(1 if self._check and self._broken else 0)


def _number(ours: Way, peer: Way) -> int:
    """Calls that make a round last about 10 ms: far above the clock's grain and its own cost."""
    slower = max(_seconds(ours, 1), _seconds(peer, 1))
    if slower < 0.01:
        slower = max(_seconds(ours, 3), _seconds(peer, 3))
    return max(1, round(0.01 / slower))


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms"
