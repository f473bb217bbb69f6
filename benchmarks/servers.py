"""Servers in processes of their own, which say where they are and how much memory they took."""

import asyncio
import contextlib
import gc
import multiprocessing
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import attrs
import httpx
import numpy as np
import torch
import uvicorn
import uvloop
from torch import Tensor

import maas
from benchmarks.bare_batcher import bare_batcher
from benchmarks.big_model import fixed
from maas.calls import CALL, Call
from maas.http import MSGPACK
from maas.limits import Limits
from maas.server.runner import Runner, run
from maas.wire import encode_call

__all__ = [
    "Place",
    "asgi",
    "bare",
    "bare_batching",
    "bare_echo",
    "bare_refusal",
    "batching",
    "forget_peak",
    "keeping_jobs",
    "models",
    "overloaded",
    "peak_memory",
    "served",
    "trained",
    "watched",
]


@attrs.frozen
class Place:
    """A server in another process."""

    url: str
    _pipe: Connection

    def forget_peak(self) -> int:
        """As the function of that name, in the server's process."""
        return self._ask("forget")

    def peak_memory(self) -> int:
        """As the function of that name, in the server's process."""
        return self._ask("peak")

    def longest_hold(self) -> float:
        """Seconds of processor time that its loop was held at once, since last asked; `watched`."""
        return self._ask("hold") * 1e-6

    def _ask(self, what: str) -> int:
        self._pipe.send(what)
        return int(self._pipe.recv())


@contextlib.contextmanager
def served(server: Callable[[Callable[[str], None]], None]) -> Iterator[Place]:
    """Runs one of the servers below in a new process, and ends it."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_begin, args=(server, there))
    process.start()
    try:
        yield Place(here.recv(), here)
    finally:
        process.terminate()
        process.join()


def _begin(server: Callable[[Callable[[str], None]], None], pipe: Connection) -> None:
    def tell(url: str) -> None:
        pipe.send(url)
        threading.Thread(target=_answer, args=(pipe,), daemon=True).start()

    server(tell)


def _answer(pipe: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(_TOLD[pipe.recv()]())


# The memory of this process, as Linux counts it.


def forget_peak() -> int:
    """Bytes in memory now; the peak is counted anew from here."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """Most bytes that were in memory at once since then."""
    return _status("VmHWM")


def _status(field: str) -> int:
    found = re.search(
        rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE
    )
    assert found is not None, f"this system does not tell {field}"
    return int(found[1]) * 1024


# The loop of this process's server.


class _Beat:
    """Looks at the processor time of the loop's thread, a thousand times a second."""

    def __init__(self) -> None:
        self._longest = 0.0

    def begin(self) -> None:
        """On the loop that runs."""
        self._go_on(asyncio.get_running_loop(), time.thread_time())

    def _go_on(self, loop: asyncio.AbstractEventLoop, before: float) -> None:
        now = time.thread_time()
        self._longest = max(self._longest, now - before)
        loop.call_later(0.001, self._go_on, loop, now)

    def told(self) -> int:
        """Microseconds between two beats, at most since last asked."""
        longest, self._longest = self._longest, 0.0
        return round(longest * 1e6)


_beat = _Beat()

_TOLD = {"forget": forget_peak, "peak": peak_memory, "hold": _beat.told}
"""What the benchmark may ask."""


# The servers.


def models(tell: Callable[[str], None]) -> None:
    """What is measured: maas with BigModel, and a function that gives back what it got."""
    with maas.serve({"big": fixed(), "echo": echo}, port=0, block=False) as running:
        tell(running.url)
        threading.Event().wait()


def batching(tell: Callable[[str], None]) -> None:
    """BigModel twice: calls that wait go together, and each by itself."""
    net = fixed()
    together = maas.Model(net, batching=maas.Batching(64), example=torch.randn(1, 1000))
    with maas.serve({"together": together, "one_by_one": net}, port=0, block=False) as running:
        tell(running.url)
        threading.Event().wait()


def watched(tell: Callable[[str], None]) -> None:
    """BigModel in batches, and a function that gives back what it got, on a loop with a beat."""
    net = fixed()
    big = maas.Model(net, batching=maas.Batching(64), example=torch.randn(1, 1000))
    server = maas.Server({"big": big, "echo": echo})

    def begun(runner: Runner) -> None:
        _beat.begin()
        tell(runner.url)

    run(Runner(server.handler, port=0), begun)


