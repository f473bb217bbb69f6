"""A picture of numbers in plain characters, so that any terminal and any log holds it."""

import math
from collections.abc import Callable, Iterator, Sequence

__all__ = ["HIGH", "WIDE", "plot"]

WIDE, HIGH = 56, 14
_TICKS = 5


def plot(
    points: Sequence[tuple[float, float, str]], across: str, up: str, *, powers: bool = True
) -> Iterator[str]:
    """Points (across, up, mark) as lines of text.

    Parameters
    ----------
    points : none below 0 across. A mark may be a word; where two would meet the first one stays.
    across, up : what the axes tell.
    powers : equal distances upwards are equal factors, for which all must be above 0; or else
        equal differences.
    """
    right = max(x for x, _, _ in points)
    low, high = min(y for _, y, _ in points), max(y for _, y, _ in points)
    scale: Callable[[float], float] = math.log if powers else float
    rows = [[" "] * (WIDE + 1) for _ in range(HIGH)]
    for x, y, mark in points:
        row = rows[_row(y, low, high, scale)]
        start = min(round(x / right * (WIDE - len(mark))), WIDE - len(mark))
        if all(cell == " " for cell in row[start : start + len(mark) + 1]):
            row[start : start + len(mark)] = mark
    ticks = _factors(low, high) if powers else _differences(low, high)
    labels = {_row(tick, low, high, scale): f"{tick:g}" for tick in ticks or [low]}
    width = max(map(len, [*labels.values(), up]))
    yield up.rjust(width)
    for number, row in enumerate(rows):
        yield f"{labels.get(number, ''):>{width}} | {''.join(row)}".rstrip()
    yield f"{'':{width}} +{'-' * (WIDE + 2)}"
    end = f"{right:,.0f}"
    middle = f"{right / 2:,.0f}".center(WIDE - len(end))
    yield f"{'':{width}}   0{middle}{end} {across}"


def _row(y: float, low: float, high: float, scale: Callable[[float], float]) -> int:
    """Which row from the top."""
    if high <= low:
        return HIGH - 1
    part = (scale(y) - scale(low)) / (scale(high) - scale(low))
    return HIGH - 1 - round(part * (HIGH - 1))


def _factors(low: float, high: float) -> list[float]:
    """Round numbers between: 1, 2, 5 and their tens."""
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _differences(low: float, high: float) -> list[float]:
    """Round numbers between, equally far apart."""
    if high <= low:
        return []
    power = 10.0 ** math.floor(math.log10((high - low) / _TICKS))
    apart = next(step * power for step in (1, 2, 5, 10) if (high - low) / (step * power) <= _TICKS)
    return [
        round(number * apart, 12)
        for number in range(math.ceil(low / apart), math.floor(high / apart) + 1)
    ]
