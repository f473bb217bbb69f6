import copy
import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import maas
from maas.backends.torch_architecture import MAX_NESTING
from maas.backends.torch_layers import LAYERS
from maas.store import folders
from maas.tensors import DTYPES


def bits(tensor):
    plain = tensor.detach().contiguous()
    start = plain.storage_offset() * plain.element_size()
    return list(plain.untyped_storage())[start : start + plain.numel() * plain.element_size()]


def inner(model):
    return model.executor.backend.target


def assert_same(one, other):
    """Nothing that a program can see tells the two modules apart."""
    assert repr(one) == repr(other)
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        there = theirs[name]
        assert (tensor.dtype, tensor.shape) == (there.dtype, there.shape)
        assert bits(tensor) == bits(there), name
    for walk in ("named_modules", "named_parameters", "named_buffers"):
        pairs = [list(getattr(each, walk)()) for each in (one, other)]
        assert [name for name, _ in pairs[0]] == [name for name, _ in pairs[1]]
        for (_, here), (_, there) in zip(*pairs, strict=True):
            assert type(here) is type(there)
            assert getattr(here, "training", None) == getattr(there, "training", None)
            assert getattr(here, "requires_grad", None) == getattr(there, "requires_grad", None)


def run(net, *inputs):
    torch.manual_seed(0)
    return net(*inputs)


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for each in value for tensor in flat(each)]


def assert_same_outputs(one, other, *inputs):
    for here, there in zip(flat(run(one, *inputs)), flat(run(other, *inputs)), strict=True):
        assert bits(here) == bits(there)


# One of each standard layer, with no argument at its default, and what it takes.

X2, X3, X4, X5 = ((2, 4), (2, 4, 8), (2, 4, 8, 8), (2, 4, 8, 8, 8))
BY_RANK = {1: X3, 2: X4, 3: X5}


