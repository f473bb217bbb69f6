"""Training on both rungs and in every place leaves what bare torch leaves, bit for bit."""

import pytest
import torch
from torch import nn

import maas
from maas.testing.equality import difference

SGD = ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3})
ADAM = ("Adam", {"lr": 0.01})
FUSED = ("Adam", {"lr": 0.01, "fused": True})
ADAMW = ("AdamW", {"lr": 0.01, "amsgrad": True})
CHOICES = {"SGD": SGD, "Adam": ADAM, "fused Adam": FUSED, "AdamW": ADAMW}
FEW = pytest.mark.maas(places=["here", "http"])
RUNGS = {
    "mirror": (torch.optim, nn.utils.clip_grad_norm_),
    "resident": (maas.optim, maas.optim.clip_grad_norm_),
}


def _schedule(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=500)


def _steps(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)


def _compared(training, model, rung, choice, steps):
    name, options = CHOICES[choice]
    schedule = _schedule if choice == "SGD" else _steps
    kind, clip = RUNGS[rung]
    own = training.net()
    wanted = training.looped(
        own,
        getattr(torch.optim, name)(own.parameters(), **options),
        steps=steps,
        clip=nn.utils.clip_grad_norm_,
        schedule=schedule,
    )
    given = training.looped(
        model,
        getattr(kind, name)(model.parameters(), **options),
        steps=steps,
        clip=clip,
        schedule=schedule,
    )
    assert difference(given, wanted) is None


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("rung", RUNGS)
def test_a_loop_is_bare_torchs(maas_connect, training, rung, choice):
    """Losses, weights, buffers and draws after 8 steps with clipping and a schedule are torch's."""
    _compared(training, maas_connect(training.net()), rung, choice, 8)


@pytest.mark.maas(places=["http"])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.long
def test_a_long_loop_is_bare_torchs(maas_connect, training, rung, choice):
    """The same after 200 steps, through a socket."""
    _compared(training, maas_connect(training.net()), rung, choice, 200)


@FEW
def test_the_mode_is_the_handles(maas_connect, training):
    """`eval()` and `train()` between steps give torch's losses, weights and buffers."""
    target, own = training.net(), training.net()
    model = maas_connect(target)
    found = []
    for run in (model, own):
        optimizer = torch.optim.SGD(run.parameters(), lr=0.1)
        torch.manual_seed(1)
        losses = []
        for step in range(6):
            x = torch.randn(4, 1, 6, 6)
            run.train(step % 2 == 0)
            optimizer.zero_grad()
            loss = run(x).square().mean()
            loss.backward()
            optimizer.step()
            run.eval()
            with torch.no_grad():
                losses += [loss.item(), run(x).sum().item()]
        found.append((losses, dict(run.state_dict())))
    assert difference(*found) is None


@FEW
@pytest.mark.parametrize("edit", ["data", "no_grad", "nan", "minus zero", "averaged", "copied"])
def test_any_edit_of_a_mirror_is_seen(maas_connect, training, edit):
    """What is written into a parameter by whatever way is what the next call computes with."""

    def changed(parameter):
        match edit:
            case "data":
                parameter.data.add_(0.5)
            case "no_grad":
                with torch.no_grad():
                    parameter.mul_(2)
            case "nan":
                parameter.data[0, 0] = float("nan")
            case "minus zero":
                parameter.data.zero_().neg_()
            case "averaged":
                parameter.data = parameter.data.lerp(torch.ones_like(parameter), 0.1)
            case "copied":
                parameter.detach().numpy()[...] = 0.25

    model, own = maas_connect(training.net()).eval(), training.net().eval()
    x = torch.randn(2, 1, 6, 6)
    found = []
    for run in (model, own):
        changed(dict(run.named_parameters())["5.weight"])
        with torch.no_grad():
            found.append((run(x), dict(run.state_dict())))
    assert difference(*found) is None


@FEW
def test_lbfgs_and_an_average(maas_connect, training):
    """An optimizer with a closure, and an average of weights, work on a mirror as on the module."""
    found = []
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    for run in (maas_connect(training.net()).eval(), training.net().eval()):
        optimizer = torch.optim.LBFGS(run.parameters(), max_iter=4)
        average = torch.zeros(())

        def closure(run=run, optimizer=optimizer):
            optimizer.zero_grad()
            loss = run(x).square().mean()
            loss.backward()
            return loss

        for _ in range(3):
            loss = optimizer.step(closure)
            average = 0.9 * average + sum(each.detach().sum() for each in run.parameters())
        found.append((loss.item(), average, dict(run.state_dict())))
    assert difference(*found) is None


@FEW
@pytest.mark.parametrize("rung", RUNGS)
def test_frozen_parameters(maas_connect, training, rung):
    """A parameter that was frozen in the served net, or is frozen here, keeps its weights."""
    target, own = training.net(), training.net()
    for module in (target, own):
        module[0].weight.requires_grad_(False)
    kind, _ = RUNGS[rung]
    found = []
    for run, optimizers in ((maas_connect(target), kind), (own, torch.optim)):
        if rung == "mirror":
            dict(run.named_parameters())["5.bias"].requires_grad_(False)
        optimizer = optimizers.SGD(run.parameters(), lr=0.5)
        torch.manual_seed(4)
        for _ in range(2):
            optimizer.zero_grad()
            run(torch.randn(4, 1, 6, 6)).square().mean().backward()
            optimizer.step()
        found.append(dict(run.state_dict()))
    assert difference(*found) is None


