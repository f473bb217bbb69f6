"""Memory over many calls: what a call takes, it gives back.

The long form, which prints its figures:

    .venv/bin/python -m pytest -m long -s -o faulthandler_timeout=7200 tests/faults/test_memory.py
"""

import asyncio
import concurrent.futures
import gc
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import maas

CALLERS = 64
LONG = 2_000_000
BLOCKS = 10
STUDENT = 2.31
"""Of ten means less two, the quantile that leaves 95 % between it and its negative."""
SCRIPT = """
import sys
import numpy as np
import maas

@maas.method(pure=True)
def double(x: np.ndarray) -> np.ndarray:
    if (x[:, 0] < 0).any():
        raise ValueError("below zero")
    return x * 2

maas.serve(maas.Model(double, batching=maas.Batching(16)), port=0)
"""


def resident(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def descriptors(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def slope(points):
    """Least squares of bytes over calls, and half of the 95 % confidence interval of it.

    Neighbours in time are alike, so that each point by itself would count for too much: what is
    fitted are the means of ten stretches.
    """
    parts = np.array_split(np.array(points, dtype=float), BLOCKS)
    x, y = np.array([part.mean(axis=0) for part in parts]).T
    x = x - x.mean()
    steep = (x @ y) / (x @ x)
    rest = y - y.mean() - steep * x
    error = np.sqrt((rest @ rest) / (BLOCKS - 2) / (x @ x))
    return steep, STUDENT * error


def leaks(points):
    """Whether more than a byte a call may be lost: the smallest object there is takes 16.

    A shorter run than the long one is held to what the long one may lose in all. One that is too
    noisy to tell is one that leaks.
    """
    steep, error = slope(points)
    calls = points[-1][0] - points[0][0]
    return bool(max(steep, 0.0) + error > max(1.0, 0.75 * LONG / calls))


async def churn(model, stop, number, done):
    """Calls of mixed sizes, a hundredth of which fail, a hundredth are given up."""
    dice = np.random.default_rng(number)
    while not stop.is_set():
        rows = int(dice.choice([1, 1, 1, 2, 8, 64]))
        x = dice.random((rows, 32))
        kind = dice.random()
        if kind < 0.01:
            x[0, 0] = -1
            with pytest.raises(ValueError, match="below zero"):
                await model.submit(x)
        elif kind < 0.02:
            model.submit(x).cancel()
            await asyncio.sleep(0)
        else:
            assert (await model.submit(x) == x * 2).all()
        done[number] += 1


def crowd(url, stop, done):
    """Many callers on one event loop, which costs less of the machine than threads."""

    async def ask():
        with maas.connect(url) as model:
            await asyncio.gather(*(churn(model, stop, number, done) for number in range(CALLERS)))

    asyncio.run(ask())


def measured(calls, points):
    """Resident bytes of the server, and of this process, after so many calls."""
    server = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    there, here, done = [], [], [0] * CALLERS
    stop = threading.Event()
    try:
        url = server.stdout.readline().split()[-1] + "/double"
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            callers = pool.submit(crowd, url, stop, done)
            try:
                for point in range(points + 1):
                    while sum(done) < point * calls // points:
                        assert not callers.done(), callers.result()
                        time.sleep(0.02)
                    gc.collect()
                    there.append((sum(done), resident(server.pid)))
                    here.append((sum(done), resident(os.getpid())))
            finally:
                stop.set()
            callers.result()
        files = descriptors(server.pid)
        until = time.monotonic() + 20
        # The server hears of each caller's end a moment later.
        while files >= CALLERS and time.monotonic() < until:
            time.sleep(0.02)
            files = descriptors(server.pid)
    finally:
        server.kill()
        server.communicate()
    return there, here, files


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_calls_leave_no_memory_behind():
    """After a warm-up, thousands of calls do not let the server grow by a megabyte in ten."""
    there, _here, files = measured(2000, 8)
    grown = there[-1][1] - there[len(there) // 2][1]
    assert grown < 16 * 2**20
    assert files < CALLERS


@pytest.mark.parametrize(
    ("lost", "noise", "leak"),
    [(0.0, 0.0, False), (0.0, 2**19, False), (16 / 8, 2**19, True), (0.0, 2**24, True)],
)
def test_a_leak_is_told_from_noise(lost, noise, leak):
    """An object lost in each eighth call is seen in half a megabyte of noise, and noise is none;
    what is too noisy to tell does not pass.
    """
    dice = np.random.default_rng(0)
    calls = np.linspace(LONG / 4, LONG, 75)
    # The noise of a heap: it stays for a while where it is.
    steps = np.repeat(dice.normal(size=15), 5)
    assert (
        leaks([(n, 1e8 + lost * n + noise * step) for n, step in zip(calls, steps, strict=True)])
        is leak
    )


CALLS = int(os.environ.get("MAAS_CALLS", LONG))
"""Read before the tests' environment is cleared of what is this machine's."""


@pytest.mark.long
def test_memory_does_not_grow():
    """Over two million calls (MAAS_CALLS changes that) less than a byte a call is lost, if any."""
    calls = CALLS
    began = time.monotonic()
    there, here, files = measured(calls, 100)
    for name, points in (("server", there), ("client", here)):
        settled = points[len(points) // 4 :]
        steep, error = slope(settled)
        print(
            f"\n{name}: {points[0][1] / 2**20:.0f} MiB at first, {points[-1][1] / 2**20:.0f} MiB "
            f"after {points[-1][0]} calls; slope {steep * 1e6 / 2**20:.2f} ± "
            f"{error * 1e6 / 2**20:.2f} MiB a million calls",
            end="",
        )
        assert not leaks(settled)
    print(f"; {files} descriptors at the end, {time.monotonic() - began:.0f} s")
