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

from collections.abc import Callable
from typing import Protocol

import attrs

from maas.http import Headers, Response
from maas.records import frozen

__all__ = ["Admission", "Front", "Head"]


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
    """

    method: str
    path: str
    query: str
    headers: Headers = attrs.field(repr=False)  # a key is among them
    secure: bool
    loopback: bool
    root: str = ""


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


class Front(Protocol):
    """What a runner serves."""

    def admit(self, head: Head) -> Admission | Response:
        """Decide on a head, cheaply and without waiting; a `Response` refuses."""

    async def answer(self, admission: Admission, body: bytearray) -> Response:
        """Answer an admitted request, whose body now belongs to the front.

        Raises nothing of its own: failures are responses. Cancelled when the
        peer goes away; so is the response's body, if it is an iterator, by `aclose()`.
        """

    def draining(self) -> None:
        """Hear that the server is about to stop; from now on tell probes "not ready"."""
