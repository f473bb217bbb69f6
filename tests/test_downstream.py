"""A project that uses maas and tests itself in every place, with what maas ships."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MODULE = """
import dataclasses
import maas, torch

@maas.register
@dataclasses.dataclass
class Order:
    item: str
    count: int = 1

@maas.register
class SoldOut(Exception):
    pass

def price(order: Order, *, discount: float = 0.0) -> dict[str, float]:
    if order.count > 2**62:
        raise SoldOut(order.item)
    return {order.item: order.count * (1 - discount)}

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x).relu()
"""

TESTS = """
import maas, pytest, torch
from hypothesis import given
from maas.testing import assert_congruent, calls
from shop import Net, Order, SoldOut, price

net = Net()

def test_shape(maas_connect):
    assert maas_connect(net)(torch.ones(8, 3)).shape == (8, 2)

@given(calls(price))
def test_same(maas_connect, call):
    assert_congruent(price, maas_connect(price), call)

def test_sold_out(maas_connect):
    with pytest.raises(SoldOut, match="tea"):
        maas_connect(price)(Order("tea", 2**63))

@pytest.mark.maas(places=["here", "wire"])
def test_marked(maas_connect):
    assert maas_connect.place in ("here", "wire")
"""

DIFFERENT = """
import maas
from maas.testing import assert_congruent, calls
from hypothesis import given
import shop

def served(order: shop.Order, *, discount: float = 0.0) -> dict[str, float]:
    return {order.item: order.count * (1 - discount) + 1e-12}

@given(calls(shop.price))
def test_same(maas_connect, call):
    target = shop.price if maas_connect.place == "here" else served
    assert_congruent(shop.price, maas_connect(target), call)
"""


def _pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    installed = importlib.metadata.entry_points(group="pytest11", name="maas")
    plugin = [] if installed else ["-p", "maas.testing.plugin"]
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *plugin, *options]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture
def project(tmp_path):
    (tmp_path / "shop.py").write_text(MODULE)
    # A file of its own keeps this project's settings away.
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def test_a_downstream_project_passes_in_every_place(project):
    """A project's tests pass five times, without a setting of pytest or Hypothesis; a server that
    computes something else fails everywhere but here, and says what differs.
    """
    (project / "test_shop.py").write_text(TESTS)
    (project / "test_different.py").write_text(DIFFERENT)
    run = _pytest(project)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "4 failed, 18 passed" in run.stdout
    assert run.stdout.count("\nFAILED test_different.py") == 4
    for place in ("wire", "asgi", "http://127.0.0.1"):
        assert f"not congruent at {place}" in run.stdout


def test_the_places_can_be_chosen(project):
    """`--maas-places` runs the tests in those places only, and refuses names it does not know."""
    (project / "test_shop.py").write_text(TESTS)
    run = _pytest(project, "--maas-places=here,http", "-k", "shape or marked")
    assert "3 passed" in run.stdout, run.stdout + run.stderr
    run = _pytest(project, "--maas-places=here,moon")
    assert run.returncode == 4, run.stdout + run.stderr
    assert "--maas-places wants places of here, wire, asgi, unix, http, workers; got ['moon']" in (
        run.stdout + run.stderr
    )


def test_worker_processes_are_a_place_too(project):
    """Tests run through a worker if it finds the target by itself, and else say why not."""
    (project / "test_shop.py").write_text(TESTS)
    run = _pytest(project, "--maas-places=workers", "-k", "shape or sold", "-rs")
    assert "1 passed, 1 skipped" in run.stdout, run.stdout + run.stderr
    assert "a worker finds no Net that a test has made" in run.stdout
