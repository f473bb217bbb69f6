"""Clients that leave: what waits for them is never run, and nothing of them stays.

The long form, which prints its figures:

    .venv/bin/python -m pytest -m long -s tests/faults/test_vanishing_clients.py
"""

import asyncio
import contextlib
import json
import random
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest

import maas
from maas import Batching

PATIENT = 60.0
MOST = 16
RUN = 0.005


class Rows:
    """A batched model that counts the rows that it computes."""

    def __init__(self):
        self.rows = 0
        self.runs = 0
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    @maas.method(pure=True, batching=Batching(MOST))
    def double(self, x: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.open.wait(PATIENT)
        self.runs += 1
        self.rows += len(x)
        time.sleep(RUN)
        return x * 2


def gauges(url):
    """What the server says that it has in hand: calls, and connections beside the one that asks."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENT) as reply:
        figures = reply.read().decode().splitlines()
    in_flight = sum(
        float(line.split()[-1]) for line in figures if line.startswith("maas_requests_in_flight{")
    )
    (opened,) = [
        float(line.split()[-1]) for line in figures if line.startswith("maas_connections ")
    ]
    return in_flight, opened - 1


def seconds_until(done, patience=PATIENT):
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < patience, "waited in vain"
        time.sleep(0.01)
    return time.monotonic() - began


def request(path, number):
    body = json.dumps([[[float(number)]]]).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def vanish(port, number, dice):
    """One client that sends all or a part of its request, and leaves whenever it likes."""
    whole = request("/rows/double", number)
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        cut = dice.choice((len(whole), len(whole), dice.randrange(len(whole))))
        writer.write(whole[:cut])
        await asyncio.sleep(dice.choice((0.0, dice.random() * 0.05)))
        if cut == len(whole) and dice.random() < 0.2:
            await reader.read(dice.choice((1, 10_000)))
        writer.transport.abort()


async def crowd(port, clients):
    at_once = asyncio.Semaphore(200)

    async def one(number):
        async with at_once:
            await vanish(port, number, random.Random(number))

    await asyncio.gather(*(one(number) for number in range(clients)))


@pytest.mark.parametrize("clients", [300, pytest.param(5_000, marks=pytest.mark.long)])
def test_vanishing_clients_leave_nothing(clients):
    """Clients leave at any moment, batching on: the gauges are at 0 at once, and all others are
    answered as before.
    """
    rows = Rows()
    with maas.serve({"rows": rows}, port=0, block=False) as running:
        port = int(running.url.rpartition(":")[2])
        asyncio.run(crowd(port, clients))
        seconds = seconds_until(lambda: gauges(running.url) == (0, 0))
        computed = rows.rows
        with maas.connect(f"{running.url}/rows") as model:
            xs = [np.full((1, 1), float(number)) for number in range(clients)]
            answers = list(model.double.map(xs))
            assert [y.item() for y in answers] == [2.0 * number for number in range(clients)]
    print(
        f"\n{clients} clients vanished: gauges at 0 after {seconds:.2f} s, "
        f"{computed} rows computed for them; {clients} calls afterwards all answered"
    )
    # Of requests that came whole; the first batches are tried, which runs their rows twice.
    assert 0 < computed <= 2 * clients


@pytest.mark.parametrize("way", ["disconnected", "cancelled", "timed out"])
def test_at_most_one_batch_is_computed_for_those_who_left(way):
    """Of a hundred calls that wait behind a run and are given up, no row is computed."""
    rows = Rows()
    with maas.serve({"rows": rows}, port=0, block=False) as running:
        port = int(running.url.rpartition(":")[2])
        with maas.connect(f"{running.url}/rows") as model:
            for number in range(2 * MOST):
                model.double(np.full((1, 1), float(number)))
            rows.open.clear()
            rows.entered.clear()
            first = model.double.submit(np.zeros((1, 1)))
            assert rows.entered.wait(PATIENT)
            before = rows.rows
            leave = globals()[f"_{way.replace(' ', '_')}"]
            leave(model, port)
            seconds_until(lambda: gauges(running.url)[0] == 1)
            rows.open.set()
            assert first.result(PATIENT) == 0
            # Whoever comes now is behind all that is left.
            assert model.double(np.ones((1, 1))) == 2
    assert rows.rows - before == 2  # the first, and the last


def _disconnected(_model, port):
    socks = []
    for number in range(100):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(request("/rows/double", number))
        socks.append(sock)
    url = f"http://127.0.0.1:{port}"
    seconds_until(lambda: gauges(url)[0] == 101)
    for sock in socks:
        sock.close()


def _cancelled(model, port):
    jobs = [model.double.submit(np.full((1, 1), float(number))) for number in range(100)]
    url = f"http://127.0.0.1:{port}"
    seconds_until(lambda: gauges(url)[0] == 101)
    assert all(job.cancel() for job in jobs)


def _timed_out(model, _port):
    hurried = model.with_options(timeout=0.3)
    jobs = [hurried.double.submit(np.full((1, 1), float(number))) for number in range(100)]
    for job in jobs:
        with pytest.raises(maas.DeadlineExceeded):
            job.result(PATIENT)
