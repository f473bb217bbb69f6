"""Layers whose weight is kept in fewer bytes than it has numbers times four.

Each is torch's own layer but for where its weight comes from: it is unpacked from buffers at every
run, and the rest of the layer, its `forward` included, is torch's. So what a layer gives
is what torch gives for the unpacked weight, gradients of the input among it. Buffers
are plain tensors, so a model folder holds them like any other.

    int8         one byte a number, and a scale for each output channel
    sparse       a bit for each number, and those that are not zero
    sparse int8  a bit for each number, a byte for those that are not zero, a scale a channel
    bfloat16     two bytes a number; the layer computes in bfloat16 as well

Unpacking costs time: these layers save memory and disk. What saves time is `OnnxGraph`.
"""

import math
from typing import Any

import torch
from torch import nn

__all__ = ["PACKED", "PACKINGS", "Packed", "packed", "quantized"]

PACKINGS = ("int8", "sparse", "sparse int8", "bfloat16")

LEVELS = 127
"""Of int8, on each side of zero: -128 would have no counterpart."""


class Packed(nn.Module):
    """What the packed layers share; a layer of torch comes after it in their bases.

    Parameters
    ----------
    packing : one of `PACKINGS`.
    kept : numbers that are not zero, of a sparse packing.
    """

    def __init__(self, *args: Any, packing: str, kept: int = 0, **kwargs: Any) -> None:
        if packing not in PACKINGS:
            raise ValueError(f"packing is one of {', '.join(PACKINGS)}; got {packing!r:.40}")
        super().__init__(*args, **kwargs)
        weight = self._parameters.pop("weight")
        assert weight is not None  # noqa: S101 - each of the layers below has one
        self.packing = packing
        self.kept = kept
        self.shape = tuple(weight.shape)
        self._make_buffers(weight.dtype)

    def _make_buffers(self, dtype: torch.dtype) -> None:
        sparse, narrow = "sparse" in self.packing, "int8" in self.packing
        stored = torch.int8 if narrow else dtype
        if self.packing == "bfloat16":
            stored = torch.bfloat16
            bias = self._parameters.get("bias")
            if bias is not None:
                self._parameters["bias"] = nn.Parameter(bias.detach().to(stored))
        if sparse:
            bits = math.ceil(math.prod(self.shape) / 8)
            self.register_buffer("mask", torch.zeros(bits, dtype=torch.uint8))
        size = (self.kept,) if sparse else self.shape
        self.register_buffer("values", torch.zeros(size, dtype=stored))
        if narrow:
            self.register_buffer("scale", torch.ones(_by_channel(self.shape), dtype=dtype))

    def _unpacked(self) -> torch.Tensor:
        # Before the buffers are made this raises AttributeError, and torch finds its parameter.
        packing = self.packing
        held = dict(self.named_buffers(recurse=False))
        values = held["values"]
        if "sparse" in packing:
            values = _spread(values, held["mask"], self.shape)
        if "int8" in packing:
            values = values.to(held["scale"].dtype) * held["scale"]
        return values

    weight: Any = property(_unpacked, doc="The weight, unpacked.")

    @property
    def numbers(self) -> int:
        """Numbers that the weight is made of; a zero that is not stored is none."""
        return self.kept if "sparse" in self.packing else math.prod(self.shape)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as torch spells it
        """What torch's layer gives for the unpacked weight, in the dtype of the input."""
        if self.packing != "bfloat16":
            output: torch.Tensor = super().forward(input)
            return output
        real = input.is_floating_point()
        output = super().forward(input.to(torch.bfloat16) if real else input)
        return output.to(input.dtype if real else torch.get_default_dtype())

    def extra_repr(self) -> str:
        """As torch's, and the packing."""
        return f"{super().extra_repr()}, packing={self.packing!r}"


def _by_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *(1 for _ in shape[1:]))


def _bits() -> torch.Tensor:
    return torch.arange(8, dtype=torch.uint8)


def _spread(values: torch.Tensor, mask: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The dense tensor; values stand where a bit is set, the rest is zero."""
    bits = (mask.unsqueeze(1) >> _bits().to(mask.device)) & 1
    where = bits.flatten()[: math.prod(shape)].to(torch.bool)
    spread = torch.zeros(where.shape, dtype=values.dtype, device=values.device)
    return spread.masked_scatter(where, values).view(shape)


class PackedLinear(Packed, nn.Linear):
    """`torch.nn.Linear` with a packed weight."""


class PackedConv1d(Packed, nn.Conv1d):
    """`torch.nn.Conv1d` with a packed weight."""


class PackedConv2d(Packed, nn.Conv2d):
    """`torch.nn.Conv2d` with a packed weight."""


class PackedConv3d(Packed, nn.Conv3d):
    """`torch.nn.Conv3d` with a packed weight."""


class PackedEmbedding(Packed, nn.Embedding):
    """`torch.nn.Embedding` with a packed weight; a row is a channel."""


PACKED: dict[type[nn.Module], type[Packed]] = {
    nn.Linear: PackedLinear,
    nn.Conv1d: PackedConv1d,
    nn.Conv2d: PackedConv2d,
    nn.Conv3d: PackedConv3d,
    nn.Embedding: PackedEmbedding,
}
"""The layers that can be packed, and what they become."""


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight as int8 and the scale of each output channel: weight is about values * scale.

    Symmetric and uniform, as in Jacob et al., 2018 (arXiv:1712.05877), section 3, with one scale
    a channel: scale = max|w| / 127, value = round(w / scale). The error of a number is at
    most half a scale.
    """
    largest = weight.abs().flatten(1).amax(1).view(_by_channel(tuple(weight.shape)))
    scale = torch.where(largest > 0, largest / LEVELS, torch.ones_like(largest))
    return (weight / scale).round().clamp(-LEVELS, LEVELS).to(torch.int8), scale


def packed(packing: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The buffers of a layer with that weight, by their names."""
    buffers: dict[str, torch.Tensor] = {}
    if "int8" in packing:
        weight, buffers["scale"] = quantized(weight)
    if "sparse" in packing:
        where = (weight != 0).flatten()
        bits = nn.functional.pad(where.to(torch.uint8), (0, -len(where) % 8)).view(-1, 8)
        buffers["mask"] = (bits << _bits()).sum(1, dtype=torch.uint8)
        weight = weight.flatten()[where]
    return buffers | {"values": weight}