def _zoo():
    yield nn.Sequential(nn.Linear(4, 3), nn.Sequential()), X2
    yield nn.Linear(4, 3, bias=False), X2
    yield nn.Bilinear(4, 4, 3, bias=False), X2, X2
    for rank, shape in BY_RANK.items():
        conv = {"stride": 2, "groups": 2, "bias": False, "dilation": 2}
        yield (
            getattr(nn, f"Conv{rank}d")(4, 6, 3, padding=1, padding_mode="circular", **conv),
            shape,
        )
        yield (
            getattr(nn, f"ConvTranspose{rank}d")(4, 6, 3, padding=1, output_padding=1, **conv),
            shape,
        )
        norm = {"eps": 1e-3, "momentum": None, "affine": True}
        yield getattr(nn, f"BatchNorm{rank}d")(4, **norm, bias=False), shape
        yield getattr(nn, f"BatchNorm{rank}d")(4, affine=False, track_running_stats=False), shape
        norm = {"eps": 1e-3, "momentum": 0.3, "affine": True, "track_running_stats": True}
        yield getattr(nn, f"InstanceNorm{rank}d")(4, **norm), shape
        yield getattr(nn, f"Dropout{rank}d")(0.3, inplace=True), shape
        pool = {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}
        yield getattr(nn, f"MaxPool{rank}d")(**pool, dilation=2, return_indices=True), shape
        extra = {} if rank == 1 else {"divisor_override": 5}
        yield getattr(nn, f"AvgPool{rank}d")(**pool, count_include_pad=False, **extra), shape
        yield getattr(nn, f"LPPool{rank}d")(3.0, 2, stride=1, ceil_mode=True), shape
        sizes = (3, None, 2)[:rank]
        yield getattr(nn, f"AdaptiveAvgPool{rank}d")(sizes), shape
        yield getattr(nn, f"AdaptiveMaxPool{rank}d")(3, return_indices=True), shape
        yield getattr(nn, f"MaxUnpool{rank}d")(2, stride=2), shape, "indices"
        padding = tuple(range(1, 2 * rank + 1))
        for name in ("Circular", "Reflection", "Replication", "Zero"):
            yield getattr(nn, f"{name}Pad{rank}d")(padding), shape
        yield getattr(nn, f"ConstantPad{rank}d")(padding, float("inf")), shape
    yield nn.FractionalMaxPool2d(2, output_ratio=(0.5, 0.7), return_indices=True), X4
    yield nn.FractionalMaxPool3d(2, output_size=3), X5
    yield nn.GroupNorm(2, 4, eps=1e-3, bias=False), X3
    yield nn.LayerNorm((4, 8), eps=1e-3, bias=False), X3
    yield nn.LayerNorm([8], elementwise_affine=False), X3
    yield nn.RMSNorm(8, eps=1e-3, elementwise_affine=False), X3
    yield nn.LocalResponseNorm(2, 1e-3, 0.5, 2.0), X3
    yield nn.CrossMapLRN2d(2, 1e-3, 0.5, 2.0), X4
    embedding: Any = {"padding_idx": -2, "max_norm": 1.5, "norm_type": 3.0}
    embedding["scale_grad_by_freq"] = True
    yield nn.Embedding(8, 4, **embedding, sparse=True), "ids"
    yield nn.EmbeddingBag(8, 4, **embedding, mode="sum", include_last_offset=False), "ids"
    recurrent = {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.2}
    yield nn.RNN(8, 3, **recurrent, bidirectional=True, nonlinearity="relu"), X3
    yield nn.LSTM(8, 3, **recurrent, bidirectional=True, proj_size=2), X3
    yield nn.GRU(8, 3, **recurrent, bidirectional=True), X3
    yield nn.RNNCell(4, 3, bias=False, nonlinearity="relu"), X2
    yield nn.LSTMCell(4, 3, bias=False), X2
    yield nn.GRUCell(4, 3, bias=False), X2
    for name in ("Dropout", "AlphaDropout", "FeatureAlphaDropout"):
        yield getattr(nn, name)(0.3, inplace=True), X3
    for name in ("Identity", "LogSigmoid", "Sigmoid", "Softsign", "Tanh", "Tanhshrink"):
        yield getattr(nn, name)(), X2
    yield nn.Softmax2d(), X4
    for name in ("Hardsigmoid", "Hardswish", "Mish", "ReLU", "ReLU6", "SELU", "SiLU"):
        yield getattr(nn, name)(inplace=True), X2
    yield nn.CELU(0.7, inplace=True), X2
    yield nn.ELU(np.float64(0.7), inplace=True), X2
    yield nn.GELU("tanh"), X2
    yield nn.GLU(0), X2
    for name in ("LogSoftmax", "Softmax", "Softmin"):
        yield getattr(nn, name)(0), X2
    yield nn.Hardshrink(0.2), X2
    yield nn.Softshrink(0.2), X2
    yield nn.Hardtanh(float("-inf"), 0.2, inplace=True), X2
    yield nn.LeakyReLU(0.2, inplace=True), X2
    yield nn.PReLU(4, 0.1), X2
    yield nn.RReLU(0.2, 0.4, inplace=True), X2
    yield nn.Softplus(2, 10), X2
    yield nn.Threshold(0.2, 7, inplace=True), X2
    yield nn.Flatten(0, 1), X3
    yield nn.Unflatten(1, (2, -1)), X2
    yield nn.Fold((4, 5), 2, 1, 1, (2, 1)), (2, 4, 18)
    yield nn.Unfold(2, 1, 1, (2, 1)), X4
    yield nn.PixelShuffle(2), X4
    yield nn.PixelUnshuffle(2), X4
    yield nn.ChannelShuffle(2), X4
    yield nn.Upsample(scale_factor=(2, 1.5), mode="bilinear", align_corners=True), X4
    yield nn.UpsamplingBilinear2d(size=5), X4
    yield nn.UpsamplingNearest2d(scale_factor=2), X4
    yield nn.CosineSimilarity(0, 1e-3), X2, X2
    yield nn.PairwiseDistance(3.0, 1e-3, keepdim=True), X2, X2
    attention = {"dropout": 0.2, "bias": False, "add_bias_kv": True, "add_zero_attn": True}
    yield nn.MultiheadAttention(8, 2, **attention, batch_first=True), X3, X3, X3
    yield nn.MultiheadAttention(8, 2, kdim=3, vdim=5), X3, (2, 4, 3), (2, 4, 5)
    layer: Any = {"dropout": 0.2, "activation": "gelu", "layer_norm_eps": 1e-3, "batch_first": True}
    encoder = nn.TransformerEncoderLayer(8, 2, 5, **layer, bias=False)
    yield encoder, X3
    decoder = nn.TransformerDecoderLayer(8, 2, 5, **layer, norm_first=True)
    yield decoder, X3, X3
    yield nn.TransformerEncoder(encoder, 2, None, enable_nested_tensor=False, mask_check=False), X3
    yield (
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 5, batch_first=True), 2, nn.LayerNorm(8)
        ),
        X3,
    )
    yield nn.TransformerDecoder(decoder, 2, nn.RMSNorm(8)), X3, X3


