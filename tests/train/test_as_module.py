"""`model.as_module()` where tools and programs of others want a module of torch's."""

import copy

import captum.attr
import captum.robust
import pytest
import torch
from torch import nn

import maas
from maas.server.guard import GRANTS

FEW = pytest.mark.maas(places=["here", "wire", "http"])


def classifier(wide=24, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(36, wide), nn.ReLU(), nn.Linear(wide, 5)
        ).eval()


NET = classifier()
X = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(2))
Y = NET(X).argmax(1).detach()


def _attributed(module):
    """Captum's methods that ask for gradients of the input, and for values."""
    told = {"target": 1}
    x = X.clone().requires_grad_()
    torch.manual_seed(0)
    yield captum.attr.Saliency(module).attribute(x, **told)
    yield captum.attr.InputXGradient(module).attribute(x, **told)
    yield captum.attr.IntegratedGradients(module).attribute(x, n_steps=16, **told)
    smooth = captum.attr.NoiseTunnel(captum.attr.Saliency(module))
    yield smooth.attribute(x, nt_samples=4, stdevs=0.1, **told)
    yield captum.attr.FeatureAblation(module).attribute(X, perturbations_per_eval=36, **told)


@FEW
def test_captums_methods_run_unchanged(maas_connect):
    """What Captum gives for the module of a model has the bits of what it gives for the net."""
    module = maas_connect(NET).as_module().eval()
    pairs = zip(list(_attributed(module)), list(_attributed(NET)), strict=True)
    for found, wanted in pairs:
        assert torch.equal(found, wanted)


@FEW
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already")
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_pgd_attack_runs_unchanged(maas_connect, norm):
    """Projected gradient descent (Captum's) finds the same images against a model elsewhere."""
    found = [
        captum.robust.PGD(module, lower_bound=0, upper_bound=1).perturb(
            X, radius=0.3, step_size=0.05, step_num=10, target=Y, norm=norm
        )
        for module in (maas_connect(NET).as_module().eval(), NET)
    ]
    assert torch.equal(*found)
    if norm == "Linf":
        assert (found[0] - X).abs().max() <= 0.3 + 1e-6
        assert (NET(found[0]).argmax(1) != Y).any()


def test_a_remote_teacher_distils_into_a_local_student():
    """Plain torch code has a student here learn what a teacher elsewhere gives, and gradients
    of the student alone; the student is the one that a teacher here would have made.
    """
    server = maas.Server({"teacher": NET}, allow=GRANTS - {"train", "explain", "compress"})
    students = []
    for teacher in (maas.connect(server), NET):
        student = classifier(wide=8, seed=1)
        optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
        images = torch.Generator().manual_seed(3)
        first = last = None
        for _ in range(40):
            x = torch.rand(32, 1, 6, 6, generator=images)
            with torch.no_grad():
                soft = torch.softmax(teacher(x) / 2.0, 1)
            optimizer.zero_grad()
            loss = nn.functional.kl_div(
                torch.log_softmax(student(x) / 2.0, 1), soft, reduction="batchmean"
            )
            loss.backward()
            optimizer.step()
            first, last = first or loss.item(), loss.item()
        assert last < 0.2 * first
        students.append(copy.deepcopy(student.state_dict()))
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())