def overloaded(tell: Callable[[str], None]) -> None:
    """A model of four rows in 100 ms, and room for more connections than it can answer in time."""

    @maas.method(pure=True)
    def double(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        time.sleep(0.1)
        return x * 2

    server = maas.Server(maas.Model(double, batching=maas.Batching(4, max_queue=64)))
    patience = maas.Patience(max_connections=10_000)
    run(Runner(server.handler, port=0, patience=patience), lambda runner: tell(runner.url))


def trained(tell: Callable[[str], None]) -> None:
    """BigModel, to be trained by whoever asks."""
    net = fixed().train()
    allow = {"call", "describe", "train"}
    with maas.serve({"big": net}, port=0, block=False, allow=allow) as running:
        tell(running.url)
        threading.Event().wait()


def keeping_jobs(tell: Callable[[str], None]) -> None:
    """BigModel as the layers that it is, to be trained by jobs."""
    net = fixed().layers.train()
    allow = {"call", "describe", "train"}
    # Whoever ends this process wants the folder to go with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with (
        tempfile.TemporaryDirectory() as folder,
        maas.serve({"big": net}, port=0, block=False, allow=allow, jobs=folder) as running,
    ):
        tell(running.url)
        threading.Event().wait()


def echo(x: Tensor) -> Tensor:
    return x


def asgi(tell: Callable[[str], None]) -> None:
    """A peer: uvicorn as it comes, with an application that gives back the body it got."""
    listener = socket.create_server(("127.0.0.1", 0))
    tell(f"http://127.0.0.1:{listener.getsockname()[1]}")
    uvicorn.Server(uvicorn.Config(_echo_app, log_level="warning", lifespan="off")).run([listener])


async def _echo_app(_scope: Any, receive: Any, send: Any) -> None:
    chunks, more = [], True
    while more:
        event = await receive()
        chunks.append(event["body"])
        more = event["more_body"]
    body = b"".join(chunks)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def bare(tell: Callable[[str], None]) -> None:
    """A floor: the least that can be called an HTTP server.

    It has three replies, prepared before the first request: 4 bytes to `POST /bytes`, and
    to whatever else is asked of `/big` what maas said once when it was asked for one row.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_bare(tell))


async def _serve_bare(tell: Callable[[str], None]) -> None:
    replies = {b"POST /bytes": _framed(b"\0\0\0\0", "application/octet-stream")}
    app = httpx.ASGITransport(maas.Server({"big": fixed()}))
    async with httpx.AsyncClient(transport=app, base_url="http://localhost") as client:
        accept = {"accept": MSGPACK, "content-type": MSGPACK}
        described = await client.get("/big/", headers=accept)
        replies[b"GET /big/ H"] = _framed(described.content, MSGPACK)
        call = encode_call(Call("big", CALL, (torch.zeros(1000),)), Limits())
        answered = await client.post("/big", headers=accept, content=b"".join(call))
        replies[b"POST /big H"] = _framed(answered.content, MSGPACK)
    await _serve_replies(tell, replies)


async def _serve_replies(tell: Callable[[str], None], replies: dict[bytes, bytes]) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Bare(replies), "127.0.0.1", 0)
    tell(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await server.serve_forever()


def bare_batching(tell: Callable[[str], None]) -> None:
    """The floor of batching, with a beat on its loop."""

    def begun(url: str) -> None:
        _beat.begin()
        tell(url)

    bare_batcher(begun)


def bare_echo(tell: Callable[[str], None]) -> None:
    """Another floor: whatever is posted comes back, as it lies, with a beat on the loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_echo(tell))


async def _serve_echo(tell: Callable[[str], None]) -> None:
    server = await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", 0)
    _beat.begin()
    tell(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await server.serve_forever()


def bare_refusal(tell: Callable[[str], None]) -> None:
    """A floor of refusing: all that the model of `overloaded` is asked, at once and unread."""
    refusal = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_replies(tell, {b"POST /doubl": refusal}))


class _Echo(asyncio.Protocol):
    _head = b""
    _left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pieces: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        if not self._left:
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            self._head = b"" if end else head
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if not end or length is None:
                return
            self._left = int(length[1])
            self._pieces = [_framed(b"", MSGPACK, self._left)]
        self._pieces.append(data)
        self._left -= len(data)
        if not self._left:
            self._transport.writelines(self._pieces)
            self._pieces = []


def _framed(body: bytes, kind: str, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
    return head.encode() + body


class _Bare(asyncio.Protocol):
    def __init__(self, replies: dict[bytes, bytes]) -> None:
        self._replies = replies
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", self._data[: end + 2])
        if len(self._data) - end - 4 >= (int(length[1]) if length else 0):
            self._transport.write(self._replies[self._data[:11]])
            self._data = b""