def _inputs(net, shapes):
    made = []
    for shape in shapes:
        if shape == "ids":
            made.append(torch.tensor([[0, 1, 6, 7]]))
        elif shape == "indices":
            pool = getattr(nn, type(net).__name__.replace("Unpool", "Pool"))
            made[0], indices = pool(2, return_indices=True)(made[0])
            made.append(indices)
        else:
            made.append(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    return made


ZOO = [(net, shapes) for net, *shapes in _zoo()]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("net", "shapes"), ZOO, ids=lambda each: getattr(each, "_get_name", str)())
def test_every_standard_layer_comes_back_whole(net, shapes, tmp_path):
    """A layer with arguments of its own is stored as data, and computes the same when loaded."""
    before = copy.deepcopy(net)
    maas.save(net, tmp_path / "net")
    loaded = inner(maas.load(tmp_path / "net"))
    assert_same(before, loaded)
    assert_same_outputs(before, loaded, *_inputs(net, shapes))


def test_the_zoo_has_one_of_each_layer():
    """No row of the table of layers is untested; those of compression are in tests/compress."""
    compressed = {"OnnxGraph", *(name for name in LAYERS if name.startswith("Packed"))}
    assert {type(net).__name__ for net, _ in ZOO} == set(LAYERS) - compressed


# Models.


@st.composite
def _nets(draw):
    """Sequentials of layers that take eight features, with modes, flags and shared parts."""
    layer = st.sampled_from(
        [
            lambda: nn.Linear(8, 8),
            lambda: nn.Linear(8, 8, bias=False).double(),
            lambda: nn.Linear(8, 8).bfloat16(),
            lambda: nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 8)),
            lambda: nn.BatchNorm1d(8),
            lambda: nn.Dropout(0.25),
            lambda: nn.PReLU(8),
            lambda: nn.GroupNorm(2, 8),
            nn.ReLU,
        ]
    )
    layers = [make() for make in draw(st.lists(layer, max_size=5))]
    for index in draw(st.lists(st.integers(0, 4), max_size=2)):
        layers += layers[index : index + 1]
    net = nn.Sequential(*layers)
    if draw(st.booleans()):
        net = nn.Sequential(net, nn.Linear(8, 2), net)
    for module in net.modules():
        module.training = draw(st.booleans())
    for parameter in net.parameters():
        parameter.requires_grad_(draw(st.booleans()))
    return net


