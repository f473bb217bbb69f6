"""Graphs computed in int8, by onnxruntime's own quantizer.

`int8 dynamic` finds the range of each activation at every call; only matrix products are in int8.
`int8 static` fixes all ranges beforehand, from the least and the largest values on the check
data, and takes the other operators too: softmax and normalisation among them, whose outputs
have few levels where it matters. It is the faster and the more dangerous of the two; a
gate (`keep=`) belongs to it.

Weights take 7 of the 8 bits. A processor without VNNI adds products of bytes in pairs, in 16 bits:
255 * 127 twice does not fit, 255 * 64 twice does. On such a processor 8 bits moved the output of
the benchmark's models by 5 % and 4 %, and 7 bits by 1 %.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from maas.backends.onnx_graph import OnnxGraph, onnx
from maas.compress.trial import Check, Trial
from maas.spelling import offered

__all__ = ["computed_in_int8"]

_CALIBRATED = 256
"""Rows of the check data whose ranges are taken; they are held in memory with all activations."""


def computed_in_int8(graph: OnnxGraph, scheme: str, skip: Iterable[str], trial: Trial) -> OnnxGraph:
    """The graph with its products in int8.

    Raises
    ------
    ValueError
        A name in `skip` that no constant of the graph begins with.
    """
    from onnxruntime import quantization

    package = onnx()
    model = package.load_model_from_string(graph.serialized)
    left_out = _left_out(model, tuple(skip))
    with tempfile.TemporaryDirectory() as place, _quiet():
        before, after = Path(place) / "before.onnx", Path(place) / "after.onnx"
        package.save(model, before)
        common: dict[str, Any] = {
            "weight_type": quantization.QuantType.QInt8,
            "nodes_to_exclude": left_out,
            "reduce_range": True,
        }
        if scheme == "int8 dynamic":
            quantization.quantize_dynamic(before, after, **common)
        else:
            rows = _Rows(trial.inputs("Quantize('int8 static')"), model)
            quantization.quantize_static(
                before, after, rows, quant_format=quantization.QuantFormat.QDQ, **common
            )
        return OnnxGraph.of(after.read_bytes())


class _Rows:
    """The check data as onnxruntime's calibrator asks for it."""

    def __init__(self, check: Check, model: Any) -> None:
        names = [each.name for each in model.graph.input]
        rows = min(len(check), _CALIBRATED)
        given = [each[:rows].cpu() for each in check.args]
        self._left = iter(
            {name: part.numpy() for name, part in zip(names, parts, strict=True)}
            for parts in zip(*(torch.split(each, 32) for each in given), strict=True)
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next arguments, or None."""
        return next(self._left, None)


def _left_out(model: Any, skip: tuple[str, ...]) -> list[str]:
    """The nodes that use a constant of a layer in `skip`."""
    constants = [each.name for each in model.graph.initializer]
    layers = sorted({name.rpartition(".")[0] for name in constants} - {""})
    for name in skip:
        if not any(each.startswith(f"{name}.") for each in constants):
            raise ValueError(
                f"skip= names {name!r:.60}, which is no layer; {offered(name, layers)}"
            )
    return [
        node.name
        for node in model.graph.node
        if any(used.startswith(f"{name}.") for used in node.input for name in skip)
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice to prepare the graph, which torch's exporter has done."""
    root = logging.getLogger()
    advice = _NoAdvice()
    root.addFilter(advice)
    try:
        yield
    finally:
        root.removeFilter(advice)


class _NoAdvice(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is not about preparing."""
        return "pre-processing" not in record.msg and "out-of-range for weight" not in record.msg
