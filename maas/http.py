"""HTTP requests and responses as data: what client, server and in-process wire share.

Nothing here touches a socket, and no bytes are parsed here.
"""

from collections.abc import AsyncIterator, Sequence

import attrs

from maas.buffers import Buffer
from maas.records import frozen

__all__ = ["MSGPACK", "PROBLEM", "Headers", "Request", "Response", "header"]

Headers = tuple[tuple[str, str], ...]

MSGPACK = "application/vnd.msgpack"
PROBLEM = "application/problem+json"


@frozen(eq=True)
class Request:
    """A request: `target` as on the request line, header names in lower case.

    `body` is a sequence of buffers to be sent one after the other, uncopied.
    """

    method: str
    target: str
    headers: Headers = attrs.field(default=(), repr=False)  # a key is among them
    body: Sequence[Buffer] = ()


@frozen(eq=True)
class Response:
    """A reply: `body` is all there is, or an asynchronous iterator of frames.

    Each frame is a sequence of buffers that belong together; a front sends it
    as soon as it comes, and asks for the next only when the peer has taken it.
    """

    status: int
    headers: Headers = ()
    body: Sequence[Buffer] | AsyncIterator[Sequence[Buffer]] = ()


def header(headers: Headers, name: str) -> str | None:
    """The value of the only header called `name` (in lower case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None
