"""One HTTP/1.1 request and its reply, as bytes without a socket.

An `Exchange` says what to write (`parts`) and where to receive (`buffer`), and is told how
much came (`received`) or that the peer closed (`eof`). Sockets, threads and time belong to
`sockets.py`, so every rule of HTTP is tested here by a function call.

The life of a reply:

    head ──> sized          received straight into a buffer of content-length bytes
        ├──> chunked        through the parser, collected
        ├──> until close    collected; the end is the peer's close
        └──> none           HEAD, 204 and 304

The server is a stranger. Its head is parsed by llhttp (`httptools`), never by hand, and
whatever two HTTP implementations could read differently is refused: both framings, two
lengths, an unknown coding, bytes beyond the end. A reply that is refused costs the
connection, for nobody knows where the next one would begin.
"""

import functools
import re
from collections.abc import Sequence
from typing import Never

import attrs
import httptools
import numpy as np

from maas.buffers import Body, Buffer
from maas.errors import LimitExceeded, ProtocolError, TransportError
from maas.http import Headers, Request
from maas.versions import maas_version

__all__ = ["Exchange", "check_encoding", "written_headers"]

# Most heads fit; a larger one makes it grow up to `head_cap`. Clearing 16 KiB takes 0.2 us.
_HEAD_SCRATCH = 16_384
_BODY_SCRATCH = 65_536

# From here on a body's memory is taken as it comes, in pages of 2 MiB, for which NumPy asks: to
# write zeros before takes as long as to receive, and 64 MB there and back took twice the time.
_LARGE_BODY = 2**20

# Heads up to this size may be remembered: those of answers to calls take 200 bytes.
_COMMON_HEAD = 1_024

# Nginx, Apache and llhttp-based servers stop at about 100 headers.
_MOST_HEADERS = 128

# Below this one write beats two, although it copies.
_JOIN_BELOW = 65_536

# So much of a stream may wait for its reader before the socket is left alone.
_MOST_WAITING = 2**20

# Chunks of a reply beyond one for every 16 bytes; as many as our own server takes.
_MOST_CHUNKS = 4096

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(r"[!-~]+")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")

# What an exchange writes itself; two of one would be read differently by different servers.
_OWN = frozenset(
    {"accept-encoding", "content-length", "host", "te", "transfer-encoding", "user-agent"}
)
_BODILESS = frozenset({204, 304})


def check_encoding(headers: Headers) -> None:
    """Refuses a compressed reply: its size on arrival says nothing about the memory it wants.

    Raises
    ------
    ProtocolError
        There is a content-encoding other than identity.
    """
    for name, value in headers:
        if name == "content-encoding" and value.lower() != "identity":
            raise ProtocolError(
                f"the reply is encoded as {value!r:.40}, though the request accepts only identity",
                sent=True,
                answered=True,
            )


