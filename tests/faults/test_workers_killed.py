"""Workers are killed at any moment, under load: every call ends once, with its own answer.

The long form, which prints its figures:

    .venv/bin/python -m pytest -m long -s tests/faults/test_workers_killed.py
"""

import collections
import concurrent.futures
import itertools
import os
import random
import signal
import threading
import time
from pathlib import Path

import attrs
import pytest

import maas
from maas.errors import WorkerLost

PATIENT = 300.0
READERS, WRITERS, STREAMERS = 6, 1, 1


@attrs.define
class Account:
    """What came of every call, by its owner and number."""

    answered: collections.Counter = attrs.field(factory=collections.Counter)
    lost: collections.Counter = attrs.field(factory=collections.Counter)
    strange: list = attrs.field(factory=list)
    pids: set = attrs.field(factory=set)


def read(url, owner, numbers, account):
    """Pure calls: all are answered."""
    with maas.connect(f"{url}/ledger") as ledger:
        for number in numbers:
            who, what, pid = ledger.read(owner, number)
            account.answered[who, what] += 1
            account.pids.add(pid)
            if (who, what) != (owner, number):
                account.strange.append((owner, number, who, what))


def write(url, path, owner, numbers, account):
    """Calls that may run only once: answered, or said to be lost."""
    with maas.connect(f"{url}/ledger") as ledger:
        for number in numbers:
            try:
                who, what, _ = ledger.write(str(path), owner, number)
            except WorkerLost:
                account.lost[owner, number] += 1
                continue
            account.answered[who, what] += 1
            if (who, what) != (owner, number):
                account.strange.append((owner, number, who, what))


def stream(url, owner, numbers, account):
    """Streams: whole, or said to be broken, and of one owner."""
    with maas.connect(f"{url}/ledger") as ledger:
        for number in numbers:
            got = []
            try:
                got.extend(ledger.count.stream(owner, number))
            except WorkerLost:
                account.lost[owner, number] += 1
            else:
                account.answered[owner, number] += 1
                if len(got) != 10:
                    account.strange.append((owner, number, got))
            if got != [(owner, number + item) for item in range(len(got))]:
                account.strange.append((owner, number, got))


def kill(executor, account, kills, requests, done):
    """One worker, whatever it is doing, each time that another share of the calls has ended."""
    phases = collections.Counter()
    dice = random.Random(20)
    for n in range(1, kills + 1):
        while sum(account.answered.values()) < n * requests // (kills + 1) and not done.is_set():
            time.sleep(0.002)
        time.sleep(dice.random() * 0.01)
        # Now and then the one that is starting, which otherwise is never met.
        workers = sorted(
            (one for one in list(executor.crew.workers) if one.process is not None),
            key=lambda one: (dice.random() < 0.5, one.life.phase.value != "starting"),
        )
        if workers:
            phases[workers[0].life.phase.value] += 1
            os.kill(workers[0].process.pid, signal.SIGKILL)
    return phases


@pytest.mark.parametrize(
    ("requests", "kills"), [(1_000, 3), pytest.param(100_000, 50, marks=pytest.mark.long)]
)
def test_no_call_is_lost_doubled_or_mistaken(tmp_path, monkeypatch, requests, kills):
    """0 lost, 0 answered twice, 0 to the wrong owner; what may run once ran once at most."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    written, account, done = tmp_path / "written", Account(), threading.Event()
    written.touch()
    each = requests // (READERS + WRITERS + STREAMERS)
    server = maas.Server({"ledger": "ledger:ledger"}, workers=2)
    executor = server.handler.models["ledger"].executor
    executor.ready(PATIENT)
    began = time.monotonic()
    with (
        maas.serve(server, port=0, block=False) as running,
        concurrent.futures.ThreadPoolExecutor(READERS + WRITERS + STREAMERS + 1) as pool,
    ):
        killing = pool.submit(kill, executor, account, kills, requests, done)
        owners = (f"owner-{n}" for n in itertools.count())
        asking = [
            pool.submit(read, running.url, next(owners), range(each), account)
            for _ in range(READERS)
        ]
        asking += [
            pool.submit(write, running.url, written, next(owners), range(each), account)
            for _ in range(WRITERS)
        ]
        asking += [
            pool.submit(stream, running.url, next(owners), range(each), account)
            for _ in range(STREAMERS)
        ]
        try:
            for one in asking:
                one.result()
        finally:
            done.set()
        phases = killing.result(PATIENT)
    server.close()
    seconds = time.monotonic() - began
    runs = collections.Counter(written.read_text().split("\n")[:-1])
    print(
        f"\n{requests} requests, {sum(phases.values())} kills {dict(phases)} in {seconds:.0f} s: "
        f"{sum(account.answered.values())} answered by {len(account.pids)} processes, "
        f"{sum(account.lost.values())} said to be lost with their worker, "
        f"{sum(1 for n in account.answered.values() if n > 1)} answered twice, "
        f"{len(account.strange)} to the wrong owner, "
        f"{sum(1 for n in runs.values() if n > 1)} run twice that may run once"
    )
    assert account.strange == []
    ended = account.answered + account.lost
    assert len(ended) == each * (READERS + WRITERS + STREAMERS)
    assert set(ended.values()) == {1}
    readers = {f"owner-{n}" for n in range(READERS)}
    assert not [owner for owner, _ in account.lost if owner in readers]
    # One that is killed costs the call that it had at that moment, of each kind.
    assert len(account.lost) <= kills * (WRITERS + STREAMERS)
    assert set(runs.values()) <= {1}
    writer = f"owner-{READERS}"
    assert {f"{writer} {n}" for owner, n in account.answered if owner == writer} <= set(runs)
    assert sum(phases.values()) >= kills - 1
    assert len(account.pids) > kills // 3
