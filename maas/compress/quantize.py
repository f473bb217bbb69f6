"""`Quantize`: weights, and where asked activations, in fewer bits.

    int8           weights as int8 with a scale a channel; computed in the model's own dtype
    bf16           weights and arithmetic in bfloat16
    int8 dynamic   onnxruntime computes in int8, with scales of activations found at each call
    int8 static    the same, with scales found beforehand on the check data

The formula of `int8` and its source stand at `maas.backends.packed_layers.quantized`. The two last
are onnxruntime's, whose ranges are those of Jacob et al., 2018 (arXiv:1712.05877).
"""

from collections.abc import Iterable
from typing import Any

import attrs
import torch

from maas.backends.onnx_graph import OnnxGraph
from maas.backends.packed_layers import PACKED, Packed, packed
from maas.backends.torch_layers import LAYERS
from maas.compress.choices import choice
from maas.compress.compile import Compile
from maas.compress.graphs import computed_in_int8
from maas.compress.layers import around, copied, layers_of, module_of, put
from maas.compress.trial import Trial
from maas.errors import Unsupported
from maas.model import Model

__all__ = ["Quantize", "repacked"]

SCHEMES = {"int8": "int8", "bf16": "bfloat16"}
COMPILED = ("int8 dynamic", "int8 static")


@attrs.frozen
class Quantize:
    """Keeps numbers in fewer bits.

    Parameters
    ----------
    scheme : "int8" or "bf16" (smaller), "int8 dynamic" or "int8 static" (smaller and faster, by
        onnxruntime; a model that is not compiled yet is compiled first).
    skip : names of layers that stay as they are, with all below them.
    """

    scheme: str = "int8"
    skip: tuple[str, ...] = attrs.field(default=(), converter=tuple, kw_only=True)

    def __attrs_post_init__(self) -> None:
        choice(self.scheme, (*SCHEMES, *COMPILED), "Quantize's scheme")

    def __str__(self) -> str:
        return f"Quantize({self.scheme!r})"

    def __call__(self, model: Model[..., Any], trial: Trial) -> Model[..., Any]:
        """The model in fewer bits."""
        module = copied(model)
        if self.scheme in SCHEMES:
            if isinstance(module, OnnxGraph):
                raise Unsupported(
                    f"a compiled model takes {' or '.join(map(repr, COMPILED))}; "
                    f"{self.scheme!r} belongs before Compile()"
                )
            return around(model, narrowed(module, SCHEMES[self.scheme], self.skip))
        if not isinstance(module, OnnxGraph):
            model = Compile()(model, trial)
            module = module_of(model)
        assert isinstance(module, OnnxGraph)  # noqa: S101 - as Compile promises
        return around(model, computed_in_int8(module, self.scheme, self.skip, trial))


def narrowed(module: torch.nn.Module, packing: str, skip: Iterable[str]) -> torch.nn.Module:
    """The module with every layer packed that can be.

    Raises
    ------
    Unsupported
        It has no such layer.
    """
    found = list(layers_of(module, (*PACKED, *PACKED.values()), skip))
    if not found:
        raise Unsupported(
            "this model has no layer whose weight can be packed: "
            f"{', '.join(each.__name__ for each in PACKED)}"
        )
    for name, layer in found:
        module = put(module, name, repacked(layer, packing))
    return module


def repacked(layer: Any, packing: str, weight: torch.Tensor | None = None) -> torch.nn.Module:
    """A layer that gives what `layer` gives, its weight (or another one) packed.

    Zeros that were not stored stay so.
    """
    weight = layer.weight.detach() if weight is None else weight
    if isinstance(layer, Packed) and "sparse" in layer.packing and "sparse" not in packing:
        packing = f"sparse {packing}"
    if packing == "sparse bfloat16":
        raise Unsupported("bfloat16 layers are dense; quantize a pruned model to int8")
    buffers = packed(packing, weight)
    kept = buffers["values"].numel() if "sparse" in packing else 0
    made: torch.nn.Module = _empty(layer, packing, kept).to(weight.device)
    with torch.no_grad():
        for name, held in made.named_buffers(recurse=False):
            held.copy_(buffers[name])
        for name, parameter in made.named_parameters(recurse=False):
            parameter.copy_(getattr(layer, name))
    made.train(layer.training)
    return made


def _empty(layer: Any, packing: str, kept: int) -> Any:
    kind = PACKED.get(type(layer), type(layer))
    arguments = {
        name: argument.read(layer) if argument.read else getattr(layer, name)
        for name, argument in LAYERS[kind.__name__].arguments.items()
        if name not in ("packing", "kept")
    }
    return kind(**arguments, packing=packing, kept=kept)
