"""torch tensors: loaded only where torch is.

Bytes are taken through a uint8 view because `Tensor.numpy()` refuses bfloat16,
the float8 family and complex32, and `tolist()` quiets signalling NaNs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from maas.errors import CodecError
from maas.tensors import CHANNELS_LAST, DTYPES, GRAD, Described

__all__ = [
    "SIZE",
    "TYPES",
    "concatenate",
    "contents",
    "contiguous",
    "copy",
    "crosses",
    "describe",
    "facts",
    "knows",
    "layout",
    "numbers",
    "pad",
    "parts",
    "placed",
    "plain",
    "restore",
    "shuffled",
    "span",
    "stack",
    "version",
]

TYPES: tuple[type, ...] = (torch.Tensor, torch.nn.Parameter)
SIZE = torch.Size

_DTYPES = {name: getattr(torch, name) for name in DTYPES if hasattr(torch, name)}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_VIEWED = {
    "bfloat16",
    "complex32",
    *(name for name in DTYPES if name.startswith(("float8", "float4"))),
}
_WIDTHS = {1: "uint8", 2: "int16", 4: "int32"}
_CARRIERS = {name: np.dtype(_WIDTHS[DTYPES[name]] if name in _VIEWED else name) for name in _DTYPES}
_SHARED = frozenset(
    getattr(torch, name) for name in _CARRIERS if name not in _VIEWED and "complex" not in name
)
"""Dtypes that NumPy has too, with a format that `memoryview.cast` knows."""
_DENSE = {4: torch.channels_last, 5: torch.channels_last_3d}


def knows(dtype: str) -> bool:
    """Whether this torch has the dtype."""
    return dtype in _DTYPES


def facts(tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """Dtype name and shape."""
    return _NAMES.get(tensor.dtype) or str(tensor.dtype), tuple(tensor.shape)


def crosses(tensor: torch.Tensor) -> bool:
    """Whether `describe` knows a form for it."""
    return (
        tensor.dtype in _NAMES
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_meta
    )


def describe(tensor: torch.Tensor) -> Described:
    """What travels ahead of the bytes.

    Raises
    ------
    CodecError
        Sparse, nested, quantised and meta tensors, and dtypes off the allow-list.
    """
    if not crosses(tensor):
        raise CodecError(_why_not(tensor))
    name = _NAMES[tensor.dtype]
    flags = [GRAD] if tensor.requires_grad else []
    if _is_channels_last(tensor):
        flags.append(CHANNELS_LAST)
    return Described("$tensor", name, tuple(tensor.shape), tuple(flags))


def _why_not(tensor: torch.Tensor) -> str:
    if tensor.is_quantized:
        return "a quantised tensor cannot cross; send .int_repr() with its scale and zero point"
    if tensor.is_nested:
        return "a nested tensor cannot cross; send a list of tensors, or .to_padded_tensor(0)"
    if tensor.layout is not torch.strided:
        layout = tensor.layout
        return f"a tensor of layout {layout} cannot cross; send .to_dense(), or indices and values"
    if tensor.device.type == "meta":
        return "a meta tensor has no data to send"
    return f"torch dtype {tensor.dtype} cannot cross; those that can: {', '.join(DTYPES)}"


def _is_channels_last(tensor: torch.Tensor) -> bool:
    dense = _DENSE.get(tensor.dim())
    return (
        dense is not None
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=dense)
    )


def contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as a peer would receive them: contiguous, conjugation and negation resolved.

    A layout that matters to reductions and to `view` must not differ between here and there.
    """
    if tensor.is_contiguous() or _is_channels_last(tensor):
        if tensor.is_conj() or tensor.is_neg():
            return tensor.resolve_conj().resolve_neg()
        return tensor
    return tensor.resolve_conj().resolve_neg().contiguous()


