"""What a job takes along: the model as it is now, its rows and its recipe, as data.

A model of torch's or Keras's standard layers goes as a model folder. Of any other torch module the
weights go, and the process imports it by the path that its place was told.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch

from maas.errors import Unsupported
from maas.jobs.folders import Record
from maas.jobs.keeper import Order
from maas.jobs.sealed import digest_of, sealed
from maas.model import Model
from maas.store import STANDARD, load, save, weights_of
from maas.store.folders import WEIGHTS
from maas.train.here import local_executor
from maas.train.session import Session

__all__ = ["copy_of", "order_for"]


def order_for(
    model: Model[..., Any],
    recipe: dict[str, Any],
    rows: dict[str, Any],
    *,
    name: str,
    owner: str,
    address: str,
    work: str = "fit",
) -> Order:
    """The order for a job that trains this model, or does other work with it.

    Raises
    ------
    Unsupported
        Nothing trains it, or no other process could find it; the message tells the ways.
    """
    data, source = sealed(rows), _source(model)
    record = Record(
        name=name,
        owner=owner,
        model=address,
        recipe=recipe,
        data=digest_of(data),
        module=source.module,
        threads=_threads(source.keras),
        keras=source.keras,
        work=work,
    )
    return Order(record=record, data=data, weights=source.weights, save=source.save)


def copy_of(model: Model[..., Any], *, name: str, owner: str, address: str) -> Order:
    """The order for a job that has nothing to do: a copy of the model as it is.

    Raises
    ------
    Unsupported
        As `order_for`; or its weights are not known here.
    """
    source = _source(model)
    if source.save is None:
        raise Unsupported(
            f"{model.name} runs in worker processes, which have its weights; copy it by a job of "
            "no more than a step, or serve it from a model folder"
        )
    record = Record(
        name=name,
        owner=owner,
        model=address,
        recipe={},
        data="",
        module=source.module,
        threads=1,
        keras=source.keras,
    )
    return Order(record=record, data=[], weights=source.weights, save=source.save)


@attrs.frozen
class _Source:
    """Where a job has its model from: import path, bytes of weights, and what writes them.

    `keras` is what Keras runs on here, for a model of its own. In worker processes it is what the
    environment says, as it will be in the job's.
    """

    module: str | None
    weights: int
    save: Callable[[Path], None] | None
    keras: str | None = None


def _source(model: Model[..., Any]) -> _Source:
    executor = local_executor(model)
    if isinstance(model.executor, Session) and model.executor.settled():
        raise Unsupported(
            f"this handle has a private copy in a worker process, and a job begins with what the "
            f"workers of {model.name} import; go on with the loop, or connect anew for a job"
        )
    if executor is None:
        return _source_of_workers(model)
    kind, target = executor.backend.kind, executor.backend.target
    if kind not in ("torch", "keras"):
        raise Unsupported(
            f"{model.name} is a {kind}; jobs train torch modules and Keras models. Train it where "
            "it is, with fit"
        )
    weights = weights_of(kind)
    keras = sys.modules["keras"].backend.backend() if kind == "keras" else None

    def written(folder: Path) -> None:
        with executor.alone():
            save(model, folder)

    described, reason = weights.architecture(target)
    if described is not None:
        return _Source(None, weights.nbytes(target), written, keras)
    told = f"{model.name} is a {type(target).__qualname__} ({reason}), and"
    if kind == "keras":
        raise Unsupported(
            f"{told} a job trains Keras models that are built of {STANDARD[kind]} alone; train it "
            "where it is, with fit"
        )
    if executor.path is None:
        raise Unsupported(
            f"{told} a job's process cannot find that by itself: build it of {STANDARD[kind]} "
            "alone, or give its import path, maas.connect('local:package.module:net') or maas "
            "serve package.module:net"
        )
    return _Source(executor.path, weights.nbytes(target), written, keras)


def _source_of_workers(model: Model[..., Any]) -> _Source:
    scheme, _, target = model.where.partition(":")
    if scheme != "workers":
        raise Unsupported(
            f"{model.name} runs at {model.where}; connect to that, and train it there"
        )
    if not Path(target).is_dir():
        return _Source(target, 0, None)
    weights = (Path(target) / WEIGHTS).stat().st_size
    return _Source(None, weights, lambda folder: save(load(target), folder))


def _threads(keras: str | None) -> int:
    """Compute threads of what the model computes with; 0 where TensorFlow chooses."""
    if keras != "tensorflow":
        return torch.get_num_threads()
    found: int = sys.modules["tensorflow"].config.threading.get_intra_op_parallelism_threads()
    return found
