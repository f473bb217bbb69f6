"""The metrics of a recipe over held-out rows, by torchmetrics (extra `train`)."""

from typing import Any

import torch

from maas.train.recipe import Choice, Recipe

__all__ = ["Meters"]


class Meters:
    """Those of one recipe; made at the first batch, whose shapes tell how many classes there are.

    Raises
    ------
    ModuleNotFoundError
        torchmetrics is not installed; the message says how.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._choices = recipe.metrics
        self._meters: dict[str, Any] = {}
        if recipe.metrics:
            _torchmetrics()

    def reset(self) -> None:
        """Forgets all rows."""
        for meter in self._meters.values():
            meter.reset()

    def add(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Takes in a batch."""
        for choice in self._choices:
            if choice.name not in self._meters:
                self._meters[choice.name] = _meter(choice, outputs, targets).to(outputs.device)
            shown = _shown(choice, outputs, targets)
            self._meters[choice.name].update(*shown)

    def values(self) -> dict[str, float]:
        """Over all rows since `reset`."""
        return {name: float(meter.compute()) for name, meter in self._meters.items()}


def _torchmetrics() -> Any:
    try:
        import torchmetrics
    except ModuleNotFoundError as error:
        if error.name != "torchmetrics":
            raise
        raise ModuleNotFoundError(
            "metrics are computed by torchmetrics: pip install 'maas-sdk[train]'",
            name="torchmetrics",
        ) from None
    return torchmetrics


_OF_NUMBERS = {
    "mae": ("MeanAbsoluteError", {}),
    "mse": ("MeanSquaredError", {}),
    "rmse": ("MeanSquaredError", {"squared": False}),
    "r2": ("R2Score", {}),
}
_OF_CLASSES = {
    "accuracy": ("Accuracy", "micro"),
    "balanced_accuracy": ("Recall", "macro"),
    "precision": ("Precision", "macro"),
    "recall": ("Recall", "macro"),
    "f1": ("F1Score", "macro"),
    "auroc": ("AUROC", "macro"),
    "matthews": ("MatthewsCorrCoef", None),
}
"""Name to torchmetrics' class, and how it averages over more than two classes."""


def _meter(choice: Choice, outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    found = _torchmetrics()
    if choice.name in _OF_NUMBERS:
        name, options = _OF_NUMBERS[choice.name]
        return getattr(found, name)(**options)
    name, average = _OF_CLASSES[choice.name]
    classes = _classes(choice, outputs, targets)
    if _is_flat(outputs, targets) and choice.name != "balanced_accuracy":
        return getattr(found, name)(task="binary")
    averaged = {} if average is None else {"average": average}
    return getattr(found, name)(
        task="multiclass", num_classes=classes, **averaged, **choice.options
    )


def _is_flat(outputs: torch.Tensor, targets: torch.Tensor) -> bool:
    return outputs.shape == targets.shape


def _classes(choice: Choice, outputs: torch.Tensor, targets: torch.Tensor) -> int:
    if _is_flat(outputs, targets) and ((targets == 0) | (targets == 1)).all():
        return 2
    if outputs.ndim < 2 or targets.is_floating_point() or _is_flat(outputs, targets):
        raise ValueError(
            f"the metric {choice.name!r} is of classes: it wants outputs [rows, classes] and whole "
            f"numbers, or logits of the targets' shape and 0 or 1; got {list(outputs.shape)} and "
            f"{targets.dtype} {list(targets.shape)}"
        )
    return outputs.shape[1]


def _shown(
    choice: Choice, outputs: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the meter is given: probabilities where it orders rows, classes of logits elsewhere."""
    outputs = outputs.float()
    if choice.name in _OF_NUMBERS:
        if outputs.shape != targets.shape:
            raise ValueError(
                f"the metric {choice.name!r} compares numbers: outputs are {list(outputs.shape)} "
                f"and targets {list(targets.shape)}"
            )
        return outputs.flatten(1) if choice.name == "r2" else outputs, targets
    if _is_flat(outputs, targets):
        whole = targets.long()
        shown = outputs.sigmoid()
        return (
            ((shown > 0.5).long(), whole) if choice.name == "balanced_accuracy" else (shown, whole)
        )
    return outputs.softmax(1), targets