def contents(tensor: torch.Tensor, flags: Sequence[str]) -> memoryview:
    """The elements' bytes: a contiguous CPU tensor's own memory, else a copy."""
    if not tensor.numel():
        return memoryview(b"")
    if not flags and tensor.dtype in _SHARED:
        # One call into torch instead of eight: a third of what encoding a tensor takes.
        return np.ascontiguousarray(tensor.numpy(force=True)).data.cast("B")
    plain = tensor.detach()
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    if CHANNELS_LAST in flags:
        plain = plain.movedim(1, -1)
    if plain.dtype is torch.complex32:
        # torch warns at every copy of a complex32 tensor; its pairs of halves are plain data.
        plain = torch.view_as_real(plain)
    plain = plain.cpu().contiguous()
    # Not reshape(-1): a contiguous dimension of 1 may have any stride, and keeps it there.
    flat = plain.as_strided((plain.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


def plain(tensor: torch.Tensor) -> np.ndarray[Any, Any] | None:
    """The tensor as NumPy has it, if dtype and shape are all that is to be said of it; else None.

    One call into torch tells: NumPy has no devices, graphs, conjugate views and other layouts.
    """
    if tensor.dtype not in _SHARED:
        return None
    try:
        seen: np.ndarray[Any, Any] = tensor.numpy()
    except (RuntimeError, TypeError):
        return None
    return seen if seen.size and seen.flags.c_contiguous else None


def restore(
    dtype: str, shape: Sequence[int], flags: Sequence[str], data: memoryview
) -> torch.Tensor:
    """A tensor over `data`, uncopied; a leaf that requires grad where the flag says so."""
    if torch.is_inference_mode_enabled():
        # What is made in it can never enter autograd, and an executor here gives no such tensors.
        with torch.inference_mode(mode=False):
            return restore(dtype, shape, flags, data)
    if CHANNELS_LAST in flags:
        stored = [shape[0], *shape[2:], shape[1]]
        tensor = _over(dtype, stored, data).movedim(-1, 1)
    else:
        tensor = _over(dtype, shape, data)
    return tensor.requires_grad_() if GRAD in flags else tensor


def _over(dtype: str, shape: Sequence[int], data: memoryview) -> torch.Tensor:
    # By way of NumPy: half the time of `torch.frombuffer(...).view(shape)`, and empty ones pass.
    tensor = torch.from_numpy(np.ndarray(shape, _CARRIERS[dtype], data))
    return tensor.view(_DTYPES[dtype]) if dtype in _VIEWED else tensor


def span(tensor: torch.Tensor) -> tuple[int, int]:
    """First and past-the-last address of the storage under the tensor, often a small view of it."""
    storage = tensor.untyped_storage()
    start = storage.data_ptr()
    return start, start + storage.nbytes()


def version(tensor: torch.Tensor) -> int:
    """torch's count of changes in place; inference tensors have none."""
    return 0 if tensor.is_inference() else tensor._version


def copy(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in memory of their own, still part of any autograd graph."""
    if tensor.dtype is torch.complex32:
        # torch warns when it makes one of these; its pairs of halves are plain data.
        return torch.view_as_complex(torch.view_as_real(tensor).clone())
    return tensor.clone()


def stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors of one shape along a new first axis."""
    return torch.stack(list(tensors))


def layout(tensor: torch.Tensor) -> tuple[torch.device, bool]:
    """What more than dtype and shape must be equal in tensors that are put together."""
    return tensor.device, _is_channels_last(tensor)


def placed(tensor: torch.Tensor, layout: tuple[torch.device, bool]) -> torch.Tensor:
    """The tensor on the device of that layout."""
    return tensor.to(layout[0])


def concatenate(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors one after the other along the first axis, in memory of their own."""
    if torch.is_inference_mode_enabled():
        # As in `restore`: what is made in it could never enter autograd.
        with torch.inference_mode(mode=False):
            return torch.cat(list(tensors))
    return torch.cat(list(tensors))


def parts(tensor: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """The tensor taken apart along the first axis, uncopied; the sizes add up to its length."""
    return list(tensor.split_with_sizes(list(sizes)))


def pad(tensor: torch.Tensor, axis: int, length: int, fill: float) -> torch.Tensor:
    """The tensor filled up at the end of one axis."""
    shape = list(tensor.shape)
    shape[axis] = length - shape[axis]
    return torch.cat([tensor, tensor.new_full(shape, fill)], axis)


def numbers(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The values in a dtype that computes exactly with them, for comparing."""
    plain = tensor.detach().cpu()
    if plain.is_complex():
        plain = plain.resolve_conj().to(torch.complex128)
    elif plain.is_floating_point():
        plain = plain.to(torch.float64)
    found: np.ndarray[Any, Any] = plain.resolve_neg().numpy()
    return found


def shuffled(tensor: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """A tensor of that dtype and shape, of the tensor's own numbers at random, shrunk a little."""
    flat = tensor.detach().reshape(-1)
    chosen = torch.from_numpy(generator.integers(0, flat.numel(), tensor.shape))
    drawn = flat.cpu()[chosen]
    if tensor.is_floating_point() or tensor.is_complex():
        if not bool(drawn.to(torch.complex128).abs().sum()):
            return torch.from_numpy(generator.standard_normal(tensor.shape)).to(tensor)
        factors = torch.from_numpy(generator.uniform(0.5, 1.0, tensor.shape))
        drawn = drawn.to(torch.complex128 if tensor.is_complex() else torch.float64) * factors
    return drawn.to(tensor)
