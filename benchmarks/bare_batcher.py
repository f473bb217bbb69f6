"""A floor: the least that can be called a batching server, with none of the features of one.

A protocol on uvloop that takes raw numbers by `POST` and gives raw numbers back. Rows that wait
go through the model together: once the queue has not grown for some empty turns of the loop, or at
once where only one connection is open. Nothing is checked, nobody is asked for a key, nothing is
bounded and nothing is counted.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
import uvloop

from benchmarks.big_model import fixed

__all__ = ["bare_batcher"]

TURNS = 10
"""Empty turns of the loop before a batch is run: about 50 microseconds."""
MOST = 64
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 4\r\n\r\n"


def bare_batcher(tell: Callable[[str], None], port: int = 0) -> None:
    """BigModel behind the floor."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(tell, port))


async def _serve(tell: Callable[[str], None], port: int) -> None:
    loop = asyncio.get_running_loop()
    batcher = _Batcher(loop)
    server = await loop.create_server(lambda: _Bare(batcher), "127.0.0.1", port)
    tell(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await server.serve_forever()


class _Batcher:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._net = fixed()
        self._loop = loop
        self._waiting: list[tuple[bytes, asyncio.Transport]] = []
        self._seen = self._empty = 0
        self._turning = False
        self.connections = 0

    def put(self, row: bytes, transport: asyncio.Transport) -> None:
        self._waiting.append((row, transport))
        if self.connections == 1:
            self._run()
        elif not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        grown, self._seen = len(self._waiting) > self._seen, len(self._waiting)
        self._empty = 0 if grown else self._empty + 1
        if self._empty >= TURNS or self._seen >= MOST:
            self._run()
        if self._waiting:
            self._loop.call_soon(self._turn)
        else:
            self._turning = False

    def _run(self) -> None:
        batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        self._seen = self._empty = 0
        rows = np.frombuffer(bytearray().join(row for row, _ in batch), np.float32)
        with torch.inference_mode():
            answers = self._net(torch.from_numpy(rows.reshape(-1, 1000))).numpy().tobytes()
        for place, (_, transport) in enumerate(batch):
            transport.write(HEAD + answers[4 * place : 4 * place + 4])


class _Bare(asyncio.Protocol):
    def __init__(self, batcher: _Batcher) -> None:
        self._batcher = batcher
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._batcher.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._batcher.connections -= 1

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n") + 4
        if len(self._data) - end < 4000 or end < 4:
            return
        row, self._data = self._data[end:], b""
        self._batcher.put(row, self._transport)
