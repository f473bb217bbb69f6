"""Keras models on torch, which are torch modules: as these, but for how their mode is set."""

from typing import Any

from maas.backends.keras_calls import KerasCalls
from maas.backends.torch_module import TorchModule

__all__ = ["KerasModel"]


class KerasModel(KerasCalls, TorchModule):
    """Runs one Keras model on torch."""

    def __init__(self, target: Any, device: str | None = None) -> None:
        super().__init__(target, device)
        self._prepare(target)

    def _built(self) -> None:
        self._remember()
