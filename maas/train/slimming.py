"""Training for a model that will be smaller: its weights pruned on the way, or rounded as it runs.

Gradual pruning: after step t the share s(t) of all weights with the smallest magnitude is zero,
and stays so (Zhu and Gupta, 2017, arXiv:1710.01878, equation 1), from step t0 to step t1:

    s(t) = amount (1 - (1 - (t - t0) / (t1 - t0))^3)

They are chosen over all layers together, as `Prune(amount)` chooses, which afterwards leaves out
the zeros and nothing else.

Quantization-aware training: the model runs, in training and in validation, with each weight as
`Quantize("int8")` will keep it (Jacob et al., 2018, arXiv:1712.05877, section 3). Rounding has no
gradient, and is passed as if it were not there: the straight-through estimator (Bengio et al.,
2013, arXiv:1308.3432). Activations are not rounded.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from maas.backends.packed_layers import PACKED, quantized
from maas.train.feeding import called
from maas.train.recipe import Choice, Recipe

__all__ = ["Slimming"]


class Slimming:
    """What a run's recipe does to the weights beside training them; nothing, for most.

    Parameters
    ----------
    total : steps of the run in all; None where nobody knows.

    Attributes
    ----------
    gone : by the name of a weight, which of its numbers are pruned; it is part of a run's state.

    Raises
    ------
    ValueError
        The module has no layer of the kinds that `compress` packs, or pruning would need to know
        how many steps there are.
    """

    def __init__(self, recipe: Recipe, module: torch.nn.Module, total: int | None) -> None:
        self._module = module
        self._rounds = recipe.quantize is not None
        self._shares = _shares(recipe.prune, total)
        self._weights = _packable(module) if self._rounds or self._shares else {}
        self.gone: dict[str, torch.Tensor] = {}

    def called(self, inputs: Any) -> Any:
        """What the module gives, its weights rounded where the recipe says so."""
        return called(self._rounded if self._rounds else self._module, inputs)

    def _rounded(self, *args: Any, **kwargs: Any) -> Any:
        rounded = {name: _rounded(each) for name, each in self._weights.items()}
        return torch.func.functional_call(self._module, rounded, args, kwargs)

    def stepped(self, step: int) -> None:
        """After that step of the optimizer: prunes, where it is time, and keeps zeros zero."""
        if step in self._shares:
            self._choose(self._shares[step])
        with torch.no_grad():
            for name, gone in self.gone.items():
                self._weights[name].masked_fill_(gone, 0)

    def _choose(self, share: float) -> None:
        sizes = {name: each.detach().abs() for name, each in self._weights.items()}
        everything = torch.cat([each.flatten() for each in sizes.values()])
        least = everything.kthvalue(max(1, round(share * len(everything)))).values
        self.gone = {name: each <= least for name, each in sizes.items()}

    def done(self, step: int) -> bool:
        """Whether the weights are as sparse as they are to be."""
        return step >= max(self._shares, default=0)

    def restore(self, gone: Mapping[str, torch.Tensor]) -> None:
        """Goes back to those that were pruned then."""
        self.gone = {name: each.to(self._weights[name].device) for name, each in gone.items()}


class _Rounded(torch.autograd.Function):
    """A weight as int8 keeps it; the gradient is that of the weight itself."""

    @staticmethod
    def forward(_ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        values, scale = quantized(weight)
        return values.to(scale.dtype) * scale

    @staticmethod
    def backward(_ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def _rounded(weight: torch.Tensor) -> torch.Tensor:
    return _Rounded.apply(weight)  # type: ignore[no-any-return,no-untyped-call]


def _shares(prune: Choice | None, total: int | None) -> dict[int, float]:
    """The steps after which there is a turn, and the share that is pruned from then on."""
    if prune is None:
        return {}
    if total is None:
        raise ValueError(
            "pruning stretches over the steps, and these data do not tell how many rows they have"
        )
    options = {"begin": 0.0, "end": 0.5, "turns": 20, **prune.options}
    begin, end = (math.floor(options[name] * total) for name in ("begin", "end"))
    parts = [turn / options["turns"] for turn in range(1, options["turns"] + 1)]
    # Of turns that fall on one step, the last is the one that counts.
    return {
        max(1, begin + round(part * (end - begin))): options["amount"] * (1 - (1 - part) ** 3)
        for part in parts
    }


def _packable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights that `compress` prunes and packs, each once."""
    found: dict[str, torch.nn.Parameter] = {}
    for name, layer in module.named_modules():
        weight = layer._parameters.get("weight") if type(layer) in PACKED else None
        if weight is not None and not any(weight is each for each in found.values()):
            found[f"{name}.weight" if name else "weight"] = weight
    if not found:
        raise ValueError(
            "prune and quantize are for layers with a weight, and this model has none: "
            f"{', '.join(each.__name__ for each in PACKED)}"
        )
    return found
