"""`model.as_module()`: a Model where a `torch.nn.Module` is wanted."""

from typing import Any, Self

import torch

from maas.model import Model

__all__ = ["as_module"]


class ModelModule(torch.nn.Module):
    """A module whose `forward` calls a model, wherever that runs."""

    def __init__(self, model: Model[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.training = bool(model.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives; its gradients are those of the call."""
        return self.model(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT002 - as torch spells it
        """Puts the module and its handle of the model in train or eval mode."""
        if self.model.training is not None:
            self.model.train(mode)
        return super().train(mode)


def as_module(model: Model[..., Any]) -> torch.nn.Module:
    """The model as a `torch.nn.Module`, to be composed with others or given to torch's own tools.

    Its parameters are not the module's: they are trained by `model.parameters()`. The module has a
    handle of its own, so its mode is not that of `model`.
    """
    return ModelModule(model.with_options())