@given(net=_nets(), handle=st.sampled_from([None, True, False]))
def test_what_is_loaded_is_what_was_saved(net, handle, tmp_path_factory):
    """load(save(m)) has m's layers, tensors, modes, flags, shared parts and handle."""
    folder = tmp_path_factory.mktemp("law") / "net"
    model = maas.Model(net, name="some-net")
    if handle is not None:
        model.train(handle)
    maas.save(model, folder)
    loaded = maas.load(folder)
    assert_same(net, inner(loaded))
    assert (loaded.name, loaded.training) == ("some-net", model.training)
    again = folder.with_name("again")
    maas.save(loaded, again)
    assert (again / "model.json").read_bytes() == (folder / "model.json").read_bytes()


class Net(nn.Module):
    """A class of one's own."""

    def __init__(self, width=3):
        super().__init__()
        self.inside = nn.Linear(4, width)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.inside(x) + self.seen


def _trained(width=3):
    net = Net(width)
    net.get_buffer("seen").add_(7)
    net.inside.eval()
    net.inside.bias.requires_grad_(False)
    return net


def test_a_class_of_ones_own_is_loaded_into_an_instance(tmp_path):
    """`into=` gets the tensors, modes and flags of the folder, and stays the caller's object."""
    net, fresh = _trained(), Net()
    maas.save(net, tmp_path / "net")
    model = maas.load(tmp_path / "net", into=fresh)
    assert inner(model) is fresh
    assert_same(net, fresh)
    assert_same_outputs(net, fresh, torch.ones(2, 4))
    manifest = json.loads((tmp_path / "net" / "model.json").read_text())
    assert manifest["weights"]["left_out"] == ["scratch"]


def test_without_an_instance_both_ways_out_are_told(tmp_path):
    """Weights without a class are refused with the class's name, `into=` and standard layers."""
    maas.save(Net(), tmp_path / "net")
    with pytest.raises(maas.Unsupported) as caught:
        maas.load(tmp_path / "net")
    for words in (f"{__name__}.Net", "into=Net(", "standard layers", "Sequential"):
        assert words in str(caught.value)


def test_a_standard_model_is_loaded_into_an_instance_too(tmp_path):
    """`into=` works for a folder that could be built as well."""
    net, fresh = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))
    maas.save(net, tmp_path / "net")
    maas.load(tmp_path / "net", into=fresh)
    assert_same(net, fresh)


class Other(Net):
    def __init__(self):
        super().__init__()
        self.more = nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Net(5), r"inside.weight is float32\[3, 4\].*float32\[5, 4\] in Net"),
        (lambda: Net().double(), r"float32\[3, 4\].*float64\[3, 4\]"),
        (Other, "missing: 'more'"),
        (lambda: nn.Sequential(nn.Linear(4, 3)), "missing: '0.bias', '0.weight'; not wanted: 'in"),
    ],
)
def test_an_instance_that_does_not_fit_is_left_alone(make, words, tmp_path):
    """Names, shapes and dtypes are compared before anything is copied."""
    maas.save(_trained(), tmp_path / "net")
    fresh = make()
    before = copy.deepcopy(fresh)
    with pytest.raises(maas.CodecError, match=words):
        maas.load(tmp_path / "net", into=fresh)
    assert_same(before, fresh)


@pytest.mark.parametrize("into", [Net, "net", len, maas.Model(nn.ReLU())])
def test_into_wants_an_instance(into, tmp_path):
    """A class, a Model or anything else than a module is refused by name."""
    maas.save(Net(), tmp_path / "net")
    with pytest.raises(TypeError, match=r"into= wants an instance of .*Net"):
        maas.load(tmp_path / "net", into=into)


# Why a module is not stored whole.


class Mine(nn.Linear):
    pass


def _changed(change):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    change(net)
    return net


def _deep():
    net = nn.Sequential(nn.ReLU())
    for _ in range(MAX_NESTING):
        net = nn.Sequential(net)
    return net


def _forward(net):
    net.forward = lambda x: x


def _attribute(net):
    net[1].colour = "red"


def _text_dim(net):
    net.append(nn.Softmax("x"))  # type: ignore[arg-type]


