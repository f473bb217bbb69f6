"""What the tests of training share: small nets, a loop, and its outcome."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import maas
from maas.server.guard import GRANTS


def net(seed=3):
    """Convolution, BatchNorm, Dropout and Linear: every kind of state a small net can have."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(3 * 16, 5),
        )


def looped(model, optimizer, *, steps, clip=None, schedule=None):
    """Losses, weights and buffers, and what is drawn afterwards: all that a loop leaves behind."""
    torch.manual_seed(0)
    scheduler = schedule(optimizer) if schedule else None
    losses = []
    for _ in range(steps):
        x, target = torch.randn(4, 1, 6, 6), torch.randn(4, 5)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        if clip:
            clip(model.parameters(), 0.5)
        optimizer.step()
        if scheduler:
            scheduler.step()
        losses.append(loss.item())
    return losses, dict(model.state_dict()), torch.rand(3)


@pytest.fixture(scope="session")
def training():
    """The net, the loop, and a server that grants training of one."""
    return SimpleNamespace(net=net, looped=looped)


@pytest.fixture
def server():
    """A server of one net that grants everything, and what its weights and buffers were."""
    target = net()
    made = maas.Server({"net": target}, allow=GRANTS)
    before = copy.deepcopy(target.state_dict())
    return SimpleNamespace(
        server=made,
        net=target,
        untouched=lambda: all(
            torch.equal(value, target.state_dict()[name]) for name, value in before.items()
        ),
        copies=lambda: made.handler._services._service("_train").table,
    )
