"""File descriptors: what is closed gives them back, and so does what is only forgotten."""

import asyncio
import contextlib
import gc
import time
from pathlib import Path

import numpy as np
import pytest

import maas
from maas.server.guard import GRANTS

HERE = Path("/proc/self/fd")
PATIENT = 60.0
X = np.ones(3)


def double(x: np.ndarray) -> np.ndarray:
    return x * 2


@pytest.fixture(scope="module")
def url():
    with maas.serve({"double": double}, port=0, block=False) as server:
        yield f"{server.url}/double"


def closed(url, _folder):
    with maas.connect(url) as model:
        model(X)
        model.submit(X).result(PATIENT)


def forgotten(url, _folder):
    model = maas.connect(url)
    model(X)
    model.submit(X).result(PATIENT)


def awaited(url, _folder):
    async def ask():
        await maas.connect(url).submit(X)

    asyncio.run(ask())


def served(_url, _folder):
    with maas.serve({"double": double}, port=0, block=False) as server:
        forgotten(f"{server.url}/double", None)


def kept_jobs(_url, folder):
    server = maas.Server({"double": double}, allow=GRANTS, jobs=folder)
    assert maas.connect(server).jobs() == []
    server.close()


def worked(_url, _folder):
    with maas.connect("workers:operator:neg", count=1) as model:
        assert model(1) == -1


@pytest.mark.skipif(not HERE.exists(), reason="counts descriptors in /proc")
@pytest.mark.parametrize(
    ("cycle", "times"),
    [(closed, 5), (forgotten, 5), (awaited, 5), (served, 3), (kept_jobs, 3), (worked, 2)],
)
def test_descriptors_are_given_back(url, tmp_path, cycle, times):
    """After models, servers, folders of jobs and workers, there are no more than before them."""
    cycle(url, tmp_path)
    gc.collect()
    before = open_descriptors()
    for _ in range(times):
        cycle(url, tmp_path)
    until = time.monotonic() + PATIENT
    while open_descriptors() > before and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    assert open_descriptors() <= before


def open_descriptors():
    count = 0
    for entry in HERE.iterdir():
        # The listing's own one is gone when it is looked at.
        with contextlib.suppress(OSError):
            entry.readlink()
            count += 1
    return count
