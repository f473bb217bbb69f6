"""`model.explain` gives Captum's numbers, wherever the model runs, and leaves no trace."""

import copy
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

import maas
from maas.errors import Unsupported
from maas.explain.algorithms import _TABLE, MODULE
from maas.server.guard import GRANTS

METHODS = sorted(_TABLE)
FEW = pytest.mark.maas(places=["here", "wire", "http"])


@pytest.fixture(scope="module")
def target(explaining):
    return explaining.net()


def test_every_method_has_a_case(explaining):
    """No method of the table goes without the comparison with Captum."""
    assert sorted(explaining.cases) == METHODS


@FEW
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_captums(maas_connect, explaining, target, method):
    """Each method gives, in every place, the bits that Captum gives for the module itself."""
    found = maas_connect(target).explain(explaining.x, **explaining.told(method))
    assert torch.equal(found.attributions, explaining.direct(method))


@FEW
@pytest.mark.parametrize("method", ["deep_lift", "input_x_gradient", "integrated_gradients", "lrp"])
def test_a_layer_is_captums(maas_connect, explaining, target, method):
    """With `at=` each method gives what Captum's class for layers gives."""
    told = explaining.told(method, explaining.layered)
    found = maas_connect(target).explain(explaining.x, **told)
    assert torch.equal(found.attributions, explaining.direct(method, explaining.layered))


@FEW
@pytest.mark.parametrize("method", [name for name in METHODS if _TABLE[name].needs != MODULE])
def test_calls_give_the_same(maas_connect, explaining, target, method):
    """What needs no hooks gives the same bits over the calls of a model, at the same cost."""
    told = explaining.told(method)
    model = maas_connect(target)
    found = model.explain(explaining.x, through="calls", **told)
    whole = model.explain(explaining.x, **told)
    assert torch.equal(found.attributions, whole.attributions)
    assert (found.gap, found.rows) == (whole.gap, whole.rows)


@FEW
def test_numpy_in_is_numpy_out(maas_connect, explaining, target):
    """An array is explained by an array of the same kind."""
    model = maas_connect(target)
    found = model.explain(explaining.x.numpy(), target=1)
    assert type(found.attributions) is np.ndarray
    wanted = model.explain(explaining.x, target=1).attributions
    assert np.array_equal(found.attributions, wanted.numpy())


class Counting(nn.Module):
    """Counts the rows that go through it, copies of it included."""

    seen: list[int] = []  # noqa: RUF012 - shared by copies is the point

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        Counting.seen.append(x.shape[0])
        return self.inner(x)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("method", METHODS)
def test_the_rows_told_are_the_rows_run(explaining, method, batch, rows):
    """`rows` is how many rows ran, and what was known before; `batch_size` bounds each run."""
    told = explaining.told(method)
    told = {**told, "batch_size": batch} if "batch_size" in told else told
    if "at" in told:
        told["at"] = "inner.2"
    if "baseline" in told:
        told["baseline"] = explaining.baseline[:rows]
    Counting.seen.clear()
    found = maas.Model(Counting(explaining.net())).explain(explaining.x[:rows], **told)
    assert found.rows == sum(Counting.seen)
    if "batch_size" in told:
        # One row of the input can be split no further; a step of conductance has two ends.
        assert max(Counting.seen) <= max(batch, 2 * rows)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_it_leaves_no_trace(explaining, method, fails):
    """Weights, gradients, modes, hooks, the input and every generator are as they were before.

    Captum leaves `requires_grad` set on the caller's input when it raises.
    """
    target = explaining.net()
    target[1].eval()
    target[2].train()
    target[0].weight.requires_grad_(False)
    target[4].weight.grad = torch.ones_like(target[4].weight)
    before = copy.deepcopy(target)
    versions = [each._version for each in target.parameters()]
    x = explaining.x.clone()
    told = explaining.told(method)
    if fails:
        target[3].register_forward_hook(_raises_at_the_second())
        before[3].register_forward_hook(_raises_at_the_second())
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - it must not be moved
    try:
        maas.Model(target).explain(x, **told)
    except ZeroDivisionError:
        assert fails
    assert torch.equal(x, explaining.x)
    assert x.requires_grad is False
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002 - it must not be moved
    assert random.getstate() == states[2]
    for (name, now), (_, then) in zip(target.named_modules(), before.named_modules(), strict=True):
        assert (name, now.training) == (name, then.training)
        assert vars(now).keys() == vars(then).keys()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            assert len(getattr(now, kind)) == len(getattr(then, kind))
    for now, then in zip(target.parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then)
        assert now.requires_grad is then.requires_grad

    assert [each._version for each in target.parameters()] == versions
    assert [name for name, each in target.named_parameters() if each.grad is not None] == [
        "4.weight"
    ]
    assert torch.equal(target[4].weight.grad, torch.ones(4, 8))


def _raises_at_the_second():
    runs = []

    def hook(*_):
        runs.append(1)
        if len(runs) > 1:
            raise ZeroDivisionError

    return hook


