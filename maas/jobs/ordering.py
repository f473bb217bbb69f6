"""What a job takes along: the model as it is now, its rows and its recipe, as data.

A model of torch's standard layers goes as a model folder. Of any other the weights go, and the
process imports the model by the path that its place was told.
"""

from pathlib import Path
from typing import Any

import torch

from maas.errors import Unsupported
from maas.jobs.folders import Record
from maas.jobs.keeper import Order
from maas.jobs.sealed import digest_of, sealed
from maas.model import Model
from maas.store import load, save
from maas.store.folders import WEIGHTS
from maas.store.torch_weights import architecture
from maas.train.here import local_executor
from maas.train.recipe import Recipe
from maas.train.session import Session

__all__ = ["copy_of", "order_for"]


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


def copy_of(model: Model[..., Any], *, name: str, owner: str, address: str) -> Order:
    """The order for a job that has nothing to do: a copy of the model as it is.

    Raises
    ------
    Unsupported
        As `order_for`; or its weights are not known here.
    """
    module, weights, writer = _source(model)
    if writer is None:
        raise Unsupported(
            f"{model.name} runs in worker processes, which have its weights; copy it by a job of "
            "no more than a step, or serve it from a model folder"
        )
    record = Record(
        name=name, owner=owner, model=address, recipe={}, data="", module=module, threads=1
    )
    return Order(record=record, data=[], weights=weights, save=writer)


def _source(model: Model[..., Any]) -> tuple[str | None, int, Any]:
    """Import path, bytes of weights, and what writes them into a folder."""
    executor = local_executor(model)
    if isinstance(model.executor, Session) and model.executor.settled():
        raise Unsupported(
            f"this handle has a private copy in a worker process, and a job begins with what the "
            f"workers of {model.name} import; go on with the loop, or connect anew for a job"
        )
    if executor is None:
        return _source_of_workers(model)
    target = executor.backend.target
    # A Keras model on torch is a torch module too, and is trained by another loop.
    if executor.backend.kind != "torch":
        raise Unsupported(
            f"{model.name} is a {executor.backend.kind}; jobs train torch modules. Train it where "
            "it is, with fit"
        )
    weights = sum(each.nbytes for each in (*target.parameters(), *target.buffers()))

    def written(folder: Path) -> None:
        with executor.alone():
            save(model, folder)

    described, reason = architecture(target)
    if described is not None:
        return None, weights, written
    if executor.path is None:
        raise Unsupported(
            f"{model.name} is a {type(target).__qualname__} ({reason}), and a job's process cannot "
            "find that by itself: build it of torch's standard layers alone, such as "
            "torch.nn.Sequential, or give its import path, maas.connect('local:package.module:net')"
            " or maas serve package.module:net"
        )
    return executor.path, weights, written


def _source_of_workers(model: Model[..., Any]) -> tuple[str | None, int, Any]:
    scheme, _, target = model.where.partition(":")
    if scheme != "workers":
        raise Unsupported(
            f"{model.name} runs at {model.where}; connect to that, and train it there"
        )
    if not Path(target).is_dir():
        return target, 0, None
    weights = (Path(target) / WEIGHTS).stat().st_size
    return None, weights, lambda folder: save(load(target), folder)
