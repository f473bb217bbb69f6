"""What a compressed model costs and how far it is from the original: measured, not estimated.

    relative error   |y' - y| / |y|, Euclidean norms over all outputs of the check data
    largest error    max |y' - y|
    agreement        share of rows whose largest output is the same class
    score            accuracy where targets are classes, mean squared error where they are numbers

Latencies are shares of the original's, measured in turns in one run: on a shared machine seconds
move by a third, and both sides move together.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch.utils import _pytree

from maas.compress.layers import is_local, module_of, numbers, weight_bytes
from maas.compress.trial import Check
from maas.model import Model
from maas.store import save

__all__ = [
    "BATCHES",
    "SECONDS",
    "Figures",
    "Metric",
    "disk_bytes",
    "figures",
    "has_classes",
    "latencies",
    "outputs",
    "score",
]

BATCHES = (1, 64)
"""Rows at which latency is measured: one caller, and a full batch."""

Metric = Callable[[torch.Tensor, torch.Tensor], float]
"""A task's own measure of outputs against targets; larger is better."""

_CHUNK = 256
SECONDS = 0.4
"""How long one batch size is measured, for each model."""


@attrs.frozen(kw_only=True)
class Figures:
    """One model's figures; what needs check data is None without.

    Attributes
    ----------
    disk : bytes of the model's folder, as `maas.save` writes it.
    memory : bytes of parameters and buffers.
    numbers : how many numbers the model is made of.
    error, largest, agreement, score : as this file's beginning tells.
    latency : rows in a batch to the time of a call, as a share of the original's.
    """

    disk: int
    memory: int
    numbers: int
    error: float | None = None
    largest: float | None = None
    agreement: float | None = None
    score: float | None = None
    latency: dict[int, float] = attrs.field(factory=dict)


def figures(
    model: Model[..., Any],
    check: Check | None,
    wanted: Sequence[torch.Tensor],
    metric: Metric | None,
) -> Figures:
    """All but latencies; `wanted` are the original's outputs for the check data."""
    if not is_local(model):
        found = _told(model)
    else:
        module = module_of(model)
        found = Figures(
            disk=disk_bytes(model), memory=weight_bytes(module), numbers=numbers(module)
        )
    if check is None:
        return found
    given = outputs(model, check)
    error, largest = _distances(given, wanted)
    return attrs.evolve(
        found,
        error=error,
        largest=largest,
        agreement=_agreement(given[0], wanted[0]),
        score=None if check.targets is None else score(given[0], check.targets, metric),
    )


def _told(model: Model[..., Any]) -> Figures:
    """Of a model elsewhere: what it says of its parameters, which are nearly all of its bytes."""
    layers = model.info.details.get("layers", [])
    sizes = [
        (math.prod(shape or ()), getattr(torch, dtype).itemsize)
        for layer in layers
        for dtype, shape in layer["parameters"].values()
    ]
    held = sum(count * width for count, width in sizes)
    return Figures(disk=held, memory=held, numbers=sum(count for count, _ in sizes))


def disk_bytes(model: Model[..., Any]) -> int:
    """Bytes of the files that `maas.save` writes for the model."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        save(model, folder)
        return sum(each.stat().st_size for each in folder.iterdir())


def outputs(model: Model[..., Any], check: Check) -> list[torch.Tensor]:
    """The arrays that the model gives for the check data, in eval mode, rows put together."""
    handle = model.with_options().eval()
    with torch.no_grad():
        parts = [_pytree.tree_leaves(handle(*args)) for args in check.batches(_CHUNK)]
    arrays = [
        torch.cat(part) for part in zip(*parts, strict=True) if isinstance(part[0], torch.Tensor)
    ]
    if not arrays:
        raise TypeError(f"{model.name} gives no arrays, so there is nothing to compare")
    return arrays


# Distances.


def _distances(
    given: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]
) -> tuple[float, float]:
    """Relative and largest error; both infinite where the shapes differ."""
    ours, theirs = _flat(given), _flat(wanted)
    if ours.shape != theirs.shape:
        return math.inf, math.inf
    difference, norm = ours - theirs, float(theirs.norm())
    far = float(difference.norm())
    error = far / norm if norm else (math.inf if far else 0.0)
    return error, float(difference.abs().max())


def _flat(arrays: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([each.flatten().to(torch.float64) for each in arrays])


def has_classes(output: torch.Tensor) -> bool:
    """Whether the last axis may be one of classes: there is one beside the rows, longer than 1."""
    return output.is_floating_point() and output.ndim >= 2 and output.shape[-1] > 1


def _agreement(given: torch.Tensor, wanted: torch.Tensor) -> float | None:
    if not has_classes(wanted) or given.shape != wanted.shape:
        return None
    return float((given.argmax(-1) == wanted.argmax(-1)).double().mean())


def score(given: torch.Tensor, targets: torch.Tensor, metric: Metric | None) -> float:
    """The task's measure: accuracy for classes, else minus the mean squared error."""
    if metric is not None:
        return float(metric(given, targets))
    if not targets.is_floating_point() and has_classes(given):
        return float((given.argmax(-1) == targets).double().mean())
    return -float((given.double() - targets.double().view_as(given)).square().mean())


# Time.


def latencies(
    models: Sequence[Model[..., Any]], check: Check, *, seconds: float = SECONDS
) -> list[dict[int, float]]:
    """For each model, the time of one call as a share of the first model's, by rows in the call.

    The models take turns, and the median of the shares counts.
    """
    found: list[dict[int, float]] = [{} for _ in models]
    handles = [model.with_options().eval() for model in models]
    with torch.no_grad():
        for size in BATCHES:
            args = check.rows(size)
            for share, each in zip(_shares(handles, args, seconds), found, strict=True):
                each[size] = share
    return found


def _shares(
    handles: Sequence[Model[..., Any]], args: tuple[torch.Tensor, ...], seconds: float
) -> list[float]:
    for handle in handles:
        handle(*args)
    end = time.perf_counter() + seconds * len(handles)
    rounds: list[list[float]] = []
    while len(rounds) < _LEAST or (time.perf_counter() < end and len(rounds) < _MOST):
        rounds.append([_timed(handle, args) for handle in handles])
    return [
        statistics.median(times[index] / times[0] for times in rounds)
        for index in range(len(handles))
    ]


_LEAST, _MOST = 5, 500


def _timed(handle: Model[..., Any], args: tuple[torch.Tensor, ...]) -> float:
    start = time.perf_counter()
    handle(*args)
    return time.perf_counter() - start
