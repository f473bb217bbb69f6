import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import maas
from maas.testing import Processes

PATIENT = 60.0


@pytest.fixture
def pid(monkeypatch):
    """A model in one worker that tells its process."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "faults"))
    with maas.connect("workers:ledger:ledger", count=1) as ledger:
        ledger.ready(PATIENT)
        yield ledger


def asked(ledger):
    return ledger.read("me", 1)[2]


def test_a_worker_that_is_killed_is_another_one_afterwards(pid):
    """`kill` ends the process that had the model; the next call is another process's."""
    workers = Processes.of(pid)
    before = asked(pid)
    assert workers.pids == (before,)
    assert workers.kill(0) == before
    after = asked(pid)
    assert after != before
    assert workers.pids == (after,)


def test_a_worker_that_is_paused_goes_on_later(pid):
    """While it stands still its calls wait; then it goes on, the same process."""
    workers = Processes.of(pid)
    before = asked(pid)
    with workers.paused(0) as paused:
        job = pid.read.submit("me", 2)
        with pytest.raises(maas.DeadlineExceeded):
            asked(pid.with_options(timeout=0.3))
        assert not job.done()
    assert job.result(PATIENT)[2] == paused == before


def test_any_processes_will_do():
    """Processes of one's own are paused, resumed and killed as well."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        others = Processes.these(child.pid)
        others.pause(0)
        assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
        others.resume(0)
        others.kill(0)
        assert child.wait(PATIENT) == -signal.SIGKILL


def test_a_model_without_workers_has_none_to_kill():
    """A model that runs here is refused, with what to do instead."""
    with pytest.raises(TypeError, match="workers:module:name"):
        Processes.of(maas.Model(abs))
