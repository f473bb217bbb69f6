"""The least that can be called a client: kept connections, and requests written beforehand.

Every connection asks as soon as its last answer is there. All replies are kept, with the request
that each one answers, so that they can be checked once nothing is measured any more.
"""

import select
import socket
import time
from collections.abc import Sequence
from itertools import cycle
from types import TracebackType
from typing import Self

import attrs

__all__ = ["Callers", "Load", "posted"]

_SILENCE = 30.0
"""Seconds without a reply, or until the last one, after which a server is given up."""


def posted(target: str, host: str, headers: Sequence[str], body: bytes) -> bytes:
    """A request, as bytes."""
    lines = [f"POST {target} HTTP/1.1", f"host: {host}", *headers, f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


@attrs.frozen
class Load:
    """What came of some seconds of asking.

    Attributes
    ----------
    seconds : how long it took.
    times : seconds from each request to its reply.
    replies : the index of each request, and the body of the reply to it.
    """

    seconds: float
    times: list[float]
    replies: list[tuple[int, bytes]]

    @property
    def rate(self) -> float:
        """Replies a second."""
        return len(self.replies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the replies took at most."""
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Callers:
    """So many connections to one server; also a context manager."""

    def __init__(self, place: tuple[str, int], count: int) -> None:
        self._connections: dict[int, _Connection] = {}
        self._epoll = select.epoll()
        for _ in range(count):
            connection = _Connection(socket.create_connection(place))
            self._connections[connection.number] = connection
            self._epoll.register(connection.number, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self._connections.values():
            connection.close()
        self._epoll.close()

    def ask(self, requests: Sequence[bytes], seconds: float) -> Load:
        """Asks all requests again and again for so many seconds, and waits for the last replies.

        Raises
        ------
        RuntimeError
            A reply is no success, or did not come for half a minute.
        """
        waiting = cycle(enumerate(requests))
        times: list[float] = []
        replies: list[tuple[int, bytes]] = []
        began = now = time.perf_counter()
        until = began + seconds
        for connection in self._connections.values():
            connection.ask(*next(waiting), now)
        busy = len(self._connections)
        while busy:
            ready = self._epoll.poll(_SILENCE)
            if not ready or now > until + _SILENCE:
                raise RuntimeError(f"{busy} replies did not come for {_SILENCE:g} seconds")
            for number, _ in ready:
                connection = self._connections[number]
                body = connection.receive()
                if body is None:
                    continue
                now = time.perf_counter()
                times.append(now - connection.asked)
                replies.append((connection.index, body))
                if now < until:
                    connection.ask(*next(waiting), now)
                else:
                    busy -= 1
        return Load(time.perf_counter() - began, times, replies)


class _Connection:
    """One connection, on which one request is under way at a time."""

    __slots__ = ("_data", "_socket", "asked", "index", "number")

    def __init__(self, connected: socket.socket) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._data = b""
        self.number = connected.fileno()
        self.index = 0
        self.asked = 0.0

    def ask(self, index: int, request: bytes, now: float) -> None:
        self.index = index
        self.asked = now
        self._socket.sendall(request)

    def receive(self) -> bytes | None:
        """The body of the reply, once it is whole."""
        came = self._socket.recv(65_536)
        if not came:
            raise RuntimeError(f"the server closed the connection after {self._data!r:.500}")
        self._data += came
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end:
            return None
        at = head.find(b"ontent-") + 7
        # Others end so as well: inference-header-content-length.
        if head[at - 9 : at - 8] == b"\n" and head[at : at + 7].lower() == b"length:":
            length = int(head[at + 7 : (head + b"\r\n").index(b"\r\n", at)])
        else:
            length = _length(head)
        if length < 0:
            whole = _unchunked(body)
            if whole is None:
                return None
            body = whole
        elif len(body) < length:
            return None
        if head[9:12] != b"200":
            raise RuntimeError(f"refused: {self._data!r:.500}")
        self._data = b""
        return body

    def close(self) -> None:
        self._socket.close()


def _length(head: bytes) -> int:
    """The length that a head tells; -1 for chunks."""
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return int(value)
    return -1


def _unchunked(data: bytes) -> bytes | None:
    """What the chunks hold; None while the last is missing."""
    found = b""
    while True:
        size, end, rest = data.partition(b"\r\n")
        if not end or len(rest) < int(size, 16) + 2:
            return None
        if not int(size, 16):
            return found
        found += rest[: int(size, 16)]
        data = rest[int(size, 16) + 2 :]
