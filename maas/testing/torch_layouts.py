"""Ways in which a torch tensor may lie in memory: loaded only where torch is."""

from collections.abc import Callable, Sequence

import torch

from maas.tensors import DTYPES as _ALL
from maas.tensors import torch_tensors

__all__ = ["DTYPES", "OTHER_DTYPE", "OTHER_SHAPE", "SAME", "make"]

DTYPES = [name for name in _ALL if torch_tensors.knows(name)]

Layout = Callable[[torch.Tensor], torch.Tensor]


def make(dtype: str, shape: Sequence[int], raw: bytearray) -> torch.Tensor:
    """A tensor over exactly these bytes."""
    return torch_tensors.restore(dtype, shape, (), memoryview(raw))


def as_is(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous."""
    return tensor


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    """Other strides, the same shape."""
    # Through bytes: some dtypes, such as complex32, warn at every copy.
    if tensor.dim() < 2 or tensor.dtype is torch.complex32:
        return tensor
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """Channels innermost, where there are as many dimensions as images have."""
    dense = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if dense is None or tensor.dtype is torch.complex32:
        return tensor
    return tensor.contiguous(memory_format=dense)


def conjugated(tensor: torch.Tensor) -> torch.Tensor:
    """A lazy conjugate of complex numbers."""
    return tensor.conj() if tensor.dtype in (torch.complex64, torch.complex128) else tensor


def negated(tensor: torch.Tensor) -> torch.Tensor:
    """A lazy negative: the imaginary part of a conjugate."""
    return (
        conjugated(tensor).imag if tensor.dtype in (torch.complex64, torch.complex128) else tensor
    )


def differentiable(tensor: torch.Tensor) -> torch.Tensor:
    """A leaf that requires grad, where the dtype can."""
    able = tensor.is_floating_point() or tensor.is_complex()
    return tensor.requires_grad_() if able else tensor


def differentiable_channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """Both at once."""
    return differentiable(channels_last(tensor).detach())


def parameter(tensor: torch.Tensor) -> torch.Tensor:
    """A `Parameter`, which arrives as a tensor."""
    return torch.nn.Parameter(tensor, requires_grad=False)


def sliced(tensor: torch.Tensor) -> torch.Tensor:
    """Every second element of the last dimension."""
    return tensor[..., ::2] if tensor.dim() else tensor


def expanded(tensor: torch.Tensor) -> torch.Tensor:
    """Twice the same memory."""
    return tensor.expand(2, *tensor.shape) if tensor.dim() < 64 else tensor


SAME: tuple[Layout, ...] = (
    as_is,
    transposed,
    channels_last,
    conjugated,
    differentiable,
    differentiable_channels_last,
    parameter,
)
OTHER_SHAPE: tuple[Layout, ...] = (sliced, expanded)
OTHER_DTYPE: tuple[Layout, ...] = (negated,)
