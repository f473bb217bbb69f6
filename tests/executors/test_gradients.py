"""Gradients in every place, against torch itself."""

import copy
import gc
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import func, nn

import maas
from maas.server.guard import GRANTS
from maas.testing.equality import difference

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


class Many(nn.Module):
    """Containers in and out, an output without gradient, one that is no tensor, an unused input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, pair, *, more):
        y = self.layer(pair[0]) * more["scale"]
        return {
            "y": (y, y.argmax(1)),
            "sum": [y.sum(), "text"],
            "plain": torch.ones(2),
            "none": None,
        }


def _net(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype).eval()


NET, NET64, MANY = _net(), _net(torch.float64), Many().eval()
SMALL = X[:2].double()


def _leaf(x=X):
    return x.clone().requires_grad_()


def test_an_input_gradient_is_torchs(maas_connect):
    """The seed's line gives the gradient of bare torch, bit for bit, and a result has a grad_fn."""
    x, own = _leaf(), _leaf()
    y = maas_connect(NET)(x)
    assert y.grad_fn is not None
    y.sum().backward()
    NET(own).sum().backward()
    assert difference(x.grad, own.grad) is None


def test_containers_and_outputs_of_all_kinds(maas_connect):
    """Inputs in containers and several outputs are one node; what has no gradient stays plain."""
    model = maas_connect(MANY)
    found = []
    for run in (model, MANY):
        x, scale, unused = _leaf(), torch.tensor(2.0, requires_grad=True), _leaf()
        out = run([x, unused], more={"scale": scale, "text": "t"})
        assert (out["sum"][1], out["none"]) == ("text", None)
        assert [each.requires_grad for each in (*out["y"], out["plain"])] == [True, False, False]
        (out["y"][0].square().sum() + 3 * out["sum"][0]).backward()
        found.append((x.grad, scale.grad, unused.grad))
    assert found[0][2] is None
    assert difference(*found) is None


def test_an_output_that_was_not_used(maas_connect):
    """The gradient through one of two outputs is that of torch, and no zeros are made of none."""
    model = maas_connect(MANY)
    x, own = _leaf(), _leaf()
    scale = {"scale": torch.tensor(0.5)}
    model([x, x], more=scale)["sum"][0].backward()
    MANY([own, own], more=scale)["sum"][0].backward()
    assert difference(x.grad, own.grad) is None


def test_autograd_grad_and_what_it_may_not_find(maas_connect):
    """`torch.autograd.grad` gives what torch gives, refuses an unused input as torch does."""
    model = maas_connect(MANY)
    x, unused, scale = _leaf(), _leaf(), torch.tensor(2.0, requires_grad=True)
    y = model([x, unused], more={"scale": scale})["sum"][0]
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(y, unused, retain_graph=True)
    assert torch.autograd.grad(y, unused, allow_unused=True, retain_graph=True) == (None,)
    given = torch.autograd.grad(y, (scale, x))
    own = _leaf()
    wanted = torch.autograd.grad(MANY([own, own], more={"scale": scale})["sum"][0], (scale, own))
    assert difference(given, wanted) is None


def test_no_graph_is_asked_for_without_need(maas_connect):
    """Under `no_grad`, or without an argument that requires grad, a result has no graph."""
    model = maas_connect(NET)
    with torch.no_grad():
        assert not model(_leaf()).requires_grad
    assert not model(X).requires_grad
    assert not model(_leaf().detach()).requires_grad


def test_autocast_travels(maas_connect):
    """Under autocast the result's dtype and the gradients are torch's."""
    x, own = _leaf(), _leaf()
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = maas_connect(NET)(x), NET(own)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    wanted.float().sum().backward()
    assert difference(x.grad, own.grad) is None


def test_hooks_run_on_the_callers_side(maas_connect):
    """A hook on an input or an output of a call sees its gradient and may change it."""
    model = maas_connect(NET)
    seen, found = [], []
    for run in (model, NET):
        x = _leaf()
        x.register_hook(lambda gradient: seen.append(gradient.clone()))
        y = run(x)
        y.register_hook(lambda gradient: gradient * 2)
        y.sum().backward()
        found.append(x.grad)
    assert difference(seen[0], seen[1]) is None
    assert difference(*found) is None


