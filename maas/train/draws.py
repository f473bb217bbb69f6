"""What a run draws from torch: its own place in the generators, beside the caller's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

__all__ = ["Draws"]


class Draws:
    """The run's own place in torch's generators; between steps they are the caller's.

    Attributes
    ----------
    states : the state of each generator, by its device.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._devices = [] if device.type == "cpu" else [device]
        self.states = {
            str(each): torch.Generator(each).manual_seed(seed).get_state()
            for each in (torch.device("cpu"), *self._devices)
        }

    def _captured(self) -> dict[str, torch.Tensor]:
        others = {
            str(each): torch.get_device_module(each).get_rng_state(each) for each in self._devices
        }
        return {"cpu": torch.get_rng_state(), **others}

    def _set(self, states: Mapping[str, torch.Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        for each in self._devices:
            torch.get_device_module(each).set_rng_state(states[str(each)], each)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Draws are the run's meanwhile."""
        outer = self._captured()
        self._set(self.states)
        try:
            yield
        finally:
            self.states = self._captured()
            self._set(outer)
