r"""The simulation: what must hold holds for every seed, and a broken part is found out.

The long form, 10,000 seeds:

    .venv/bin/python -m pytest -m long -s -o faulthandler_timeout=7200 \
        tests/testing/test_simulation.py
"""

import asyncio
import collections
import os
import subprocess
import sys
import time

import pytest

from maas.executors.queue import Queue
from maas.executors.retries import Attempts, Budget
from maas.server.admission import Slots
from maas.server.connection import Connection
from maas.server.keyed import KeyedAnswers
from maas.testing import BrokenPromise, simulate
from maas.testing.simulated_network import Network, Weather
from maas.testing.virtual_time import virtual_loop, virtual_time

# In parts that can be shared out, and of which each says how far it is.
PARTS = [pytest.param(range(n, n + 1_000), marks=pytest.mark.long) for n in range(0, 10_000, 1_000)]


@pytest.mark.parametrize("seeds", [range(60), *PARTS], ids=str)
def test_every_promise_is_kept(seeds):
    """Each call ends once, with its own answer or a typed error, and nothing is left behind."""
    began, ended, sent = time.perf_counter(), collections.Counter(), 0
    seconds = 0.0
    for seed in seeds:
        outcome = simulate(seed)
        ended += outcome.ended
        sent += outcome.sent
        seconds += outcome.seconds
    print(
        f"\n{seeds} in {time.perf_counter() - began:.0f} s: {seconds:.0f} virtual "
        f"seconds, {ended.total()} calls, {sent} requests: {dict(ended.most_common())}"
    )
    # A simulation in which nothing goes wrong, or nothing goes well, shows little.
    assert ended["answered"] > ended.total() / 2
    assert {"Overloaded", "DeadlineExceeded", "TransportError", "cancelled"} <= set(ended)


def _forgetful(self, key, kept):
    self._running -= 1
    self._kept.pop(key, None)


# What is broken, how, and the first seed that tells.
BREAKS = {
    "slots without a bound": (Slots, "check", lambda *_: None, 5),
    "slots that are not given back": (Slots, "leave", lambda *_: None, 0),
    "a queue that keeps who was given up": (Queue, "withdraw", lambda *_: False, 0),
    "a queue without a bound": (Queue, "_make_room", lambda *_: [], 8),
    "retries of what may have run": (Attempts, "_may_repeat", lambda *_: True, 5),
    "a budget that never ends": (Budget, "spend", lambda *_: True, 52),
    "keys that are forgotten": (KeyedAnswers, "_weigh", _forgetful, 5),
    "a drain that waits for nobody": (Connection, "drain", Connection.abort, 1),
    "a request that is never answered": (Connection, "_ask", lambda *_: None, 1),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_part_is_found(monkeypatch, name):
    """Of each part that is broken on purpose, a seed says so."""
    home, method, broken, first = BREAKS[name]
    monkeypatch.setattr(home, method, broken)
    with pytest.raises(BrokenPromise) as caught:
        for seed in range(first, first + 400):
            simulate(seed)
    print(f"{name}: {seed}: {caught.value!s:.100}")


def test_a_seed_is_lived_through_again():
    """The same seed gives the same events, also in another process; another one, others."""
    code = "from maas.testing import simulate; print([simulate(n).digest for n in range(4)])"
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": salt},
        ).stdout
        for salt in ("1", "2")
    ]
    assert told[0] == told[1] == f"{[simulate(n).digest for n in range(4)]}\n"
    assert simulate(1).digest != simulate(2).digest


class _Counting(asyncio.BufferedProtocol):
    """Writes twenty bytes, one by one, and its end; or notes what comes."""

    def __init__(self, *, writes):
        self.writes, self.room, self.came = writes, bytearray(1), []
        self.ended = asyncio.Event()

    def connection_made(self, transport):
        if self.writes:
            for number in range(20):
                transport.write(bytes([number]))
            transport.write_eof()

    def get_buffer(self, _):
        return memoryview(self.room)

    def buffer_updated(self, _):
        self.came += self.room

    def eof_received(self):
        self.ended.set()


def test_what_is_sent_arrives_in_order():
    """Bytes and their end that arrive at one time arrive as they were sent."""

    async def received():
        network = Network(0, Weather(latency=(0.001, 0.001)))
        network.listen(lambda: _Counting(writes=True), lambda: True)
        reader = _Counting(writes=False)
        await network.connect(reader)
        await reader.ended.wait()
        return reader.came

    with (
        virtual_time() as clock,
        asyncio.Runner(loop_factory=lambda: virtual_loop(clock)) as runner,
    ):
        assert runner.run(received()) == list(range(20))


def test_virtual_hours_take_no_time():
    """A loop on the virtual clock passes an hour at once, and its timers keep their order."""
    order = []

    async def wait(seconds):
        await asyncio.sleep(seconds)
        order.append(seconds)

    async def all_of_them():
        await asyncio.gather(wait(3600), wait(1), wait(60))

    real = time.perf_counter()
    with virtual_time() as clock:
        before = time.monotonic()
        with asyncio.Runner(loop_factory=lambda: virtual_loop(clock)) as runner:
            runner.run(all_of_them())
        assert time.monotonic() - before == pytest.approx(3600)
    assert order == [1, 60, 3600]
    assert time.perf_counter() - real < 60