def _swapped(net):
    net[0].weight = nn.Parameter(torch.zeros(4, 5))


def _tensor_subclass(net):
    class Marked(nn.Parameter):
        pass

    net[0].weight = Marked(torch.zeros(4, 4))


def _partly_shared(net):
    net[0].bias = nn.Parameter(net[0].weight.detach()[1])


def _odd_encoder():
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), 2)
    net.layers[1].dropout.p = 0.7
    return net


STRANGE = {
    "subclass": (lambda: nn.Sequential(Mine(4, 4)), "layer '0' is a .*Mine, no standard layer"),
    "hook": (lambda: _changed(lambda net: net.register_forward_hook(print)), "_forward_hooks"),
    "tensor hook": (
        lambda: _changed(lambda net: net[0].weight.register_hook(print)),
        "'0.weight' is not what",
    ),
    "weight norm": (
        lambda: _changed(lambda net: nn.utils.parametrizations.weight_norm(net[0])),
        "ParametrizedLinear",
    ),
    "forward": (lambda: _changed(_forward), "the model has an attribute 'forward'"),
    "attribute": (lambda: _changed(_attribute), "layer '1' has an attribute 'colour'"),
    "argument": (lambda: _changed(_text_dim), "dim='x'"),
    "shape": (lambda: _changed(_swapped), "'0.weight' is not what"),
    "tensor": (lambda: _changed(_tensor_subclass), "'0.weight' is not what"),
    "memory": (lambda: _changed(_partly_shared), "share a part of their memory"),
    "stack": (_odd_encoder, "layer 'layers.1.dropout' has an attribute 'p'"),
    "activation": (
        lambda: nn.TransformerEncoderLayer(4, 2, 4, activation=nn.functional.silu),
        "activation=None",
    ),
    "lists": (lambda: nn.ModuleList([nn.ReLU()]), "ModuleList, no standard layer"),
    "depth": (_deep, "nested deeper than 32 levels"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_data_cannot_say_is_saved_as_weights_alone(name, tmp_path):
    """A module with anything that its constructors would not give is not rebuilt without it."""
    make, reason = STRANGE[name]
    net = make()
    maas.save(net, tmp_path / "net")
    manifest = json.loads((tmp_path / "net" / "model.json").read_text())
    assert manifest["architecture"] is None
    with pytest.raises(maas.Unsupported, match=reason):
        maas.load(tmp_path / "net")
    fresh = make()
    maas.load(tmp_path / "net", into=fresh)
    assert [bits(each) for each in net.parameters()] == [bits(each) for each in fresh.parameters()]


def test_code_cannot_be_saved(tmp_path):
    """Functions and objects are refused with the way to serve them."""

    class Speaker:
        @maas.method
        def greet(self) -> str:
            return "hello"

    targets: tuple[Any, ...] = (len, Speaker())
    for target in targets:
        with pytest.raises(TypeError, match=r"maas serve package\.module:name"):
            maas.save(maas.Model(target, name="it"), tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


def test_a_model_elsewhere_is_saved_there(tmp_path):
    """A remote model is refused with the place where it runs."""
    remote = maas.connect("http://127.0.0.1:1/net")
    with pytest.raises(maas.Unsupported, match=r"http://127.0.0.1:1"):
        maas.save(remote, tmp_path / "net")


# Tensors.


class Holder(nn.Module):
    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x):
        return x


def _patterned(dtype, shape):
    """A tensor of every byte there is: NaN with payloads, infinities, denormals."""
    if dtype == "bool":
        return torch.tensor([True, False] * 64).reshape(shape)
    raw = torch.arange(128 * DTYPES[dtype], dtype=torch.int64).mul(37).to(torch.uint8)
    return raw.view(getattr(torch, dtype)).reshape(shape)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [name for name in DTYPES if hasattr(torch, name)])
def test_every_dtype_is_kept_bit_for_bit(dtype, tmp_path):
    """Tensors of each dtype come back with every bit, with 0 dimensions, none, or a transpose."""
    full = _patterned(dtype, (8, 16))
    tensors = {"full": full, "turned": full.t(), "scalar": full[0, 0].clone(), "none": full[:0]}
    net = Holder(**tensors)
    fresh = Holder(**{name: torch.empty_like(tensor) for name, tensor in tensors.items()})
    maas.save(net, tmp_path / "net")
    maas.load(tmp_path / "net", into=fresh)
    for name, tensor in tensors.items():
        assert getattr(fresh, name).dtype is tensor.dtype
        assert bits(getattr(fresh, name)) == bits(tensor)


@pytest.mark.parametrize(
    "dtype", ["float64", "bfloat16", "float8_e4m3fn", "float8_e8m0fnu", "complex128", "int8"]
)
def test_a_whole_model_may_have_any_dtype(dtype, tmp_path):
    """The dtypes of a model of layers are those of its tensors, whatever the constructors make."""
    net = nn.Sequential(nn.Embedding(8, 16))
    net[0].weight = nn.Parameter(_patterned(dtype, (8, 16)), requires_grad=False)
    maas.save(net, tmp_path / "net")
    assert_same(net, inner(maas.load(tmp_path / "net")))


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path):
    """Two layers with one weight have one weight when loaded, and a file of its size."""
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    net[2].weight = net[0].weight
    maas.save(net, tmp_path / "net")
    loaded = inner(maas.load(tmp_path / "net"))
    assert loaded[2].weight is loaded[0].weight
    assert_same(net, loaded)
    assert (tmp_path / "net" / "weights.safetensors").stat().st_size < 2 * 64 * 64 * 4


