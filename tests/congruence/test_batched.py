"""Calls that share a run are answered in every place as calls alone are."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import maas
from maas.testing import difference

PATIENCE = 30.0
MOST = 16


class Pair(nn.Module):
    """Dicts and tuples in and out, a parameter beside them, and an integer that must not round."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, inputs: dict[str, Any], scale: float = 1.0) -> Any:
        y = self.layer(inputs["x"]) * scale
        return {"y": y, "best": (y.argmax(-1), inputs["id"] + 1)}


def network(name):
    torch.manual_seed(0)
    made = {
        "mlp": lambda: nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 1)),
        "float64": lambda: nn.Linear(20, 7).double(),
        "bfloat16": lambda: nn.Linear(20, 7).bfloat16(),
        "convolution": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()),
        "embedding": lambda: nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(40, 3)),
        "pair": Pair,
    }
    return made[name]().eval()


def argument(name, seed, kind):
    generator = torch.Generator().manual_seed(seed)
    rows = 1 + seed % 2

    def numbers(*shape, dtype=torch.float32):
        return torch.randn(rows, *shape, generator=generator).to(dtype)

    made = {
        "mlp": lambda: numbers(100),
        "float64": lambda: numbers(20, dtype=torch.float64),
        "bfloat16": lambda: numbers(20, dtype=torch.bfloat16),
        "convolution": lambda: numbers(3, 8, 8),
        "embedding": lambda: torch.randint(0, 50, (rows, 5), generator=generator),
        "pair": lambda: {"x": numbers(6), "id": torch.full((rows,), 2**40 + seed)},
    }
    value = made[name]()
    return value.numpy() if kind == "numpy" else value


def crowd(model, calls):
    """The jobs of calls made at once, until one batch at least was shared."""
    for _ in range(50):
        with torch.no_grad():
            jobs = [model.submit(*call) for call in calls]
            for job in jobs:
                job.result(PATIENCE)
        if any(job.info.batch_size > 1 for job in jobs):
            return jobs
    return pytest.fail("no run was shared in 50 tries")


CASES = [
    *((name, "torch") for name in ("mlp", "float64", "bfloat16", "convolution", "embedding")),
    ("mlp", "numpy"),
    ("pair", "torch"),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_answers_are_those_of_the_bare_module(maas_connect, name, kind):
    """In company each answer is that of the bare module alone: containers, dtypes and shapes
    exactly, numbers within rounding.
    """
    net = network(name)
    model = maas_connect(net, batching=SHARED)
    given = [argument(name, seed, kind) for seed in range(24)]
    for job, x in zip(crowd(model, [(x,) for x in given]), given, strict=True):
        with torch.no_grad():
            wanted = net(torch.from_numpy(x) if kind == "numpy" else x)
        assert_close(job.result(), wanted.numpy() if kind == "numpy" else wanted)


def assert_close(answer, wanted):
    assert type(answer) is type(wanted)
    if isinstance(answer, dict):
        assert list(answer) == list(wanted)
        answer, wanted = tuple(answer.values()), tuple(wanted.values())
    if isinstance(answer, tuple):
        for left, right in zip(answer, wanted, strict=True):
            assert_close(left, right)
    elif isinstance(answer, Tensor):
        torch.testing.assert_close(
            answer, wanted, rtol=1e-2 if answer.dtype is torch.bfloat16 else 1e-4, atol=1e-5
        )
    else:
        np.testing.assert_allclose(answer, wanted, rtol=1e-4, atol=1e-5)


# A process that stands still for some seconds, on a busy machine, is not to be refused for that.
SHARED = maas.Batching(MOST, max_age=PATIENCE)
EXACT = maas.Batching(MOST, max_age=PATIENCE, invariant=True)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_invariant_bits_are_those_of_the_same_call_alone(maas_connect, name, kind):
    """With invariant=True each answer in company has the bits of the same call alone, and of the
    same call here.
    """
    net = network(name)
    here = maas.Model(net, batching=EXACT)
    model = maas_connect(net, batching=EXACT)
    given = [argument(name, seed, kind) for seed in range(24)]
    with torch.no_grad():
        alone = [model(x) for x in given]
        local = [here(x) for x in given]
        if here.info.details["batching"]["__call__"]["alone"]:
            jobs = [model.submit(x) for x in given]  # no two sizes here have equal bits
        else:
            jobs = crowd(model, [(x,) for x in given])
    for job, first, second in zip(jobs, alone, local, strict=True):
        assert difference(first, job.result(PATIENCE)) is None
        assert difference(second, job.result()) is None
    here.close()
