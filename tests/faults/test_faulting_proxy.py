"""Calls through a proxy that breaks connections: each ends once, with its own answer or an error.

The long form, which prints its figures:

    .venv/bin/python -m pytest -m long -s tests/faults/test_faulting_proxy.py
"""

import collections
import concurrent.futures
import time

import attrs
import pytest
import torch

import maas
from maas.executors.remote import RemoteExecutor
from maas.testing import FaultingProxy

PATIENT = 60.0
CALLERS = 8
SHARE = 0.3


class Ledger:
    """Says whose call it ran, with rows of numbers that are his alone; counts what it ran."""

    def __init__(self):
        self.runs = collections.Counter()

    @maas.method(pure=True)
    def read(self, owner: int, number: int, rows: torch.Tensor) -> tuple[int, int, torch.Tensor]:
        return owner, number, rows * 2 + owner

    @maas.method
    def write(self, owner: int, number: int, way: str) -> tuple[int, int, str]:
        self.runs[owner, number, way] += 1
        return owner, number, way


@attrs.define
class Account:
    """What came of the calls."""

    ended: collections.Counter = attrs.field(factory=collections.Counter)
    wrong: list = attrs.field(factory=list)

    def read(self, ledger, owner, number):
        rows = torch.full((1 + number % 3, 50), float(number))
        who, what, doubled = ledger.read(owner, number, rows)
        return (who, what) == (owner, number) and torch.equal(doubled, rows * 2 + owner)

    def once(self, ledger, owner, number):
        return ledger.write(owner, number, "once") == (owner, number, "once")

    def keyed(self, ledger, owner, number):
        ledger = ledger.with_options(key=f"{owner}-{number}", retries=5)
        return ledger.write(owner, number, "keyed") == (owner, number, "keyed")

    def call(self, url, owner, numbers):
        with maas.connect(url).with_options(timeout=PATIENT) as ledger:
            patient = ledger.with_options(retries=5)
            for number in numbers:
                ask, model = [
                    (self.read, patient),
                    (self.once, ledger),
                    (self.keyed, ledger),
                ][number % 3]
                name = ask.__name__
                try:
                    good = ask(model, owner, number)
                except maas.Error as error:
                    self.ended[name, type(error).__name__] += 1
                else:
                    self.ended[name, "answered"] += 1
                    if not good:
                        self.wrong.append((name, owner, number))


def storm(calls, seed=0):
    """So many calls by `CALLERS` callers, of whose exchanges three tenths meet a fault."""
    ledger, account = Ledger(), Account()
    with (
        maas.serve({"ledger": ledger}, port=0, block=False) as running,
        FaultingProxy(running.url, share=SHARE, seed=seed) as proxy,
        concurrent.futures.ThreadPoolExecutor(CALLERS) as pool,
    ):
        numbers = range(calls // CALLERS)
        url = f"{proxy.url}/ledger"
        asked = [pool.submit(account.call, url, owner, numbers) for owner in range(CALLERS)]
        for one in asked:
            one.result()
    return account, ledger.runs, proxy.met


def check(account, runs, calls):
    assert account.wrong == []
    assert account.ended.total() == calls // CALLERS * CALLERS
    assert {error for _way, error in account.ended} <= {"answered", "TransportError"}
    assert set(runs.values()) == {1}
    for way in ("once", "keyed"):
        ran = sum(1 for _owner, _number, its in runs if its == way)
        assert account.ended[way, "answered"] <= ran


@pytest.mark.parametrize("calls", [800, pytest.param(20_000, marks=pytest.mark.long)])
def test_no_answer_is_wrong_and_nothing_runs_twice_that_may_not(calls):
    """0 wrong answers; what may run once, or has a key, runs once at most, and errors are typed."""
    began = time.monotonic()
    account, runs, met = storm(calls)
    print(
        f"\n{calls} calls through the faulting proxy in {time.monotonic() - began:.0f} s, "
        f"{met.total()} of whose exchanges met a fault: {dict(sorted(account.ended.items()))}, "
        f"{len(account.wrong)} wrong answers, {sum(n > 1 for n in runs.values())} run twice"
    )
    check(account, runs, calls)
    assert len(met) == 11
    assert account.ended["read", "answered"] > 0.9 * calls / 3


def test_retries_that_may_not_be_are_caught(monkeypatch):
    """A client that takes every method for one that may run twice is found out by the ledger."""
    monkeypatch.setattr(RemoteExecutor, "_runs_twice_as_once", lambda *_: True)
    account, runs, _met = storm(400)
    assert max(runs.values()) > 1
    with pytest.raises(AssertionError):
        check(account, runs, 400)
