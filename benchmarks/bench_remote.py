"""A remote call: 4 KB there, 4 bytes back, over one kept connection on this machine.

The first lines are about the client alone: all clients ask the same bare server, which has its
replies ready. What maas sends there is bytes (its transport) or a whole call of a Model
(checked, encoded, sent, decoded). The last lines have BigModel behind `maas.serve` instead,
in a second process, beside the same module here; nothing is bounded there.
"""

import asyncio
import http.client
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import httpx
import torch
import uvloop

import maas
from benchmarks.big_model import fixed
from benchmarks.comparison import Bound, Report
from benchmarks.servers import bare, models, served
from maas.http import Request
from maas.loops import run
from maas.transports.addresses import Address
from maas.transports.sockets import SocketTransport

BODY = bytes(4000)
IN_FLIGHT = 64
CALLS_EACH = 4
CAP = 2**20

Ask = Callable[[], Awaitable[object]]


def main() -> None:
    report = Report(__doc__)
    with served(bare) as place:
        one_at_a_time(report, place.url)
        many_at_a_time(report, place.url, 1 if report.quick else CALLS_EACH)
    with served(models) as place:
        big_model(report, place.url)
    report.close()


def one_at_a_time(report: Report, url: str) -> None:
    parts = urlsplit(url)
    ours = _transport(url)
    request = Request("POST", "/bytes", (), (BODY,))
    model = maas.connect(f"{url}/big")
    x = torch.zeros(1000)
    plain = http.client.HTTPConnection(str(parts.hostname), parts.port)
    floor = socket.create_connection((str(parts.hostname), parts.port))
    head = f"POST /bytes HTTP/1.1\r\nhost: here\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()

    def by_http_client() -> None:
        plain.request("POST", "/bytes", BODY)
        plain.getresponse().read()

    def by_socket() -> None:
        floor.sendall(head + BODY)
        floor.recv(4096)

    with httpx.Client(base_url=url) as client, torch.no_grad():
        peers = {
            "httpx.Client": (lambda: client.post("/bytes", content=BODY).content, 0.5),
            "http.client": (by_http_client, 1.5),
        }
        for name, (peer, most) in peers.items():
            report.compare(
                f"bytes by the transport over {name}",
                lambda: ours.send(request, None, CAP),
                peer,
                bound=Bound(most=most),
            )
            report.compare(f"model(x) over {name}", lambda: model(x), peer, bound=Bound(most=most))
        report.compare(
            "bytes by the transport over a raw socket",
            lambda: ours.send(request, None, CAP),
            by_socket,
        )
    for each in (ours, model, plain, floor):
        each.close()


def many_at_a_time(report: Report, url: str, each: int) -> None:
    """64 calls in flight from one event loop, each kind of client on its own."""
    ours = _transport(url)
    request = Request("POST", "/bytes", (), (BODY,))
    model = maas.connect(f"{url}/big")
    x = torch.zeros(1000)
    limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, torch.no_grad():
        client = httpx.AsyncClient(base_url=url, limits=limits)

        def by_httpx() -> None:
            runner.run(_wave(lambda: client.post("/bytes", content=BODY), each))

        bound = Bound(most=0.1)
        calls = IN_FLIGHT * each
        report.compare(
            "64 in flight, bytes over httpx.AsyncClient",
            lambda: run(_wave(lambda: ours.asend(request, None, CAP), each)).result(),
            by_httpx,
            bound=bound,
            calls=calls,
            rounds=15,
        )
        report.compare(
            "64 in flight, await submit over AsyncClient",
            lambda: runner.run(_wave(lambda: model.submit(x), each)),
            by_httpx,
            bound=bound,
            calls=calls,
            rounds=15,
        )
        runner.run(client.aclose())
    ours.close()
    model.close()


def big_model(report: Report, url: str) -> None:
    """The whole way, the network included; beside it the network alone, in this process."""
    net = fixed()
    x = torch.randn(1000)
    with (
        maas.connect(f"{url}/big") as model,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        torch.no_grad(),
    ):
        report.compare("model(x) there over net(x) here", lambda: model(x), lambda: net(x))
        report.compare(
            "await model.submit(x) there over net(x) here",
            lambda: runner.run(_once(lambda: model.submit(x))),
            lambda: net(x),
        )
        report.compare(
            "64 in flight there over 64 times net(x) here",
            lambda: runner.run(_wave(lambda: model.submit(x), CALLS_EACH)),
            lambda: [net(x) for _ in range(IN_FLIGHT * CALLS_EACH)],
            calls=IN_FLIGHT * CALLS_EACH,
            rounds=15,
        )


def _transport(url: str) -> SocketTransport:
    parts = urlsplit(url)
    address: Address = ("tcp", str(parts.hostname), int(parts.port or 80))
    return SocketTransport(address, tls=None, server_name=None, host=parts.netloc)


async def _once(ask: Ask) -> None:
    await ask()


async def _wave(ask: Ask, each: int) -> None:
    """Each of 64 callers asks so many times, as soon as its last answer is there."""

    async def caller() -> None:
        for _ in range(each):
            await ask()

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))


if __name__ == "__main__":
    main()
