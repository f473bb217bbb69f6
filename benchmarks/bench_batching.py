"""Calls that go through BigModel together over the same calls one by one, in the same run.

64 callers ask at once, each for rows of its own, and every answer is compared with what the bare
module gives for that row: one mixed up inside a batch ends the program. The callers are 64
connections to a server in a second process, with their calls written as messages beforehand, so
that the server is measured and not a client; then jobs of a Model in this process. The last line
is what one caller alone pays for batching being on.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import cast
from urllib.parse import urlsplit

import torch
import uvloop
from torch import Tensor

import maas
from benchmarks.big_model import fixed
from benchmarks.comparison import Bound, Report
from benchmarks.servers import batching, served
from maas.calls import CALL, Call, Context, Result
from maas.http import MSGPACK
from maas.limits import Limits
from maas.wire import decode, encode_call

CALLERS = 64
CALLS = 256


def main() -> None:
    report = Report(__doc__)
    rows = [torch.randn(1, 1000) for _ in range(CALLS)]
    net = fixed()
    with torch.no_grad():
        wanted = torch.cat([net(row) for row in rows])
        there(report, rows, wanted)
        here(report, rows, wanted)
    report.close()


def there(report: Report, rows: list[Tensor], wanted: Tensor) -> None:
    told: list[Replies] = []
    with (
        served(batching) as place,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        callers = runner.run(_connected(place.url))
        together, one_by_one = (
            [_request(place.url, name, row) for row in rows] for name in ("together", "one_by_one")
        )
        report.compare(
            "64 connections, calls/s together over alone",
            lambda: told.append(runner.run(_wave(callers, together))),
            lambda: told.append(runner.run(_wave(callers, one_by_one))),
            calls=CALLS,
            rounds=30,
            speed=True,
        )
        runner.run(_closed(callers))
    for replies in told:
        _check([_answer(reply) for reply in replies], wanted)


def here(report: Report, rows: list[Tensor], wanted: Tensor) -> None:
    net = fixed()
    one_by_one = maas.Model(net)
    together = maas.Model(net, batching=maas.Batching(CALLERS), example=rows[0])

    def asked(model: "maas.Model[..., Tensor]") -> None:
        jobs = [model.submit(row) for row in rows]
        _check([job.result() for job in jobs], wanted)

    report.compare(
        "jobs here, calls/s together over alone",
        lambda: asked(together),
        lambda: asked(one_by_one),
        calls=CALLS,
        rounds=30,
        speed=True,
    )
    report.compare(
        "one caller, time with batching over without",
        lambda: together(rows[0]),
        lambda: one_by_one(rows[0]),
        bound=Bound(most=1.05),
        rounds=300,
    )


def _answer(reply: bytes) -> Tensor:
    message = decode(bytearray(reply), Limits())
    assert isinstance(message, Result), message
    answer: Tensor = message.value
    return answer


def _check(answers: Sequence[Tensor], wanted: Tensor) -> None:
    torch.testing.assert_close(torch.cat(list(answers)), wanted, rtol=1e-4, atol=1e-5)


# The least that can be called a client.

Replies = list[bytes]


def _request(url: str, name: str, row: Tensor) -> bytes:
    body = b"".join(encode_call(Call(name, CALL, (row,), context=Context(grad=False)), Limits()))
    head = (
        f"POST /{name} HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\ncontent-type: {MSGPACK}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _connected(url: str) -> "list[_Caller]":
    parts = urlsplit(url)
    connect = asyncio.get_running_loop().create_connection
    place = str(parts.hostname), int(parts.port or 80)
    return [(await connect(_Caller, *place))[1] for _ in range(CALLERS)]


async def _closed(callers: "Sequence[_Caller]") -> None:
    for caller in callers:
        caller.close()
    await asyncio.sleep(0.01)  # uvloop closes them on its next turns


async def _wave(callers: "Sequence[_Caller]", requests: Sequence[bytes]) -> Replies:
    """The replies in order; each caller asks as soon as its last answer is there."""
    waiting = iter(enumerate(requests))
    replies = [b""] * len(requests)
    await asyncio.gather(*(caller.begin(waiting, replies) for caller in callers))
    return replies


class _Caller(asyncio.Protocol):
    _waiting: Iterator[tuple[int, bytes]]
    _replies: Replies
    _ended: asyncio.Future[None]
    _data = b""
    _index = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def close(self) -> None:
        self._transport.close()

    def begin(self, waiting: Iterator[tuple[int, bytes]], replies: Replies) -> asyncio.Future[None]:
        self._waiting = waiting
        self._replies = replies
        self._ended = asyncio.get_running_loop().create_future()
        self._ask()
        return self._ended

    def _ask(self) -> None:
        index, request = next(self._waiting, (-1, b""))
        if index < 0:
            self._ended.set_result(None)
        else:
            self._index = index
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if end and len(body) == length:
            if not head.startswith(b"HTTP/1.1 200"):
                self._ended.set_exception(RuntimeError(f"refused: {self._data!r:.500}"))
            self._replies[self._index] = body
            self._data = b""
            self._ask()


if __name__ == "__main__":
    main()
