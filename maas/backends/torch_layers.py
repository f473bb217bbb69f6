"""torch's standard layers as data: which constructor made them, and with what.

The table is closed: a type's name leads to one class of `torch.nn` and to its
arguments, never to an import, so a description from a stranger can build
nothing else. What is built has shapes but no memory (the meta device): who asked for a
matrix of a billion rows is told so before a byte is spent.

A description is proven when it is made. It is built again and compared with
the original attribute by attribute; a subclass, a hook, a replaced `forward`
or an attribute set later all show as a difference. So nothing here has to list what
a user may do to a module.
"""

import math
import numbers
import operator
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn import functional

from maas.errors import CodecError, LimitExceeded

__all__ = ["MAX_MODULES", "MAX_NESTING", "Node", "build", "described"]

Node = dict[str, Any]
"""A layer as plain data: its "type", its "arguments" and the "layers" in it; or the path of the "same" layer."""

MAX_NESTING = 32
"""Sequentials inside each other; a residual network of 152 layers has four."""

MAX_MODULES = 65_536
"""Modules in one model, counted as often as they are met: ten layers, each ten times the
one before, are a thousand bytes of description and ten billion steps of `state_dict`."""


class _Strange(Exception):
    """Why a module is not described."""


# Arguments.

_MANY = 64
_TEXT = 64
_ALWAYS = object()
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
    late: Any = _ALWAYS

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


def _activation(module: Any) -> str:
    for name in ("relu", "gelu"):
        if module.activation is getattr(functional, name):
            return name
    raise _Strange("its activation is neither relu nor gelu by name")


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
    """One row: a class, its arguments, and the layers it is given with their place in the instance."""

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
_PARTS = {
    "encoder_layer": ("TransformerEncoderLayer",),
    "decoder_layer": ("TransformerDecoderLayer",),
    "norm": ("LayerNorm", "RMSNorm"),
}


# A module to data.


def described(module: nn.Module) -> tuple[Node | None, str]:
    """The module as data, or None and the reason why it is more than standard layers."""
    try:
        node = _describe(module, "", {}, MAX_NESTING)
        _compare(module, build(node, _count(module)))
    except (_Strange, CodecError) as strange:
        return None, str(strange)
    return node, ""


def _count(module: nn.Module) -> int:
    return sum(1 for _name, _tensor in module.named_parameters(remove_duplicate=False))


def _describe(module: Any, path: str, seen: dict[int, str], depth: int) -> Node:
    if id(module) in seen:
        return {"same": seen[id(module)]}
    kind = type(module)
    layer = LAYERS.get(kind.__name__)
    if layer is None or layer.cls is not kind:
        raise _Strange(
            f"{_place(path)} is a {kind.__module__}.{kind.__qualname__}, no standard layer"
        )
    if depth == 0:
        raise _Strange(f"its layers are nested deeper than {MAX_NESTING} levels")
    seen[id(module)] = path
    if kind is nn.Sequential:
        below = module._modules.items()
        return {
            "type": kind.__name__,
            "layers": {
                name: _describe(child, _joined(path, name), seen, depth - 1)
                for name, child in below
            },
        }
    return {
        "type": kind.__name__,
        **_arguments(layer, module, path),
        **_described_parts(layer, module, path),
    }


def _arguments(layer: Layer, module: nn.Module, path: str) -> dict[str, Node]:
    written = {}
    for name, argument in layer.arguments.items():
        value = _read(argument, name, module, path)
        if value != argument.late:
            written[name] = argument.to_json(value)
    return {"arguments": written} if written else {}


def _read(argument: Argument, name: str, module: nn.Module, path: str) -> Any:
    try:
        value = _plain((argument.read or operator.attrgetter(name))(module))
    except AttributeError:
        raise _Strange(f"{_place(path)} does not tell its {name}") from None
    if not argument.accepts(value):
        raise _Strange(f"{_place(path)} has {name}={value!r:.60}")
    return value


