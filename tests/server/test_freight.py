import asyncio
import contextlib
import os
import random
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from maas.server import freight
from maas.server.freight import MOST, WIDTH, Carrier, Freight

PATIENT = 20.0


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection; the first one is as a loop has it."""
    here, there = socket.socketpair()
    here.setblocking(False)
    there.settimeout(PATIENT)
    with here, there:
        yield here, there


def test_what_is_carried_is_what_was_sent(ends: tuple[socket.socket, socket.socket]) -> None:
    """Bytes go through stints of both directions in their order."""
    here, there = ends
    data = random.Random(0).randbytes(2**22)
    came = bytearray(len(data))

    def echo() -> None:
        received = bytearray()
        while len(received) < len(data):
            received += there.recv(2**20)
        there.sendall(received)

    async def carry() -> None:
        carrier = Carrier(Freight(), here)
        count = 0
        while count < len(data):
            sent = carrier.send(memoryview(data)[count:])
            assert sent is not None
            count += await sent
        count = 0
        while count < len(data):
            received = carrier.receive(lambda: memoryview(came)[count:])  # noqa: B023 - ends here
            assert received is not None
            count += await received

    peer = threading.Thread(target=echo)
    peer.start()
    asyncio.run(carry())
    peer.join()
    assert came == data


def test_a_pause_ends_a_stint(ends: tuple[socket.socket, socket.socket]) -> None:
    """What came before a pause is told, and the thread has time for others."""
    here, there = ends
    there.sendall(bytes(10_000))
    threads = Freight()

    async def carry() -> int:
        received = Carrier(threads, here).receive(lambda: memoryview(bytearray(20_000)))
        assert received is not None
        return await received

    assert asyncio.run(carry()) == 10_000
    assert threads.under_way == 0


def test_a_default_timeout_lengthens_no_stint(ends: tuple[socket.socket, socket.socket]) -> None:
    """Where a process has its sockets wait for minutes, a pause ends a stint all the same."""
    here, _ = ends
    before = socket.getdefaulttimeout()

    async def carry() -> int:
        socket.setdefaulttimeout(600)
        try:
            received = Carrier(Freight(), here).receive(lambda: memoryview(bytearray(1000)))
        finally:
            socket.setdefaulttimeout(before)
        assert received is not None
        async with asyncio.timeout(PATIENT):
            return await received

    try:
        assert asyncio.run(carry()) == 0
    finally:
        here.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("sends", [False, True])
def test_an_end_ends_a_stint(ends: tuple[socket.socket, socket.socket], sends: bool) -> None:
    """A peer that is gone sends and takes nothing, which is no error here."""
    here, there = ends
    there.close()

    async def carry() -> int:
        carrier = Carrier(Freight(), here)
        buffer = memoryview(bytearray(1000))
        carried = carrier.send(buffer) if sends else carrier.receive(lambda: buffer)
        assert carried is not None
        return await carried

    assert asyncio.run(carry()) == 0


def test_a_stint_is_bounded(ends: tuple[socket.socket, socket.socket]) -> None:
    """However fast the peer reads, a stint sends no more than its part."""
    here, there = ends

    def read() -> None:
        while there.recv(2**20):
            pass

    async def carry() -> int:
        carried = Carrier(Freight(), here).send(memoryview(bytes(2 * MOST)))
        assert carried is not None
        return await carried

    peer = threading.Thread(target=read)
    peer.start()
    sent = asyncio.run(carry())
    here.close()
    peer.join()
    assert 0 < sent <= MOST


def test_whoever_finds_no_thread_hears_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many stints as threads are under way at once; the next is for the loop to do."""
    monkeypatch.setattr(freight, "PAUSE", PATIENT)
    monkeypatch.setattr(freight, "LONGEST", PATIENT)
    threads = Freight()

    async def carry() -> None:
        with contextlib.ExitStack() as stack:
            pairs = [socket.socketpair() for _ in range(WIDTH + 1)]
            for here, there in pairs:
                here.setblocking(False)
                stack.enter_context(here)
                stack.enter_context(there)
            buffer = bytearray(1000)
            begun = [
                Carrier(threads, here).receive(lambda: memoryview(buffer)) for here, _ in pairs
            ]
            assert [carried is None for carried in begun] == [False] * WIDTH + [True]
            for (_, there), carried in zip(pairs, begun, strict=True):
                there.close()
                assert carried is None or await carried == 0
            assert not threads.full

    asyncio.run(carry())


def test_a_stint_nobody_waits_for_still_ends(ends: tuple[socket.socket, socket.socket]) -> None:
    """Whoever is cancelled before a thread has begun leaves it free, and no descriptor open."""
    here, _ = ends
    threads = Freight()
    busy = threading.Event()
    for _ in range(WIDTH):
        threads._lane.ask(busy.wait)

    async def carry() -> None:
        carried = Carrier(threads, here).receive(lambda: memoryview(bytearray(1000)))
        assert carried is not None
        carried.cancel()

    asyncio.run(carry())
    busy.set()
    while threads.under_way:
        threading.Event().wait(0.001)


def test_a_connection_that_ends_takes_nothing_from_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stint of an ended connection reads nothing of the one that got its descriptor's number."""
    monkeypatch.setattr(freight, "PAUSE", PATIENT)
    threads = Freight()
    first, peer = socket.socketpair()
    first.setblocking(False)

    async def carry() -> None:
        room = bytearray(10)
        carried = Carrier(threads, first).receive(lambda: memoryview(room))
        assert carried is not None
        number = first.fileno()
        first.close()
        second, other = socket.socketpair()
        with second, other:
            assert number in (second.fileno(), other.fileno())
            other.sendall(b"second")
            second.sendall(b"other")
            peer.close()
            assert await carried == 0
            assert (second.recv(10), other.recv(10)) == (b"second", b"other")

    asyncio.run(carry())


def test_without_a_descriptor_the_loop_carries() -> None:
    """A transport that is no socket, or a process with no descriptor left, is no error."""
    closed, other = socket.socketpair()
    other.close()
    closed.close()
    assert Carrier(Freight(), closed).send(memoryview(b"x")) is None


def test_what_is_no_socket_costs_no_descriptor() -> None:
    """The loop carries for a transport that is no socket, and no descriptor of it stays open."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "wb"):
        assert Carrier(Freight(), pipe).send(memoryview(b"x")) is None
        with os.fdopen(os.dup(reading), "rb") as lowest_free:
            number = lowest_free.fileno()
        assert Carrier(Freight(), pipe).send(memoryview(b"x")) is None
        with os.fdopen(os.dup(reading), "rb") as lowest_free:
            assert lowest_free.fileno() == number


def test_a_system_without_the_means_has_the_loop_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither `nice` nor `poll`: a server serves there, and its loop carries."""
    monkeypatch.delattr(os, "nice")
    monkeypatch.delattr(select, "poll")
    with socket.socket() as sock:
        assert Freight().carrier(sock) is None
