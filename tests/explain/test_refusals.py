"""What cannot be explained is refused before the model runs, in the same words everywhere."""

import pytest
import torch
from torch import nn

import maas
from maas.errors import LimitExceeded, Unsupported

FEW = pytest.mark.maas(places=["here", "http"])


class Twice(nn.Module):
    """Uses one ReLU at two places."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)
        self.spare = nn.Linear(1, 1)

    def forward(self, x):
        return self.last(self.act(self.first(self.act(x))))


class Chosen(nn.Module):
    """Gives the number of the largest input: no gradient."""

    def forward(self, x):
        return x.argmax(1).float()


class Two(nn.Module):
    """Gives two arrays."""

    def forward(self, x):
        return x, x


PLAIN = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
GELU = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4)).eval()
NORMED = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)).eval()
TWICE = Twice().eval()
X = torch.ones(2, 6)

# What is asked of which module, the error's class, and words of its message.
REFUSED = {
    "method": (PLAIN, {"method": "integrated_gradient"}, ValueError, "did you mean 'integrated_g"),
    "method, far": (PLAIN, {"method": "magic"}, ValueError, "there are: activation, conductance"),
    "option": (PLAIN, {"step": 5}, TypeError, "did you mean 'steps'"),
    "option of another": (PLAIN, {"method": "saliency", "steps": 5}, TypeError, "of saliency"),
    "steps": (PLAIN, {"steps": 5.0}, ValueError, "wants int"),
    "steps, few": (PLAIN, {"steps": 1}, ValueError, "2 to 4096"),
    "steps, many": (PLAIN, {"steps": 10**9}, ValueError, "2 to 4096"),
    "rule": (PLAIN, {"rule": "gausslegender"}, ValueError, "did you mean 'gausslegendre'"),
    "samples": (PLAIN, {"method": "lime", "samples": 0}, ValueError, "1 to 65536"),
    "layer": (PLAIN, {"method": "activation", "at": "02", "target": None}, ValueError, "no layer"),
    "no layer": (PLAIN, {"method": "conductance"}, ValueError, "say which with at="),
    "a layer too much": (PLAIN, {"method": "saliency", "at": "0"}, ValueError, "drop at='0'"),
    "idle layer": (TWICE, {"at": "spare", "method": "activation", "target": None}, Unsupported,
                   "does not run"),
    "target": (PLAIN, {"target": 4}, ValueError, "out of range: there are 4 numbers, 0 to 3"),
    "target below": (PLAIN, {"target": -1}, ValueError, "out of range"),
    "target none": (PLAIN, {"target": None}, ValueError, "4 numbers, 0 to 3"),
    "target deep": (PLAIN, {"target": (1, 2)}, ValueError, "4 numbers, 0 to 3"),
    "target short": (PLAIN, {"target": [1]}, ValueError, "1 indices for 2 rows"),
    "target of words": (PLAIN, {"target": "cat"}, ValueError, "got 'cat'"),
    "target of a layer": (PLAIN, {"method": "activation", "at": "0"}, ValueError, "drop target"),
    "no gradients": (Chosen(), {"target": None}, Unsupported, "feature_ablation"),
    "two answers": (Two(), {}, Unsupported, "gives one array"),
    "deep_lift's layer": (GELU, {"method": "deep_lift"}, Unsupported, "layer '1', a GELU"),
    "lrp's layer": (NORMED, {"method": "lrp"}, Unsupported, "layer '1', a LayerNorm"),
    "no ReLU": (GELU, {"method": "guided_backprop"}, Unsupported, "has none"),
    "twice": (TWICE, {"method": "deep_lift"}, Unsupported, "'act' runs 2 times"),
    "baseline": (PLAIN, {"baseline": torch.zeros(3, 6)}, ValueError, "does not fit"),
    "baseline of words": (PLAIN, {"baseline": "black"}, ValueError, "number or an array"),
    "baselines": (PLAIN, {"baseline": [0, 0]}, ValueError, "2 parts for 1"),
    "groups": (PLAIN, {"method": "lime", "groups": torch.zeros(5, dtype=torch.long)}, ValueError,
               "shape of one row"),
    "window": (PLAIN, {"method": "occlusion", "window": (2, 2)}, ValueError, "window"),
    "window, wide": (PLAIN, {"method": "occlusion", "window": (7,)}, ValueError, "window"),
    "stride, wide": (PLAIN, {"method": "occlusion", "window": 2, "stride": 3}, ValueError,
                     "stride"),
    "one feature": (PLAIN, {"method": "kernel_shap", "groups": torch.zeros(6, dtype=torch.long)},
                    ValueError, "two"),
    "cost": (PLAIN, {"method": "shapley_sampling", "samples": 65_536, "batch_size": 1},
             LimitExceeded, "262144 are allowed"),
    "seed": (PLAIN, {"seed": -1}, ValueError, "seed="),
    "way": (PLAIN, {"through": "call"}, ValueError, "through="),
    "hooks over calls": (PLAIN, {"method": "lrp", "through": "calls"}, Unsupported, "its calls"),
}  # fmt: skip


@FEW
@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused(maas_connect, case):
    """Each mistake is an error of its class, which says what was given and what there is."""
    target, told, error, words = REFUSED[case]
    with pytest.raises(error) as caught:
        maas_connect(target).explain(X, **{"target": 1, **told})
    assert words in str(caught.value)


@FEW
def test_arguments_that_do_not_fit_are_refused_as_of_a_call(maas_connect):
    """What the model would not take is no input to explain; nor are rows that are not there."""
    model = maas_connect(PLAIN)
    with pytest.raises(maas.SignatureError):
        model.explain(X, X, target=1)
    with pytest.raises(ValueError, match="at least one"):
        model.explain(torch.ones(0, 6), target=1)
    with pytest.raises(Unsupported, match="there is no"):
        model.explain("text", target=1)
    with pytest.raises(RuntimeError):
        model.explain(torch.ones(2, 7), target=1)


class Uncopied(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)
        self.held = self.layer.weight * 2

    def forward(self, x):
        return self.layer(x)


@FEW
def test_a_module_that_cannot_be_copied_is_explained_by_its_calls(maas_connect):
    """The error says how else."""
    model = maas_connect(Uncopied())
    with pytest.raises(Unsupported, match="through='calls'"):
        model.explain(X, target=1)
    assert model.explain(X, target=1, through="calls").gap < 1e-5


def test_nothing_ran_before_it_was_refused():
    """What can be seen without the model is refused without running it."""
    runs = []

    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GELU()

        def forward(self, x):
            runs.append(x.shape)
            return self.layer(x)

    model = maas.Model(Seen())
    for told in (
        {"method": "magic"}, {"steps": 0}, {"step": 3}, {"at": "layers"}, {"method": "deep_lift"},
        {"method": "shapley_sampling", "samples": 65_536}, {"baseline": torch.ones(7)},
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError, Unsupported)):
            model.explain(torch.ones(9, 6), target=0, **told)
    assert runs == []
