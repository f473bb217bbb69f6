"""An example call, run before a new version takes anybody else's.

The first call of a model is often the slowest, and shows whether its weights, its device
and its libraries are there: a version that cannot answer its own example serves nobody.
"""

import importlib
from typing import Any

from maas.calls import CALL
from maas.executors.base import ModelInfo
from maas.model import Model
from maas.schema import TensorSpec

__all__ = ["warm_up"]


def warm_up(model: Model[..., Any], example: Any, timeout: float) -> None:
    """Waits until the model is ready, and lets it answer an example.

    That is `example` (one argument, or a tuple of them), else zeros of the shapes that a
    module's signature declares; other models, whose calls may do anything, are not called
    without being given one. It runs in eval mode and under a seed, to leave no trace in a module.

    Raises
    ------
    DeadlineExceeded
        Not ready, or no answer, within `timeout` seconds.
    Exception
        What the model raised.
    """
    model.ready(timeout)
    info = model.info
    args = _zeros(info) if example is None else example if type(example) is tuple else (example,)
    if args is None:
        return
    asked = model.with_options(timeout=timeout, seed=0)
    if info.training is not None:
        asked.eval()
    if info.methods[CALL].streams:
        for _item in asked.stream(*args):
            return
    else:
        asked(*args)


def _zeros(info: ModelInfo) -> tuple[Any, ...] | None:
    """Zeros for each parameter of a module's own call; None where the shapes are not known."""
    method = info.methods.get(CALL)
    if info.kind != "torch" or method is None or method.stochastic:
        return None
    required = [each for each in method.signature.parameters if each.required]
    specs = [each.annotation.spec for each in required if each.kind != "keyword"]
    known = [_array(spec) for spec in specs if spec is not None]
    return tuple(known) if known and len(known) == len(required) else None


def _array(spec: TensorSpec) -> Any:
    torch = importlib.import_module("torch")
    # A symbol or None leaves the length open.
    shape = [length if type(length) is int else 1 for length in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))
