"""How long the server's event loop is held: by short models on it, and by bodies of 64 MB.

Short models run on the loop of the connections, and whatever holds it holds everybody up. How
long is told by a beat of one millisecond on that loop: the processor time between two beats, so
that other processes on the machine do not count. Beside that stands what somebody notices who
asks with 1 KB while somebody else sends 64 MB at a time. Lines without a bound tell what is not
ours: the same of servers that do nothing but that, and the same while the 64 MB go elsewhere.
"""

import http.client
import itertools
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

import attrs
import torch

from benchmarks.callers import Callers, posted
from benchmarks.comparison import Bound, Report
from benchmarks.servers import Place, bare_batching, bare_echo, served, watched
from maas.calls import CALL, Call
from maas.http import MSGPACK
from maas.limits import Limits
from maas.wire import encode_call

CONNECTIONS = 64
HELD = Bound(most=20.0)
KIND = f"content-type: {MSGPACK}"
KINDS = {"accept": MSGPACK, "content-type": MSGPACK}


def main() -> None:
    report = Report(__doc__)
    seconds, rounds, size = (0.1, 2, 2**22) if report.quick else (1.0, 8, 2**26)
    with served(watched) as place:
        with served(bare_batching) as floor:
            _short_models(report, place, floor, 1.0 if report.quick else 5.0)
        with _somebody_else() as other:
            with served(bare_echo) as floor:
                _beside_large(
                    report, other, (place, floor), seconds=seconds, rounds=rounds, size=size
                )
            _keyed(report, other, place, seconds, size)
    report.close()


def _short_models(report: Report, place: Place, floor: Place, seconds: float) -> None:
    """BigModel, whose batches of up to 64 rows go on the loop once they are known to be short."""
    rows = [torch.randn(1, 1000) for _ in range(256)]
    ours, rate = _held(place, [_posted(place, "big", row) for row in rows], seconds)
    raw = [posted("/", _host(floor), [], row.numpy().tobytes()) for row in rows]
    bare, bare_rate = _held(floor, raw, seconds)
    report.quantity(
        f"BigModel, {CONNECTIONS} connections: loop held, in ms", ours, f"{rate:.0f}/s", HELD
    )
    report.quantity("the same of the bare batcher", bare, f"{bare_rate:.0f}/s")


def _held(place: Place, requests: list[bytes], seconds: float) -> tuple[float, float]:
    """Milliseconds that the loop was held at most, and requests a second."""
    with Callers(_address(place), CONNECTIONS) as callers:
        callers.ask(requests, seconds)
        place.longest_hold()
        load = callers.ask(requests, seconds)
    return place.longest_hold() * 1e3, load.rate


def _beside_large(
    report: Report,
    other: Connection,
    places: tuple[Place, Place],
    *,
    seconds: float,
    rounds: int,
    size: int,
) -> None:
    """The same small calls in turn: alone, beside large ones, and beside large ones elsewhere.

    Large ones to another server tell what the machine does to small calls by itself, and a bare
    echo what a server does to them that thinks of nothing.
    """
    ours, floor = places
    found = {place: _Beside() for place in places}
    elsewhere: list[float] = []
    for _ in range(rounds):
        for place, beside in found.items():
            small = [_posted(place, "echo", torch.rand(256)) for _ in range(16)]
            with Callers(_address(place), 1) as caller:
                beside.alone += caller.ask(small, seconds).times
                place.longest_hold()
                with _sent_again(other, place, size):
                    beside.times += caller.ask(small, seconds).times
                beside.held = max(beside.held, place.longest_hold() * 1e3)
                if place is ours:
                    with _sent_again(other, floor, size):
                        elsewhere += caller.ask(small, seconds).times
    _tell_beside(report, f"{size // 2**20} MB", (found[ours], found[floor]), elsewhere)


@attrs.define
class _Beside:
    """Seconds of small calls alone and beside large ones, and milliseconds the loop was held."""

    alone: list[float] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)
    held: float = 0.0


def _tell_beside(
    report: Report, large: str, found: tuple[_Beside, _Beside], elsewhere: list[float]
) -> None:
    ours, bare = found
    solo, bare_solo = _p99(ours.alone), _p99(bare.alone)
    report.quantity(
        f"1 KB beside {large}: p99 over alone",
        _p99(ours.times) / solo,
        f"{solo * 1e3:.2f} ms",
        Bound(most=3.0),
    )
    report.quantity(f"1 KB, {large} to another server: the same", _p99(elsewhere) / solo, "")
    report.quantity(
        f"1 KB beside {large}, a bare echo: the same",
        _p99(bare.times) / bare_solo,
        f"{bare_solo * 1e3:.2f} ms",
    )
    report.quantity(f"{large}: loop held, in ms", ours.held, "", HELD)
    report.quantity(f"{large}, a bare echo: loop held, in ms", bare.held, "")


def _keyed(report: Report, other: Connection, place: Place, seconds: float, size: int) -> None:
    """Calls with keys: what they ask is hashed, so that a key used twice is noticed."""
    with Callers(_address(place), 1) as caller, _sent_again(other, place, size, keyed=True):
        small = [_posted(place, "echo", torch.rand(256))]
        place.longest_hold()
        caller.ask(small, 4 * seconds)
    held = place.longest_hold()
    report.quantity(f"{size // 2**20} MB with a key: loop held, in ms", held * 1e3, "", HELD)


@contextmanager
def _somebody_else() -> Iterator[Connection]:
    """Another process, whose work in Python does not keep the timed calls waiting."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_send, args=(there,))
    process.start()
    try:
        yield here
    finally:
        here.send(None)
        process.join()


def _send(pipe: Connection) -> None:
    for address, body, size, keyed in iter(pipe.recv, None):
        connection = http.client.HTTPConnection(*address)
        buffer = bytearray(2**20)
        pipe.send("ready")
        wrong = ""
        for number in itertools.count():
            key = {"idempotency-key": f"{id(body)}-{number}"} if keyed else {}
            connection.request("POST", "/echo", body, KINDS | key)
            reply = connection.getresponse()
            got = sum(iter(lambda: reply.readinto(buffer), 0))  # noqa: B023 - read before the next
            if reply.status != 200 or got < size:
                wrong = f"{reply.status}, {got} bytes"
            if wrong or pipe.poll():
                break
        pipe.recv()
        pipe.send(wrong)
        connection.close()


@contextmanager
def _sent_again(
    other: Connection, place: Place, size: int, *, keyed: bool = False
) -> Iterator[None]:
    """Meanwhile somebody else sends so many bytes, and again when they are back."""
    body = b"".join(_encoded("echo", torch.rand(size // 4)))
    other.send((_address(place), body, size, keyed))
    other.recv()
    yield
    other.send("enough")
    wrong = other.recv()
    if wrong:
        raise RuntimeError(f"a large call was answered with {wrong}")


def _encoded(model: str, x: torch.Tensor) -> list[bytes]:
    return [bytes(part) for part in encode_call(Call(model, CALL, (x,)), Limits())]


def _posted(place: Place, model: str, x: torch.Tensor) -> bytes:
    accept = f"accept: {MSGPACK}"
    return posted(f"/{model}", _host(place), [KIND, accept], b"".join(_encoded(model, x)))


def _host(place: Place) -> str:
    return urlsplit(place.url).netloc


def _address(place: Place) -> tuple[str, int]:
    parts = urlsplit(place.url)
    return str(parts.hostname), int(parts.port or 80)


def _p99(times: list[float]) -> float:
    ordered = sorted(times)
    return ordered[int(0.99 * (len(ordered) - 1))]


if __name__ == "__main__":
    main()
