"""Keras models on TensorFlow: arrays arrive as its tensors, and leave in the kind of the caller's.

Operation by operation, as Keras itself runs a model that is called: a traced function may fuse
them, and then differs in the last bit.
"""

from typing import Any

from maas import tensors
from maas.backends.base import Border
from maas.backends.keras_calls import KerasCalls
from maas.calls import Context
from maas.errors import CodecError
from maas.kinds import render
from maas.tensors import tensorflow_tensors
from maas.values import Path

__all__ = ["KerasModel", "TensorFlowBorder"]


class TensorFlowBorder:
    """Brings arrays to the model and back to the caller."""

    __slots__ = ("_kind", "_owned", "differentiable")

    def __init__(self, *, owned: bool) -> None:
        self._owned = owned
        self._kind = ""
        self.differentiable = False

    def arrive(self, array: Any, path: Path) -> Any:
        """The array as TensorFlow's; a caller's own memory is copied."""
        adapter: Any = tensors.adapter_for(type(array))
        described = adapter.describe(array)
        if self._kind in ("", "$array") or described.tag == "$tf":
            self._kind = described.tag
        if adapter is tensorflow_tensors:
            return array
        if not tensorflow_tensors.knows(described.dtype):
            raise CodecError(f"{render(path)} is {described.dtype}, which TensorFlow lacks")
        data = adapter.contents(array, ())
        data = data if self._owned and not data.readonly else memoryview(bytearray(data))
        return tensorflow_tensors.restore(described.dtype, described.shape, (), data)

    def leave(self, array: Any, _path: Path) -> Any:
        """The output in the caller's kind; a tensor of TensorFlow's cannot be changed."""
        if not isinstance(array, tensorflow_tensors.TYPES) or self._kind in ("", "$tf"):
            return array
        described = tensorflow_tensors.describe(array)
        data = bytearray(tensorflow_tensors.contents(array, ()))
        return tensors.restore(self._kind, described.dtype, described.shape, (), memoryview(data))

    def settle(self) -> None:
        """Nothing that came can have been changed."""


class KerasModel(KerasCalls):
    """Runs one Keras model on TensorFlow."""

    device: str | None = None

    def __init__(self, target: Any, device: str | None = None) -> None:
        if device is not None:
            raise TypeError(
                f"device={device!r} is for torch; build a TensorFlow model under tf.device(...)"
            )
        self._prepare(target)

    def border(self, _context: Context, *, owned: bool) -> Border:
        """A border for one call."""
        return TensorFlowBorder(owned=owned)
