"""torch modules: the numbers, the modes and the random state that bare torch has."""

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import maas
from maas.parameters import Parameter
from maas.testing import Arguments, assert_congruent, calls, difference

EXAMPLES = settings(max_examples=10)
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def big_model(dropout: float = 0.0) -> nn.Sequential:
    """The card's model: 1000 features to 500, 250, 100 and one number."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1000, 500), (500, 250), (250, 100)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(100, 1)).eval()


BIG = {dtype: big_model().to(dtype) for dtype in DTYPES}
DROPPING = {dtype: big_model(0.5).to(dtype) for dtype in DTYPES}


def rows(batch: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 1000, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 32])
def test_the_big_model(maas_connect, batch, dtype):
    """The big model's outputs are those of the bare module, bit for bit, in eval mode."""
    net = BIG[dtype]
    assert_congruent(net, maas_connect(net).eval(), Arguments((rows(batch, dtype),)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("net", ["plain", "dropout"])
def test_the_big_model_in_train_mode(maas_connect, net, dtype):
    """In train mode dropout draws as bare torch does, and leaves the generator where it does."""
    net = {"plain": BIG, "dropout": DROPPING}[net][dtype]
    model = maas_connect(net).train()
    for batch in (1, 32, 2):
        assert_congruent(net, model, Arguments((rows(batch, dtype),)))
    assert not net.training


SIGNATURE = maas.Signature(
    [Parameter("input", annotation=maas.TensorSpec("float32", ("batch", 1000)))]
)


@given(st.data())
@EXAMPLES
def test_a_model_with_a_signature(maas_connect, data):
    """What a signature allows, empty batches included, gives what the bare module gives."""
    net = BIG[torch.float32]
    model = maas_connect(net, signature=SIGNATURE)
    assert_congruent(net, model, data.draw(calls(model)))


AMBIENT: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
}


@pytest.mark.parametrize("mode", AMBIENT)
@pytest.mark.parametrize("training", [False, True])
def test_the_callers_ambient_state_travels(maas_connect, mode, training):
    """Grad mode and autocast of the caller hold for the model, and stay as they are after it."""
    net = DROPPING[torch.float32]
    model = maas_connect(net).train(training)
    with AMBIENT[mode]():
        assert_congruent(net, model, Arguments((rows(4, torch.float32),)))
        output = model(rows(1, torch.float32))
    assert not output.is_inference()


class Told(nn.Module):
    """Tells the state it runs under."""

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        return {
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "training": self.training,
            "requires_grad": x.requires_grad,
            "leaf": x.is_leaf,
            "contiguous": x.is_contiguous(),
            "channels_last": x.is_contiguous(memory_format=torch.channels_last),
        }


TOLD = Told()


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_module_sees_the_callers_state(maas_connect, grad, training, autocast):
    """Grad mode, autocast, train mode and layout at the module are those of its caller."""
    x = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    model = maas_connect(TOLD).train(training)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", enabled=autocast):
        assert_congruent(TOLD, model, Arguments((x,)))
        told = model(x)
    assert told["grad"] is grad
    assert told["autocast"] is autocast
    assert told["channels_last"] is True


def test_requires_grad_of_an_argument_arrives(maas_connect):
    """Under no_grad an argument that requires grad arrives as one, and as a leaf."""
    x = torch.zeros(1, 1, 1, 1, requires_grad=True)
    with torch.no_grad():
        assert_congruent(TOLD, maas_connect(TOLD), Arguments((x,)))
        assert maas_connect(TOLD)(x)["requires_grad"] is True


torch.manual_seed(1)
IMAGES = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_convolutions(maas_connect, layout, training):
    """A convolutional net gives the same in either layout, and its statistics move alike."""
    net = copy.deepcopy(IMAGES)
    net.to(memory_format=layout)  # type: ignore[call-overload]
    bare = copy.deepcopy(net)
    model = maas_connect(net).train(training)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        assert_congruent(bare.train(training), model, Arguments((x.to(memory_format=layout),)))
        bare(x.to(memory_format=layout))
    if maas_connect.place != "workers":  # a worker has made the net anew, from its path
        assert difference(dict(bare.state_dict()), dict(net.state_dict())) is None


class Scaled(nn.Module):
    """Several outputs in containers, one of them its own buffer and one its argument."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor, *, more: dict[str, torch.Tensor] | None = None) -> object:
        total = x.sum() * self.scale
        return {"total": total, "same": (x, self.scale), "more": more, "view": x[..., :1], "n": 3}


SCALED = Scaled().eval()


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor(1.5),
        torch.zeros(0),
        torch.zeros(0, 3),
        torch.arange(12.0).reshape(3, 4).T,
        torch.ones(1).expand(2, 3),
        torch.tensor([-0.0, float("nan")]),
        torch.arange(3),
    ],
    ids=["0-d", "empty", "no rows", "transposed", "expanded", "odd", "whole"],
)
def test_shapes_and_layouts(maas_connect, x):
    """0-d, empty and non-contiguous tensors come and go as they are, in any container."""
    call = Arguments((x,) if x.dim() else (x[None],), {"more": {"a": x, "b": x[None]}})
    assert_congruent(SCALED, maas_connect(SCALED), call)


def test_outputs_belong_to_the_caller(maas_connect):
    """An output over a buffer or an argument is a copy: changing it changes nothing else."""
    model = maas_connect(SCALED)
    x = torch.ones(2, 2)
    output = model(x)
    output["same"][0].zero_()
    output["same"][1].zero_()
    output["view"].zero_()
    assert x.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert SCALED.scale.item() == 2.0
    assert model(x)["total"].item() == 8.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_numpy_caller_gets_numpy(maas_connect, dtype):
    """A module that is called with NumPy arrays answers NumPy arrays, writable and the caller's."""
    net = BIG[getattr(torch, dtype)]
    x = rows(4, getattr(torch, dtype))
    output = maas_connect(net)(x.numpy())
    assert type(output) is np.ndarray
    assert output.flags.writeable
    with torch.no_grad():
        assert output.tobytes() == net(x).numpy().tobytes()


def test_read_only_arrays_arrive_writable(maas_connect):
    """A read-only array is an argument like any other."""
    x = np.ones((2, 1000), np.float32)
    x.flags.writeable = False
    assert maas_connect(BIG[torch.float32])(x).shape == (2, 1)


def test_two_handles_with_different_modes(maas_connect):
    """Two threads with handles in train and eval mode never see each other's mode."""
    net = Told()
    train, evaluate = maas_connect(net).train(), maas_connect(net).eval()
    start = threading.Barrier(2)
    told: dict[bool, set[object]] = {True: set(), False: set()}

    def work(model, mode):
        start.wait()
        for _ in range(40):
            told[mode].add(model(torch.zeros(1, 1, 1, 1))["training"])

    threads = [
        threading.Thread(target=work, args=(train, True)),
        threading.Thread(target=work, args=(evaluate, False)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == {True: {True}, False: {False}}
    assert net.training
    assert (train.training, evaluate.training) == (True, False)


def test_a_frozen_part_stays_frozen(maas_connect):
    """A submodule in another mode than its parent's is back in it after a call in either mode."""
    net = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    net[1].eval()
    for mode in (True, False):
        maas_connect(net).train(mode)(torch.ones(3))
        assert [part.training for part in net.modules()] == [True, True, False]


def test_a_seed_leaves_the_callers_generator_alone(maas_connect):
    """`seed=` gives the same draw every time and takes none from the caller."""
    net = DROPPING[torch.float32]
    model = maas_connect(net).train().with_options(seed=7)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (model(rows(2, torch.float32)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert difference(first, second) is None
    torch.manual_seed(7)
    with torch.no_grad():
        assert difference(first, copy.deepcopy(net).train()(rows(2, torch.float32))) is None


def test_errors_of_torch_are_the_same(maas_connect):
    """A shape that does not fit raises torch's own error, and leaves the model usable."""
    net = BIG[torch.float32]
    model = maas_connect(net)
    assert_congruent(net, model, Arguments((torch.zeros(2, 999),)))
    assert_congruent(net, model, Arguments((rows(2, torch.float64),)))
    assert_congruent(net, model, Arguments((rows(2, torch.float32),)))


def test_train_mode_where_there_is_none(maas_connect):
    """A function has no mode, in any place."""
    model = maas_connect(test_train_mode_where_there_is_none)
    assert model.training is None
    with pytest.raises(maas.Unsupported, match="no train and eval mode"):
        model.train()


def test_details(maas_connect):
    """`describe()` lists the layers with their parameters in every place."""
    described = maas_connect(BIG[torch.float32]).describe()
    here = maas.Model(BIG[torch.float32]).describe()
    described["details"].pop("batching", None)  # there if the suite runs with batching on
    assert described["details"] == here["details"]
    assert described["details"]["layers"][0]["parameters"]["weight"] == ["float32", [500, 1000]]
