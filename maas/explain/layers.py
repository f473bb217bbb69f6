"""Which layers the algorithms that look into a module can treat."""

import importlib
from collections.abc import Iterable, Iterator

from torch import nn

from maas.errors import Unsupported

__all__ = ["fits_deep_lift", "fits_guided_backprop", "fits_lrp", "give_rules", "leaves"]

_LINEAR: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Linear,
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
)  # fmt: skip
"""Linear in their input in eval mode, so that any rule for linear layers holds for them."""
_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_LARGEST = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)

_DEEP_LIFT = (
    *_LINEAR, *_DROPS, *_LARGEST,
    nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softmax,
)  # fmt: skip
"""The last ones have a rule in `captum.attr._core.deep_lift`; others it would take as they are."""

_LRP = (*_LINEAR, *_LARGEST, nn.Dropout, nn.ReLU, nn.Tanh)


def leaves(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that hold no others, by name."""
    for name, each in module.named_modules():
        if next(each.children(), None) is None:
            yield name, each


def fits_deep_lift(module: nn.Module) -> None:
    """Raises `Unsupported` where DeepLift has no rule for a layer."""
    _check("deep_lift", module, _DEEP_LIFT)


def fits_lrp(module: nn.Module) -> None:
    """Raises `Unsupported` where there is no rule for a layer."""
    _check("lrp", module, _LRP)


def fits_guided_backprop(module: nn.Module) -> None:
    """Raises `Unsupported` where no layer is changed, so that it would be the bare gradient."""
    if not any(isinstance(each, nn.ReLU) for each in module.modules()):
        raise Unsupported(
            "guided_backprop changes how nn.ReLU layers pass gradients back, and this model has "
            "none; use saliency or integrated_gradients"
        )


def _check(method: str, module: nn.Module, known: Iterable[type[nn.Module]]) -> None:
    kinds = set(known)
    for name, each in leaves(module):
        if type(each) not in kinds:
            raise Unsupported(
                f"{method} cannot treat the layer {name or 'at the top'!r}, a "
                f"{type(each).__name__}; it has rules for "
                f"{', '.join(sorted(kind.__name__ for kind in kinds))}. "
                "integrated_gradients treats any differentiable layer"
            )


def give_rules(module: nn.Module) -> None:
    """Has LRP's epsilon rule at every linear layer, some of which Captum has no default for."""
    rules = importlib.import_module("captum.attr._utils.lrp_rules")
    for _, each in leaves(module):
        if type(each) in _LINEAR:
            each.rule = rules.EpsilonRule()
