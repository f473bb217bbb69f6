"""A server that is told to stop under load: who asks whether it is ready loses no request.

The long form:  .venv/bin/python -m pytest -m long tests/faults/test_drain.py
"""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import httpx
import pytest

import maas

PATIENT = 60.0
CALLERS = 6
DELAY = 2.0  # seconds from "not ready" to the end of accepting: more than a probe takes here

SCRIPT = """
    import time

    import maas
    from maas.server.patience import Patience

    @maas.method(pure=True)
    def slow(x: int) -> int:
        time.sleep(0.02)
        return x

    if __name__ == "__main__":
        maas.serve({target}, port=0, patience=Patience(delay={delay}, drain=20.0), **{options})
        print("drained", flush=True)
"""


class Traffic:
    """Callers that look at `ready`, which a probe keeps up to date, before each call."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ready = True
        self.probed = threading.Event()
        self.answers = 0
        self.failures: list[Exception] = []

    def probe(self):
        with httpx.Client() as client:
            while self.ready:
                try:
                    self.ready = client.get(f"{self.url}/readyz").status_code == 200
                except httpx.HTTPError as error:
                    self.failures.append(error)
                    self.ready = False
                self.probed.set()
                time.sleep(0.005)

    def call(self):
        with maas.connect(f"{self.url}/slow") as slow:
            while self.ready:
                self._count(lambda: slow(3) == 3)

    def curl(self):
        with httpx.Client(timeout=PATIENT) as client:
            while self.ready:
                self._count(
                    lambda: client.post(f"{self.url}/slow", json=[3]).json() == {"result": 3}
                )

    def _count(self, ask):
        try:
            assert ask()
        except Exception as error:
            self.failures.append(error)
        self.answers += 1


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize("rounds", [1, pytest.param(50, marks=pytest.mark.long)])
def test_sigterm_under_load_fails_no_request(tmp_path, rounds, workers):
    """Every call made while the server said that it is ready is answered, and it exits with 0."""
    script = tmp_path / "draining.py"
    target, options = ("slow", {}) if workers is None else ('"draining:slow"', {"workers": workers})
    script.write_text(textwrap.dedent(SCRIPT.format(target=target, delay=DELAY, options=options)))
    answers = 0
    for _ in range(rounds):
        answers += _one_stop(script)
    print(f"\n{rounds} times SIGTERM under load, workers={workers}: {answers} answers, 0 failures")


def _one_stop(script: Path) -> int:
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    try:
        traffic = Traffic(process.stdout.readline().split()[-1])
        works = [traffic.probe, *[traffic.call] * (CALLERS - 2), traffic.curl, traffic.curl]
        threads = [threading.Thread(target=work) for work in works]
        for thread in threads:
            thread.start()
        assert traffic.probed.wait(PATIENT)
        _until(lambda: traffic.answers > 5 * CALLERS or not traffic.ready)
        # As a service manager does it: to the server and, where it has some, to its workers.
        os.killpg(process.pid, signal.SIGTERM)
        for thread in threads:
            thread.join(PATIENT)
        out, _ = process.communicate(timeout=PATIENT)
    finally:
        process.kill()
        process.wait()
    assert traffic.failures == []
    assert (process.returncode, out) == (0, "drained\n")
    return traffic.answers


def _until(done):
    until = time.monotonic() + PATIENT
    while not done():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)
