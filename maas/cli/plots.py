"""A picture of numbers in plain characters, so that any terminal and any log holds it."""

import math
from collections.abc import Iterator, Sequence

__all__ = ["plot"]

WIDE, HIGH = 56, 14


def plot(points: Sequence[tuple[float, float, str]], across: str, up: str) -> Iterator[str]:
    """Points (across, up, mark) as lines of text; what goes up does so in powers.

    Parameters
    ----------
    points : all above 0. A mark may be a word; where two would meet the first one stays.
    across, up : what the axes tell.
    """
    right = max(x for x, _, _ in points)
    low, high = min(y for _, y, _ in points), max(y for _, y, _ in points)
    rows = [[" "] * (WIDE + 1) for _ in range(HIGH)]
    for x, y, mark in points:
        row = rows[_row(y, low, high)]
        start = min(round(x / right * (WIDE - len(mark))), WIDE - len(mark))
        if all(cell == " " for cell in row[start : start + len(mark) + 1]):
            row[start : start + len(mark)] = mark
    labels = _labels(low, high)
    width = max(map(len, [*labels.values(), up]))
    yield up.rjust(width)
    for number, row in enumerate(rows):
        yield f"{labels.get(number, ''):>{width}} | {''.join(row)}".rstrip()
    yield f"{'':{width}} +{'-' * (WIDE + 2)}"
    end = f"{right:,.0f}"
    middle = f"{right / 2:,.0f}".center(WIDE - len(end))
    yield f"{'':{width}}   0{middle}{end} {across}"


def _row(y: float, low: float, high: float) -> int:
    """Which row from the top; equal factors are equal distances."""
    if high <= low:
        return HIGH - 1
    return HIGH - 1 - round(math.log(y / low) / math.log(high / low) * (HIGH - 1))


def _labels(low: float, high: float) -> dict[int, str]:
    """Round numbers (1, 2, 5 and their tens) beside the rows where they belong."""
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high] or [low]
    return {_row(tick, low, high): f"{tick:g}" for tick in inside}
