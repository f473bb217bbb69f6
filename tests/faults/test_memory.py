"""Memory over many calls: what a call takes, it gives back.

The long form, which prints its figures:

    .venv/bin/python -m pytest -m long -s tests/faults/test_memory.py
"""

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

CALLERS = 8
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
    """Least squares of bytes over calls, and half of the 95 % confidence interval of it."""
    x, y = np.array(points, dtype=float).T
    x = x - x.mean()
    steep = (x @ y) / (x @ x)
    rest = y - y.mean() - steep * x
    error = np.sqrt((rest @ rest) / (len(x) - 2) / (x @ x))
    return steep, 2.0 * error


def churn(url, stop, number, done):
    """Calls of mixed sizes, a hundredth of which fail, a hundredth are given up."""
    dice = np.random.default_rng(number)
    with maas.connect(url) as model:
        while not stop.is_set():
            rows = int(dice.choice([1, 1, 1, 2, 8, 64]))
            x = dice.random((rows, 32))
            kind = dice.random()
            if kind < 0.01:
                x[0, 0] = -1
                with pytest.raises(ValueError, match="below zero"):
                    model(x)
            elif kind < 0.02:
                model.submit(x).cancel()
            else:
                assert (model(x) == x * 2).all()
            done[number] += 1


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
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
            callers = [pool.submit(churn, url, stop, n, done) for n in range(CALLERS)]
            try:
                for point in range(points + 1):
                    while sum(done) < point * calls // points:
                        for caller in callers:
                            assert not caller.done(), caller.result()
                        time.sleep(0.02)
                    gc.collect()
                    there.append((sum(done), resident(server.pid)))
                    here.append((sum(done), resident(os.getpid())))
            finally:
                stop.set()
            for caller in callers:
                caller.result()
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
    assert files < 64


@pytest.mark.long
@pytest.mark.parametrize("calls", [2_000_000])
def test_memory_does_not_grow(calls):
    """Over two million calls (MAAS_CALLS changes that), the slope of memory is none to speak of."""
    calls = int(os.environ.get("MAAS_CALLS", calls))
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
        assert (steep + error) * 1e6 < 2**20 or steep - error <= 0 < 2**20
    print(f"; {files} descriptors at the end, {time.monotonic() - began:.0f} s")