def test_a_graph_is_run_once_unless_it_is_kept(maas_connect):
    """`retain_graph=True` lets a graph be run again; without, torch's own error says so."""
    x = _leaf()
    y = maas_connect(NET)(x).sum()
    y.backward(retain_graph=True)
    first = x.grad.clone()
    y.backward()
    assert difference(x.grad, 2 * first) is None
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_part_of_a_larger_graph(maas_connect):
    """Calls in the middle of a graph, one after the other and one twice, give torch's gradients."""
    model = maas_connect(NET)
    found = []
    for run in (model, NET):
        x = _leaf()
        y = run(torch.sin(x))
        z = run(torch.cat([y, y], 1) * x)
        (z.square().sum() + y.sum()).backward()
        found.append(x.grad)
    assert difference(*found) is None


def test_submit_and_map_are_differentiable(maas_connect):
    """A result that came later, or one of many, has the same gradient."""
    model = maas_connect(NET)
    found = []
    for ask in (model, lambda x: model.submit(x).result(20), lambda x: next(model.map([x])), NET):
        x = _leaf()
        ask(x).square().sum().backward()
        found.append(x.grad)
    assert all(difference(each, found[-1]) is None for each in found)


def test_dropout_in_train_mode(maas_connect):
    """What was dropped in the run has no gradient, and the caller's draws go on as torch's."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5))
    model = maas_connect(net).train()
    found = []
    for run in (model, net):
        torch.manual_seed(3)
        x = _leaf()
        run(x).sum().backward()
        found.append((x.grad, torch.rand(3)))
    assert difference(*found) is None


@pytest.mark.maas(places=["here", "http"])
def test_gradcheck(maas_connect):
    """torch's own numerical checks of first and second derivatives pass through a real socket."""
    model = maas_connect(NET64)
    assert torch.autograd.gradcheck(model, (_leaf(SMALL),))
    assert torch.autograd.gradgradcheck(model, (_leaf(SMALL),))


def test_a_gradient_penalty(maas_connect):
    """`create_graph=True` makes gradients that are differentiable, to rounding as torch's."""
    model = maas_connect(NET64)
    found = []
    for run in (model, NET64):
        x = _leaf(SMALL)
        (gradient,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


TRANSFORMS = {
    "grad": lambda f: func.grad(lambda x: f(x).square().sum()),
    "vjp": lambda f: lambda x: func.vjp(f, x)[1](torch.ones(2, 2, dtype=x.dtype))[0],
    "jacrev": func.jacrev,
    "vmap": func.vmap,
    "vmap of grad": lambda f: func.vmap(func.grad(lambda x: f(x).square().sum())),
    "grad of grad": lambda f: func.grad(
        lambda x: func.grad(lambda z: f(z).square().sum())(x).square().sum()
    ),
    "hessian": lambda f: func.jacrev(func.jacrev(lambda x: f(x).square().sum())),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_function_transforms(maas_connect, name):
    """The reverse-mode transforms of `torch.func` work on a model as on the module."""
    transform = TRANSFORMS[name]
    given, wanted = transform(maas_connect(NET64))(SMALL), transform(NET64)(SMALL)
    torch.testing.assert_close(given, wanted, rtol=1e-11, atol=1e-13)


@st.composite
def _modules(draw):
    layers = {
        "linear": lambda: nn.Linear(4, 4),
        "tanh": nn.Tanh,
        "relu": nn.ReLU,
        "gelu": nn.GELU,
        "norm": lambda: nn.LayerNorm(4),
        "softmax": lambda: nn.Softmax(-1),
        "batch norm": lambda: nn.BatchNorm1d(4),
        "dropout": lambda: nn.Dropout(0.4),
    }
    names = draw(st.lists(st.sampled_from(sorted(layers)), max_size=5))
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 100)))
        return nn.Sequential(nn.Linear(4, 4), *(layers[name]() for name in names))


