"""The items of a generator that runs elsewhere: frames of one reply, each read when asked for."""

import asyncio
import concurrent.futures
import contextlib
from typing import Any, Protocol

from maas import ambient
from maas.calls import Call, Info
from maas.errors import DeadlineExceeded
from maas.executors.base import END, Stream, late
from maas.http import Headers
from maas.loops import run
from maas.tracing import Hop
from maas.transports.base import StreamedResponse
from maas.wire import End, Failure, Item

__all__ = ["RemoteStream", "Streaming"]


class Streaming(Protocol):
    """What a stream needs of the executor that began it."""

    name: str

    async def open(self, call: Call) -> StreamedResponse:
        """The reply to a call that streams, its head received."""

    def located(self, info: Info, headers: Headers) -> Info:
        """The facts as they are told here."""

    async def next(self, reply: StreamedResponse) -> Item | End | Failure:
        """The next message of a stream."""


class RemoteStream(Stream[Any]):
    """Reads frames on the I/O loop, each when asked for; the rest waits at the server."""

    def __init__(self, executor: Streaming, call: Call, hop: Hop) -> None:
        self._executor = executor
        self._call = call
        self._hop = hop
        self._reply: StreamedResponse | None = None
        self._ended = False
        self._reading = asyncio.Lock()

    def _pull(self) -> concurrent.futures.Future[Any]:
        return run(self._next())

    async def _next(self) -> Any:
        async with self._reading:
            if self._ended:
                return END
            try:
                if self._reply is None:
                    self._reply = await self._executor.open(self._call)
                return await self._finished(await self._executor.next(self._reply))
            except BaseException as error:
                self._hop.end(type(error).__qualname__)
                # A frame read by half leaves nothing to go on with.
                await self._close()
                if isinstance(error, DeadlineExceeded):
                    raise late(self._executor.name) from error
                raise

    async def _finished(self, message: Item | End | Failure) -> Any:
        if isinstance(message, Item):
            return message.value
        ambient.take_back(message.rng)
        if isinstance(message, Failure):
            raise message.error
        assert self._reply is not None  # noqa: S101 - the message came in it
        self.info = self._executor.located(message.info, self._reply.headers)
        await self._close()
        return END

    async def _close(self) -> None:
        self._ended = True
        self._hop.end()
        if self._reply is not None:
            await self._reply.frames.close()

    def _stop(self) -> concurrent.futures.Future[None]:
        return run(self._close())

    def __del__(self) -> None:
        if self._reply is not None and not self._ended:
            with contextlib.suppress(Exception):
                self._stop()
