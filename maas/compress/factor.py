"""`Factor`: a linear layer as two thinner ones, by its singular values.

W = U S V' has the best approximation of rank r in U_r S_r V_r' (Eckart and Young, 1936,
doi:10.1007/BF02288367), so that a layer of m x n numbers becomes two with r (m + n) in all
(Denil et al., 2013, arXiv:1306.0543; Denton et al., 2014, arXiv:1404.0736). The share of
energy that is kept is sum(s_1^2 ... s_r^2) / sum(s^2), and 1 minus it is the squared relative
error of the matrix.
"""

from typing import Any

import attrs
import torch
from torch import nn

from maas.compress.layers import around, copied, layers_of, put
from maas.compress.trial import Trial
from maas.errors import Unsupported
from maas.model import Model

__all__ = ["Factor"]


def _energy(_: object, _attribute: object, value: float) -> None:
    if type(value) not in (int, float) or not 0 < value <= 1:
        raise ValueError(f"Factor wants the share of energy to keep, above 0 to 1; got {value!r}")


@attrs.frozen
class Factor:
    """Replaces linear layers by two of lower rank, where that takes fewer numbers.

    Parameters
    ----------
    energy : share of each matrix's squared singular values that is kept.
    skip : names of layers that stay as they are, with all below them.
    """

    energy: float = attrs.field(default=0.95, validator=_energy)
    skip: tuple[str, ...] = attrs.field(default=(), converter=tuple, kw_only=True)

    def __str__(self) -> str:
        return f"Factor({self.energy:g})"

    def __call__(self, model: Model[..., Any], trial: Trial) -> Model[..., Any]:
        """The model with thinner layers."""
        module = copied(model)
        found = list(layers_of(module, (nn.Linear,), self.skip))
        if not found:
            raise Unsupported("this model has no torch.nn.Linear to factor; factor before packing")
        thinner = 0
        for name, layer in found:
            factors = _factored(layer, self.energy)
            if factors is not None:
                module = put(module, name, factors)
                thinner += 1
        trial.note(f"{self} made {thinner} of {len(found)} linear layers thinner")
        return around(model, module)


def _factored(layer: Any, energy: float) -> nn.Sequential | None:
    """The two layers, or None where they would hold as many numbers."""
    weight = layer.weight.detach()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    shares = values.square().cumsum(0) / values.square().sum()
    rank = min(int((shares < energy).sum()) + 1, len(values))
    above, below = weight.shape
    if rank * (above + below) >= above * below:
        return None
    first = nn.Linear(below, rank, bias=False)
    second = nn.Linear(rank, above, bias=layer.bias is not None)
    made = nn.Sequential(first, second).to(weight)
    root = values[:rank].sqrt()
    with torch.no_grad():
        first.weight.copy_(root[:, None] * right[:rank])
        second.weight.copy_(left[:, :rank] * root)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    return made.train(layer.training)