@FEW
@pytest.mark.parametrize("rung", RUNGS)
def test_gradients_add_up(maas_connect, training, rung):
    """Two backward runs before a step, and two calls in one graph, add their gradients as torch."""
    kind, _ = RUNGS[rung]
    found = []
    for run, optimizers in ((maas_connect(training.net()), kind), (training.net(), torch.optim)):
        optimizer = optimizers.SGD(run.parameters(), lr=0.1)
        torch.manual_seed(4)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=False)
            run(torch.randn(4, 1, 6, 6)).square().mean().backward()
            (run(torch.randn(4, 1, 6, 6)).sum() + run(torch.randn(4, 1, 6, 6)).mean()).backward()
            optimizer.step()
        found.append(dict(run.state_dict()))
    assert difference(*found) is None


@FEW
@pytest.mark.parametrize("rung", RUNGS)
def test_an_inputs_gradient_leaves_the_weights_alone(maas_connect, training, rung):
    """`torch.autograd.grad` for an input, amid training, adds nothing to the weights' gradients."""
    kind, _ = RUNGS[rung]
    found = []
    for run, optimizers in ((maas_connect(training.net()), kind), (training.net(), torch.optim)):
        optimizer = optimizers.SGD(run.parameters(), lr=0.1)
        torch.manual_seed(4)
        optimizer.zero_grad()
        x = torch.randn(4, 1, 6, 6).requires_grad_()
        loss = run(x).square().mean()
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
        loss.backward()
        optimizer.step()
        found.append((gradient, x.grad, dict(run.state_dict())))
    assert difference(*found) is None


class Tied(nn.Module):
    """One weight under two names, and a buffer that `state_dict` leaves out."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.there = nn.Linear(3, 3)
        self.back = nn.Linear(3, 3)
        self.back.weight = self.there.weight
        self.back.bias = nn.Parameter(torch.zeros(3))
        self.register_buffer("hidden", torch.ones(3), persistent=False)

    def forward(self, x):
        return self.back(torch.tanh(self.there(x))) * self.hidden


@FEW
@pytest.mark.parametrize("rung", RUNGS)
def test_tied_weights(maas_connect, rung):
    """A weight under two names is one parameter, trained as one, and shown under both names."""
    kind, _ = RUNGS[rung]
    found = []
    for run, optimizers in ((maas_connect(Tied()), kind), (Tied(), torch.optim)):
        optimizer = optimizers.Adam(run.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            run(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
        found.append((list(run.state_dict()), dict(run.state_dict())))
    assert difference(*found) is None
    assert "hidden" not in found[0][0]


class Twice(nn.Module):
    """Two parameters whose gradients torch makes of one and the same memory."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * (self.one + self.two)


@FEW
def test_gradients_do_not_share_memory(maas_connect):
    """Clipping one parameter's gradient leaves another's alone, though they came out equal."""
    found = []
    for run, optimizers in ((maas_connect(Twice()), maas.optim), (Twice(), torch.optim)):
        optimizer = optimizers.SGD(run.parameters(), lr=0.1, momentum=0.5)
        clip = maas.optim.clip_grad_value_
        for _ in range(3):
            optimizer.zero_grad()
            run(torch.arange(3.0)).sum().backward()
            clip(run.parameters(), 0.5)
            clip(run.parameters(), 0.4)
            optimizer.step()
        found.append(dict(run.state_dict()))
    assert difference(*found) is None


@FEW
def test_groups_have_options_of_their_own(maas_connect, training):
    """A resident optimizer takes groups by name, each with its own rate and decay."""
    found = []
    for run, optimizers in (
        (maas_connect(training.net()), maas.optim),
        (training.net(), torch.optim),
    ):
        if optimizers is maas.optim:
            list(map(str, (run.parameters(),)))  # naming them does not fetch them
            maas.optim.SGD(run.parameters(), lr=0)  # the rung, before they are named
        named = list(run.named_parameters())
        optimizer = optimizers.SGD(
            [
                {"params": [p for n, p in named if n.endswith("weight")], "weight_decay": 0.1},
                {"params": [p for n, p in named if n.endswith("bias")], "lr": 0.5},
            ],
            lr=0.1,
        )
        torch.manual_seed(4)
        for _ in range(3):
            optimizer.zero_grad()
            run(torch.randn(4, 1, 6, 6)).square().mean().backward()
            optimizer.param_groups[1]["lr"] *= 0.5
            optimizer.step()
        found.append(dict(run.state_dict()))
    assert difference(*found) is None


@FEW
@pytest.mark.parametrize("rung", RUNGS)
def test_an_optimizers_state_moves_on(maas_connect, training, rung):
    """`state_dict` and `load_state_dict` of model and optimizer carry training elsewhere."""
    kind, _ = RUNGS[rung]
    model, other = maas_connect(training.net()), maas_connect(training.net(seed=9))
    own = training.net()
    first = kind.Adam(model.parameters(), lr=0.01)
    wanted = torch.optim.Adam(own.parameters(), lr=0.01)
    training.looped(model, first, steps=3)
    training.looped(own, wanted, steps=3)
    assert difference(first.state_dict()["state"], wanted.state_dict()["state"]) is None
    other.load_state_dict(model.state_dict())
    second = kind.Adam(other.parameters(), lr=0.5)
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["lr"] == 0.01
    given = training.looped(other, second, steps=3)
    assert difference(given, training.looped(own, wanted, steps=3)) is None
