"""The network that is measured: small enough that what stands around it shows."""

import torch
from torch import Tensor, nn

__all__ = ["BigModel", "fixed"]


class BigModel(nn.Module):
    """Four linear layers, 1000-500-250-100-1: about 80 us for one row on one core."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1000, 500), nn.Linear(500, 250), nn.Linear(250, 100), nn.Linear(100, 1)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """From [batch, 1000] to [batch, 1]."""
        outputs: Tensor = self.layers(inputs)
        return outputs


def fixed() -> BigModel:
    """The same weights in each process, in eval mode; on one thread, as more would race."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return BigModel().eval()
