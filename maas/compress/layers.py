"""The torch module behind a Model, its layers by name, and a Model around a changed module."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from maas.backends.onnx_graph import OnnxGraph
from maas.backends.packed_layers import Packed
from maas.calls import CALL
from maas.errors import Unsupported
from maas.executors.batching import BatchingExecutor
from maas.executors.local import LocalExecutor
from maas.model import Model
from maas.spelling import offered

__all__ = [
    "around",
    "copied",
    "is_local",
    "layers_of",
    "local",
    "module_of",
    "numbers",
    "put",
    "weight_bytes",
]


def is_local(model: Model[..., Any]) -> bool:
    """Whether the model runs in this process."""
    return isinstance(model.executor, LocalExecutor | BatchingExecutor)


def local(model: Model[..., Any]) -> LocalExecutor:
    """What runs a torch model in this process.

    Raises
    ------
    Unsupported
        It runs elsewhere, or is no torch module.
    """
    executor = model.executor
    if isinstance(executor, BatchingExecutor):
        executor = executor.inner
    if not isinstance(executor, LocalExecutor):
        raise Unsupported(
            f"model {model.name!r} runs at {model.where}; compress it where it runs, "
            "save it with maas.save, and serve the folder"
        )
    if not isinstance(executor.backend.target, torch.nn.Module):
        raise Unsupported(
            f"model {model.name!r} is a {executor.backend.kind}; only torch modules are compressed"
        )
    return executor


def module_of(model: Model[..., Any]) -> torch.nn.Module:
    """The model's torch module; raises as `local` does."""
    module: torch.nn.Module = local(model).backend.target
    return module


def copied(model: Model[..., Any]) -> torch.nn.Module:
    """A copy of the model's module, in eval mode, to be changed.

    Raises
    ------
    Unsupported
        It cannot be copied.
    """
    executor = local(model)
    try:
        with executor.alone():
            made: torch.nn.Module = copy.deepcopy(executor.backend.target)
    except Exception as error:
        raise Unsupported(
            f"{model.name} cannot be copied, so it cannot be compressed: {error!s:.200}"
        ) from error
    return made.eval()


def around(model: Model[..., Any], module: torch.nn.Module) -> Model[..., Any]:
    """A Model of this module that takes what `model` takes, under its name."""
    return Model(module, name=model.name, signature=model.executor.method(CALL).signature)


def layers_of(
    module: torch.nn.Module, kinds: Iterable[type[torch.nn.Module]], skip: Iterable[str] = ()
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Name and layer of those of exactly these kinds, but for what is named or stands below it.

    Raises
    ------
    ValueError
        A name in `skip` that no layer has.
    """
    skipped = tuple(skip)
    names = [name for name, _ in module.named_modules() if name]
    for name in skipped:
        if name not in names:
            raise ValueError(f"skip= names {name!r:.60}, which is no layer; {offered(name, names)}")
    wanted = tuple(kinds)
    for name, layer in list(module.named_modules()):
        inside = any(name == each or name.startswith(f"{each}.") for each in skipped)
        if type(layer) in wanted and not inside:
            yield name, layer


def put(module: torch.nn.Module, name: str, layer: torch.nn.Module) -> torch.nn.Module:
    """The module with another layer in that place; the layer itself where it has no name."""
    if not name:
        return layer
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, layer)
    return module


# Sizes.


def numbers(module: torch.nn.Module) -> int:
    """How many numbers the model is made of: parameters, whether packed, compiled or plain."""
    packed = (each for each in module.modules() if isinstance(each, Packed))
    compiled = (each for each in module.modules() if isinstance(each, OnnxGraph))
    return (
        sum(each.numel() for each in module.parameters())
        + sum(each.numbers for each in packed)
        + sum(each.numbers for each in compiled)
    )


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of the parameters and buffers; a compiled graph counts twice, as it is held twice."""
    held = {id(each): each.nbytes for each in (*module.parameters(), *module.buffers())}
    compiled = (each for each in module.modules() if isinstance(each, OnnxGraph))
    return sum(held.values()) + sum(each.size for each in compiled)