def test_others_see_no_hooks(explaining):
    """While a module is explained by methods that change its layers, calls of it give the same."""
    target = explaining.net()
    model = maas.Model(target)
    wanted = model(explaining.x)
    done = threading.Event()

    def explain():
        for _ in range(10):
            for method in ("lrp", "deep_lift", "guided_backprop"):
                model.explain(explaining.x, **explaining.told(method))
        done.set()

    thread = threading.Thread(target=explain)
    thread.start()
    while not done.is_set():
        assert torch.equal(model(explaining.x), wanted)
    thread.join()


@FEW
def test_the_mode_is_the_handles(maas_connect):
    """A handle in train mode explains the model with its dropout, reproducibly, and moves nothing.

    BatchNorm's statistics are the model's, and an explanation is no step of training.
    """
    target = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(0.5), nn.Linear(9, 2))
    before = copy.deepcopy(target.state_dict())
    x = torch.randn(4, 6)
    model = maas_connect(target)
    first, again = (model.train().explain(x, target=0).attributions for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, model.explain(x, target=0, seed=1).attributions)
    assert not torch.equal(first, model.eval().explain(x, target=0).attributions)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in before.items())


class Pair(nn.Module):
    """Takes a dictionary of two arrays, a mask and a scale."""

    def forward(self, parts, mask, *, scale):
        return ((parts["a"] * 2 + parts["b"].flatten(1)) * mask).sum(1) * scale


@FEW
@pytest.mark.parametrize("method", ["integrated_gradients", "shapley_sampling", "saliency"])
def test_the_structure_is_that_of_the_input(maas_connect, method):
    """Arrays inside containers are explained in their places; what is told beside is not."""
    a, b = torch.randn(2, 4), torch.randn(2, 2, 2)
    mask = torch.tensor([[True, True, False, True], [False, True, True, True]])
    model = maas_connect(Pair().eval())
    found = model.explain({"a": a, "b": b}, mask, kwargs={"scale": 3.0}, method=method)
    parts, beside = found.attributions
    assert beside is None
    assert parts.keys() == {"a", "b"}
    wanted = {"a": 6 * mask.float(), "b": 3 * mask.float().reshape(2, 2, 2)}
    if method != "saliency":
        wanted = {"a": wanted["a"] * a, "b": wanted["b"] * b}
    for name, value in wanted.items():
        assert torch.allclose(parts[name], value, atol=1e-5), name


@FEW
def test_a_target_for_each_row(maas_connect, explaining, target):
    """A list of targets explains each row's own output."""
    model = maas_connect(target)
    found = model.explain(explaining.x, target=[0, 3, 1], method="deep_lift").attributions
    for row, index in enumerate([0, 3, 1]):
        one = model.explain(explaining.x, target=index, method="deep_lift").attributions
        assert torch.allclose(found[row], one[row], atol=1e-6)


class Words(nn.Module):
    """A text of ids to two numbers, by way of an embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.top = nn.Linear(5, 2)

    def forward(self, ids):
        return self.top(torch.tanh(self.embedding(ids)).mean(1))


@FEW
def test_whole_numbers_are_explained_at_their_embedding(maas_connect):
    """Ids have no gradient, so they are explained by values, or at the layer that embeds them."""
    model = maas_connect(Words().eval())
    ids = torch.tensor([[3, 7, 7, 1], [2, 0, 5, 5]])
    at = model.explain(ids, target=1, at="embedding")
    assert at.attributions.shape == (2, 4, 5)
    assert at.gap < 1e-5
    by_values = model.explain(ids, target=1, method="shapley_sampling")
    assert by_values.attributions.shape == (2, 4)
    assert by_values.gap < 1e-5
    assert by_values.attributions[1, 1] == 0  # the id of the baseline
    with pytest.raises(Unsupported, match="at='embedding'"):
        model.explain(ids, target=1)


@FEW
def test_any_function_is_explained_by_its_values(maas_connect):
    """A model that is no torch module is explained over its calls, in the arrays it knows."""

    def weighed(x: np.ndarray) -> np.ndarray:
        assert type(x) is np.ndarray
        return x @ np.array([1.0, 2.0, 0.0])

    x = np.array([[1.0, 1.0, 5.0], [2.0, -1.0, 3.0]])
    found = maas_connect(weighed).explain(x, method="feature_ablation")
    assert np.allclose(found.attributions, x * [1, 2, 0])
    with pytest.raises(Unsupported, match="no gradient"):
        maas_connect(weighed).explain(x, method="saliency")


def test_a_gateway_hands_the_question_on(explaining, target):
    """A server in front of another one has that explain, and the numbers are the same."""
    inner = maas.Server({"net": target}, allow=GRANTS)
    outer = maas.Server({"net": maas.connect(inner)}, allow=GRANTS)
    told = explaining.told("deep_lift")
    found = maas.connect(outer).explain(explaining.x, **told)
    assert torch.equal(found.attributions, explaining.direct("deep_lift"))
