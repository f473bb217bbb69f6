"""What training costs is known before it starts: exactly where it can be counted, and refused where
it would not fit.
"""

import copy

import attrs
import pytest
import torch
from torch import nn

import maas
from maas.testing.equality import difference
from maas.train import estimate as module_under_test
from maas.train import rules
from maas.train.recipe import OPTIMIZERS, Recipe


def linear():
    return nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3))


X, Y = torch.randn(40, 20), torch.randint(0, 3, (40,))


def test_a_step_is_counted():
    """Parameters, bytes and operations of two linear layers are those of the formulas."""
    found = maas.Model(linear()).estimate((X, Y), batch_size=16, epochs=5, accumulate=2)
    numbers = 20 * 8 + 8 + 8 * 3 + 3
    assert (found.parameters, found.trainable, found.rows) == (numbers, numbers, 16)
    assert found.weights == found.gradients == 4 * numbers
    # Adam keeps two of each, and counts its steps in a float a tensor.
    assert found.optimizer == 2 * 4 * numbers + 4 * 4
    # Forward, the gradients of both layers' weights, and of the second one's input; twice a step.
    forward = 2 * 16 * (20 * 8 + 8 * 3)
    assert found.flops == 2 * (2 * forward + 2 * 16 * 8 * 3)
    # The batch, the hidden layer after ReLU, log-probabilities, labels, and the loss's weight.
    assert found.activations == 4 * 16 * (20 + 8 + 3) + 8 * 16 + 4
    assert (found.steps, found.fits) == (2 * 5, True)
    assert found.seconds > 0
    assert found.total_seconds == pytest.approx(found.seconds * 10)


def test_a_call_is_counted():
    """Of inputs alone a call with all of them is estimated: no gradients, no optimizer."""
    found = maas.Model(linear()).estimate(X)
    assert found.flops == 2 * 40 * (20 * 8 + 8 * 3)
    assert (found.gradients, found.optimizer, found.steps, found.rows) == (0, 0, None, 40)
    assert "call" in str(found)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_each_optimizer_is_what_it_keeps(name):
    """Bytes of optimizer state are those that one real step leaves."""
    net, recipe = linear(), Recipe.of({"optimizer": name})
    found = maas.Model(net).estimate((X, Y), optimizer=name)
    optimizer = rules.optimizer_of(recipe, net)
    nn.functional.cross_entropy(net(X), Y).backward()
    optimizer.step()
    kept = [each for state in optimizer.state.values() for each in state.values()]
    assert found.optimizer == sum(each.nbytes for each in kept if isinstance(each, torch.Tensor))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(20, 3), nn.BatchNorm1d(3))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x + torch.rand(1).item())


def test_an_estimate_leaves_no_trace():
    """Weights, buffers, attributes, mode and the generator are as they were."""
    net = Noisy().eval()
    before, drawn = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    maas.Model(net).estimate((X, Y))
    assert difference(dict(net.state_dict()), dict(before)) is None
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (net.calls, net.training, all(p.grad is None for p in net.parameters())) == (
        0,
        False,
        True,
    )


class Looking(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(20, 3)

    def forward(self, x):
        return self.linear(x) if x.sum().item() > -1e9 else x


def test_a_module_that_looks_at_its_numbers_has_no_count():
    """Where no step can be played, weights and optimizer are told, and the rest is unknown."""
    found = maas.Model(Looking()).estimate((X, Y))
    assert (found.flops, found.activations, found.seconds, found.total_seconds) == (None,) * 4
    assert found.optimizer > 0
    assert "unknown" in str(found)


def test_what_cannot_fit_is_refused_before_it_starts(monkeypatch):
    """fit raises MemoryError, says what is how large, and has changed no weight."""
    net = linear()
    before = copy.deepcopy(net.state_dict())
    monkeypatch.setattr(module_under_test, "free_memory", lambda _device: 5_000)
    with pytest.raises(MemoryError, match=r"5 KB are free here: .* of gradients.*batch_size"):
        maas.Model(net).fit((X, Y))
    assert difference(dict(net.state_dict()), dict(before)) is None


# At a server.


@pytest.fixture
def there(tmp_path):
    """The net at a server that grants training."""
    server = maas.Server({"net": linear()}, allow={"call", "describe", "train"}, jobs=tmp_path)
    yield maas.connect(server)
    server.close()


def _counts(found):
    return attrs.evolve(found, seconds=None, free=None)


@pytest.mark.parametrize("options", [{}, {"batch_size": 16, "epochs": 3, "validation": 0.2}])
@pytest.mark.parametrize("value", [(X, Y), X], ids=["training", "a call"])
def test_an_estimate_elsewhere_counts_the_same(there, value, options):
    """What is counted is equal here and there; seconds and free memory are the server's own."""
    found = there.estimate(value, **options)
    assert _counts(found) == _counts(maas.Model(linear()).estimate(value, **options))
    assert found.seconds > 0


def test_a_dataset_is_estimated_where_it_is(there):
    """Rows that a server has already are not needed here, and their steps are told."""
    dataset = maas.data.upload(there, (X, Y))
    for value in (dataset, dataset.name):
        found = there.estimate(value, batch_size=16, epochs=5)
        assert _counts(found) == _counts(
            maas.Model(linear()).estimate((X, Y), batch_size=16, epochs=5)
        )


def test_an_estimate_elsewhere_is_granted():
    """A server that grants no training gives no estimates, and says what to grant."""
    with pytest.raises(maas.Forbidden, match="'train'"):
        maas.connect(maas.Server({"net": linear()})).estimate(X)
    with pytest.raises(maas.Unsupported, match="no torch module"):
        maas.Model(len).estimate(X)


@pytest.mark.parametrize("question", [(), ({}, {}), ({}, {"inputs": X}), ({}, []), (1, 2)])
def test_strange_questions_are_refused(there, question):
    """What is no recipe with rows is a CodecError."""
    with pytest.raises(maas.CodecError, match="_estimate wants"):
        there.executor.ask("_estimate", question, maas.calls.Context())