def _described_parts(layer: Layer, module: nn.Module, path: str) -> dict[str, Node]:
    """What a Transformer's stack was given; its other layers are copies of the first."""
    parts = {}
    for name, place in layer.parts.items():
        try:
            part = operator.attrgetter(place)(module)
        except AttributeError:
            raise _Strange(f"{_place(path)} has no {place}") from None
        if part is not None:
            parts[name] = _describe(part, _joined(path, place), {}, 1)
    return {"layers": parts} if parts else {}


def _place(path: str) -> str:
    return f"layer {path!r}" if path else "the model"


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _plain(value: Any) -> Any:
    """A value that compares by what it says: numbers of NumPy as Python's, lists as tuples, the rest by identity."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value if isinstance(value, set | frozenset) else id(value)


# The proof.

_APART = {"training", "_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs"}
"""Attributes that hold tensors and modules, or are stored elsewhere."""


def _compare(module: nn.Module, built: nn.Module) -> None:
    """Raises _Strange unless the two differ in nothing but the contents of their tensors."""
    ours, theirs = _walk(module), _walk(built)
    if [entry[:2] for entry in ours] != [entry[:2] for entry in theirs]:
        raise _Strange("its layers are not those that their constructors make")
    for (path, _first, one), (_path, _other_first, other) in zip(ours, theirs, strict=True):
        if type(one) is not type(other):
            raise _Strange(
                f"{_place(path)} is a {type(one).__qualname__} instead of {type(other).__qualname__}"
            )
        _compare_attributes(path, one, other)
        _compare_tensors(path, one._parameters, other._parameters, nn.Parameter)
        _compare_tensors(path, one._buffers, other._buffers, torch.Tensor)


def _walk(module: nn.Module) -> list[tuple[str, str, nn.Module]]:
    """Path, the first path of the same module, and the module."""
    first: dict[int, str] = {}
    return [
        (path, first.setdefault(id(each), path), each)
        for path, each in module.named_modules(remove_duplicate=False)
    ]


def _compare_attributes(path: str, one: nn.Module, other: nn.Module) -> None:
    ours, theirs = vars(one), vars(other)
    for name in (ours.keys() | theirs.keys()) - _APART:
        # As text, so that nan is nan; True is told from 1 as well.
        if (
            name not in ours
            or name not in theirs
            or repr(_plain(ours[name])) != repr(_plain(theirs[name]))
        ):
            raise _Strange(
                f"{_place(path)} has an attribute {name!r} that its constructor does not give it"
            )


def _compare_tensors(
    path: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], kind: type
) -> None:
    if list(ours) != list(theirs):
        raise _Strange(
            f"{_place(path)} has the tensors {list(ours)}, and {list(theirs)} by its constructor"
        )
    for name, tensor in ours.items():
        wanted = theirs[name]
        if tensor is None and wanted is None:
            continue
        if (
            type(tensor) is not kind
            or wanted is None
            or tensor.shape != wanted.shape
            or _hooked(tensor)
        ):
            raise _Strange(
                f"tensor {_joined(path, name)!r} is not what its layer's constructor makes"
            )


def _hooked(tensor: torch.Tensor) -> bool:
    return bool(
        tensor._backward_hooks
        or getattr(tensor, "_post_accumulate_grad_hooks", None)
        or vars(tensor)
    )


# Data to a module.


def build(node: Any, tensors: int) -> nn.Module:
    """The module that a stranger's `node` describes, on the meta device.

    Parameters
    ----------
    node : as `described` gives it.
    tensors : tensors there are to fill it; a layer that is to make more copies of a part than that is refused.

    Raises
    ------
    CodecError
        No description, or one of layers that torch will not make.
    LimitExceeded
        More than `MAX_MODULES` modules.
    """
    with torch.device("meta"), warnings.catch_warnings():
        # Whoever made the original has seen what torch warns of.
        warnings.simplefilter("ignore")
        return _Builder(tensors).build(node, "")


class _Builder:
    def __init__(self, tensors: int) -> None:
        self._copies = tensors
        self._built: dict[str, tuple[nn.Module, int]] = {}

    def build(self, node: Any, path: str) -> nn.Module:
        module, _modules = self._node(node, path)
        return module

    def _node(self, node: Any, path: str) -> tuple[nn.Module, int]:
        """The module and the number of modules in it, each counted as often as it is met."""
        if type(node) is not dict:
            raise CodecError(f"{_place(path)} wants to be an object with a type, got {node!r:.60}")
        if node.keys() == {"same"}:
            return self._same(node["same"], path)
        if not {"type"} <= node.keys() <= {"type", "arguments", "layers"}:
            raise CodecError(
                f"{_place(path)} has the fields {sorted(node)[:5]}; wanted type, arguments and layers"
            )
        layer = LAYERS.get(node["type"]) if type(node["type"]) is str else None
        if layer is None:
            raise CodecError(
                f"{_place(path)} is of the type {node['type']!r:.60}, which is no standard layer"
            )
        arguments = node.get("arguments", {})
        layers = node.get("layers", {})
        if type(arguments) is not dict or type(layers) is not dict:
            raise CodecError(f"{_place(path)} wants objects for its arguments and layers")
        made = (
            self._sequential(layers, path)
            if layer.cls is nn.Sequential
            else self._layer(layer, arguments, layers, path)
        )
        self._built[path] = made
        return made

    def _same(self, path: Any, here: str) -> tuple[nn.Module, int]:
        found = self._built.get(path) if type(path) is str else None
        if found is None:
            raise CodecError(
                f"{_place(here)} is to be the same as {path!r:.60}, which does not stand before it"
            )
        return found

    def _sequential(self, layers: dict[str, Any], path: str) -> tuple[nn.Module, int]:
        children: OrderedDict[str, nn.Module] = OrderedDict()
        total = 1
        for name, node in layers.items():
            children[name], size = self._node(node, _joined(path, name))
            total += size
            if total > MAX_MODULES:
                raise LimitExceeded(f"the description is of more than {MAX_MODULES} modules")
        return _made(lambda: nn.Sequential(children), path), total

    def _layer(
        self, layer: Layer, arguments: dict[str, Any], layers: dict[str, Any], path: str
    ) -> tuple[nn.Module, int]:
        given = _checked(layer, arguments, path)
        self._spend(given.get("num_layers", 0), path)
        for name, node in layers.items():
            if (
                name not in layer.parts
                or type(node) is not dict
                or node.get("type") not in _PARTS[name]
            ):
                raise CodecError(f"{_place(path)} takes no such layer as {name!r:.60}")
            given[name] = self.build(node, _joined(path, name))
        made = _made(lambda: layer.cls(**given), path)
        return made, sum(1 for _module in made.modules())

    def _spend(self, copies: int, path: str) -> None:
        self._copies -= copies
        if self._copies < 0:
            raise CodecError(
                f"{_place(path)} is to have {copies} layers, for which there are not enough tensors"
            )


def _checked(layer: Layer, arguments: dict[str, Any], path: str) -> dict[str, Any]:
    needed = {name for name, argument in layer.arguments.items() if argument.late is _ALWAYS}
    if not needed <= arguments.keys() <= layer.arguments.keys():
        raise CodecError(
            f"{_place(path)}, a {layer.cls.__name__}, has the arguments {sorted(arguments)[:20]!r:.300}; "
            f"wanted {sorted(layer.arguments)}"
        )
    given = {name: layer.arguments[name].from_json(value) for name, value in arguments.items()}
    for name, value in given.items():
        if not layer.arguments[name].accepts(value):
            raise CodecError(
                f"{_place(path)}, a {layer.cls.__name__}, cannot have {name}={value!r:.60}"
            )
    return given


def _made(make: Callable[[], nn.Module], path: str) -> nn.Module:
    try:
        return make()
    except Exception as error:
        # torch refuses with any class: AssertionError, ValueError, RuntimeError for a size beyond 64 bits.
        raise CodecError(
            f"torch {torch.__version__} does not make {_place(path)}: {error!s:.200}"
        ) from error
