import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import maas
from maas.testing import difference


class Gives(nn.Module):
    """Gives whatever its function makes of its argument and its buffer."""

    buffer: torch.Tensor

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.register_buffer("buffer", torch.arange(4.0))
        self.weight = nn.Parameter(torch.ones(2, 2))
        self._function = function

    def forward(self, x: Any) -> Any:
        return self._function(self, x)


OUTPUTS: dict[str, Any] = {
    "argument": lambda net, x: x,
    "view of the argument": lambda net, x: x[1:],
    "buffer": lambda net, x: net.buffer,
    "view of the buffer": lambda net, x: net.buffer[2:],
    "parameter": lambda net, x: net.weight,
    "parameter's data": lambda net, x: net.weight.data,
    "inside": lambda net, x: {"a": [x, (net.buffer,)]},
}


def _first(value: Any) -> torch.Tensor:
    while not isinstance(value, torch.Tensor):
        value = next(iter(value.values() if type(value) is dict else value))
    return value


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_in_memory_of_their_own(name):
    """An output over an argument, a buffer or a parameter is a copy that requires no grad."""
    net = Gives(OUTPUTS[name])
    x = torch.arange(4.0)
    before = ({key: value.clone() for key, value in net.state_dict().items()}, x.clone())
    output = _first(maas.Model(net)(x))
    assert not output.requires_grad
    output.fill_(-9)
    assert difference((dict(net.state_dict()), x), before) is None


def test_fresh_outputs_are_not_copied():
    """What the module has made anew is given as it is."""
    made = []

    def double(_net: Any, x: Any) -> Any:
        made.append(x * 2)
        return made[-1]

    assert maas.Model(Gives(double))(torch.ones(2)) is made[-1]


def test_a_replaced_layer_is_noticed():
    """A buffer put in place of another after wrapping is guarded as the old one was."""
    net = Gives(OUTPUTS["buffer"])
    model = maas.Model(net)
    net.buffer = torch.full((4,), 5.0)
    gc.collect()
    model(torch.ones(4)).zero_()
    assert net.buffer.tolist() == [5, 5, 5, 5]


def test_a_model_does_not_keep_old_weights_alive():
    """Weights that the user replaced are freed."""
    net = nn.Linear(2, 2)
    maas.Model(net)
    told = weakref.ref(net.weight)
    net.weight = nn.Parameter(torch.zeros(2, 2))
    gc.collect()
    assert told() is None


@pytest.mark.parametrize(
    "change",
    [lambda net, x: x.add_(1), lambda net, x: x[0].zero_(), lambda net, x: torch.relu_(x)],
    ids=["add_", "a view", "relu_"],
)
def test_an_argument_changed_in_place_is_warned_of(change):
    """A module that changes its caller's tensor says where, once it has run."""
    with pytest.warns(maas.MutationWarning, match=r"args\[0\] in place"):
        maas.Model(Gives(change))(torch.tensor([-1.0, 1.0]))


def test_gradients_flow_here():
    """With an argument that requires grad the output is differentiable, as bare torch's is."""
    net = nn.Linear(3, 2)
    x = torch.ones(1, 3, requires_grad=True)
    maas.Model(net)(x).sum().backward()
    given = x.grad
    x.grad = None
    net(x).sum().backward()
    assert difference(given, x.grad) is None


def test_parameters_alone_make_no_graph():
    """Without such an argument the output is plain, whatever its parameters require."""
    assert not maas.Model(nn.Linear(3, 2))(torch.ones(1, 3)).requires_grad


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "complex64", "float16"])
def test_numpy_comes_and_goes(dtype):
    """A NumPy caller gets NumPy of the dtype that the module gives."""
    x = np.ones((2, 3), dtype)
    output = maas.Model(Gives(lambda net, x: {"x": x, "sum": x.sum(0)}))(x)
    assert type(output["x"]) is np.ndarray
    assert (output["x"].dtype, output["x"].tolist()) == (x.dtype, x.tolist())
    output["x"][...] = 0
    assert x.all()


def test_one_tensor_makes_it_torch():
    """A call with a tensor among its arrays is answered with tensors."""

    class Two(nn.Module):
        def forward(self, a: Any, b: Any) -> Any:
            return a + b

    assert type(maas.Model(Two())(np.ones(2), torch.ones(2))) is torch.Tensor


def test_modes_of_parts_are_kept():
    """A call in another mode sets each part back to the mode it had."""
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout()))
    net[1].eval()
    before = [part.training for part in net.modules()]
    maas.Model(net).eval()(torch.ones(2))
    maas.Model(net).train()(torch.ones(2))
    assert [part.training for part in net.modules()] == before


def test_a_mode_is_set_back_after_an_error():
    """A module that raises is left in the mode it had."""

    def fails(_net: Any, _x: Any) -> Any:
        raise ValueError("no")

    net = Gives(fails).eval()
    with pytest.raises(ValueError):
        maas.Model(net).train()(torch.ones(1))
    assert not net.training


def test_a_declared_forward():
    """`@maas.method` on `forward` says what cannot be seen: that it draws, or is not pure."""

    class Draws(nn.Module):
        @maas.method(stochastic=True, pure=False)
        def forward(self, n: int) -> torch.Tensor:
            return torch.rand(n)

    model = maas.Model(Draws().eval())
    method = model.executor.method("__call__")
    assert (method.stochastic, method.pure) == (True, False)
    assert torch.equal(model.with_options(seed=1)(3), model.with_options(seed=1)(3))
    with pytest.raises(maas.Unsupported):
        model.with_options(retries=1)(3)


def test_details_name_the_layers():
    """Layers with parameters are listed, with dtypes and shapes, and parameters counted."""
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.BatchNorm1d(2))
    details = maas.Model(net).describe()["details"]
    assert [layer["type"] for layer in details["layers"]] == ["Linear", "BatchNorm1d"]
    assert details["layers"][0]["parameters"] == {
        "weight": ["float32", [2, 3]],
        "bias": ["float32", [2]],
    }
    assert details["parameters"] == 12


def test_sparse_tensors_are_refused_here_too():
    """A tensor that could not cross is refused in this process as well, with its path."""
    model = maas.Model(Gives(OUTPUTS["argument"]))
    with pytest.raises(maas.CodecError, match=r"args\[0\].*to_dense"):
        model(torch.eye(2).to_sparse())
    with pytest.raises(maas.CodecError, match=r"result.*to_dense"):
        maas.Model(Gives(lambda net, x: x.to_sparse()))(torch.eye(2))
