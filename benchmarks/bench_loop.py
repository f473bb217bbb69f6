"""How long the server's event loop is held: by short models on it, and by bodies of 64 MB.

Short models run on the loop of the connections, and whatever holds it holds everybody up. How
long is told by a beat of one millisecond on that loop: the processor time between two beats, so
that other processes on the machine do not count. Beside that stands what somebody notices who
asks with 1 KB while somebody else sends 64 MB at a time.
"""

import http.client
import itertools
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import torch

from benchmarks.callers import Callers, posted
from benchmarks.comparison import Bound, Report
from benchmarks.servers import Place, bare_echo, served, watched
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
    with served(watched) as place, served(bare_echo) as floor:
        _short_models(report, place, 1.0 if report.quick else 5.0)
        _beside_large(report, place, floor, seconds, rounds, size)
        _keyed(report, place, seconds, size)
    report.close()


def _short_models(report: Report, place: Place, seconds: float) -> None:
    """BigModel, whose batches of up to 64 rows go on the loop once they are known to be short."""
    rows = [_posted(place, "big", torch.randn(1, 1000)) for _ in range(256)]
    with Callers(_address(place), CONNECTIONS) as callers:
        callers.ask(rows, seconds)
        place.longest_hold()
        load = callers.ask(rows, seconds)
    report.quantity(
        f"BigModel, {CONNECTIONS} connections: loop held, in ms",
        place.longest_hold() * 1e3,
        f"{load.rate:.0f}/s",
        HELD,
    )


def _beside_large(
    report: Report, place: Place, floor: Place, seconds: float, rounds: int, size: int
) -> None:
    """The same small calls in turn: alone, beside large ones, and beside those of others.

    Large ones that go to another server tell what the machine itself does to small calls; and a
    bare echo on the same loop, what a server does that thinks of nothing.
    """
    asked = {"ours": place, "floor": floor}
    small = {
        name: [_posted(at, "echo", torch.rand(256)) for _ in range(16)]
        for name, at in asked.items()
    }
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    held = dict.fromkeys(asked, 0.0)
    with Callers(_address(place), 1) as one, Callers(_address(floor), 1) as other:
        callers = {"ours": one, "floor": other}
        for name, caller in callers.items():
            caller.ask(small[name], seconds)
        for _ in range(rounds):
            for name, caller in callers.items():
                times[name, "alone"] += caller.ask(small[name], seconds).times
                asked[name].longest_hold()
                with _sent_again(asked[name], size):
                    times[name, "beside"] += caller.ask(small[name], seconds).times
                held[name] = max(held[name], asked[name].longest_hold())
            with _sent_again(floor, size):
                times["ours", "elsewhere"] += one.ask(small["ours"], seconds).times
    ratios = {
        (name, where): _p99(found) / _p99(times[name, "alone"])
        for (name, where), found in times.items()
    }
    large = f"{size // 2**20} MB"
    solo = _p99(times["ours", "alone"])
    report.quantity(
        f"1 KB beside {large}: p99 over alone",
        ratios["ours", "beside"],
        f"{solo * 1e3:.2f} ms",
        Bound(most=3.0),
    )
    report.quantity(f"beside {large} to another server", ratios["ours", "elsewhere"], "")
    report.quantity(
        f"the same of a bare echo, beside {large}",
        ratios["floor", "beside"],
        f"{_p99(times['floor', 'alone']) * 1e3:.2f} ms",
    )
    report.quantity(
        f"{large}: loop held, in ms", held["ours"] * 1e3, f"{held['floor'] * 1e3:.2f} bare", HELD
    )


def _keyed(report: Report, place: Place, seconds: float, size: int) -> None:
    """Calls with keys: what they ask is hashed, so that a key used twice is noticed."""
    with Callers(_address(place), 1) as caller, _sent_again(place, size, keyed=True):
        small = [_posted(place, "echo", torch.rand(256))]
        place.longest_hold()
        caller.ask(small, 4 * seconds)
    held = place.longest_hold()
    report.quantity(f"{size // 2**20} MB with a key: loop held, in ms", held * 1e3, "", HELD)


@contextmanager
def _sent_again(place: Place, size: int, *, keyed: bool = False) -> Iterator[None]:
    """Meanwhile somebody else sends so many bytes, and again when they are back."""
    body = b"".join(_encoded("echo", torch.rand(size // 4)))
    enough = threading.Event()
    wrong: list[str] = []

    def send() -> None:
        connection = http.client.HTTPConnection(*_address(place))
        buffer = bytearray(2**20)
        for number in itertools.count():
            key = {"idempotency-key": f"{id(body)}-{number}"} if keyed else {}
            connection.request("POST", "/echo", body, KINDS | key)
            reply = connection.getresponse()
            got = sum(iter(lambda: reply.readinto(buffer), 0))  # noqa: B023 - read before the next
            if reply.status != 200 or got < size:
                wrong.append(f"{reply.status}, {got} bytes")
            if enough.is_set() or wrong:
                break
        connection.close()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        enough.set()
        sender.join()
    if wrong:
        raise RuntimeError(f"a large call was answered with {wrong[0]}")


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
