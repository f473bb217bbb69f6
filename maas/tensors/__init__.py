"""Arrays as (dtype, shape, flags, bytes): the only form in which they cross.

An *adapter* knows one framework's arrays: a module with four functions
(`describe`, `contents`, `restore`, `contiguous`) and the types it claims. NumPy is always
here; torch's adapter is loaded when a torch tensor is first met, so a program
without torch never pays for it. Where torch is absent its tensors arrive as
NumPy arrays, and where NumPy has no such dtype either, as `RawTensor`.

TensorFlow takes ten seconds and 400 MB to load, so no message brings that about: in a process
that has not loaded it, its tensors are `TensorFlowArray`, NumPy's array in all but its way back.

Bytes are little-endian and in C order; a `channels_last` flag says that the
bytes lie in that order instead, so that the layout survives.
"""

import functools
import importlib
import importlib.util
import math
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import attrs
import numpy as np

from maas.errors import CodecError
from maas.records import frozen

__all__ = [
    "CHANNELS_LAST",
    "CLAIMED",
    "DTYPES",
    "GRAD",
    "MAX_RANK",
    "Described",
    "RawTensor",
    "TensorFlowArray",
    "adapter",
    "adapter_for",
    "dtype_name",
    "facts",
    "restore",
]

DTYPES = {
    "bool": 1,
    "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
    "float16": 2, "float32": 4, "float64": 8, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "complex32": 4, "complex64": 8, "complex128": 16,
}  # fmt: skip
"""Every dtype that crosses, with its bytes per element; the allow-list of the decoder."""

GRAD = "grad"
CHANNELS_LAST = "channels_last"

MAX_RANK = 64
"""NumPy's own maximum since 2.0; torch allows 64 in its printing and most kernels too."""


@frozen
class Described:
    """What is said about an array before its bytes: enough to charge and to rebuild it."""

    tag: str
    dtype: str
    shape: tuple[int, ...]
    flags: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the contents, as a Python integer that cannot wrap."""
        return math.prod(self.shape) * DTYPES[self.dtype]


@attrs.frozen
class RawTensor:
    """A tensor whose dtype nothing here can compute with: kept whole, passed on whole.

    `data` holds the elements in C order, little-endian.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def __attrs_post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"RawTensor wants a dtype of {sorted(DTYPES)}, got {self.dtype!r}")
        if type(self.shape) is not tuple or any(
            type(size) is not int or size < 0 for size in self.shape
        ):
            raise ValueError(f"RawTensor wants a shape of ints from 0, got {self.shape!r}")
        wanted = math.prod(self.shape) * DTYPES[self.dtype]
        if len(self.data) != wanted:
            raise ValueError(
                f"RawTensor {self.dtype}{list(self.shape)} wants {wanted} bytes, "
                f"got {len(self.data)}"
            )


class TensorFlowArray(np.ndarray[Any, Any]):
    """A TensorFlow tensor where TensorFlow is not loaded; what is computed from it is one too."""


_ADAPTERS = {
    "numpy": "maas.tensors.numpy_arrays",
    "torch": "maas.tensors.torch_tensors",
    "tensorflow": "maas.tensors.tensorflow_tensors",
}
CLAIMED: dict[type, ModuleType] = {}
"""Types of arrays met so far, with their adapters; `adapter_for` finds those not met yet."""


@functools.cache
def adapter(framework: str) -> ModuleType | None:
    """The adapter of `framework`, or None where that is not installed.

    Always through the import system, whose lock makes a second thread wait for
    a module that the first has only half executed. Cached, since looking for an
    absent package costs a walk over the path.
    """
    if importlib.util.find_spec(framework) is None:
        return None
    found = importlib.import_module(_ADAPTERS[framework])
    CLAIMED.update(dict.fromkeys(found.TYPES, found))
    return found


def adapter_for(kind: type) -> ModuleType | None:
    """The adapter that claims exactly this type, or None when it is no array of ours."""
    found = CLAIMED.get(kind)
    if found is None:
        root = kind.__module__.partition(".")[0]
        # A framework whose type we hold is loaded already: this import costs only the adapter.
        if root in _ADAPTERS and adapter(root) is not None:
            found = CLAIMED.get(kind)
    return found


def facts(value: object) -> tuple[str, tuple[int, ...]] | None:
    """Dtype name and shape of an array of any kind; None for everything else."""
    kind = type(value)
    if kind is RawTensor:
        return value.dtype, value.shape  # type: ignore[attr-defined]
    found = CLAIMED.get(kind) or adapter_for(kind)
    if found is None:
        return None
    return found.facts(value)  # type: ignore[no-any-return]


def dtype_name(value: object) -> str:
    """The name of an array's dtype, such as `"float32"`."""
    found = facts(value)
    if found is None:
        raise TypeError(f"wanted an array, got {type(value).__name__}")
    return found[0]


def restore(
    tag: str, dtype: str, shape: Sequence[int], flags: Sequence[str], data: memoryview
) -> Any:
    """An array over `data`, uncopied, in the framework that `tag` names or the nearest one here.

    `data` is writable and holds exactly the bytes of that dtype and shape; `wire` has checked it.
    """
    if dtype == "bool":
        _check_booleans(data)
    found = restorer(tag, dtype)
    if found is not None:
        restored = found.restore(dtype, shape, flags, data)
        stands_in = tag == "$tf" and type(restored) is np.ndarray
        return restored.view(TensorFlowArray) if stands_in else restored
    if CHANNELS_LAST in flags:
        stored = np.frombuffer(data, f"V{DTYPES[dtype]}").reshape(shape[0], *shape[2:], shape[1])
        return RawTensor(dtype, tuple(shape), np.moveaxis(stored, -1, 1).tobytes())
    return RawTensor(dtype, tuple(shape), bytes(data))


def restorer(tag: str, dtype: str) -> ModuleType | None:
    """The adapter that restores such arrays; None where they are kept raw."""
    for framework in _frameworks(tag):
        found = adapter(framework)
        if found is not None and found.knows(dtype):
            return found
    return None


def _frameworks(tag: str) -> tuple[str, ...]:
    if tag == "$tensor":
        return ("torch", "numpy")
    loaded = tag == "$tf" and "tensorflow" in sys.modules
    return ("tensorflow", "numpy") if loaded else ("numpy",)


def _check_booleans(data: memoryview) -> None:
    # A byte other than 0 and 1 in a bool tensor is undefined behaviour in every framework.
    if len(data) and np.frombuffer(data, np.uint8).max() > 1:
        raise CodecError("a bool tensor holds bytes other than 0 and 1")
