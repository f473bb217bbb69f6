"""`Compile`: the model as a graph that onnxruntime runs, with the same numbers.

torch traces the module (`torch.export`), writes it in the ONNX standard's operators, and
onnxruntime fuses and runs them; https://onnxruntime.ai/docs/performance/model-optimizations.
A compiled model is whole without its class, and is served, saved and batched like the
original. It has no gradients and no train mode.
"""

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import attrs
import torch

from maas.backends.onnx_graph import OnnxGraph, onnx
from maas.compress.layers import around, copied
from maas.compress.trial import Check, Trial
from maas.errors import Unsupported
from maas.model import Model

__all__ = ["Compile"]

CLOSE = 1e-3
"""Largest relative error between the module and its graph. Reordered float32 sums differ by 1e-6; a
batch size or a branch that the trace took for a constant by far more."""

_TRACED = 4
"""Rows of the example: torch takes a size of 0 or 1 for a constant."""


@attrs.frozen
class Compile:
    """Lets onnxruntime run the model; any number of rows, the check data's sizes otherwise."""

    def __str__(self) -> str:
        return "Compile()"

    def __call__(self, model: Model[..., Any], trial: Trial) -> Model[..., Any]:
        """The compiled model."""
        module = copied(model)
        if isinstance(module, OnnxGraph):
            return model
        check = trial.inputs(self)
        graph = OnnxGraph.of(exported(module, check, model.name))
        _check_close(module, graph, check, model.name)
        return around(model, graph)


def exported(module: torch.nn.Module, check: Check, name: str) -> bytes:
    """The module as the bytes of an ONNX graph.

    Raises
    ------
    Unsupported
        torch cannot trace the module, or has no ONNX operators for it.
    """
    onnx()
    example = check.rows(_TRACED)
    rows = torch.export.Dim("rows", min=1)
    module = module.to("cpu")
    with torch.no_grad():
        given = module(*example)
    flat = [given] if isinstance(given, torch.Tensor) else given
    if not isinstance(flat, list | tuple) or not all(isinstance(x, torch.Tensor) for x in flat):
        raise Unsupported(f"{name} gives a {type(given).__name__}; a graph gives tensors")
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                dynamic_shapes=_shapes(module, len(example), rows),
                input_names=_parameters(module)[: len(example)],
                verbose=False,
            )
    except ImportError:
        raise
    except Exception as error:
        raise Unsupported(
            f"{name} cannot be compiled: torch does not write it as an ONNX graph "
            f"({type(error).__name__}: {error!s:.300})"
        ) from error
    assert program is not None  # noqa: S101 - dynamo=True gives one
    return _bare(program.model_proto)


def _shapes(module: torch.nn.Module, count: int, rows: Any) -> tuple[Any, ...]:
    kinds = [each.kind for each in inspect.signature(module.forward).parameters.values()]
    each = tuple({0: rows} for _ in range(count))
    # A `*args` takes all of them as one.
    return (each,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else each


def _parameters(module: torch.nn.Module) -> list[str]:
    return [
        name
        for name, each in inspect.signature(module.forward).parameters.items()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]


def _bare(model: Any) -> bytes:
    """The graph without stack traces and names of files, which are a tenth of it."""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in (*model.graph.node, *model.graph.input, *model.graph.output):
        node.doc_string = ""
        del node.metadata_props[:]
    for tensor in model.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def _check_close(module: torch.nn.Module, graph: OnnxGraph, check: Check, name: str) -> None:
    """Raises Unsupported unless both give the same for one row, for a few and for many."""
    for count in (1, 3, min(len(check), 65)):
        args = check.rows(count)
        with torch.no_grad():
            ours, theirs = graph(*args), module(*args)
        for one, other in zip(_listed(ours), _listed(theirs), strict=True):
            far = float("inf")
            if one.shape == other.shape:
                far = float((one - other).double().norm() / (other.double().norm() + 1e-12))
            if not far <= CLOSE:
                raise Unsupported(
                    f"{name} cannot be compiled: its graph differs from it by {far:.2g} at "
                    f"{count} rows; does it look at the values or the number of rows?"
                )


def _listed(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter tells of itself: a missing torchvision, deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
