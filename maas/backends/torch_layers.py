"""torch's standard layers: which arguments made one, and where it keeps them.

The table is closed: a type's name leads to one class of `torch.nn`, or of the few layers that
`maas` has of its own, and to its arguments, never to an import. A type that is missing is a
row to add, if its instances keep what their constructor was given; `torch_architecture`
proves at every save that they do.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import nn
from torch.nn import functional

from maas.backends.onnx_graph import OnnxGraph
from maas.backends.packed_layers import PACKED

__all__ = ["ALWAYS", "LAYERS", "PARTS", "Argument", "Layer"]

# Arguments.

_MANY = 64
_TEXT = 64
ALWAYS = object()
"""Equal to no argument, so that one is always written."""
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
"""JSON has no words for these."""


@attrs.frozen
class Argument:
    """One argument of a constructor: what it may be, and where the instance keeps it.

    `many` allows a tuple of such values. `late` is the default of an argument that
    torch 2.6 does not know: it is written only when it differs.
    """

    types: tuple[type, ...]
    many: bool = False
    read: Callable[[Any], Any] | None = None
    late: Any = ALWAYS

    def at(self, path: str) -> "Argument":
        """The same, kept under another attribute."""
        return attrs.evolve(self, read=operator.attrgetter(path))

    def accepts(self, value: Any) -> bool:
        """Whether a constructor may be given this."""
        values = value if self.many and type(value) is tuple else (value,)
        return len(values) <= _MANY and all(
            type(each) in self.types and _small(each) for each in values
        )

    def to_json(self, value: Any) -> Any:
        """The value as JSON has it."""
        if type(value) is tuple:
            return [self.to_json(each) for each in value]
        return repr(value) if type(value) is float and not math.isfinite(value) else value

    def from_json(self, data: Any) -> Any:
        """The value that JSON holds, not yet accepted."""
        if type(data) is list:
            return tuple(map(self._number, data))
        return self._number(data)

    def _number(self, data: Any) -> Any:
        return _FLOATS.get(data, data) if type(data) is str and float in self.types else data


def _small(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 2**63
    return type(value) is not str or len(value) <= _TEXT


def _given(path: str) -> Callable[[Any], bool]:
    read = operator.attrgetter(path)
    return lambda module: read(module) is not None


def _norm_bias(module: Any) -> bool:
    return module.bias is not None or module.weight is None


def _activation(module: Any) -> str | None:
    known = {functional.relu: "relu", functional.gelu: "gelu"}
    return next((name for each, name in known.items() if module.activation is each), None)


_NONE = type(None)
INT = Argument((int,))
INT_OR_NONE = Argument((int, _NONE))
FLOAT = Argument((int, float))
FLOAT_OR_NONE = Argument((int, float, _NONE))
FLAG = Argument((bool,))
FLAG_OR_NONE = Argument((bool, _NONE))
WORD = Argument((str,))
SIZES = Argument((int,), many=True)
SIZES_OR_NONE = Argument((int, _NONE), many=True)
SIZES_OR_WORD = Argument((int, str), many=True)
RATIOS_OR_NONE = Argument((int, float, _NONE), many=True)
BIAS = Argument((bool,), read=_given("bias"))


# The table.


@attrs.frozen
class Layer:
    """One row: a class, its arguments, and where it keeps the layers it is given."""

    cls: type[nn.Module]
    arguments: Mapping[str, Argument]
    parts: Mapping[str, str] = attrs.field(factory=dict)


LAYERS: dict[str, Layer] = {nn.Sequential.__name__: Layer(nn.Sequential, {})}


def _rows(names: str, **arguments: Argument) -> None:
    for name in names.split():
        cls = getattr(nn, name)
        LAYERS[name] = Layer(cls, arguments)


_rows("Linear", in_features=INT, out_features=INT, bias=BIAS)
_rows("Bilinear", in1_features=INT, in2_features=INT, out_features=INT, bias=BIAS)
_CONVOLUTION = {
    "in_channels": INT,
    "out_channels": INT,
    "kernel_size": SIZES,
    "stride": SIZES,
    "padding": SIZES_OR_WORD,
    "dilation": SIZES,
    "groups": INT,
    "bias": BIAS,
    "padding_mode": WORD,
}
_rows("Conv1d Conv2d Conv3d", **_CONVOLUTION)
_rows("ConvTranspose1d ConvTranspose2d ConvTranspose3d", **_CONVOLUTION, output_padding=SIZES)

_NORM_BIAS = Argument((bool,), read=_norm_bias, late=True)
_rows(
    "BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d InstanceNorm2d InstanceNorm3d",
    num_features=INT,
    eps=FLOAT,
    momentum=FLOAT_OR_NONE,
    affine=FLAG,
    track_running_stats=FLAG,
    bias=_NORM_BIAS,
)
_rows("GroupNorm", num_groups=INT, num_channels=INT, eps=FLOAT, affine=FLAG, bias=_NORM_BIAS)
_rows("LayerNorm", normalized_shape=SIZES, eps=FLOAT, elementwise_affine=FLAG, bias=BIAS)
_rows("RMSNorm", normalized_shape=SIZES, eps=FLOAT_OR_NONE, elementwise_affine=FLAG)
_rows("LocalResponseNorm CrossMapLRN2d", size=INT, alpha=FLOAT, beta=FLOAT, k=FLOAT)

_EMBEDDING = {
    "num_embeddings": INT,
    "embedding_dim": INT,
    "padding_idx": INT_OR_NONE,
    "max_norm": FLOAT_OR_NONE,
    "norm_type": FLOAT,
    "scale_grad_by_freq": FLAG,
    "sparse": FLAG,
}
_rows("Embedding", **_EMBEDDING)
_rows("EmbeddingBag", **_EMBEDDING, mode=WORD, include_last_offset=FLAG)

_RECURRENT = {
    "input_size": INT,
    "hidden_size": INT,
    "num_layers": INT,
    "bias": FLAG,
    "batch_first": FLAG,
    "dropout": FLOAT,
    "bidirectional": FLAG,
}
_rows("GRU", **_RECURRENT)
_rows("RNN", **_RECURRENT, nonlinearity=WORD)
_rows("LSTM", **_RECURRENT, proj_size=INT)
_rows("GRUCell LSTMCell", input_size=INT, hidden_size=INT, bias=FLAG)
_rows("RNNCell", input_size=INT, hidden_size=INT, bias=FLAG, nonlinearity=WORD)

_rows(
    "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout", p=FLOAT, inplace=FLAG
)

_rows("Identity LogSigmoid Sigmoid Softmax2d Softsign Tanh Tanhshrink")
_rows("Hardsigmoid Hardswish Mish ReLU ReLU6 SELU SiLU", inplace=FLAG)
_rows("CELU ELU", alpha=FLOAT, inplace=FLAG)
_rows("GELU", approximate=WORD)
_rows("GLU", dim=INT)
_rows("LogSoftmax Softmax Softmin", dim=INT_OR_NONE)
_rows("Hardshrink Softshrink", lambd=FLOAT)
_rows("Hardtanh", min_val=FLOAT, max_val=FLOAT, inplace=FLAG)
_rows("LeakyReLU", negative_slope=FLOAT, inplace=FLAG)
_rows("PReLU", num_parameters=INT, init=FLOAT)
_rows("RReLU", lower=FLOAT, upper=FLOAT, inplace=FLAG)
_rows("Softplus", beta=FLOAT, threshold=FLOAT)
_rows("Threshold", threshold=FLOAT, value=FLOAT, inplace=FLAG)

_POOL = {"kernel_size": SIZES, "stride": SIZES_OR_NONE, "padding": SIZES}
_rows("MaxPool1d MaxPool2d MaxPool3d", **_POOL, dilation=SIZES, return_indices=FLAG, ceil_mode=FLAG)
_rows("MaxUnpool1d MaxUnpool2d MaxUnpool3d", **_POOL)
_rows("AvgPool1d", **_POOL, ceil_mode=FLAG, count_include_pad=FLAG)
_rows(
    "AvgPool2d AvgPool3d",
    **_POOL,
    ceil_mode=FLAG,
    count_include_pad=FLAG,
    divisor_override=INT_OR_NONE,
)
_rows(
    "LPPool1d LPPool2d LPPool3d",
    norm_type=FLOAT,
    kernel_size=SIZES,
    stride=SIZES_OR_NONE,
    ceil_mode=FLAG,
)
_rows("AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d", output_size=SIZES_OR_NONE)
_rows(
    "AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d",
    output_size=SIZES_OR_NONE,
    return_indices=FLAG,
)
_rows(
    "FractionalMaxPool2d FractionalMaxPool3d",
    kernel_size=SIZES,
    output_size=SIZES_OR_NONE,
    output_ratio=RATIOS_OR_NONE,
    return_indices=FLAG,
)

_rows("CircularPad1d CircularPad2d CircularPad3d ZeroPad1d ZeroPad2d ZeroPad3d", padding=SIZES)
_rows("ReflectionPad1d ReflectionPad2d ReflectionPad3d", padding=SIZES)
_rows("ReplicationPad1d ReplicationPad2d ReplicationPad3d", padding=SIZES)
_rows("ConstantPad1d ConstantPad2d ConstantPad3d", padding=SIZES, value=FLOAT)

_rows("Flatten", start_dim=INT, end_dim=INT)
_rows("Unflatten", dim=INT, unflattened_size=SIZES)
_rows("Fold", output_size=SIZES, kernel_size=SIZES, dilation=SIZES, padding=SIZES, stride=SIZES)
_rows("Unfold", kernel_size=SIZES, dilation=SIZES, padding=SIZES, stride=SIZES)
_rows("PixelShuffle", upscale_factor=INT)
_rows("PixelUnshuffle", downscale_factor=INT)
_rows("ChannelShuffle", groups=INT)
_rows(
    "Upsample",
    size=SIZES_OR_NONE,
    scale_factor=RATIOS_OR_NONE,
    mode=WORD,
    align_corners=FLAG_OR_NONE,
    recompute_scale_factor=FLAG_OR_NONE,
)
_rows("UpsamplingBilinear2d UpsamplingNearest2d", size=SIZES_OR_NONE, scale_factor=RATIOS_OR_NONE)
_rows("CosineSimilarity", dim=INT, eps=FLOAT)
_rows("PairwiseDistance", p=FLOAT.at("norm"), eps=FLOAT, keepdim=FLAG)

_rows(
    "MultiheadAttention",
    embed_dim=INT,
    num_heads=INT,
    dropout=FLOAT,
    bias=attrs.evolve(FLAG, read=_given("in_proj_bias")),
    add_bias_kv=attrs.evolve(FLAG, read=_given("bias_k")),
    add_zero_attn=FLAG,
    kdim=INT,
    vdim=INT,
    batch_first=FLAG,
)
_rows(
    "TransformerEncoderLayer TransformerDecoderLayer",
    d_model=INT.at("self_attn.embed_dim"),
    nhead=INT.at("self_attn.num_heads"),
    dim_feedforward=INT.at("linear1.out_features"),
    dropout=FLOAT.at("dropout.p"),
    activation=attrs.evolve(WORD, read=_activation),
    layer_norm_eps=FLOAT.at("norm1.eps"),
    batch_first=FLAG.at("self_attn.batch_first"),
    norm_first=FLAG,
    bias=attrs.evolve(FLAG, read=_given("linear1.bias")),
)
LAYERS["TransformerEncoder"] = Layer(
    nn.TransformerEncoder,
    {"num_layers": INT, "enable_nested_tensor": FLAG, "mask_check": FLAG},
    {"encoder_layer": "layers.0", "norm": "norm"},
)
LAYERS["TransformerDecoder"] = Layer(
    nn.TransformerDecoder, {"num_layers": INT}, {"decoder_layer": "layers.0", "norm": "norm"}
)
# Our own, which `maas.compress` makes.
for _layer, _packed in PACKED.items():
    LAYERS[_packed.__name__] = Layer(
        _packed, {**LAYERS[_layer.__name__].arguments, "packing": WORD, "kept": INT}
    )
LAYERS["OnnxGraph"] = Layer(OnnxGraph, {"size": INT})

PARTS = {
    "encoder_layer": ("TransformerEncoderLayer",),
    "decoder_layer": ("TransformerDecoderLayer",),
    "norm": ("LayerNorm", "RMSNorm"),
}
"""What may be given as a layer of a Transformer's stack."""
