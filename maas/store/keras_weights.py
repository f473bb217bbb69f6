"""A Keras model's variables in a safetensors file, and back, bit for bit.

They are known by their place, since two layers may have a path in common, and their names after it
are for the reader: `"3/dense_1/kernel"`. The states of what layers draw from are among
them, of the dtype that the framework has for them.
"""

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from maas.backends import keras_architecture
from maas.backends.keras_architecture import Variable, variables_of
from maas.backends.keras_calls import array_of
from maas.errors import CodecError
from maas.store.folders import Opened
from maas.store.manifest import Manifest, Mode, Weights
from maas.store.tensor_files import NAMES, Spec, TensorFile, check_alike, written
from maas.tensors import DTYPES, numpy_arrays, restore

__all__ = ["architecture", "fill", "mode", "nbytes", "restored", "write"]

_NATIVE = {
    name: dtype for name, dtype in NAMES.items() if not dtype.startswith(("bfloat", "float8"))
}
"""Without those that NumPy has from another package: they are stored as their bytes."""


def architecture(model: Any) -> tuple[dict[str, Any] | None, str]:
    """The model as standard layers, or None and the reason why it is more than that."""
    return keras_architecture.described(model)


def mode(_model: Any, handle: bool | None) -> Mode:
    """A Keras model has no mode of its own; a call that does not say is one in eval mode."""
    return Mode(training=False, otherwise=[], handle=handle)


def nbytes(model: Any) -> int:
    """Bytes of all its variables."""
    return sum(math.prod(each.shape) * DTYPES[str(each.dtype)] for each in model.variables)


def write(model: Any, path: Path) -> Weights:
    """Writes all variables of the model.

    Raises
    ------
    CodecError
        It has none, as it was never called.
    """
    if not model.built:
        raise CodecError("the model has no weights yet; give it a keras.Input, or call it once")
    arrays = {
        name: array_of(variable)
        for name, variable in zip(_names(model), model.variables, strict=True)
    }
    facts = {name: numpy_arrays.facts(array) for name, array in arrays.items()}
    packed = {name for name, (dtype, _) in facts.items() if dtype not in _NATIVE.values()}
    save_file(
        {
            name: np.frombuffer(array.tobytes(), np.uint8) if name in packed else array
            for name, array in arrays.items()
        },
        path,
        metadata={"format": "np"},
    )
    digest, size = written(path)
    frozen = [
        name
        for name, variable in zip(arrays, model.variables, strict=True)
        if not variable.trainable
    ]
    return Weights(
        sha256=digest,
        bytes=size,
        tied={},
        frozen=frozen,
        packed={name: [facts[name][0], list(facts[name][1])] for name in sorted(packed)},
        channels_last=[],
        left_out=[],
    )


def _names(model: Any) -> list[str]:
    return [f"{place}/{variable.path}" for place, variable in enumerate(model.variables)]


def restored(files: Opened, manifest: Manifest) -> Any:
    """The model that the manifest describes, with the variables of the file.

    Raises
    ------
    CodecError
        The folder does not fit together.
    """
    tensors = _Tensors(files, manifest.weights)
    skeleton = keras_architecture.skeleton(manifest.architecture)
    tensors.check(variables_of(skeleton), "the layers in model.json")
    model = keras_architecture.build(manifest.architecture)
    _assign(model, tensors.read())
    return model


def fill(model: Any, files: Opened, manifest: Manifest) -> None:
    """Copies the variables of the file into those of the caller's model.

    Raises
    ------
    TypeError
        What the caller gave is no Keras model.
    CodecError
        The variables are not exactly those that the model has; then nothing was changed.
    """
    if not isinstance(model, keras.Layer):
        raise TypeError(
            f"into= wants an instance of {manifest.module}, as in into=Net(); got {model!r:.80}"
        )
    if not model.built:
        raise CodecError(
            f"{type(model).__name__} has no weights yet; call it once, or its build(input_shape)"
        )
    tensors = _Tensors(files, manifest.weights)
    tensors.check(variables_of(model), type(model).__name__)
    _assign(model, tensors.read())


def _assign(model: Any, arrays: list[Any]) -> None:
    for variable, array in zip(model.variables, arrays, strict=True):
        variable.assign(array)


class _Tensors(TensorFile):
    """The tensor file of a Keras model; `read` gives its arrays in their order."""

    def __init__(self, files: Opened, weights: Weights) -> None:
        super().__init__(files, weights, "np", _NATIVE, numpy_arrays.knows)
        # Of a Keras model, nothing else is said of tensors.
        if weights.tied or weights.channels_last or weights.left_out:
            raise CodecError("model.json says of a Keras model what only a torch module has")
        try:
            places = {int(name.partition("/")[0]): name for name in self.specs}
        except ValueError:
            raise CodecError("a tensor of a Keras model is named by its place") from None
        if sorted(places) != list(range(len(self.specs))):
            raise CodecError("the places of the tensors of a Keras model are 0, 1, 2, ...")
        self._order = [places[place] for place in range(len(places))]

    def check(self, variables: list[Variable], where: str) -> None:
        """Raises `CodecError` unless the file holds these variables, in this order."""
        given = {self._label(name): self.specs[name] for name in self._order}
        wanted = {
            f"{place}/{each.name}": _spec(each, given.get(f"{place}/{each.name}"))
            for place, each in enumerate(variables)
        }
        check_alike(given, wanted, where)

    def _label(self, name: str) -> str:
        place, _, path = name.partition("/")
        return f"{place}/{path.rpartition('/')[2]}"

    def read(self) -> list[Any]:
        """Every array in memory of its own."""
        with safe_open(self._path, "np") as opened:
            return [self._own(name, opened.get_tensor(name)) for name in self._order]

    def _own(self, name: str, stored: Any) -> Any:
        spec = self.specs[name]
        data = memoryview(bytearray(numpy_arrays.contents(stored, ())))
        return restore("$array", spec.dtype, spec.shape, (), data)


def _spec(variable: Variable, given: Spec | None) -> Spec:
    # TensorFlow keeps what a layer draws from in 64 bits, torch in 32.
    integers = {"int32", "int64", "uint32"}
    dtype = variable.dtype
    if variable.is_seed and given is not None and {dtype, given.dtype} <= integers:
        dtype = given.dtype
    return Spec(dtype, variable.shape)
