"""Large bodies, carried by threads, so that the loop has time for everybody else.

To copy 64 MB in or out of the kernel takes a loop 30 ms in 512 turns. It answers others between
two turns, but it is never idle, and the scheduler makes a busy process wait whenever there are more
of them than processors: on two of them a small call waited 3 ms, one slice, in every fortieth case.
A thread that carries is made to wait in the loop's stead.

What is carried goes in stints, each a bounded part of a body for a bounded time. A stint ends
sooner when the peer pauses, so a slow peer has no thread: the loop waits for it, and another stint
begins once it is fast. Where no thread is free the loop carries by itself.
"""

import asyncio
import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

from maas.executors.lanes import Lane

__all__ = ["LEAST", "MOST", "Carrier", "Freight"]

LEAST = 2**20
"""Bytes: what is less takes the loop half a millisecond, about as much as a stint costs."""

MOST = 2**23
"""Bytes of a stint: what a peer is charged for meanwhile, whether or not it sends them."""

STEP = 2**18
"""Bytes of a system call, in which many kernels let nobody else run: 4 MB took 2 ms."""

NICENESS = 10
"""Such a thread is given a tenth of what the loop is, where both want a processor (`nice(2)`)."""

LONGEST = 0.1
"""Seconds of a stint."""

PAUSE = 0.02
"""Seconds: a peer that neither sends nor reads for so long is waited for by the loop."""

WIDTH = 2
"""Threads: one copies 3 GB/s, as much as a wire of 25 Gbit/s brings."""


class HasDescriptor(Protocol):
    """A socket, as a transport tells of it."""

    def fileno(self) -> int:
        """The descriptor, or -1."""


Move = Callable[[socket.socket, memoryview], int]
"""Receives into, or sends from; gives the number of bytes."""


class Freight:
    """The threads that carry for the connections of one server.

    Attributes
    ----------
    under_way : stints at the moment.
    """

    def __init__(self) -> None:
        self._lane = Lane(WIDTH, "maas-freight")
        self._lock = threading.Lock()
        self.under_way = 0

    @property
    def full(self) -> bool:
        """Whether every thread has a stint."""
        return self.under_way >= WIDTH

    def carrier(self, sock: HasDescriptor) -> "Carrier | None":
        """Who carries for a connection; nobody on Windows, which has no `poll`."""
        return Carrier(self, sock) if hasattr(select, "poll") else None

    def begin(self, stint: Callable[[], int]) -> "asyncio.Future[int] | None":
        """What a stint gives, which a thread does to its end; None where none can be had."""
        with self._lock:
            self.under_way += 1

        def done() -> int:
            try:
                self._step_back()
                return stint()
            finally:
                self._end()

        try:
            # Shielded: a stint that is cancelled before it began would never end.
            return asyncio.shield(asyncio.wrap_future(self._lane.ask(done)))
        except RuntimeError:  # this process may have no more threads
            self._end()
            return None

    def _step_back(self) -> None:
        if sys.platform == "linux":  # elsewhere it is the whole process's
            with contextlib.suppress(OSError):  # a sandbox may forbid it
                niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICENESS
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, niceness))

    def _end(self) -> None:
        with self._lock:
            self.under_way -= 1


class Carrier:
    """Has parts of the bodies of one connection carried, while its transport does nothing."""

    def __init__(self, freight: Freight, sock: HasDescriptor) -> None:
        self._freight = freight
        self._socket = sock

    def receive(self, room: Callable[[], memoryview]) -> "asyncio.Future[int] | None":
        """Bytes that came into `room()`, which the thread calls; None where none has time."""
        return self._carried(room, select.POLLIN, socket.socket.recv_into)

    def send(self, data: memoryview) -> "asyncio.Future[int] | None":
        """Bytes of `data` that went; None where no thread has time."""
        return self._carried(lambda: data[:MOST], select.POLLOUT, socket.socket.send)

    def _carried(
        self, data: Callable[[], memoryview], event: int, move: Move
    ) -> "asyncio.Future[int] | None":
        if self._freight.full:
            return None
        try:
            # Its own descriptor: that of a connection which ends meanwhile may soon be another's.
            descriptor = os.dup(self._socket.fileno())
        except OSError:
            return None
        try:
            own = socket.socket(fileno=descriptor)
        except OSError:  # it is no socket
            os.close(descriptor)
            return None
        own.setblocking(False)  # or a process with a default timeout would wait for so long

        def stint() -> int:
            with own:
                return _moved(own, data(), event, move)

        begun = self._freight.begin(stint)
        if begun is None:
            own.close()
        return begun


def _moved(own: socket.socket, data: memoryview, event: int, move: Move) -> int:
    """Bytes moved before the peer paused or was gone, which the loop will notice by itself."""
    until = time.monotonic() + LONGEST
    poll = select.poll()
    poll.register(own, event)
    count = 0
    while count < len(data) and time.monotonic() < until:
        try:
            moved = move(own, data[count : count + STEP])
        except BlockingIOError:
            if not poll.poll(PAUSE * 1000):
                break
        except OSError:
            break
        else:
            if not moved:
                break
            count += moved
    return count