class Exchange:
    """One request and its reply on one connection.

    Attributes
    ----------
    parts : what to write, in this order.
    sent : set by the driver once a byte may have left; errors repeat it.
    answered : a byte of the reply has come.
    head_done : `status` and `headers` are there, those of the final reply.
    done : the reply is complete.
    reusable : once done, whether another exchange may follow on the connection.
    body : the reply's body; of a streamed one what has come and was not taken.
    """

    def __init__(
        self,
        request: Request,
        host: str,
        *,
        cap: int,
        head_cap: int = 65_536,
        streamed: bool = False,
    ) -> None:
        body = request.body
        # As nearly all calls are.
        if len(body) == 1 and type(body[0]) is bytes and len(body[0]) < _JOIN_BELOW:
            self.head = _head(request, host, len(body[0]))
            self.parts: list[Buffer] = [self.head + body[0]]
        else:
            parts = [part for part in map(_flat, body) if len(part)]
            self.head = _head(request, host, sum(map(len, parts)))
            self.parts = _joined([self.head, *parts])
        self.sent = False
        self.answered = False
        self.head_done = False
        self.done = False
        self.reusable = False
        self.status = 0
        self.headers: Headers = ()
        self._collected = bytearray()
        self.body: Body = self._collected
        self._method = request.method
        self._cap = cap
        self._head_cap = head_cap
        self._streamed = streamed
        self._scratch = bytearray(min(_HEAD_SCRATCH, head_cap))
        self._view = memoryview(self._scratch)
        self._start = 0
        self._filled = 0
        self._direct: memoryview | None = None
        self._got = 0
        self._left: int | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._reply = _Reply()
        self._idle = 0
        self._surplus = 0

    @property
    def paused(self) -> bool:
        """So much of the stream waits that no more should be received for now."""
        return self.streaming and len(self.body) > _MOST_WAITING

    @property
    def streaming(self) -> bool:
        """The reply's body is handed out as it comes."""
        return self._streamed and self.status == 200

    def buffer(self) -> memoryview:
        """Where to receive next; never empty before `done`."""
        if not self.head_done:
            return self._view[self._filled :]
        if self._direct is not None:
            return self._direct[self._got :]
        return self._view

    def received(self, n: int) -> None:
        """Takes the `n` bytes that were put at the start of `buffer()`.

        Raises
        ------
        ProtocolError
            They break the rules of HTTP, or of this client.
        LimitExceeded
            They announce or make a reply beyond the caps.
        """
        self.answered = True
        if not self.head_done:
            self._receive_head(n)
        elif self._direct is not None:
            self._advance(n)
        else:
            self._collect(self._view[:n])

    def eof(self) -> None:
        """Hears that the peer has closed, which completes a reply without a length.

        Raises
        ------
        TransportError
            The reply is not complete.
        """
        if self.done:
            return
        if not self.head_done or self._left is not None or self._parser or self._direct is not None:
            raise self.broken("the server closed the connection")
        self.done = True

    def take(self, most: int) -> bytearray:
        """Up to `most` bytes of what waits of a stream."""
        taken = self._collected[:most]
        del self._collected[:most]
        return taken

    def broken(self, what: str) -> TransportError:
        """The error for a connection to which `what` happened, saying how far the call got."""
        return TransportError(f"{what} {self.progress()}", sent=self.sent, answered=self.answered)

    def progress(self) -> str:
        """How much of the reply is here, as the end of a sentence."""
        if not self.answered:
            return "before it replied"
        if not self.head_done:
            return f"within the head of its reply, after {self._filled} bytes"
        if self._direct is not None:
            return f"after {self._got} of the {len(self.body)} bytes of its reply"
        return "before the end of its reply"

    def _receive_head(self, n: int) -> None:
        searched = max(self._start, self._filled - 3)
        self._filled += n
        while (end := self._scratch.find(b"\r\n\r\n", searched, self._filled)) >= 0:
            end += 4
            head = self._read_head(bytes(self._view[self._start : end]))
            self._start = searched = end
            # 1xx replies announce the real one; together they may take `head_cap`.
            if head.status >= 200:
                self._begin_body(head, self._view[end : self._filled])
                return
        if self._filled == len(self._scratch):
            self._grow()

    def _grow(self) -> None:
        if self._filled >= self._head_cap:
            raise LimitExceeded(
                f"the head of the reply is longer than the {self._head_cap} bytes it may have"
            )
        # A new one: the driver still holds a view of the old, which therefore cannot grow.
        grown = bytearray(min(2 * self._filled, self._head_cap))
        grown[: self._filled] = self._scratch
        self._scratch, self._view = grown, memoryview(grown)

    def _read_head(self, raw: bytes) -> "_ReplyHead":
        try:
            return _reply_head(raw) if len(raw) <= _COMMON_HEAD else _reply_head.__wrapped__(raw)
        except _Unfit as unfit:
            self._refuse(unfit.args[0])

    def _feed(self, parser: httptools.HttpResponseParser, data: Buffer) -> None:
        try:
            _feed(parser, data, self._reply)
        except _Unfit as unfit:
            self._refuse(unfit.args[0])

    def _begin_body(self, head: "_ReplyHead", rest: memoryview) -> None:
        self.status = head.status
        self.headers = head.headers
        self.head_done = True
        if head.encoded:
            check_encoding(self.headers)
        self.reusable = head.keeps_alive
        if self._method == "HEAD" or self.status in _BODILESS:
            self._begin_sized(0, rest)
        elif head.length is not None:
            self._begin_sized(head.length, rest)
        elif head.chunked:
            # It has read the head once more, and so knows what follows.
            self._parser = httptools.HttpResponseParser(self._reply)
            self._feed(self._parser, head.raw)
            self._begin_collected(rest)
        else:
            self.reusable = False
            self._begin_collected(rest)

    def _begin_sized(self, length: int, rest: memoryview) -> None:
        if len(rest) > length:
            self._refuse("there are bytes beyond the end of the reply")
        if self.streaming:
            self._left = length
            self._begin_collected(rest)
            return
        if length > self._cap:
            raise LimitExceeded(
                f"the reply's body has {length} bytes; Limits(body=...) allows {self._cap}"
            )
        if len(rest) == length:
            self.body = bytearray(rest)
            self.done = True
            return
        large = length >= _LARGE_BODY
        self.body = np.empty(length, np.uint8).data if large else bytearray(length)
        self._direct = memoryview(self.body)
        self._direct[: len(rest)] = rest
        self._advance(len(rest))

    def _advance(self, n: int) -> None:
        self._got += n
        if self._got == len(self.body):
            # The body is its reader's now, who may resize it only if nobody holds a view.
            self._direct = None
            self.done = True

    def _begin_collected(self, rest: memoryview) -> None:
        self._view = memoryview(bytearray(_BODY_SCRATCH))
        self._collect(rest)

    def _collect(self, data: memoryview) -> None:
        if self._parser is not None:
            self._collect_chunked(self._parser, data)
        elif self._left is not None:
            self._left = self._collect_counted(self._left, data)
        else:
            self._append(data)

    def _collect_counted(self, left: int, data: memoryview) -> int:
        if len(data) > left:
            self._refuse("there are bytes beyond the end of the reply")
        self._append(data)
        self.done = left == len(data)
        return left - len(data)

    def _collect_chunked(self, parser: httptools.HttpResponseParser, data: memoryview) -> None:
        self._feed(parser, data)
        pieces, self._reply.pieces = self._reply.pieces, []
        for piece in pieces:
            self._append(piece)
        self._check_chunks(len(pieces))
        # Chunk extensions and trailers are no body, so the cap does not see them.
        self._idle = 0 if pieces else self._idle + len(data)
        if self._idle > self._head_cap:
            raise LimitExceeded(
                f"the reply has more than {self._head_cap} bytes of framing without a body"
            )
        self.done = self._reply.complete

    def _check_chunks(self, came: int) -> None:
        # Each costs a round of Python, so a body of one-byte chunks costs a hundred times as much.
        # How finely the network cuts is nobody's fault: only what came together counts.
        self._surplus += max(0, came - 1)
        if not self.streaming and self._surplus > _MOST_CHUNKS + len(self.body) // 16:
            raise LimitExceeded("the reply's chunks are too small")

    def _append(self, data: Buffer) -> None:
        if not self.streaming and len(self.body) + len(data) > self._cap:
            raise LimitExceeded(
                f"the reply's body has more than the {self._cap} bytes that Limits(body=...) allows"
            )
        self._collected += data

    def _refuse(self, why: str) -> Never:
        raise ProtocolError(why, sent=self.sent, answered=True)