def test_tied_tensors_of_an_instance_must_agree(tmp_path):
    """Two different tensors are not put into a module where they are one."""
    apart, tied = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
    tied[1].weight = tied[0].weight
    maas.save(apart, tmp_path / "apart")
    before = copy.deepcopy(tied)
    with pytest.raises(
        maas.CodecError, match=r"1.weight and 0.weight are one tensor in Sequential"
    ):
        maas.load(tmp_path / "apart", into=tied)
    assert_same(before, tied)
    maas.save(tied, tmp_path / "tied")
    maas.load(tmp_path / "tied", into=apart)
    assert bits(apart[0].weight) == bits(apart[1].weight)


def test_the_memory_format_is_kept(tmp_path):
    """A model in channels_last stays so, since its convolutions round otherwise."""
    net = nn.Sequential(nn.Conv2d(4, 6, 3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    maas.save(net, tmp_path / "net")
    loaded = inner(maas.load(tmp_path / "net"))
    assert loaded[0].weight.stride() == net[0].weight.stride()
    assert_same(net, loaded)


class Keeper(nn.Module):
    def get_extra_state(self):
        return {"step": 1}

    def set_extra_state(self, state):
        pass

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Holder(a=torch.eye(2).to_sparse()), "a: a tensor of layout"),
        (lambda: nn.Linear(2, 2, device="meta"), "weight: a meta tensor"),
        (lambda: nn.LazyLinear(2), "weight is a UninitializedParameter.*lazy"),
        (Keeper, "_extra_state is a dict"),
        (lambda: Holder(__metadata__=torch.zeros(1)), "__metadata__"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_what_no_file_can_hold_is_named(make, words, tmp_path):
    """A tensor that is no plain tensor is refused by its name, and nothing is left on disk."""
    with pytest.raises(maas.CodecError, match=words):
        maas.save(make(), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_model_is_trained_on_like_the_original(tmp_path):
    """A step of an optimizer gives the same tensors, recurrent layers' flat weights included."""
    net = nn.LSTM(4, 3, num_layers=2)
    maas.save(net, tmp_path / "net")
    loaded = inner(maas.load(tmp_path / "net"))
    for each in (net, loaded):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        run(each, torch.ones(5, 4))[0].sum().backward()
        optimizer.step()
    assert_same(net, loaded)


def test_nothing_is_drawn(tmp_path):
    """Saving and loading leave torch's generator and default dtype as they were."""
    before = torch.get_rng_state()
    net = nn.Sequential(nn.LSTM(4, 3), nn.Embedding(3, 3))
    state = torch.get_rng_state()
    assert not torch.equal(before, state)
    maas.save(net, tmp_path / "net")
    maas.load(tmp_path / "net")
    assert torch.equal(torch.get_rng_state(), state)


def test_the_signature_learned_from_an_example_is_kept(tmp_path):
    """A loaded model refuses what the saved one refused, in the same words."""
    model = maas.Model(nn.Linear(4, 2), example=torch.zeros(3, 4))
    maas.save(model, tmp_path / "net")
    loaded = maas.load(tmp_path / "net", name="other")
    with pytest.raises(maas.SignatureError) as here:
        model(torch.zeros(3, 5))
    with pytest.raises(maas.SignatureError) as there:
        loaded(torch.zeros(3, 5))
    assert str(here.value) == str(there.value)
    assert loaded.name == "other"


# The folder.


def test_the_folder_is_read_by_others(tmp_path):
    """The tensors are those that safetensors itself reads, and the manifest is JSON."""
    net = nn.Sequential(nn.Linear(4, 2))
    maas.save(net, tmp_path / "net")
    assert sorted(each.name for each in (tmp_path / "net").iterdir()) == [
        "model.json",
        "weights.safetensors",
    ]
    tensors = safetensors.torch.load_file(tmp_path / "net" / "weights.safetensors")
    assert {name: bits(each) for name, each in tensors.items()} == {
        name: bits(each) for name, each in net.state_dict().items()
    }
    manifest = json.loads((tmp_path / "net" / "model.json").read_text())
    assert manifest["architecture"]["layers"]["0"]["arguments"]["in_features"] == 4
    assert manifest["versions"]["torch"] == torch.__version__


def test_the_files_have_the_rights_that_were_asked_for(tmp_path):
    """The umask decides who may read a model, as for any other file."""
    old = os.umask(0o027)
    try:
        maas.save(nn.Linear(2, 2), tmp_path / "net")
    finally:
        os.umask(old)
    found = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "net").iterdir()}
    assert found == {"model.json": 0o640, "weights.safetensors": 0o640}
    assert stat.S_IMODE((tmp_path / "net").stat().st_mode) == 0o750


def test_a_model_is_replaced_as_a_whole(tmp_path):
    """Saving to a model's folder, or to an empty one, leaves the new model and nothing else."""
    (tmp_path / "net").mkdir()
    for width in (2, 3):
        maas.save(nn.Linear(2, width), tmp_path / "net")
        assert inner(maas.load(tmp_path / "net")).out_features == width
    assert [each.name for each in tmp_path.iterdir()] == ["net"]


def test_folders_above_are_made(tmp_path):
    """The folders that lead to the model's are made if they are missing."""
    maas.save(nn.ReLU(), tmp_path / "a" / "b" / "net")
    assert maas.load(tmp_path / "a" / "b" / "net").name == "re_lu"


def _strangers(place, kind):
    if kind == "file":
        place.write_text("mine")
    elif kind == "link":
        maas.save(nn.ReLU(), place.with_name("elsewhere"))
        place.symlink_to("elsewhere")
    else:
        place.mkdir()
        names = {"folder": ["notes.txt"], "alike": ["model.json", "weights.safetensors"]}
        for name in names.get(kind, []):
            (place / name).write_text("mine")
        if kind == "annotated":
            place.rmdir()
            maas.save(nn.ReLU(), place)
            (place / "notes.txt").write_text("mine")


@pytest.mark.parametrize("kind", ["file", "link", "folder", "alike", "annotated"])
def test_nothing_but_a_model_is_replaced(kind, tmp_path):
    """What is not a model folder alone stays as it is."""
    place = tmp_path / "net"
    _strangers(place, kind)
    before = sorted(
        (str(each), each.read_bytes()) for each in tmp_path.rglob("*") if each.is_file()
    )
    with pytest.raises(FileExistsError, match="save to"):
        maas.save(nn.Linear(2, 2), place)
    after = sorted((str(each), each.read_bytes()) for each in tmp_path.rglob("*") if each.is_file())
    assert after == before


def test_a_failed_save_leaves_the_old_model(tmp_path):
    """When a tensor cannot be stored, the model that was there is still there, and alone."""
    maas.save(nn.Linear(2, 2), tmp_path / "net")
    with pytest.raises(maas.CodecError):
        maas.save(Keeper(), tmp_path / "net")
    assert inner(maas.load(tmp_path / "net")).out_features == 2
    assert [each.name for each in tmp_path.iterdir()] == ["net"]


WRITER = """
import sys, torch, maas
nets = [torch.nn.Linear(300, width) for width in (200, 300)]
maas.save(nets[0], sys.argv[1])
print("ready", flush=True)
while True:
    for net in nets:
        maas.save(net, sys.argv[1])
"""


def test_a_reader_sees_one_model_or_the_other(tmp_path):
    """While a model is replaced again and again, and when the writer is killed, a load is whole."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "net")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        try:
            widths = {inner(maas.load(tmp_path / "net")).out_features for _ in range(60)}
        finally:
            writer.kill()
    assert widths == {200, 300}
    assert inner(maas.load(tmp_path / "net")).out_features in widths


@pytest.mark.skipif(sys.platform not in folders._EXCHANGE, reason="the system has no exchange")
def test_two_folders_are_swapped_in_one_step(tmp_path):
    """The exchange leaves each folder under the other's name, and says so when it cannot."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert folders._swap(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "new").exists()
    assert (tmp_path / "new" / "old").exists()
    assert not folders._swap(tmp_path / "new", tmp_path / "gone")


def test_where_folders_cannot_be_swapped_they_are_moved(tmp_path):
    """A file system without an exchange gets the new model by two renames, or keeps the old one."""
    old, new = tmp_path / "net", tmp_path / ".net.tmp"
    for folder in (old, new):
        folder.mkdir()
        (folder / "it").write_text(folder.name)
    folders._step_by_step(new, old)
    assert [(each.name, (each / "it").read_text()) for each in tmp_path.iterdir()] == [
        ("net", ".net.tmp")
    ]
    with pytest.raises(OSError, match="No such file"):
        folders._step_by_step(tmp_path / "gone", old)
    assert (old / "it").read_text() == ".net.tmp"


def test_no_model_is_file_not_found(tmp_path):
    """A missing folder, and a folder without one of the files, raise FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        maas.load(tmp_path / "net")
    for name in ("model.json", "weights.safetensors"):
        maas.save(nn.ReLU(), tmp_path / name)
        (tmp_path / name / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            maas.load(tmp_path / name)


@pytest.mark.parametrize("missing", ["torch", "safetensors"])
def test_without_torch_the_way_to_get_it_is_told(missing, tmp_path):
    """Loading where torch or safetensors is not installed names the extra to install."""
    maas.save(nn.Linear(2, 2), tmp_path / "net")
    code = f"""
        import sys
        sys.modules[{missing!r}] = None
        import maas
        try:
            maas.load({str(tmp_path / "net")!r})
        except ImportError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert missing in done.stdout
    assert "pip install 'maas-sdk[torch]'" in done.stdout


def test_a_relative_folder_is_where_the_program_stands(tmp_path, monkeypatch):
    """A plain name is a folder of the current directory."""
    monkeypatch.chdir(tmp_path)
    maas.save(nn.ReLU(), "net")
    assert maas.load("net").name == "re_lu"
    assert [each.name for each in Path().iterdir()] == ["net"]
