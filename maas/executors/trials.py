"""Whether sharing a run can be noticed: tried before it is relied on.

Calls of one form share runs only at sizes that were tried. A trial on real calls runs them
together and each alone, and the callers get what came alone; so the first batch of each
size costs double and cannot be wrong. A trial on an example, at load, does the same with
rows made of the example's own numbers.

For `invariant=True` the bits must agree. They do not between all sizes, nor at all positions
(measured on CPU: 784 numbers to 10, from 7 rows on the bits depend on the place in the
batch; 1000 to 500, all multiples of 4 agree with each other and no other size does). So the
sizes that agree with each other at every position are looked for, and batches are filled up
to the next of them.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from maas import tensors
from maas.calls import Context
from maas.executors.rows import Plan

__all__ = [
    "Verdict",
    "bar",
    "difference",
    "invariant_sizes",
    "mates",
    "same_bits",
    "size_class",
    "trial_sizes",
]

_PRECISION = {
    "float64": 2.0**-52, "complex128": 2.0**-52, "float32": 2.0**-23, "complex64": 2.0**-23,
    "float16": 2.0**-10, "bfloat16": 2.0**-7,
    "float8_e4m3fn": 2.0**-3, "float8_e4m3fnuz": 2.0**-3,
    "float8_e5m2": 2.0**-2, "float8_e5m2fnuz": 2.0**-2,
}  # fmt: skip
"""The step from 1 to the next number; what is not here is compared exactly."""


_STRIKES = 2


@attrs.define
class Verdict:
    """What is known of one form.

    Attributes
    ----------
    alone : why its calls run one at a time; empty where they need not.
    tried : the classes of sizes that were tried; see `size_class`.
    strikes : trials that went wrong; see `strike`.
    tolerance : the largest difference seen.
    sizes : for `invariant=True`, those at which the bits agree, in order.
    """

    alone: str = ""
    tried: set[int] = attrs.field(factory=set)
    strikes: int = 0
    tolerance: float = 0.0
    sizes: tuple[int, ...] = ()

    def strike(self, why: str) -> None:
        """A trial went wrong: the first may be chance, the second settles it."""
        self.strikes += 1
        if self.strikes == _STRIKES:
            self.alone = why

    def size_for(self, rows: int) -> int:
        """The least size that agrees and has room for so many rows; their own number if none."""
        return next((size for size in self.sizes if size >= rows), rows)


def size_class(rows: int) -> int:
    """Sizes that are tried as one: those between two powers of two."""
    return rows.bit_length()


def trial_sizes(most: int) -> list[int]:
    """The least and the largest of each class, up to `most`."""
    powers = (2**power for power in range(1, most.bit_length()))
    return sorted({size for power in powers for size in (power, min(2 * power - 1, most))})


# Comparing.


def bar(dtype: str, context: Context, tolerance: float | None) -> float:
    """The difference above which two numbers of a dtype are taken for different."""
    precision = _PRECISION.get(dtype, 0.0)
    if not precision:
        return 0.0
    if tolerance is not None:
        return tolerance
    # Under autocast the numbers were computed in less than they are told in.
    computed = (_PRECISION.get(state.dtype, 0.0) for state in context.autocast if state.enabled)
    return float(max(precision, *computed, 0.0) ** 0.5)


def difference(
    alone: Sequence[Any], together: Sequence[Any], context: Context, tolerance: float | None
) -> tuple[float, bool]:
    """How far answers of one form are apart, and whether that is too far.

    Measured for each of the arrays in an answer, as a share of the largest number that all the
    answers have there: one answer may be near zero by chance.
    """
    worst, too_far = 0.0, False
    answers = [list(_pairs(*pair)) for pair in zip(alone, together, strict=True)]
    if any(len(pairs) != len(answers[0]) for pairs in answers):
        return float("inf"), True
    for column in zip(*answers, strict=True):
        facts = [tensors.facts(left) for left, _right in column]
        if facts != [tensors.facts(right) for _left, right in column] or None in facts:
            return float("inf"), True
        found = _distance([(_numbers(left), _numbers(right)) for left, right in column])
        dtype = facts[0][0]  # type: ignore[index]
        worst, too_far = max(worst, found), too_far or found > bar(dtype, context, tolerance)
    return worst, too_far


def _pairs(alone: Any, together: Any) -> Iterator[tuple[Any, Any]]:
    """The arrays of two answers side by side; a pair that is none where they differ in form."""
    kind = type(alone)
    if kind is not type(together):
        yield None, together
    elif kind is dict:
        if list(alone) != list(together):
            yield None, together
        else:
            for key, value in alone.items():
                yield from _pairs(value, together[key])
    elif kind in (tuple, list):
        if len(alone) != len(together):
            yield None, together
        else:
            for left, right in zip(alone, together, strict=True):
                yield from _pairs(left, right)
    elif tensors.facts(alone) is not None:
        yield alone, together
    elif alone != together:
        yield None, together


def _numbers(array: Any) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = tensors.CLAIMED[type(array)].numbers(array)
    return found


def _distance(pairs: Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> float:
    scale = apart = 0.0
    for left, right in pairs:
        same = (left == right) | ((left != left) & (right != right))  # noqa: PLR0124 - NaN is not itself
        finite = np.isfinite(left) & np.isfinite(right)
        if not bool((same | finite).all()):
            return float("inf")
        if left.dtype.kind in "biu":
            apart = apart if bool(same.all()) else float("inf")
            continue
        scale = max(scale, float(np.abs(left[finite]).max(initial=0.0)))
        apart = max(apart, float(np.abs(left[finite] - right[finite]).max(initial=0.0)))
    return apart / scale if scale else apart and float("inf")


def same_bits(alone: Any, together: Any) -> bool:
    """Whether two answers are equal to the bit."""
    return all(
        tensors.facts(left) is not None
        and tensors.facts(left) == tensors.facts(right)
        and _bits(left) == _bits(right)
        for left, right in _pairs(alone, together)
    )


def _bits(array: Any) -> bytes:
    return bytes(tensors.CLAIMED[type(array)].contents(array, ()))


# Trying without callers.

Run = Callable[[Sequence[Plan], int], list[Any]]
"""The answers to some plans put together and filled up to a size."""


def mates(plan: Plan, count: int) -> list[Plan]:
    """Plans of the same form and one row each, of the plan's own numbers in other places.

    Numbers that the model may not know, such as an index beyond its table, do not arise so.
    """
    generator = np.random.default_rng(0)
    made: list[Plan] = []
    for _ in range(count):
        arrays = tuple(
            tensors.CLAIMED[type(array)].shuffled(array[:1], generator) for array in plan.arrays
        )
        made.append(Plan(plan.form, 1, arrays, plan.lengths))
    return made


def invariant_sizes(plan: Plan, most: int, run: Run) -> tuple[int, ...]:
    """The sizes up to `most` at which every position gives the same bits, with whatever mates.

    Of several such sets the one that reaches furthest. Empty, or a single size of 1, where a row
    is only ever the same alone.
    """
    sizes = list(_candidates(most))
    tested = mates(plan, min(8, most))
    others = mates(plan, most + len(tested))[len(tested) :]
    groups: list[tuple[list[int], list[Any]]] = []
    for size in sizes:
        answers = _answers(tested, others, size, run)
        if answers is None:
            continue
        for members, known in groups:
            if all(map(same_bits, known, answers)):
                members.append(size)
                break
        else:
            groups.append(([size], answers))
    best = max(groups, key=lambda group: (group[0][-1], len(group[0])), default=([], []))
    return tuple(best[0])


def _candidates(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ...: filling up to the next costs a third at most."""
    steps = (step for power in range(most.bit_length()) for step in (2**power, 3 * 2**power))
    return sorted({1, most, *(step for step in steps if step <= most)})


def _answers(
    tested: Sequence[Plan], others: Sequence[Plan], size: int, run: Run
) -> list[Any] | None:
    """Each tested row's answer at this size, if it is the same at every position."""
    known: list[Any] = [None] * len(tested)
    spare = itertools.cycle(others)
    for turn in range(size):
        # Each turn every place has another one of the tested rows, or a mate met nowhere before.
        places = {
            (turn + index * max(1, size // len(tested))) % size: index
            for index in range(len(tested))
        }
        plans = [tested[places[place]] if place in places else next(spare) for place in range(size)]
        found = run(plans, size)
        for place, index in places.items():
            if known[index] is None:
                known[index] = found[place]
            elif not same_bits(known[index], found[place]):
                return None
    if any(answer is None for answer in known):
        rest = [index for index, answer in enumerate(known) if answer is None]
        for index in rest:
            known[index] = run([tested[index], *others[: size - 1]], size)[0]
    return known
