"""What a job takes along: the model as it is now, its rows and its recipe, as data.

A model of torch's standard layers goes as a model folder. Of any other the weights go, and the
process imports the model by the path that its place was told.
"""

from pathlib import Path
from typing import Any

import torch

from maas.errors import Unsupported
from maas.executors.batching import BatchingExecutor
from maas.executors.local import LocalExecutor
from maas.jobs.folders import Record
from maas.jobs.keeper import Order
from maas.jobs.sealed import digest_of, sealed
from maas.model import Model
from maas.store import save
from maas.store.torch_weights import architecture
from maas.train.recipe import Recipe

__all__ = ["order_for"]


def order_for(
    model: Model[..., Any],
    recipe: Recipe,
    rows: dict[str, Any],
    *,
    name: str,
    owner: str,
    address: str,
) -> Order:
    """The order for a job that trains this model.

    Raises
    ------
    Unsupported
        It is no torch module, or one that no other process could find; the message tells the ways.
    """
    data = sealed(rows)
    module, weights, writer = _source(model)
    record = Record(
        name=name,
        owner=owner,
        model=address,
        recipe=recipe.to_data(),
        data=digest_of(data),
        module=module,
        threads=torch.get_num_threads(),
    )
    return Order(record=record, data=data, weights=weights, save=writer)


def _source(model: Model[..., Any]) -> tuple[str | None, int, Any]:
    """Import path, bytes of weights, and what writes them into a folder."""
    executor = model.executor
    path: str | None = getattr(executor, "path", None)
    if isinstance(executor, BatchingExecutor):
        executor = executor.inner
        path = path or getattr(executor, "path", None)
    if not isinstance(executor, LocalExecutor):
        if path is None:
            raise Unsupported(f"{model.name} runs at {model.where}; train it there")
        return path, 0, None
    target = executor.backend.target
    if not isinstance(target, torch.nn.Module):
        raise Unsupported(f"{model.name} is no torch module; only these have parameters to train")
    weights = sum(each.nbytes for each in (*target.parameters(), *target.buffers()))

    def written(folder: Path) -> None:
        with executor.alone():
            save(model, folder)

    described, reason = architecture(target)
    if described is not None:
        return None, weights, written
    if path is None:
        raise Unsupported(
            f"{model.name} is a {type(target).__qualname__} ({reason}), and a job's process cannot "
            "find that by itself: build it of torch's standard layers alone, such as "
            "torch.nn.Sequential, or give its import path, maas.connect('local:package.module:net')"
            " or maas serve package.module:net"
        )
    return path, weights, written
