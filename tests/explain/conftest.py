"""What the tests of explanations share: a small net, and Captum asked for the same directly."""

import warnings
from types import SimpleNamespace

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

STEPS = 16
SAMPLES = 12
BATCH = 64
ROWS = 3


def net(seed=3):
    """Two hidden layers of ReLU over six numbers; in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
        ).eval()


X = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(5))
BASELINE = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(6))
A = captum.attr
PATH = {"n_steps": STEPS, "internal_batch_size": None}
MANY = {"perturbations_per_eval": BATCH // ROWS}
PLAIN = {"target": 2}
CHANGE = {"target": 2, "baselines": BASELINE}

# For each method: what `model.explain` is told, and what Captum is asked for.
CASES = {
    "saliency": ({}, lambda m: A.Saliency(m).attribute(X, **PLAIN)),
    "input_x_gradient": ({}, lambda m: A.InputXGradient(m).attribute(X, **PLAIN)),
    "integrated_gradients": (
        {"steps": STEPS},
        lambda m: A.IntegratedGradients(m).attribute(X, **CHANGE, **PATH),
    ),
    "smooth_grad": (
        {"samples": SAMPLES, "noise": 0.2},
        lambda m: A.NoiseTunnel(A.Saliency(m)).attribute(
            X, **PLAIN, nt_samples=SAMPLES, nt_samples_batch_size=BATCH // ROWS, stdevs=0.2
        ),
    ),
    "gradient_shap": (
        {"samples": SAMPLES, "noise": 0.1},
        lambda m: A.GradientShap(m).attribute(X, n_samples=SAMPLES, stdevs=0.1, **CHANGE),
    ),
    "deep_lift": ({}, lambda m: A.DeepLift(m).attribute(X, **CHANGE)),
    "lrp": ({}, lambda m: A.LRP(m).attribute(X, **PLAIN)),
    "guided_backprop": ({}, lambda m: A.GuidedBackprop(m).attribute(X, **PLAIN)),
    "occlusion": (
        {"window": 2, "stride": 2},
        lambda m: A.Occlusion(m).attribute(X, (2,), strides=(2,), **CHANGE, **MANY),
    ),
    "feature_ablation": ({}, lambda m: A.FeatureAblation(m).attribute(X, **CHANGE, **MANY)),
    "shapley_sampling": (
        {"samples": SAMPLES},
        lambda m: A.ShapleyValueSampling(m).attribute(X, n_samples=SAMPLES, **CHANGE, **MANY),
    ),
    "kernel_shap": (
        {"samples": SAMPLES},
        lambda m: A.KernelShap(m).attribute(
            X, n_samples=SAMPLES, perturbations_per_eval=BATCH, **CHANGE
        ),
    ),
    "lime": (
        {"samples": SAMPLES},
        lambda m: A.Lime(m).attribute(X, n_samples=SAMPLES, perturbations_per_eval=BATCH, **CHANGE),
    ),
    "activation": ({"at": "2"}, lambda m: A.LayerActivation(m, m[2]).attribute(X)),
    "conductance": (
        {"at": "2", "steps": STEPS},
        lambda m: A.LayerConductance(m, m[2]).attribute(X, **CHANGE, **PATH),
    ),
}
# The same at a layer, where a method can be asked either way.
LAYERED = {
    "integrated_gradients": (
        {"at": "2", "steps": STEPS},
        lambda m: A.LayerIntegratedGradients(m, m[2]).attribute(X, **CHANGE, **PATH),
    ),
    "input_x_gradient": (
        {"at": "2"},
        lambda m: A.LayerGradientXActivation(m, m[2]).attribute(X, **PLAIN),
    ),
    "deep_lift": ({"at": "2"}, lambda m: A.LayerDeepLift(m, m[2]).attribute(X, **CHANGE)),
    "lrp": ({"at": "2"}, lambda m: A.LayerLRP(m, m[2]).attribute(X, **PLAIN)),
}
_WITHOUT_BASELINE = {"saliency", "input_x_gradient", "smooth_grad", "lrp", "guided_backprop"}


def told(method, cases=CASES):
    """The arguments of `model.explain` for a case."""
    options, _ = cases[method]
    batch = {"batch_size": BATCH} if set(options) & {"steps", "samples", "window"} else {}
    if method == "feature_ablation":
        batch = {"batch_size": BATCH}
    target = {} if method == "activation" else {"target": 2}
    baseline = {} if method in {*_WITHOUT_BASELINE, "activation"} else {"baseline": BASELINE}
    return {"method": method, **target, **baseline, **options, **batch}


def direct(method, cases=CASES, module=None):
    """What Captum gives, asked directly, with its generators as `seed=0` sets them."""
    state = np.random.get_state()  # noqa: NPY002 - it must not be moved
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - it must not be moved
        found = cases[method][1](net() if module is None else module)
    np.random.set_state(state)  # noqa: NPY002 - it must not be moved
    return found[0] if isinstance(found, tuple) else found


@pytest.fixture(scope="session")
def explaining():
    """The net, its input, and each method with what Captum gives for it."""
    return SimpleNamespace(
        net=net, x=X, baseline=BASELINE, cases=CASES, layered=LAYERED, told=told, direct=direct
    )
