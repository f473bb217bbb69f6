"""A server that is asked ten times what it can do, over HTTP: goodput, refusals, and recovery.

The model does four rows in 100 ms, so 40 calls a second are all that it can. What it really does
is measured first, by callers who ask as soon as they are answered. Then calls come at a fixed
rate, whether or not the earlier ones were answered, as those of strangers do; each has two
seconds, and every answer is checked. Goodput is what is answered in time, while calls come.
How late the calls were sent tells whether the run says anything: on a machine that is busy with
other work it is this program that is too slow.
"""

import asyncio
import gc
import json
import time
from collections import Counter
from typing import cast
from urllib.parse import urlsplit

import attrs
import uvloop

from benchmarks.comparison import Bound, Report
from benchmarks.servers import bare_refusal, overloaded, served

TIMES = 10
TIMEOUT = 2.0
CALLERS = 32


def main() -> None:
    report = Report(__doc__)
    gc.collect()
    gc.freeze()  # a full collection of what torch brings takes 0.1 s, and would be told as theirs
    short, step, settle = (0.5, 0.5, 0.2) if report.quick else (5.0, 30.0, 2.0)
    with (
        served(overloaded) as place,
        served(bare_refusal) as floor,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        peak, flood, after = runner.run(_phases(place.url, short, step, settle))
        bare = runner.run(_refused(floor.url, TIMES * peak, short))
    report.quantity(
        "10 times the load, goodput over peak",
        flood.goodput / peak,
        f"{flood.offered / peak:.1f}x",
        Bound(least=0.9),
    )
    report.quantity(
        "10 times the load, a refusal's p99 in ms",
        _p99(flood.refusals) * 1e3,
        f"{flood.told[429]} times",
        Bound(most=50.0),
    )
    report.quantity(
        "the same of who refuses all, unread",
        _p99(bare.refusals) * 1e3,
        f"{bare.told[429]} times",
    )
    report.quantity(
        "2 s after it, share answered at 0.8 of peak",
        after.in_time / after.sent,
        f"{after.offered:.0f}/s",
        Bound(least=0.95),
    )
    report.quantity(
        "how late calls were sent, p99 in ms",
        _p99(flood.lateness) * 1e3,
        f"{max(flood.lateness) * 1e3:.0f} at most",
        Bound(most=10.0),
    )
    report.close()


async def _phases(
    url: str, short: float, step: float, settle: float
) -> "tuple[float, _Phase, _Phase]":
    """The most that is answered a second, the flood, and what is asked two seconds after it."""
    crowd = _Crowd(url)
    await crowd.busy(settle)  # the first batches are tried, which takes double
    peak = max(1.0, (await crowd.busy(short)).goodput)  # `--quick` may be too short for one answer
    flood = await crowd.open(TIMES * peak, step)
    await crowd.open(0.8 * peak, settle)
    after = await crowd.open(0.8 * peak, short)
    await crowd.close()
    return peak, flood, after


async def _refused(url: str, rate: float, seconds: float) -> "_Phase":
    """Calls at that rate to a server that refuses all: what the machine, and this program, take."""
    crowd = _Crowd(url)
    phase = await crowd.open(rate, seconds)
    await crowd.close()
    return phase


@attrs.define
class _Phase:
    """What came of the calls of a phase: by status, and the seconds that refusals took.

    Attributes
    ----------
    within : those that were answered in time before the phase was over.
    lateness : seconds from when a call was to be sent to when it was.
    """

    seconds: float
    until: float
    sent: int = 0
    in_time: int = 0
    within: int = 0
    told: Counter[int] = attrs.field(factory=Counter)
    refusals: list[float] = attrs.field(factory=list)
    lateness: list[float] = attrs.field(factory=list)

    @classmethod
    def of(cls, seconds: float) -> "_Phase":
        """One that begins now."""
        return cls(seconds, time.perf_counter() + seconds)

    @property
    def goodput(self) -> float:
        """Answered in time, a second."""
        return self.within / self.seconds

    @property
    def offered(self) -> float:
        """Sent, a second."""
        return self.sent / self.seconds


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * (len(seconds) - 1))] if seconds else 0.0


class _Crowd:
    """Calls to one server, over as many connections as there are calls under way."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._place = str(parts.hostname), int(parts.port or 80)
        self._idle: list[_Caller] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._number = 0

    async def busy(self, seconds: float) -> _Phase:
        """Callers who ask again at once; the goodput is the most there is."""
        phase = _Phase.of(seconds)

        async def caller() -> None:
            while time.perf_counter() < phase.until:
                await self._call(phase)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return phase

    async def open(self, rate: float, seconds: float) -> _Phase:
        """Calls at a fixed rate; the last of them are answered after it."""
        phase = _Phase.of(seconds)
        began = phase.until - seconds
        while (passed := time.perf_counter() - began) < seconds:
            while phase.sent < passed * rate:
                phase.lateness.append(passed - phase.sent / rate)
                self._calls.add(asyncio.ensure_future(self._call(phase)))
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        return phase

    async def _call(self, phase: _Phase) -> None:
        phase.sent += 1
        began = time.perf_counter()
        self._number += 1
        number = self._number % 10_000
        caller = self._idle.pop() if self._idle else await self._opened()
        status, body = await caller.ask(number)
        now = time.perf_counter()
        took = now - began
        phase.told[status] += 1
        if status == 200:
            assert json.loads(body) == {"result": [[2.0 * number]]}, body
            phase.in_time += took <= TIMEOUT
            phase.within += took <= TIMEOUT and now <= phase.until
        elif status == 429:
            phase.refusals.append(took)
        if not caller.closed:
            self._idle.append(caller)

    async def _opened(self) -> "_Caller":
        connect = asyncio.get_running_loop().create_connection
        return (await connect(_Caller, *self._place))[1]

    async def close(self) -> None:
        await asyncio.gather(*self._calls)
        for caller in self._idle:
            caller.close()
        await asyncio.gather(*(caller.ended for caller in self._idle))


class _Caller(asyncio.Protocol):
    """The least that can be called a client."""

    _answer: "asyncio.Future[tuple[int, bytes]]"
    _data = b""
    closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport = cast("asyncio.Transport", transport)

    def close(self) -> None:
        self._transport.close()

    def ask(self, number: int) -> "asyncio.Future[tuple[int, bytes]]":
        body = b"[[[%d.0]]]" % number
        self._answer = asyncio.get_running_loop().create_future()
        self._data = b""
        self._transport.write(
            b"POST /double HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"maas-timeout: %.1f\r\ncontent-length: %d\r\n\r\n%s" % (TIMEOUT, len(body), body)
        )
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if end and len(body) == length:
            self.closed = b"connection: close" in head.lower()
            self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.closed = True
        self.ended.set_result(None)
        if hasattr(self, "_answer") and not self._answer.done():
            self._answer.set_result((0, b""))


if __name__ == "__main__":
    main()
