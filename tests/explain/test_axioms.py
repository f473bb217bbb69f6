"""What the algorithms promise of themselves, on models whose right answers are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import maas

FAST = settings(max_examples=8)
WIDE = 5
NUMBERS = st.floats(-2, 2, width=32).map(lambda x: round(x, 2))
ROW = st.lists(NUMBERS, min_size=WIDE, max_size=WIDE)
# The methods that share out the change of the output from the baseline, and what makes them exact.
SHARING = {
    "integrated_gradients": {"steps": 4},
    "deep_lift": {},
    "feature_ablation": {},
    "occlusion": {"window": 1},
    "shapley_sampling": {"samples": 2},
    "gradient_shap": {"samples": 2},
    "kernel_shap": {"samples": 64},
}
SUMMING = {
    "integrated_gradients": {"steps": 64},
    "deep_lift": {},
    "shapley_sampling": {"samples": 8},
    "kernel_shap": {"samples": 64},
}


def linear(weights, bias=0.0):
    """The model w.x + b."""
    layer = nn.Linear(WIDE, 1)
    with torch.no_grad():
        layer.weight[0] = torch.tensor(weights)
        layer.bias[0] = bias
    return layer.eval()


def smooth(seed):
    """A small net without kinks, and with one number a row."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(WIDE, 7), nn.Tanh(), nn.Linear(7, 1)).eval()


@pytest.mark.parametrize("method", SHARING)
@FAST
@given(weights=ROW, x=ROW, baseline=ROW, bias=NUMBERS)
def test_a_linear_model_is_explained_by_its_weights(method, weights, x, baseline, bias):
    """Of w.x + b each input counts for its weight times its distance from the baseline."""
    model = maas.Model(linear(weights, bias))
    here, there = torch.tensor([x]), torch.tensor([baseline])
    found = model.explain(here, method=method, baseline=there, **SHARING[method])
    wanted = torch.tensor(weights) * (here - there)
    assert torch.allclose(found.attributions, wanted, atol=1e-4)


@pytest.mark.parametrize("method", ["input_x_gradient", "lrp"])
@FAST
@given(weights=ROW, x=ROW)
def test_without_a_bias_the_weights_times_the_input(method, weights, x):
    """Of w.x each input counts for its weight times its value, where the baseline is 0."""
    if method == "lrp" and abs(sum(w * each for w, each in zip(weights, x, strict=True))) < 0.01:
        return  # it divides by the output
    found = maas.Model(linear(weights)).explain(torch.tensor([x]), method=method)
    assert torch.allclose(found.attributions, torch.tensor(weights) * torch.tensor(x), atol=1e-3)


@pytest.mark.parametrize("method", SUMMING)
@FAST
@given(seed=st.integers(0, 1000), x=ROW, baseline=ROW)
def test_the_attributions_sum_to_the_change(method, seed, x, baseline):
    """Completeness: they add up to the output's change from the baseline, and `gap` says so."""
    net = smooth(seed)
    here, there = torch.tensor([x]), torch.tensor([baseline])
    found = maas.Model(net).explain(here, method=method, baseline=there, **SUMMING[method])
    change = (net(here) - net(there)).item()
    total = float(found.attributions.double().sum())
    assert abs(total - change) < 1e-3
    assert found.gap == pytest.approx(abs(total - change), abs=1e-5)


class Even(nn.Module):
    """Inputs 0 and 1 come in alike, and input 2 not at all."""

    def __init__(self, seed):
        super().__init__()
        self.inner = smooth(seed)

    def forward(self, x):
        both = (x[:, :1] + x[:, 1:2]) / 2
        return self.inner(torch.cat([both, both, 0 * x[:, 2:3], x[:, 3:]], 1))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("integrated_gradients", {"steps": 8}),
        ("feature_ablation", {}),
        ("saliency", {"absolute": False}),
        ("deep_lift", {}),
        ("shapley_sampling", {"samples": 200}),
    ],
)
@FAST
@given(seed=st.integers(0, 1000), x=ROW)
def test_like_inputs_count_alike_and_idle_ones_for_nothing(method, options, seed, x):
    """Symmetry and the dummy axiom: equal inputs in equal roles, and an input that is not used."""
    x[1] = x[0]
    found = maas.Model(Even(seed)).explain(torch.tensor([x]), method=method, **options)
    first, second, idle = found.attributions[0, :3].tolist()
    # Shapley values are means over sampled orders, equal only in the limit.
    assert first == pytest.approx(second, abs=0.1 if method == "shapley_sampling" else 1e-5)
    assert idle == pytest.approx(0, abs=1e-7)


@FAST
@given(seed=st.integers(0, 1000), x=ROW, place=st.integers(0, WIDE - 1))
def test_one_difference_that_matters_counts(seed, x, place):
    """Sensitivity: where input and baseline differ in one number, that has the whole change."""
    net = smooth(seed)
    here = torch.tensor([x])
    there = here.clone()
    there[0, place] += 1.0
    found = maas.Model(net).explain(here, baseline=there, steps=64)
    change = (net(here) - net(there)).item()
    others = found.attributions[0].tolist()
    assert others.pop(place) == pytest.approx(change, abs=1e-4)
    assert others == [0.0] * (WIDE - 1)


def test_conductance_passes_everything_on():
    """What flows through a layer that nothing goes round adds up to the whole change."""
    net = smooth(4)
    x = torch.linspace(-1, 1, WIDE)[None]
    found = maas.Model(net).explain(x, method="conductance", at="1", steps=256)
    assert float(found.attributions.sum()) == pytest.approx(
        (net(x) - net(torch.zeros_like(x))).item(), abs=1e-3
    )
    assert found.gap < 1e-3
