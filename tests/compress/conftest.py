"""What the tests of compression share: a classifier trained on real digits, in about a second."""

import contextlib
import copy
import itertools

import pytest
import torch
from torch import nn

import maas


@contextlib.contextmanager
def one_thread():
    """torch on one thread, for what is small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trained(widths, inputs, targets, *, epochs=20, seed=0):
    """A plain network, trained as anybody would; threads that wait for each other only cost."""
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(seed)
        layers = []
        for below, above in itertools.pairwise(widths):
            layers += [nn.Linear(below, above), nn.ReLU()]
        net = nn.Sequential(*layers[:-1])
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(inputs)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(inputs[rows]), targets[rows]).backward()
                optimizer.step()
    return net.eval()


@pytest.fixture
def single():
    """One thread for the test: what it trains is small."""
    with one_thread():
        yield


@pytest.fixture(scope="session")
def digits():
    """Inputs and targets: 1,200 to train on, 597 to check with."""
    sets = pytest.importorskip("sklearn.datasets")
    inputs, targets = sets.load_digits(return_X_y=True)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(inputs, dtype=torch.float32)[order] / 16
    targets = torch.tensor(targets)[order]
    return (inputs[:1200], targets[:1200]), (inputs[1200:], targets[1200:])


@pytest.fixture(scope="session")
def _net(digits):
    return trained((64, 256, 256, 10), *digits[0])


@pytest.fixture
def net(_net):
    """85,002 parameters that know digits; a copy for each test."""
    return copy.deepcopy(_net)


@pytest.fixture
def model(net):
    return maas.Model(net, name="digits")


@pytest.fixture
def check(digits):
    return digits[1]
