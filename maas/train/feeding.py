"""What a module is given: a batch, as its arguments and where it lives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

__all__ = ["called", "moved"]


def called(module: Callable[..., Any], inputs: Any) -> Any:
    """What the module gives: several inputs are a tuple, named ones a dict."""
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def moved(value: Any, device: torch.device) -> Any:
    """Tensors on that device, whatever holds them; arrays as tensors."""
    if isinstance(value, torch.Tensor):
        return value if value.device == device else value.to(device)
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return tuple(moved(each, device) for each in value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.from_numpy(value).to(device)
    return value
