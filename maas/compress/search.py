"""`auto=Budget(...)`: recipes are tried, and the smallest model within the budget is taken.

Which recipe is best depends on the model, so they are tried and measured, none is guessed. All
that were tried stand in the report, with what refused them.
"""

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from maas.compress.compile import Compile
from maas.compress.distill import Distill
from maas.compress.factor import Factor
from maas.compress.figures import Figures
from maas.compress.gate import Agreement, Gate, RelativeError
from maas.compress.prune import Prune
from maas.compress.quantize import Quantize
from maas.compress.trial import Step

__all__ = ["Budget"]

Recipe = tuple[Step, ...]


@attrs.frozen(kw_only=True, eq=False)
class Budget:
    """What a search for a recipe must keep.

    Parameters
    ----------
    size : bytes on disk at most, as a share of the original's.
    agreement : share of check rows with the original's class at least; None where there are none.
    error : relative error at most, or None.
    data : what students learn from, inputs or (inputs, targets), other than the check data; without
        it only recipes that need no training are tried.
    recipes : tuples of steps to try instead of those of this file.
    """

    size: float = 1.0
    agreement: float | None = None
    error: float | None = None
    data: Any = None
    recipes: Sequence[Recipe] | None = None

    def __attrs_post_init__(self) -> None:
        if type(self.size) not in (int, float) or not self.size > 0:
            raise ValueError(f"Budget's size is a share of the original above 0; got {self.size!r}")
        if self.agreement is None and self.error is None:
            raise ValueError("a Budget wants agreement= or error=, or the smallest would be empty")
        list(self.gates())

    def gates(self) -> Iterator[Gate]:
        """What each recipe's result must pass, apart from its size."""
        if self.agreement is not None:
            yield Agreement(self.agreement)
        if self.error is not None:
            yield RelativeError(self.error)

    def fits(self, found: Figures, original: Figures) -> str:
        """Why a result is not within the budget, or the empty string."""
        if found.disk > self.size * original.disk:
            return f"size is {found.disk / original.disk:.3f}, at most {self.size:g} was asked"
        return "; ".join(filter(None, (gate(found, original) for gate in self.gates())))

    def tried(self) -> list[Recipe]:
        """The recipes, those that cost least time first."""
        if self.recipes is not None:
            return [tuple(recipe) for recipe in self.recipes]
        return [*_untrained(), *(_trained(self.data) if self.data is not None else ())]


def _untrained() -> Iterable[Recipe]:
    narrow = Quantize("int8")
    yield (narrow,)
    for share in (0.3, 0.5, 0.7):
        yield (Prune(share), narrow)
    for energy in (0.99, 0.95, 0.9):
        yield (Factor(energy), narrow)
    if importlib.util.find_spec("onnxscript") and importlib.util.find_spec("onnxruntime"):
        yield (Compile(), Quantize("int8 dynamic"))


def _trained(data: Any) -> Iterable[Recipe]:
    """What pruning or factoring broke, the original teaches again."""
    narrow, again = Quantize("int8"), Distill(data=data, epochs=30)
    for energy in (0.9, 0.8, 0.6):
        yield (Factor(energy), again, narrow)
    if importlib.util.find_spec("torch_pruning"):
        for share in (0.25, 0.5, 0.75):
            yield (Prune(share, structured=True), again, narrow)
