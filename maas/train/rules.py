"""The names of a recipe, as torch's own classes: losses, optimizers, schedules.

Each table has the names of the table in `recipe.py`, and a test holds them together.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.optim import lr_scheduler

from maas.train.recipe import Choice, Recipe

__all__ = ["LOSSES", "OPTIMIZERS", "SCHEDULES", "Loss", "optimizer_of", "schedule_of"]

LOSSES: Mapping[str, Callable[..., torch.Tensor]] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
    "cross_entropy": functional.cross_entropy,
    "binary_cross_entropy": functional.binary_cross_entropy_with_logits,
    "nll": functional.nll_loss,
    "poisson": functional.poisson_nll_loss,
}
OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}
SCHEDULES: Mapping[str, type[lr_scheduler.LRScheduler]] = {
    "step": lr_scheduler.StepLR,
    "multistep": lr_scheduler.MultiStepLR,
    "exponential": lr_scheduler.ExponentialLR,
    "plateau": lr_scheduler.ReduceLROnPlateau,
    "linear": lr_scheduler.LinearLR,
    "polynomial": lr_scheduler.PolynomialLR,
    "cosine": lr_scheduler.CosineAnnealingLR,
    "cosine_restarts": lr_scheduler.CosineAnnealingWarmRestarts,
    "one_cycle": lr_scheduler.OneCycleLR,
}
_LENGTHS = {
    "linear": "total_iters",
    "polynomial": "total_iters",
    "cosine": "T_max",
    "one_cycle": "total_steps",
}
"""The option of a schedule that is the number of all steps, if nothing else was said."""
_BY_CLASS = ("cross_entropy", "nll")


class Loss:
    """The loss of outputs against targets, and a check that torch does not make.

    Subtracting targets [n] from outputs [n, 1] gives [n, n] without an error, and a loss that
    means nothing.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._given = recipe.loss
        self._smoothing = recipe.label_smoothing
        self._exact = recipe.precision == "full"
        self.name: str | None = None
        self._loss: Callable[..., torch.Tensor] = LOSSES["mse"]

    def __call__(self, outputs: Any, targets: Any) -> torch.Tensor:
        """The mean over the rows.

        Raises
        ------
        ValueError
            Outputs and targets do not fit each other.
        TypeError
            Outputs or targets are no tensors.
        """
        if not isinstance(outputs, torch.Tensor) or not isinstance(targets, torch.Tensor):
            raise TypeError(
                "a loss wants one tensor of outputs and one of targets, "
                f"got {type(outputs).__name__} and {type(targets).__name__}"
            )
        if self.name is None:
            self._choose(targets)
        if self.name not in _BY_CLASS or targets.is_floating_point():
            self._check(outputs, targets)
        return self._loss(outputs, targets)

    def _choose(self, targets: torch.Tensor) -> None:
        whole = not (targets.is_floating_point() or targets.is_complex())
        chosen = self._given or Choice("cross_entropy" if whole else "mse")
        options = dict(chosen.options)
        for name in ("weight", "pos_weight"):
            if name in options:
                options[name] = torch.tensor(options[name], device=targets.device)
        if self._smoothing:
            if chosen.name != "cross_entropy":
                raise ValueError(
                    "label_smoothing is for classes, and these targets are "
                    f"{targets.dtype}; give loss='cross_entropy' and whole numbers"
                )
            options["label_smoothing"] = self._smoothing
        self._loss = partial(LOSSES[chosen.name], **options) if options else LOSSES[chosen.name]
        self.name = chosen.name

    def _check(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"the loss {self.name!r} compares element by element: outputs are "
                f"{list(outputs.shape)} and targets {list(targets.shape)}; reshape the targets"
            )
        if self._exact and outputs.dtype != targets.dtype:
            raise ValueError(
                f"the loss {self.name!r} wants targets of the outputs' {outputs.dtype}, "
                f"got {targets.dtype}; convert the targets"
            )


def optimizer_of(recipe: Recipe, module: torch.nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters that want a gradient.

    Raises
    ------
    ValueError
        There are none, or a number that torch refuses.
    """
    parameters = [each for each in module.parameters() if each.requires_grad]
    if not parameters:
        raise ValueError("no parameter of this model requires a gradient, so nothing can train")
    given = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, **recipe.optimizer.options}
    options = {name: value for name, value in given.items() if value is not None}
    if "betas" in options:
        options["betas"] = tuple(options["betas"])
    make: Callable[..., torch.optim.Optimizer] = OPTIMIZERS[recipe.optimizer.name]
    return make(parameters, **options)


def schedule_of(
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    steps: int | None,
    *,
    higher: bool,
) -> lr_scheduler.LRScheduler | None:
    """The recipe's schedule over that many steps in all; None where the rate stays.

    `higher` says whether what is watched is better when higher, for `plateau`.

    Raises
    ------
    ValueError
        The schedule stretches over all steps, and nobody knows how many these are.
    """
    if recipe.schedule is None:
        return None
    name, options = recipe.schedule.name, dict(recipe.schedule.options)
    length = _LENGTHS.get(name)
    if length is not None and length not in options:
        if steps is None:
            raise ValueError(
                f"the schedule {name!r} stretches over all steps, and these data do not tell "
                "how many rows they have; give it a length, or another schedule"
            )
        options[length] = steps
    if name == "one_cycle":
        options.setdefault("max_lr", optimizer.param_groups[0]["lr"])
        # It turns momentum down as it turns the rate up, where there is one.
        options["cycle_momentum"] = not {"momentum", "betas"}.isdisjoint(optimizer.defaults)
    if name == "plateau":
        options["mode"] = "max" if higher else "min"
    make: Callable[..., lr_scheduler.LRScheduler] = SCHEDULES[name]
    return make(optimizer, **options)
