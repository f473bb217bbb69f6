"""The seam between a remote executor and the network.

A transport carries one request and brings one reply. It knows neither models nor retries:
it says in its errors how far the request got (`sent`, `answered`), and the executor decides.

There are two ways through it, because there are two kinds of callers.
`send` works on the caller's own thread, which saves two thread switches per call;
`asend` and `stream` work on the process's one I/O loop (`loop.py`) for calls in the background.

`deadline` is a `time.monotonic()` value. Past it a call raises `DeadlineExceeded`, and its
connection is dropped, for nobody knows which bytes are still under way in it.
`cap` is the most bytes a reply's body may have; a larger one raises `LimitExceeded`
before it is received.
"""

from typing import Protocol

import attrs

from maas.http import Headers, Request, Response

__all__ = ["Frames", "StreamedResponse", "Transport"]


class Frames(Protocol):
    """The body of a streamed reply, read in the pieces its reader asks for."""

    async def read(self, n: int) -> bytearray:
        """Exactly `n` bytes, now the reader's own.

        Raises
        ------
        StreamInterrupted
            The reply ended before; a stream says by a frame of its own that it is complete,
            so whoever reads on past that finds an interruption.
        """

    async def close(self) -> None:
        """Lets go of the rest; a reply that is not complete costs its connection."""


@attrs.frozen
class StreamedResponse:
    """A reply whose head is here and whose body is still coming."""

    status: int
    headers: Headers
    frames: Frames


class Transport(Protocol):
    """Carries requests to one place.

    All failures are `TransportError`, `ProtocolError`, `DeadlineExceeded` or `LimitExceeded`;
    a request that could not be written down (a line break in a header) is a `ValueError`,
    and use across a fork is a `ForkError`.
    """

    def send(self, request: Request, deadline: float | None, cap: int) -> Response:
        """The whole reply, waited for on the caller's thread; its body is one `bytearray`."""

    async def asend(self, request: Request, deadline: float | None, cap: int) -> Response:
        """The same on the I/O loop; cancelling it drops the connection, which the server sees."""

    async def stream(
        self, request: Request, deadline: float | None, cap: int
    ) -> Response | StreamedResponse:
        """A reply of status 200 as it comes, on the I/O loop; any other one whole, within `cap`."""

    def close(self) -> None:
        """Lets go of idle connections and refuses new calls; calls under way end by themselves."""
