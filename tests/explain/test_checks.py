"""The checks tell an explanation of the model from one that is not."""

import pytest
import torch
from torch import nn

import maas
from maas.errors import Unsupported

FEW = pytest.mark.maas(places=["here", "http"])


def trained():
    """A small net that has learned which of two sums is larger."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                            nn.Linear(16, 2))  # fmt: skip
        x = torch.randn(256, 8)
        y = (x[:, :3].sum(1) > x[:, 3:6].sum(1)).long()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


NET = trained()
X = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))


@FEW
@pytest.mark.parametrize("method", ["integrated_gradients", "deep_lift", "shapley_sampling"])
def test_a_good_explanation_passes(maas_connect, method):
    """It hardly moves, foretells the output, and is another one when the weights are others."""
    found = maas_connect(NET).explain(X, target=1, method=method)
    told = maas.explain.check(found)
    assert 0 < told.sensitivity < 0.3
    assert 0 <= told.infidelity < 0.2
    assert abs(told.randomisation) < 0.5
    assert "sensitivity" in str(told)


@FEW
def test_it_is_the_same_everywhere(maas_connect):
    """Its figures are those of the same explanation here, and no generator is moved."""
    state = torch.get_rng_state()
    wanted = maas.explain.check(maas.Model(NET).explain(X, target=1))
    assert maas.explain.check(maas_connect(NET).explain(X, target=1)) == wanted
    assert torch.equal(torch.get_rng_state(), state)


def test_a_linear_model_is_explained_without_a_fault():
    """The infidelity of exact attributions is 0, and that of numbers at random is near 1."""
    net = nn.Linear(8, 1).eval()
    exact = maas.Model(net).explain(X)
    assert maas.explain.check(exact).infidelity == pytest.approx(0, abs=1e-6)
    local = maas.Model(net).explain(X, method="saliency", absolute=False)
    assert maas.explain.check(local).infidelity == pytest.approx(0, abs=1e-6)


class Edges(nn.Module):
    """Has weights, and an output that does not depend on them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return (x * torch.arange(8)).sum(1) + 0 * self.layer(x).sum(1)


def test_an_explanation_that_ignores_the_weights_is_found_out():
    """Where shuffled weights change nothing, the rank correlation is 1 (Adebayo et al. 2018)."""
    told = maas.explain.check(maas.Model(Edges().eval()).explain(X))
    assert told.randomisation == pytest.approx(1)


@FEW
def test_the_served_weights_are_not_shuffled(maas_connect):
    """The randomisation test runs on a copy: the model gives what it gave before."""
    model = maas_connect(NET)
    before = model(X)
    maas.explain.check(model.explain(X, target=1, steps=4))
    assert torch.equal(model(X), before)


def test_what_cannot_be_checked_says_so():
    """Two arrays have no one radius; a model seen by its calls has no weights to shuffle."""

    class Sum(nn.Module):
        def forward(self, a, b):
            return (a + b).sum(1)

    with pytest.raises(Unsupported, match="single array"):
        maas.explain.check(maas.Model(Sum()).explain(X, X))
    over_calls = maas.Model(NET).explain(X, target=1, steps=4, through="calls")
    assert maas.explain.check(over_calls).randomisation is None
    at_layer = maas.Model(NET).explain(X, target=1, method="conductance", at="1", steps=4)
    assert maas.explain.check(at_layer).infidelity is None
