"""TensorFlow's eager tensors: loaded only where TensorFlow is.

They cannot be changed, so nobody needs a copy of one. NumPy sees the memory of a tensor on the CPU
without a copy, and by DLPack a tensor lies over a message as it came, where that is aligned as
TensorFlow needs it (it ends the process where it is not). What DLPack has no word for, such as
bfloat16, is copied.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from maas.errors import CodecError
from maas.tensors import DTYPES, Described, numpy_arrays

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

TYPES: tuple[type, ...] = (type(tf.zeros(())),)
"""The class of eager tensors, to which TensorFlow gives no public name."""


def _dtype(name: str) -> Any:
    found = getattr(tf.dtypes, name, None) or getattr(tf.dtypes.experimental, name, None)
    return found if isinstance(found, tf.DType) else None


_NAMES = {dtype: name for name in DTYPES if (dtype := _dtype(name)) is not None}
_KNOWN = set(_NAMES.values())
_COPIED = {name for name in _KNOWN if name == "bfloat16" or name.startswith("float8")}
_ALIGNMENT = 64
"""Bytes; EIGEN_MAX_ALIGN_BYTES of builds for AVX-512, the widest there is."""


def knows(dtype: str) -> bool:
    """Whether this TensorFlow has the dtype."""
    return dtype in _KNOWN


def facts(tensor: Any) -> tuple[str, tuple[int, ...]]:
    """Dtype name and shape."""
    return _NAMES.get(tensor.dtype) or tensor.dtype.name, tuple(tensor.shape)


def crosses(tensor: Any) -> bool:
    """Whether `describe` knows a form for it."""
    return tensor.dtype in _NAMES


def describe(tensor: Any) -> Described:
    """What travels ahead of the bytes.

    Raises
    ------
    CodecError
        Strings, resources, quantised numbers, and those of fewer than 8 bits.
    """
    name = _NAMES.get(tensor.dtype)
    if name is None:
        if tensor.dtype == tf.string:
            raise CodecError("a TensorFlow tensor of strings cannot cross; send a list of bytes")
        raise CodecError(
            f"TensorFlow dtype {tensor.dtype.name} cannot cross; "
            f"those that can: {', '.join(sorted(_KNOWN))}"
        )
    return Described("$tf", name, tuple(tensor.shape))


def _seen(tensor: Any) -> np.ndarray[Any, Any]:
    """The tensor as NumPy sees it: its own memory on the CPU, else a copy."""
    # Of one element that NumPy itself has no type for, TensorFlow gives no array but a scalar.
    return np.asarray(tensor if tensor.ndim else tensor.numpy())


def contiguous(tensor: Any) -> Any:
    """The tensor itself: TensorFlow knows no other order."""
    return tensor


def contents(tensor: Any, _flags: Sequence[str]) -> memoryview:
    """The elements' bytes, to be read only: a CPU tensor's own memory, else a copy."""
    return numpy_arrays.contents(_seen(tensor), ()).toreadonly()


def plain(_tensor: Any) -> None:
    """None: what NumPy is shown of it is a copy, or may not be written to."""


def restore(dtype: str, shape: Sequence[int], _flags: Sequence[str], data: memoryview) -> Any:
    """A tensor over `data`, which nobody may write to from now on; for some dtypes over a copy."""
    array = numpy_arrays.restore(dtype, shape, (), data)
    if dtype in _COPIED or not array.size or array.ctypes.data % _ALIGNMENT:
        return tf.convert_to_tensor(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def span(tensor: Any) -> tuple[int, int]:
    """First and past-the-last address of the tensor's memory."""
    return numpy_arrays.span(_seen(tensor))


def version(_tensor: Any) -> int:
    """Nobody can change it, so it has one version."""
    return 0


def copy(tensor: Any) -> Any:
    """The tensor itself, as nobody can change it."""
    return tensor


def stack(tensors: Sequence[Any]) -> Any:
    """Tensors of one shape along a new first axis."""
    return _made(numpy_arrays.stack([_seen(tensor) for tensor in tensors]))


def _made(array: np.ndarray[Any, Any]) -> Any:
    # TensorFlow has no kernels for some of its dtypes, so all are put together by NumPy.
    return tf.convert_to_tensor(array)


def layout(tensor: Any) -> str:
    """What more than dtype and shape must be equal in tensors that are put together."""
    return str(tensor.device)


def placed(tensor: Any, layout: str) -> Any:
    """The tensor on that device."""
    with tf.device(layout):
        return tf.identity(tensor)


def concatenate(tensors: Sequence[Any]) -> Any:
    """Tensors one after the other along the first axis."""
    return _made(numpy_arrays.concatenate([_seen(tensor) for tensor in tensors]))


def parts(tensor: Any, sizes: Sequence[int]) -> list[Any]:
    """The tensor taken apart along the first axis; the sizes add up to its length."""
    return [_made(part) for part in numpy_arrays.parts(_seen(tensor), sizes)]


def pad(tensor: Any, axis: int, length: int, fill: float) -> Any:
    """The tensor filled up at the end of one axis."""
    return _made(numpy_arrays.pad(_seen(tensor), axis, length, fill))


def numbers(tensor: Any) -> np.ndarray[Any, Any]:
    """The values in a dtype that computes exactly with them, for comparing."""
    return numpy_arrays.numbers(_seen(tensor))


def shuffled(tensor: Any, generator: np.random.Generator) -> Any:
    """A tensor of that dtype and shape, of the tensor's own numbers at random, shrunk a little."""
    return _made(numpy_arrays.shuffled(_seen(tensor), generator))
