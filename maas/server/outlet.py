"""The way out of one connection: writes at the pace of the peer who reads."""

import asyncio
from collections.abc import Sequence

from maas.buffers import Buffer
from maas.server.freight import LEAST, MOST, Carrier
from maas.server.replies import octets, size

__all__ = ["JOINED", "Outlet"]

JOINED = 64 * 2**10  # below this one write of a copy beats two writes without
SLICE = 128 * 2**10  # asyncio before 3.12 copies what the socket does not take at once


class Outlet:
    """Sends buffers uncopied, with no more of them waiting in memory than a slice."""

    def __init__(self, transport: asyncio.Transport, carrier: Carrier | None) -> None:
        self._transport = transport
        self._carrier = carrier
        self._resumed: asyncio.Future[None] | None = None
        self._sent = 0
        self._under_way = 0
        self._taken = 0
        self._owed = 0.0

    def write(self, data: Buffer) -> None:
        """Send a few bytes without waiting."""
        self._sent += len(data)
        self._transport.write(data)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Send buffers; returns when the transport wants more.

        Raises
        ------
        ConnectionAbortedError
            The connection is closing.
        """
        if self._transport.is_closing():
            raise ConnectionAbortedError("the peer left before its reply was out")
        if size(buffers) < JOINED:
            self.write(b"".join(buffers))
        else:
            await self._send_sliced(buffers)
        await self.emptied()

    async def _send_sliced(self, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            rest = octets(buffer)
            while rest:
                # A socket takes megabytes at once, and somebody who reads as fast takes all.
                await (self._resumed or asyncio.sleep(0))
                count = await self._carried(rest)
                if not count:
                    self.write(rest[:SLICE])
                rest = rest[count or SLICE :]

    async def _carried(self, data: memoryview) -> int:
        """Bytes that a thread sent, none of them where the loop has to do it."""
        if self._carrier is None or len(data) < LEAST or self.waiting:
            return 0
        carried = self._carrier.send(data)
        if carried is None:
            return 0
        # Meanwhile all of it waits for the peer, who owes time for it.
        self._under_way = min(len(data), MOST)
        self._sent += self._under_way
        count = 0
        try:
            count = await carried
        finally:
            self._sent -= self._under_way - count
            self._under_way = 0
        return count

    @property
    def full(self) -> bool:
        """Whether the transport holds enough."""
        return self._resumed is not None

    async def emptied(self) -> None:
        """Returns when the transport wants more."""
        if self._resumed is not None:
            await self._resumed

    def pause(self) -> None:
        """Hear that the transport holds enough."""
        self._resumed = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        """Hear that the transport wants more."""
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._resumed = None

    @property
    def waiting(self) -> int:
        """Bytes that the peer's side has not taken yet."""
        return self._under_way + self._transport.get_write_buffer_size()

    def owed(self, seconds: float, rate: float) -> float:
        """Seconds that the peer is behind with reading; `seconds` passed since last asked.

        For each second that bytes wait for it, the peer owes one; it pays with
        bytes, at `rate` per second.  So a byte now and then is no progress.
        """
        waiting = self.waiting
        taken = self._sent - waiting
        paid = (taken - self._taken) / rate
        self._taken = taken
        self._owed = max(0.0, self._owed + seconds - paid) if waiting else 0.0
        return self._owed
