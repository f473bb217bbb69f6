"""From an address to a connected socket, in bounded time.

Finding the addresses of a name and connecting can each take minutes when nobody answers, and
neither can be interrupted everywhere; here both keep to a time (`until`, as of `time.monotonic()`).
"""

import asyncio
import concurrent.futures
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

__all__ = ["Address", "Found", "adial", "dial", "in_turn", "left", "lookup"]

Address = tuple[Literal["tcp"], str, int] | tuple[Literal["unix"], str]
Found = list[tuple[int, Any]]

# A vanished host is noticed after 60 + 3 * 20 s, even by a call without a deadline.
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3))

# A unix socket whose backlog is full refuses at once instead of letting one wait.
_BACKLOG_PAUSE = 0.005


def left(until: float) -> float:
    """Seconds left; none are a `TimeoutError`, for zero would mean not to wait at all."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def in_turn(found: Found, until: float) -> Iterator[tuple[tuple[int, Any], float, bool]]:
    """Each address with its fair share of the time, so that a dead first one leaves some."""
    for i, address in enumerate(found):
        now = time.monotonic()
        to_go = len(found) - i
        yield address, now + (until - now) / to_go, to_go == 1


def lookup(address: Address) -> "concurrent.futures.Future[Found]":
    """The socket addresses; a name is asked for on a thread of its own, which may take minutes."""
    future: concurrent.futures.Future[Found] = concurrent.futures.Future()
    if address[0] == "unix":
        future.set_result([(socket.AF_UNIX, address[1])])
        return future
    _, host, port = address
    try:
        future.set_result(_resolve(host, port, socket.AI_NUMERICHOST))
    except socket.gaierror:
        threading.Thread(
            target=_settle, args=(future, host, port), name="maas-lookup", daemon=True
        ).start()
    return future


def _settle(future: "concurrent.futures.Future[Found]", host: str, port: int) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(_resolve(host, port, 0))
    except (OSError, UnicodeError) as error:
        future.set_exception(error)


def _resolve(host: str, port: int, flags: int) -> Found:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(info[0], info[4]) for info in infos]


def _new_socket(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


def dial(family: int, address: Any, until: float) -> socket.socket:
    """A connected socket, waited for on the caller's thread."""
    sock = _new_socket(family)
    try:
        sock.settimeout(left(until))
        while not _knock(sock, address):
            time.sleep(_BACKLOG_PAUSE)
            sock.settimeout(left(until))
    except BaseException:
        sock.close()
        raise
    return sock


async def adial(family: int, address: Any) -> socket.socket:
    """The same on the loop, until cancelled."""
    sock = _new_socket(family)
    sock.setblocking(False)
    try:
        if family != socket.AF_UNIX:
            await asyncio.get_running_loop().sock_connect(sock, address)
        else:
            # Not the loop's way: it takes a full backlog for a connection under way.
            while not _knock(sock, address):  # noqa: ASYNC110 - no event tells of room
                await asyncio.sleep(_BACKLOG_PAUSE)
    except BaseException:
        sock.close()
        raise
    return sock


def _knock(sock: socket.socket, address: Any) -> bool:
    """Connects, unless the backlog of a unix socket is full."""
    try:
        sock.connect(address)
    except BlockingIOError:
        return False
    return True
