"""The seam between a server's sockets and what it serves.

On one side a runner (or an ASGI server): bytes, deadlines, connections.
On the other side a front: who may ask, and the answer.
A front never sees a socket, so a test of it is a function call; a runner never
sees a model.

A request comes in two steps, because a stranger's body must not be read
before it is known whether anybody wants it:

    head ──> admit() ──> Response                 refused; the body is never read
                    └──> Admission(body_cap) ──> body ──> answer() ──> Response
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol

import attrs

from maas.buffers import Body
from maas.http import Headers, Response
from maas.records import frozen

__all__ = ["Admission", "Front", "Head", "Pending"]


@frozen
class Head:
    """A request before its body.

    Attributes
    ----------
    method : as sent; methods are case-sensitive.
    path : as sent, without the query, percent-encoding untouched.
        What is authorised must be this very text, never one rebuilt from it.
    query : as sent, without the question mark.
    headers : names in lower case, in the order sent; `host` is there exactly once.
    secure : the connection cannot be overheard: TLS or a unix socket.
    loopback : the peer is on this machine.
    root : the prefix under which a host application mounted this server; not part of `path`.
    memory : what a front has read in it; a head that repeats another is the same object.
    """

    method: str
    path: str
    query: str
    headers: Headers = attrs.field(repr=False)  # a key is among them
    secure: bool
    loopback: bool
    root: str = ""
    memory: dict[str, Any] = attrs.field(factory=dict, init=False, eq=False, repr=False)


@frozen
class Admission:
    """Leave to go on: a body of up to `body_cap` bytes will be received.

    `route` is the front's own memory of what it decided; runners pass it on unread.
    `refusal` makes the reply to a body that is too large or too slow, of a status and its
    reason, for callers who read no problem details.
    """

    body_cap: int
    route: object = None
    refusal: Callable[[int, str], Response] | None = None


class Pending:
    """A response on its way, without a task; all of it happens on one event loop's thread.

    Attributes
    ----------
    then : called with the response, once.
    """

    __slots__ = ("then",)

    def __init__(self) -> None:
        self.then: Callable[[Response], object] | None = None

    def cancel(self) -> None:
        """Nobody waits for the response any more."""
        raise NotImplementedError

    def __await__(self) -> Generator[Any, None, Response]:
        """The response, for a host that has a task for each request."""
        given: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def give(response: Response) -> None:
            if not given.done():
                given.set_result(response)

        self.then = give
        try:
            return (yield from given.__await__())
        except asyncio.CancelledError:
            self.cancel()
            raise


class Front(Protocol):
    """What a runner serves."""

    def admit(self, head: Head) -> Admission | Response:
        """Decide on a head, cheaply and without waiting; a `Response` refuses."""

    def answer(self, admission: Admission, body: Body) -> Response | Awaitable[Response]:
        """Answer an admitted request, whose body now belongs to the front.

        The response itself where it is there at once, so that no task need be made for it.
        Raises nothing of its own: failures are responses. What is waited for is cancelled when the
        peer goes away; so is the response's body, if it is an iterator, by `aclose()`.
        """

    def draining(self) -> None:
        """Hear that the server is about to stop; from now on tell probes "not ready"."""