@given(module=_modules(), training=st.booleans(), seed=st.integers(0, 2**32))
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.maas(places=["wire"])
def test_generated_modules(maas_connect, module, training, seed):
    """Outputs, input and parameter gradients, buffers and draws of any small module are torch's."""
    own = copy.deepcopy(module)
    model = maas_connect(module).train(training)
    own.train(training)
    found = []
    for run in (model, own):
        torch.manual_seed(seed)
        x = torch.randn(6, 4).requires_grad_()
        parameters = list(run.parameters())
        y = run(x)
        y.square().sum().backward()
        state = {name: value.clone() for name, value in run.state_dict().items()}
        found.append([y.detach(), x.grad, [each.grad for each in parameters], state, torch.rand(2)])
    assert difference(list(found[0][3]), list(found[1][3])) is None
    assert difference([*found[0][:3], found[0][4]], [*found[1][:3], found[1][4]]) is None
    assert difference(list(found[0][3].values()), list(found[1][3].values())) is None


# What a server keeps, and for how long.


@pytest.fixture
def kept():
    """A server that grants gradients, a model of it, and how many graphs it keeps."""
    server = maas.Server({"net": NET}, allow=GRANTS)
    model = maas.connect(server)
    return model, server.handler._services.graphs.table


def test_nothing_is_kept_after_backward(kept):
    """A graph goes with its backward run."""
    model, table = kept
    y = model(_leaf())
    assert len(table) == 1
    y.sum().backward()
    assert len(table) == 0


def test_a_graph_goes_with_its_result(kept):
    """A result that is collected without a backward run frees its graph at the server."""
    model, table = kept
    ended = threading.Event()
    drop = table.drop
    table.drop = lambda *args: (drop(*args), ended.set())
    y = model(_leaf())
    assert len(table) == 1
    del y
    gc.collect()
    assert ended.wait(20)
    assert len(table) == 0


def test_an_old_graph_gives_way(kept):
    """Beyond the limit the oldest graph goes, and its error names the limit."""
    server = maas.Server({"net": NET}, allow=GRANTS, leases=maas.Leases(graphs=2))
    model = maas.connect(server)
    first, *others = [model(_leaf()).sum() for _ in range(3)]
    for each in others:
        each.backward()
    with pytest.raises(maas.Expired, match="graphs=2"):
        first.backward()


def test_a_graph_that_is_too_large():
    """What a run saved is charged before it is kept; the error names the limit."""
    server = maas.Server({"net": NET}, allow=GRANTS, leases=maas.Leases(graph_bytes=100))
    with pytest.raises(maas.LimitExceeded, match="graph_bytes=100"):
        maas.connect(server)(_leaf())
    assert not maas.connect(server)(X).requires_grad


@pytest.mark.parametrize("allow", [{"call", "describe"}, {"call", "describe", "compress"}])
def test_gradients_are_refused_by_default(allow):
    """A server that did not grant gradients refuses them, and names the grant."""
    model = maas.connect(maas.Server({"net": NET}, allow=allow))
    with pytest.raises(maas.Forbidden, match="'grad'"):
        model(_leaf())
    assert model(X).shape == (5, 2)


def test_a_gateway_passes_gradients_on():
    """Through a server that stands in front of another one, the gradient is still torch's."""
    inner = maas.Server({"net": NET}, allow=GRANTS)
    model = maas.connect(maas.Server({"net": maas.connect(inner)}, allow=GRANTS))
    x, own = _leaf(), _leaf()
    model(x).square().sum().backward()
    NET(own).square().sum().backward()
    assert difference(x.grad, own.grad) is None


def test_a_backward_step_has_the_calls_deadline(kept):
    """A call with a time limit gives its backward step the same, and both keep it."""
    model, _ = kept
    x = _leaf()
    model.with_options(timeout=30)(x).sum().backward()
    assert x.grad is not None
