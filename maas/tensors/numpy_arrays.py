"""NumPy arrays: the adapter that is always here.

bfloat16 and the float8 family exist in NumPy where the `ml_dtypes` package is installed.
"""

import functools
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from maas.errors import CodecError
from maas.tensors import CHANNELS_LAST, DTYPES, Described, TensorFlowArray

__all__ = [
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

TYPES: tuple[type, ...] = (np.ndarray, TensorFlowArray)

_NATIVE = {
    name: np.dtype(name)
    for name in DTYPES
    if name not in {"bfloat16", "complex32"} and not name.startswith(("float8", "float4"))
}
_NAMES = {dtype: name for name, dtype in _NATIVE.items()}
_PLAIN = frozenset(dtype for dtype in _NATIVE.values() if dtype.kind != "c")
"""Dtypes with a format that `memoryview.cast` knows."""


@functools.cache
def _dtype(name: str) -> np.dtype[Any] | None:
    found = _NATIVE.get(name)
    if found is None and importlib.util.find_spec("ml_dtypes") is not None:
        extension = getattr(importlib.import_module("ml_dtypes"), name, None)
        if extension is not None:
            found = np.dtype(extension)
            _NAMES[found] = name
    return found


def _name(dtype: np.dtype[Any]) -> str | None:
    found = _NAMES.get(dtype)
    if (
        found is None
        and "ml_dtypes" in sys.modules
        and dtype.name in DTYPES
        and _dtype(dtype.name) == dtype
    ):
        found = dtype.name
    return found


def knows(dtype: str) -> bool:
    """Whether NumPy, with or without ml_dtypes, has this dtype here."""
    return _dtype(dtype) is not None


def facts(array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...]]:
    """Dtype name and shape."""
    return _NAMES.get(array.dtype) or array.dtype.name, array.shape


def crosses(array: np.ndarray[Any, Any]) -> bool:
    """Whether `describe` knows a form for it."""
    return _name(array.dtype) is not None


def describe(array: np.ndarray[Any, Any]) -> Described:
    """What travels ahead of the bytes.

    Raises
    ------
    CodecError
        Object, string, structured, datetime, extended and big-endian dtypes.
    """
    name = _name(array.dtype)
    if name is None:
        if array.dtype == object:
            raise CodecError("a NumPy array of dtype object cannot cross; send a list")
        if not array.dtype.isnative:
            raise CodecError(
                "a big-endian NumPy array cannot cross; use .astype(a.dtype.newbyteorder('='))"
            )
        raise CodecError(
            f"NumPy dtype {array.dtype} cannot cross; those that can: {', '.join(DTYPES)}"
        )
    tag = "$tf" if type(array) is TensorFlowArray else "$array"
    return Described(tag, name, array.shape)


def contiguous(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same values in C order; the array itself where it is so already."""
    return array if array.flags.c_contiguous else array.copy()


def contents(array: np.ndarray[Any, Any], _flags: Sequence[str]) -> memoryview:
    """The elements' bytes: the array's own memory when that is contiguous, else a copy."""
    if not array.size:
        return memoryview(b"")
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data


def plain(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """The array, if dtype and shape are all that is to be said of it; else None."""
    known = array.dtype in _PLAIN and array.flags.c_contiguous
    return array if known and array.size else None


def restore(
    dtype: str, shape: Sequence[int], flags: Sequence[str], data: memoryview
) -> np.ndarray[Any, Any]:
    """An array over `data`, uncopied; `channels_last` of a torch tensor becomes strides."""
    flat = np.frombuffer(data, dtype=_dtype(dtype))
    if CHANNELS_LAST in flags:
        return np.moveaxis(flat.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
    return flat.reshape(shape)


def span(array: np.ndarray[Any, Any]) -> tuple[int, int]:
    """First and past-the-last address of the memory the array lies over."""
    return np.lib.array_utils.byte_bounds(array)


def version(_array: np.ndarray[Any, Any]) -> None:
    """None: NumPy does not count changes in place."""


def copy(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same values in memory of their own."""
    return array.copy()


def stack(arrays: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Arrays of one shape along a new first axis."""
    return np.stack(arrays).view(type(arrays[0]))


def layout(_array: np.ndarray[Any, Any]) -> None:
    """What more than dtype and shape must be equal in arrays that are put together: nothing."""


def placed(array: np.ndarray[Any, Any], _layout: None) -> np.ndarray[Any, Any]:
    """The array where that layout is."""
    return array


def concatenate(arrays: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Arrays one after the other along the first axis, in memory of their own."""
    return np.concatenate(arrays).view(type(arrays[0]))


def parts(array: np.ndarray[Any, Any], sizes: Sequence[int]) -> list[np.ndarray[Any, Any]]:
    """The array taken apart along the first axis, uncopied; the sizes add up to its length."""
    ends = list(itertools.accumulate(sizes))
    return [array[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]


def pad(array: np.ndarray[Any, Any], axis: int, length: int, fill: float) -> np.ndarray[Any, Any]:
    """The array filled up at the end of one axis."""
    shape = list(array.shape)
    shape[axis] = length - shape[axis]
    return np.concatenate([array, np.full(shape, fill, array.dtype)], axis).view(type(array))


def numbers(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The values in a dtype that computes exactly with them, for comparing."""
    kind = array.dtype.kind
    if kind in "biu":
        return array
    return array.astype(np.complex128 if kind == "c" else np.float64)


def shuffled(array: np.ndarray[Any, Any], generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """An array of that dtype and shape, of the array's own numbers at random, shrunk a little."""
    drawn: np.ndarray[Any, Any] = generator.choice(array.reshape(-1), array.shape)
    if array.dtype.kind not in "biu":
        if not drawn.any():
            drawn = generator.standard_normal(array.shape).astype(array.dtype)
        drawn = (drawn * generator.uniform(0.5, 1.0, array.shape)).astype(array.dtype)
    return drawn
