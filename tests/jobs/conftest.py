"""What the tests of jobs share: a net with every kind of state, its rows, and a small disk."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn


def net(seed=3):
    """BatchNorm and dropout: buffers move, and draws are made."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1)
        )


def rows(count=256, seed=7):
    """Inputs, and their sum."""
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return x, x.sum(1, keepdim=True)


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """The nets of jobs are small."""


@pytest.fixture
def training():
    """The net and its rows."""
    return SimpleNamespace(net=net, rows=rows)


@pytest.fixture
def small_disk(tmp_path, lacking):
    """A folder on a disk of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        lacking("mount", f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def short_folder():
    """A folder for a socket, whose path has 107 characters at most."""
    folder = tempfile.mkdtemp(prefix="maas-")
    yield Path(folder)
    shutil.rmtree(folder)