# The head of a reply.


class _Unfit(Exception):
    """What came breaks the rules; an exchange says how far it was."""


@attrs.frozen
class _ReplyHead:
    """A reply's head, and what it says about its body: its length, chunks, or neither."""

    raw: bytes
    status: int
    headers: Headers
    keeps_alive: bool
    chunked: bool
    length: int | None
    encoded: bool


@functools.lru_cache(256)  # most replies repeat the head of another, byte for byte
def _reply_head(raw: bytes) -> _ReplyHead:
    reply = _Reply()
    parser = httptools.HttpResponseParser(reply)
    _feed(parser, raw, reply)
    status, version = parser.get_status_code(), parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise _Unfit(f"the reply is HTTP/{version}, not HTTP/1.1")
    if not 100 <= status <= 599:
        raise _Unfit(f"the reply has the status {status}")
    if len(reply.pairs) > _MOST_HEADERS:
        raise LimitExceeded(
            f"the reply has {len(reply.pairs)} headers; it may have {_MOST_HEADERS}"
        )
    told: dict[str, list[str]] = {"connection": [], "content-length": [], "transfer-encoding": []}
    for name, value in reply.pairs:
        if name in told:
            told[name].append(value)
    bodiless = status < 200
    chunked, length = (
        (False, None) if bodiless else _framing(told["content-length"], told["transfer-encoding"])
    )
    alive = _keeps_alive(told["connection"], version)
    encoded = any(name == "content-encoding" for name, _ in reply.pairs)
    return _ReplyHead(raw, status, tuple(reply.pairs), alive, chunked, length, encoded)


