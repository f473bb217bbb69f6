"""Keras's standard layers, and what they may be given: the closed table of what a file may name.

A type's name leads to one class of Keras and never to an import. What is missing here
runs code that came with it (`Lambda`), reads files (`StringLookup`, `TFSMLayer`), or keeps what its
constructor was not given (`Normalization` after `adapt`).
"""

import inspect
from collections.abc import Mapping
from typing import Any

import keras

__all__ = ["DTYPE_POLICIES", "MODULES", "TYPES", "arguments_of", "name_of"]

DTYPE_POLICIES = (
    "float16", "float32", "float64", "bfloat16", "mixed_float16", "mixed_bfloat16",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip
"""Policies that are known by their name; quantised ones are not stored."""

_LAYERS = """
    InputLayer Dense EinsumDense Embedding Masking Identity Activation
    ReLU LeakyReLU PReLU ELU Softmax
    Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose Conv3DTranspose
    SeparableConv1D SeparableConv2D DepthwiseConv1D DepthwiseConv2D
    MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    BatchNormalization LayerNormalization GroupNormalization UnitNormalization RMSNormalization
    Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianDropout GaussianNoise
    AlphaDropout ActivityRegularization
    Flatten Reshape Permute RepeatVector Cropping1D Cropping2D Cropping3D
    UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D Rescaling
    Add Subtract Multiply Average Maximum Minimum Concatenate Dot
    Attention AdditiveAttention MultiHeadAttention GroupQueryAttention
    SimpleRNN LSTM GRU Bidirectional TimeDistributed
"""
_INITIALIZERS = """
    Zeros Ones Constant Identity Orthogonal RandomNormal RandomUniform TruncatedNormal
    VarianceScaling GlorotUniform GlorotNormal HeUniform HeNormal LecunUniform LecunNormal
"""
MODULES: Mapping[str, str] = {
    "keras.layers": "",
    "keras.initializers": "initializers.",
    "keras.regularizers": "regularizers.",
    "keras.constraints": "constraints.",
}
"""Where Keras says that a class lives, and what its name begins with here."""

TYPES: Mapping[str, type] = {
    **{name: getattr(keras.layers, name) for name in _LAYERS.split()},
    **{f"initializers.{name}": getattr(keras.initializers, name) for name in _INITIALIZERS.split()},
    **{
        f"regularizers.{name}": getattr(keras.regularizers, name)
        for name in ("L1", "L2", "L1L2", "OrthogonalRegularizer")
    },
    **{
        f"constraints.{name}": getattr(keras.constraints, name)
        for name in ("MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm")
    },
}


def name_of(module: Any, name: Any) -> str | None:
    """What a class is called here, by what Keras's own configuration says of it."""
    prefix = MODULES.get(module) if isinstance(module, str) else None
    found = f"{prefix}{name}"
    return found if prefix is not None and found in TYPES else None


_EVERY = {"name": None, "trainable": True, "dtype": None, "activity_regularizer": None}
_RECURRENT = dict.fromkeys(
    ("return_sequences", "return_state", "go_backwards", "stateful", "unroll",
     "zero_output_for_mask"), False
)  # fmt: skip
_SOME: Mapping[str, dict[str, Any]] = {
    "LayerNormalization": {"rms_scaling": False},
    "AdditiveAttention": {"seed": None},
}
"""What every layer, every recurrent one, and some take by way of their `**kwargs`."""


def arguments_of(name: str) -> dict[str, Any]:
    """The arguments of a type's constructor, with their defaults."""
    found = inspect.signature(TYPES[name].__init__).parameters.values()  # type: ignore[misc]
    own = {each.name: each.default for each in found if each.kind not in _STARS}
    del own["self"]
    own |= _SOME.get(name, {})
    if issubclass(TYPES[name], keras.layers.RNN):
        own = _RECURRENT | own
    return own | _EVERY if issubclass(TYPES[name], keras.Layer) else own


_STARS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
