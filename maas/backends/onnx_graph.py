"""A model as an ONNX graph that onnxruntime runs, in the shape of a torch module.

The graph's bytes are the module's one buffer, so that it is saved, loaded, served and batched as
any other module is, with the same hash and the same limits. Before a graph is opened it is
read: only operators of the ONNX standard, no loops and branches, no functions, and no
data outside of it. A graph of that kind is arithmetic that ends; custom operators, which
would be native code, are refused.
"""

import math
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import nn

from maas.errors import CodecError, Unsupported

__all__ = ["OnnxGraph", "check_graph", "onnx"]

STANDARD = ("", "ai.onnx")
"""The domain of the operators that the ONNX standard defines, in both its spellings."""


class OnnxGraph(nn.Module):
    """Runs an ONNX graph on the CPU; its inputs are the graph's, in their order or by name.

    Parameters
    ----------
    size : bytes of the graph, which `graph` is to be filled with.
    """

    graph: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("graph", torch.zeros(size, dtype=torch.uint8))

    @classmethod
    def of(cls, graph: bytes) -> "OnnxGraph":
        """The module that runs this graph.

        Raises
        ------
        CodecError
            The graph is more than arithmetic of the ONNX standard.
        """
        check_graph(graph)
        made = cls(len(graph))
        made.graph = torch.frombuffer(bytearray(graph), dtype=torch.uint8)
        return made.eval()

    @property
    def serialized(self) -> bytes:
        """The graph's bytes, as an `.onnx` file holds them."""
        return self.graph.cpu().numpy().tobytes()

    @property
    def numbers(self) -> int:
        """Numbers in the graph's constants; scales and zero points are among them."""
        model = onnx().load_model_from_string(self.serialized)
        return sum(math.prod(each.dims) for each in model.graph.initializer)

    def check(self) -> None:
        """Raises `CodecError` where the graph is more than arithmetic of the ONNX standard."""
        check_graph(self.serialized)

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """The graph's output, or a tuple of them."""
        opened = _opened(self)
        arrays: dict[str, Any] = {}
        # A loop, and few calls in it: a graph of 40 us runs in a cache that its weights have
        # filled, where each Python function costs a microsecond or two.
        for name, each in (*zip(opened.inputs, args, strict=False), *kwargs.items()):
            if each.requires_grad and torch.is_grad_enabled():
                raise Unsupported(
                    "a compiled graph has no gradients; ask the model that it was compiled from, "
                    "or call under torch.no_grad()"
                )
            arrays[name] = each.numpy(force=True)
        outputs = opened.session.run(opened.outputs, arrays)
        if len(outputs) == 1:
            return torch.from_numpy(outputs[0])
        return tuple(map(torch.from_numpy, outputs))

    def extra_repr(self) -> str:
        """How large it is."""
        return f"size={self.size}"


def onnx() -> Any:
    """The `onnx` package; says what to install where it is missing."""
    try:
        import onnx as found
    except ImportError:
        raise _missing("onnx") from None
    return found


def _onnxruntime() -> Any:
    try:
        import onnxruntime as found
    except ImportError:
        raise _missing("onnxruntime") from None
    return found


def _missing(name: str) -> ImportError:
    return ImportError(
        f"a compiled model needs {name}, which is not installed: pip install 'maas-sdk[onnx]'",
        name=name,
    )


# The check.


def check_graph(graph: bytes) -> None:
    """Raises `CodecError` where a graph is more than arithmetic of the ONNX standard."""
    package = onnx()
    try:
        model = package.load_model_from_string(graph)
    except Exception as error:
        # protobuf's, whose class its own packages move about
        raise CodecError(f"these {len(graph)} bytes are no ONNX graph") from error
    strange = next(_strange(model), None)
    if strange is not None:
        raise CodecError(
            f"this ONNX graph {strange}; only graphs of standard operators alone are opened here"
        )


def _strange(model: Any) -> Iterator[str]:
    """What a graph has that it must not have."""
    if len(model.functions):
        yield "defines functions of its own"
    for node in model.graph.node:
        if node.domain not in STANDARD:
            yield f"asks for the custom operator {node.domain}::{node.op_type}"
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            yield f"has branches or loops ({node.op_type})"
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location:
            yield f"keeps {tensor.name!r:.40} in another file"


def _tensors(model: Any) -> Iterator[Any]:
    yield from model.graph.initializer
    for sparse in model.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in model.graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


# Sessions.


@attrs.frozen
class _Opened:
    """A session, the names of what it takes and gives, and which state of the buffer it is of."""

    session: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    stamp: tuple[int, int]


_SESSIONS: "weakref.WeakKeyDictionary[OnnxGraph, _Opened]" = weakref.WeakKeyDictionary()
"""Beside the modules, not in them: a module that holds a session cannot be copied."""
_OPENING = threading.Lock()


def _opened(module: OnnxGraph) -> _Opened:
    graph = module._buffers["graph"]
    assert graph is not None  # noqa: S101 - as __init__ sees to
    stamp = graph.data_ptr(), graph._version
    found = _SESSIONS.get(module)
    if found is None or found.stamp != stamp:
        with _OPENING:
            found = _SESSIONS.get(module)
            if found is None or found.stamp != stamp:
                session = _session(module.serialized)
                inputs = tuple(each.name for each in session.get_inputs())
                outputs = tuple(each.name for each in session.get_outputs())
                found = _SESSIONS[module] = _Opened(session, inputs, outputs, stamp)
    return found


def _session(graph: bytes) -> Any:
    check_graph(graph)
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    # As many threads as torch has, which the process's owner set; and none that spins while idle.
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
