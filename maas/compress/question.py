"""What `compress` is asked, checked before any work; and as data, for a server."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import attrs

from maas.compress.distill import Distill
from maas.compress.gate import Gate, gates_of
from maas.compress.search import Budget
from maas.compress.steps import (
    OURS,
    Parts,
    gate_from,
    gate_told,
    is_dataset,
    step_from,
    step_told,
)
from maas.compress.trial import Check, Step, check_steps
from maas.errors import CodecError, Unsupported

__all__ = ["Question"]


@attrs.frozen(kw_only=True, eq=False)
class Question:
    """Steps, or a budget for a search; what judges them, and what must be kept.

    Attributes
    ----------
    steps, auto : one of the two.
    data : the rows that the result is judged by: a `Check`, a dataset at a server, or None.
    gates : what every step's result must pass.
    """

    steps: Sequence[Step]
    auto: Budget | None
    data: Any
    gates: Sequence[Gate]

    @classmethod
    def of(cls, steps: Sequence[Step], *, check: Any, keep: Any, auto: Budget | None) -> Self:
        """The question; raises TypeError or ValueError for one that makes no sense."""
        if (auto is None) == (not steps):
            raise TypeError("compress wants steps, such as Quantize('int8'), or auto=Budget(...)")
        check_steps(steps, list(OURS))
        gates = gates_of(keep)
        if check is None and (gates or auto is not None):
            raise ValueError(
                "keep= and auto= compare with the original: give check=, rows to compare"
            )
        if check is not None and not is_dataset(check):
            check = Check.of(check)
        return cls(steps=steps, auto=auto, data=check, gates=gates)

    @property
    def check(self) -> Check | None:
        """The rows that the result is judged by, here; raises `Unsupported` for a dataset."""
        if self.data is not None and not isinstance(self.data, Check):
            raise Unsupported(
                "check= names a dataset at a server, and this model is not there; give the rows"
            )
        return self.data

    @property
    def rows(self) -> int:
        """Rows of the model that this costs, as far as it can be told before it is done.

        Those of the check data for the original and for each step's result, and those that
        students learn from, in every epoch. What a step runs beside is not counted.
        """
        looked = 0 if self.check is None else len(self.check)
        recipes = [self.steps] if self.auto is None else self.auto.tried()
        return sum(looked * (1 + len(recipe)) + sum(map(_learned, recipe)) for recipe in recipes)

    # As data.

    def to_data(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Plain values, and the rows by key; raises `Unsupported` for what does not cross."""
        parts = Parts()
        plain = {
            "check": None if self.data is None else parts.put(self.data),
            "steps": [step_told(step, parts) for step in self.steps],
            "keep": [gate_told(gate) for gate in self.gates],
            "auto": None if self.auto is None else _budget_told(self.auto, parts),
        }
        return plain, parts.rows

    @classmethod
    def from_data(cls, plain: Mapping[str, Any], rows: Mapping[str, Any]) -> Self:
        """From what `to_data` gave, strictly: it came from a stranger.

        Raises
        ------
        CodecError
            This is no question.
        ValueError, TypeError
            A name that no table has, or options that make no sense.
        """
        if plain.keys() != {"check", "steps", "keep", "auto"}:
            raise CodecError("a question for compress has the fields check, steps, keep and auto")
        parts = Parts(rows)
        return cls.of(
            [step_from(step, parts) for step in _listed(plain["steps"])],
            check=None if plain["check"] is None else parts.data(plain["check"]),
            keep=[gate_from(gate) for gate in _listed(plain["keep"])],
            auto=None if plain["auto"] is None else _budget_from(plain["auto"], parts),
        )


def _learned(step: Step) -> int:
    if not isinstance(step, Distill):
        return 0
    data = Check.of(step.data, "data")
    # With labels to judge by, each student has a twin that learns without a teacher.
    return len(data) * step.epochs * step.seeds * (1 if data.targets is None else 2)


def _listed(value: Any) -> list[Any]:
    if type(value) is not list:
        raise CodecError(f"a question for compress lists its steps and gates; got {value!r:.60}")
    return value


_BUDGET = ("size", "agreement", "error", "data", "recipes")


def _budget_told(budget: Budget, parts: Parts) -> dict[str, Any]:
    return {
        "size": budget.size,
        "agreement": budget.agreement,
        "error": budget.error,
        "data": None if budget.data is None else parts.put(budget.data),
        "recipes": None
        if budget.recipes is None
        else [[step_told(step, parts) for step in recipe] for recipe in budget.recipes],
    }


def _budget_from(told: Any, parts: Parts) -> Budget:
    if type(told) is not dict or told.keys() != {*_BUDGET}:
        raise CodecError(f"a budget has the fields {', '.join(_BUDGET)}")
    data, recipes = told["data"], told["recipes"]
    return Budget(
        size=told["size"],
        agreement=told["agreement"],
        error=told["error"],
        data=None if data is None else parts.data(data),
        recipes=None
        if recipes is None
        else [
            tuple(step_from(step, parts) for step in _listed(recipe)) for recipe in _listed(recipes)
        ],
    )
