"""Jobs whose processes are killed at any moment: they end as if nothing had happened.

The long form prints its figures. It starts forty processes that import torch, which takes longer
than pytest's watchdog gives a test:

    .venv/bin/python -m pytest -m long -s -o faulthandler_timeout=7200 tests/jobs -k killed
"""

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import attrs
import pytest
import torch

import maas
from maas.errors import TransportError
from maas.jobs.keeper import Keeper
from maas.jobs.ordering import order_for
from maas.jobs.rows import packed
from maas.server.guard import GRANTS
from maas.store import load
from maas.testing.equality import difference
from maas.train.loop import Run
from maas.train.recipe import Recipe

RECIPE = {
    "lr": 0.01,
    "schedule": {"name": "one_cycle", "max_lr": 0.02},
    "clip_norm": 1.0,
    "validation": 0.25,
    "batch_size": 16,
}

PATIENT = 1200.0
"""Seconds until a process must have moved. One that imports torch at the lowest priority, beside
many others, has taken more than 240."""


def _until(found, what):
    """What `found` gives once it gives something."""
    until = time.monotonic() + PATIENT
    while not (value := found()):
        assert time.monotonic() < until, what
        time.sleep(0.002)
    return value


def _plain(step):
    return {name: value for name, value in step.items() if name != "seconds"}


@pytest.mark.parametrize(
    ("kills", "epochs"), [(2, 16), pytest.param(40, 80, marks=pytest.mark.long)]
)
def test_killed_at_any_moment_it_ends_the_same(training, tmp_path, kills, epochs):
    """After kills at random moments, weights, optimizer and metrics are those without any."""
    net, recipe = training.net(), Recipe.of({**RECIPE, "epochs": epochs})
    model = maas.Model(net, name="net")
    rows = {"rows": packed(training.rows()), "validation": None}
    order = order_for(model, recipe.to_data(), rows, name="run", owner="alice", address="net")
    # A checkpoint after every step, so that about every second moment is inside of one.
    keeper = Keeper(tmp_path / "jobs", each=0.0)
    job = keeper.submit(order)
    dice, moments, seen = random.Random(11), Counter(), 0
    for number in range(kills):
        _until(partial(_advanced, job, seen + 2), "no progress")
        if number % 3:
            time.sleep(dice.random() * 0.02)
        else:
            _until(partial(_unfinished, job), "no checkpoint")
        watched = keeper._watched[job.path]
        os.kill(watched.process.pid, signal.SIGKILL)
        watched.process.wait()
        moments["inside a checkpoint" if _unfinished(job) else "elsewhere"] += 1
        seen = job.events.count()
    print(f"{kills} kills: {dict(moments)}, the last one after {seen} steps")
    while not job.outcome:
        # Each step has its checkpoint, so on a busy disk the rest may take minutes.
        _until(partial(_moved, job, job.events.count()), "no end")
    keeper.close()
    print(f"{job.events.count()} steps")
    assert job.outcome.state == "done", job.outcome

    expected = Run(net, training.rows(), recipe)
    steps = [_plain(attrs.asdict(step)) for step in expected]
    assert [_plain(step) for step in job.events.read(0, 10**6)] == steps
    last = job.checkpoints.load()
    assert last.number == len(steps)
    assert difference(last.state["run"], expected.state()) is None
    result = load(job.path / "result").executor.backend.target
    assert difference(dict(result.state_dict()), dict(net.state_dict())) is None
    assert kills < 40 or moments["inside a checkpoint"] >= 5


def _advanced(job, number):
    return job.events.count() > number


def _moved(job, number):
    return job.outcome or _advanced(job, number)


def _unfinished(job):
    return any(path.name.startswith("checkpoint-") for path in job.path.glob("*.tmp"))


SERVER = """
import sys, torch, maas
torch.set_num_threads(1)
net = maas.load(sys.argv[1])
maas.serve({"net": net}, uds=sys.argv[3], allow={"call", "describe", "train"}, jobs=sys.argv[2])
"""


def test_a_server_that_was_killed_finds_its_jobs(training, tmp_path, short_folder):
    """The job goes on without its server, which finds it when it is started again."""
    net = training.net()
    maas.save(maas.Model(net, name="net"), tmp_path / "net")
    socket = short_folder / "s"
    command = [
        sys.executable,
        "-c",
        SERVER,
        str(tmp_path / "net"),
        str(tmp_path / "jobs"),
        str(socket),
    ]
    recipe = {"epochs": 300, "lr": 0.01}
    model = maas.connect(f"http+unix://{str(socket).replace('/', '%2F')}/net")
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        model.ready(240)
        job = model.fit.submit(training.rows(), name="run", **recipe)
        assert next(job.events()).step == 1
    finally:
        first.kill()
        first.wait()
    with pytest.raises(TransportError):
        model.with_options(timeout=0.5)(torch.zeros(1, 8))
    socket.unlink()
    second = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        model.ready(240)
        found = model.job("run")
        assert found.wait(240) == "done"
        expected = training.net()
        history = maas.Model(expected).fit(training.rows(), **recipe)
        assert found.history().losses == history.losses
        assert difference(dict(found.result().state_dict()), dict(expected.state_dict())) is None
    finally:
        second.terminate()
        second.wait()
    # One process did it all.
    (log,) = (tmp_path / "jobs").glob("*/*/log")
    assert log.read_bytes() == b""


def test_a_full_disk_ends_a_job_and_nothing_else(training, small_disk):
    """The server goes on, the last checkpoint stands, and with room again the job goes on."""
    net = training.net()
    server = maas.Server({"net": net}, allow=GRANTS, jobs=small_disk / "jobs")
    model = maas.connect(server)
    job = model.fit.submit(training.rows(), name="run", epochs=200)
    next(job.events())
    filler = small_disk / "filler"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), filler.open("wb", 0) as file:
        while True:
            file.write(bytes(65536))
    with pytest.raises(OSError, match=r"(?i)space|room"):
        model.fit.submit(training.rows(), name="second")
    with contextlib.suppress(OSError):  # it may have met the full disk before, and ended
        job.cancel()
    with pytest.raises(OSError, match=r"(?i)space|room"):
        job.result(240)
    assert job.state == "failed"
    assert model.eval()(torch.zeros(2, 8)).shape == (2, 1)
    filler.unlink()
    job = model.fit.submit(training.rows(), resume=job, epochs=200)
    expected = training.net()
    maas.Model(expected).fit(training.rows(), epochs=200)
    assert difference(dict(job.result(240).state_dict()), dict(expected.state_dict())) is None
    server.close()