def _feed(parser: httptools.HttpResponseParser, data: Buffer, reply: "_Reply") -> None:
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        raise _Unfit("the server changes to a protocol nobody asked for") from None
    except httptools.HttpParserError as error:
        raise _Unfit(f"the reply is not HTTP: {error}") from None
    if reply.messages > 1:
        raise _Unfit("there are bytes beyond the end of the reply")


def _framing(lengths: list[str], codings: list[str]) -> tuple[bool, int | None]:
    if not lengths and not codings:
        return False, None
    if len(lengths) + len(codings) > 1:
        raise _Unfit(f"the reply frames its body more than once: {lengths + codings!r:.80}")
    if codings:
        if codings[0].lower() != "chunked":
            raise _Unfit(f"the reply has the transfer-encoding {codings[0]!r:.40}")
        return True, None
    # 18 digits: more than any memory, and no long conversion.
    if not re.fullmatch("[0-9]{1,18}", lengths[0]):
        raise _Unfit(f"the reply has the content-length {lengths[0]!r:.40}")
    return False, int(lengths[0])


def _keeps_alive(connection: list[str], version: str) -> bool:
    if not connection:
        return version == "1.1"
    tokens = {token.strip() for token in ",".join(connection).lower().split(",")}
    return "close" not in tokens and (version == "1.1" or "keep-alive" in tokens)


class _Reply:
    """What llhttp finds. It knows no exchange: a cycle would keep large bodies alive."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []
        self.pieces: list[bytes] = []
        self.messages = 0
        self.headed = False
        self.complete = False

    def on_message_begin(self) -> None:
        self.messages += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        # What comes after the head is a trailer, which nobody here asks for.
        if not self.headed:
            self.pairs.append((name.decode("latin-1").lower(), value.decode("latin-1").strip()))

    def on_headers_complete(self) -> None:
        self.headed = True

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        self.complete = True


def _head(request: Request, host: str, length: int) -> bytes:
    start = _head_start(request.method, request.target, request.headers, host)
    if length or request.method not in ("GET", "HEAD"):
        return b"%bcontent-length: %d\r\n\r\n" % (start, length)
    return start + b"\r\n"


@functools.lru_cache(256)  # the calls of one method differ in their length alone
def _head_start(method: str, target: str, own: Headers, host: str) -> bytes:
    _check("host", _TARGET, host)
    headers = (("host", host), *written_headers(Request(method, target, own)))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), ""]
    return "\r\n".join(lines).encode("latin-1")


def written_headers(request: Request) -> Headers:
    """The request's own headers, and those that every request has.

    Raises
    ------
    ValueError
        Something in the request would end its line, or a header is not the caller's to set.
    """
    _check("method", _TOKEN, request.method)
    _check("target", _TARGET, request.target)
    for name, value in request.headers:
        _check("header name", _TOKEN, name)
        _check(f"header {name}", _VALUE, value)
        if name.lower() in _OWN:
            raise ValueError(f"the header {name} is written by the transport; leave it out")
    agent = ("user-agent", f"maas/{maas_version()}")
    return (agent, ("accept-encoding", "identity"), *request.headers)


def _check(what: str, pattern: re.Pattern[str], text: str) -> None:
    # A line break in a value would be a header, or a request, of its author's choice.
    if not pattern.fullmatch(text):
        # The value may be a secret; its name is not.
        raise ValueError(f"the {what} of a request has a character that HTTP forbids there")


def _flat(buffer: Buffer) -> Buffer:
    """The buffer with bytes for items, so that its length is its size."""
    if not isinstance(buffer, memoryview) or (buffer.format == "B" and buffer.ndim == 1):
        return buffer
    return buffer.cast("B") if buffer.nbytes else b""


def _joined(parts: Sequence[Buffer]) -> list[Buffer]:
    if sum(map(len, parts)) < _JOIN_BELOW:
        return [b"".join(parts)]
    return list(parts)
