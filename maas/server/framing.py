"""Where a request begins and ends: RFC 9112, the strict half, without a socket.

A server and whatever stands before it (a proxy, a cache) must agree on where a
request ends, or a stranger can hide a second request in the first.  So what
the RFC lets a recipient repair is refused here: bare line feeds, folded lines,
two lengths, a length beside chunks, chunk extensions, trailers, odd targets.
After a refusal the connection closes, since nothing behind the fault has a
known meaning.

A head is parsed only when all of it is there, so that an answer never depends
on how the network cut it up.  llhttp, through httptools, knows the grammar of
fields; what it is known to let pass (a missing or a second Host, any number of
fields, odd bytes in targets) is checked here.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from maas.buffers import Body
from maas.server.front import Head

__all__ = ["Chunked", "HeadReader", "Opening", "Refusal", "Sized"]

MAX_TARGET = 8 * 2**10
MAX_FIELDS = 100
MAX_FIELD_BYTES = 32 * 2**10

_FRAMING = frozenset(("host", "content-length", "transfer-encoding", "connection", "expect"))
_LINE_EXTRA = 64  # the longest method and the version, around a target
_STEP = 64 * 2**10
_ZEROS = memoryview(bytes(_STEP))
_PROVEN = 2**20
_LONG_STEP = 128 * 2**10

_CONTROLS = bytes(set(range(32)) - set(b"\t\r\n")) + b"\x7f"
_ILLEGAL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?=[^\n])|(?<!\r)\n")
_LINE = re.compile(rb"(?:\r\n)?([A-Z-]+) (\S+) HTTP/([0-9])\.([0-9])\r\n")
_PIECE = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})"
_TARGET = re.compile(
    rf"(?:https?://(?P<authority>[^/?]+))?(?P<path>/{_PIECE}*|(?<=[^/])(?=\?|\Z))"
    rf"(?:\?(?P<query>(?:{_PIECE}|\?)*))?"
)
_HOST = re.compile(r"(?:[A-Za-z0-9._~%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_CHUNK_LINE = 10


class Refusal(Exception):
    """A request that goes no further: reply with `status`, then close."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Opening(NamedTuple):
    """A head and what it says about the bytes that follow.

    Attributes
    ----------
    length : bytes of the body; None for chunks.
    expects : the peer waits for "100 Continue" before it sends the body.
    closes : no request may follow this one.
    legacy : HTTP/1.0, which knows no chunks.
    """

    head: Head
    length: int | None
    expects: bool
    closes: bool
    legacy: bool


class HeadReader:
    """Takes heads, one after the other, from the front of a growing buffer."""

    def __init__(self, *, secure: bool, loopback: bool) -> None:
        self._secure = secure
        self._loopback = loopback
        self._seen = 0
        self._last = b""
        self._opening: Opening | None = None

    def read(self, inbox: bytearray) -> Opening | None:
        """The next head, removed from `inbox`; None while some of it is missing.

        Raises
        ------
        Refusal
            What came cannot be, or become, a head to accept.
        """
        seen, self._seen = self._seen, len(inbox)
        end = inbox.find(b"\r\n\r\n", max(seen - 3, 0)) + 4
        if end <= 3:
            _check_growth(inbox, seen)
            return None
        raw = bytes(inbox[:end])
        del inbox[:end]
        self._seen = 0
        if raw != self._last or self._opening is None:
            # Most heads repeat the one before them on their connection, byte for byte.
            self._opening = self._parse(raw)
            self._last = raw
        return self._opening

    def _parse(self, raw: bytes) -> Opening:
        _check_characters(raw)
        line = raw[: raw.find(b"\r\n", 2) + 2]
        fields = _fields(raw, len(line))
        method, path, query, legacy = _request_line(line, _host(fields))
        head = Head(method, path, query, tuple(fields.all), self._secure, self._loopback)
        length = _length(fields, legacy=legacy)
        expects = _expects(fields) and not legacy
        return Opening(head, length, expects, _closes(fields) or legacy, legacy)


def _check_characters(raw: bytes) -> None:
    # Four passes in C: a regular expression takes 20 times as long.
    pairs = raw.count(b"\r\n")
    bare = raw.count(b"\r") != pairs or raw.count(b"\n") != pairs
    if bare or len(raw.translate(None, _CONTROLS)) != len(raw):
        raise Refusal(400, "the head holds a control character or a bare CR or LF")


def _check_growth(inbox: bytearray, seen: int) -> None:
    if _ILLEGAL.search(inbox, max(seen - 1, 0)):
        raise Refusal(400, "the head holds a control character or a bare CR or LF")
    line = inbox.find(b"\r\n", 2, MAX_TARGET + _LINE_EXTRA)
    if line < 0 and len(inbox) > MAX_TARGET + _LINE_EXTRA:
        raise Refusal(414, f"the request target is longer than {MAX_TARGET} bytes")
    if len(inbox) > line + 2 + MAX_FIELD_BYTES:
        raise Refusal(431, f"the header fields take more than {MAX_FIELD_BYTES} bytes")


@lru_cache(256)
def _name(raw: bytes) -> str:
    return raw.decode("latin-1").lower()


class _Fields:
    """httptools' callbacks: gathers the header fields of one head."""

    __slots__ = ("_framing", "all")

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []
        self._framing: dict[str, list[str]] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        key = _name(name)
        text = value.decode("latin-1").strip(" \t")
        self.all.append((key, text))
        if key in _FRAMING:
            self._framing.setdefault(key, []).append(text)

    def framing(self, name: str) -> Sequence[str]:
        """The values of every field called `name`, one of `_FRAMING`."""
        return self._framing.get(name, ())


def _fields(raw: bytes, after: int) -> _Fields:
    if len(raw) - after - 2 > MAX_FIELD_BYTES:
        raise Refusal(431, f"the header fields take more than {MAX_FIELD_BYTES} bytes")
    if raw.count(b"\r\n", after) - 1 > MAX_FIELDS:
        raise Refusal(431, f"more than {MAX_FIELDS} header fields")
    found = _Fields()
    try:
        HttpRequestParser(found).feed_data(raw)
    except HttpParserUpgrade:
        pass  # an upgrade is an offer; declined by answering in HTTP/1.1 (RFC 9110, 7.8)
    except HttpParserError as error:
        raise Refusal(400, f"malformed request: {error}") from None
    return found


def _host(fields: _Fields) -> str:
    hosts = fields.framing("host")
    if len(hosts) != 1:
        raise Refusal(400, f"a request wants exactly one Host field, this one has {len(hosts)}")
    return hosts[0]


@lru_cache(256)  # most requests repeat the line and the host of another: 2 us less for each
def _request_line(raw: bytes, host: str) -> tuple[str, str, str, bool]:
    """Method, path, query, and whether the version is 1.0."""
    line = _LINE.fullmatch(raw)
    if line is None:
        raise Refusal(400, "the request line is not METHOD TARGET HTTP/1.1")
    method, target, major, minor = line.groups()
    if major != b"1" or minor not in b"01":
        raise Refusal(505, "this server speaks HTTP/1.1 and HTTP/1.0")
    if len(target) > MAX_TARGET:
        raise Refusal(414, f"the request target is longer than {MAX_TARGET} bytes")
    if not _HOST.fullmatch(host):
        raise Refusal(400, "the Host field is not a host name with an optional port")
    path, query = _split_target(method.decode(), target.decode("latin-1"), host)
    return method.decode(), path, query, minor == b"0"


def _split_target(method: str, target: str, host: str) -> tuple[str, str]:
    if method == "CONNECT":
        raise Refusal(501, "this server is no proxy: CONNECT is not served")
    if target == "*" and method == "OPTIONS":
        return target, ""
    parts = _TARGET.fullmatch(target)
    if parts is None:
        raise Refusal(400, "the request target is neither a path nor an absolute URL")
    authority = parts["authority"]
    if authority is not None and authority.lower() != host.lower():
        raise Refusal(400, "the host of the request target is not that of the Host field")
    return parts["path"] or "/", parts["query"] or ""


def _length(fields: _Fields, *, legacy: bool) -> int | None:
    """Bytes of the body by RFC 9112, 6.3; None for a chunked one."""
    lengths = fields.framing("content-length")
    codings = fields.framing("transfer-encoding")
    if codings:
        if lengths or legacy or len(codings) > 1:
            raise Refusal(400, "Transfer-Encoding stands alone, once, and in HTTP/1.1")
        if codings[0].lower() != "chunked":
            raise Refusal(501, "the only transfer coding served is chunked")
        return None
    if not lengths:
        return 0
    digits = lengths[0]
    if len(lengths) > 1 or not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
        raise Refusal(400, "Content-Length is one number of bytes")
    return int(digits)


def _expects(fields: _Fields) -> bool:
    wanted = fields.framing("expect")
    if wanted and [value.lower() for value in wanted] != ["100-continue"]:
        raise Refusal(417, "the only expectation met is 100-continue")
    return bool(wanted)


def _closes(fields: _Fields) -> bool:
    options = ",".join(fields.framing("connection")).lower()
    return "close" in options and "close" in [option.strip() for option in options.split(",")]


class Sized:
    """A body of known length, received in place.

    Memory follows what has come, not what was announced: a stranger who
    announces 256 MB and sends none costs 64 KiB.  Whoever has sent a MiB gets
    all the room at once, of which the system makes memory as it is written;
    NumPy asks it for pages of 2 MiB, which cost a third of the time.  To let go
    of 64 MB in pages of 4 KiB would hold the loop for 7 ms, of these 0.4.
    `charge` hears of each byte before it may be written, and may raise; of those
    that did not come after a longer step it hears again, as a negative number.
    """

    def __init__(self, length: int, charge: Callable[[int], None]) -> None:
        self.data: Body = bytearray()
        self.received = 0
        self._length = length
        self._charge = charge
        self._charged = 0

    def take(self, inbox: bytearray) -> bool:
        """Move what belongs to the body out of `inbox`; True when the body is whole."""
        count = min(len(inbox), self.left)
        if count:
            self._room(count)[:] = memoryview(inbox)[:count]
            del inbox[:count]
        return self.filled(count)

    @property
    def left(self) -> int:
        """Bytes of the body that have not come."""
        return self._length - self.received

    def room(self, most: int = _LONG_STEP) -> memoryview:
        """Where the next bytes go, a step of them: never empty before the body is whole.

        A step has at most 64 KiB before the peer has sent a MiB, and then `most` bytes.
        """
        if self.received >= _PROVEN and type(self.data) is bytearray:
            self.data = _moved(memoryview(self.data)[: self.received], self._length)
        step = _STEP if type(self.data) is bytearray else most
        return self._room(min(step, self.left))

    def filled(self, count: int) -> bool:
        """Hear that `count` bytes came; True when the body is whole."""
        self.received += count
        spare = self._charged - self.received
        if spare > _LONG_STEP:
            self._charge(-spare)
            self._charged = self.received
        return self.received == self._length

    def charge(self, most: int) -> None:
        """Charge `most` of the bytes that are to come, if they are not yet."""
        end = self.received + min(most, self.left)
        if end > self._charged:
            self._charge(end - self._charged)
            self._charged = end

    def _room(self, count: int) -> memoryview:
        self.charge(count)
        end = self.received + count
        if type(self.data) is bytearray and end > len(self.data):
            self.data += _ZEROS[: end - len(self.data)]
        return memoryview(self.data)[self.received : end]


def _moved(begun: memoryview, length: int) -> memoryview:
    """A whole body's room, with what has come of it."""
    try:
        room = np.empty(length, np.uint8)
    except MemoryError:
        raise Refusal(429, "the server has no memory for this body; try again later") from None
    # The system may take 5 ms to find a page of 2 MiB; NumPy lets others go on meanwhile.
    room[: len(begun)] = np.frombuffer(begun, np.uint8)
    return room.data


class Chunked:
    """A body in chunks, of up to `cap` bytes; no extensions, no trailers."""

    def __init__(self, cap: int, charge: Callable[[int], None]) -> None:
        self.data = bytearray()
        self._cap = cap
        self._charge = charge
        self._chunks = 0
        self._last = False
        self._left: int | None = None  # of this chunk's bytes; None where a size line comes next

    @property
    def received(self) -> int:
        """Bytes of the body that have come."""
        return len(self.data)

    def take(self, inbox: bytearray) -> bool:
        """Move what belongs to the body out of `inbox`; True when the body is whole."""
        while inbox:
            if self._left is None:
                if not self._take_size(inbox):
                    return False
            elif self._left:
                self._left -= self._take_data(inbox, self._left)
            elif not _take_end(inbox):
                return False
            elif self._last:
                return True
            else:
                self._left = None
        return False

    def _take_size(self, inbox: bytearray) -> bool:
        line = _CHUNK.match(inbox)
        if line is None:
            if b"\n" in inbox[:_CHUNK_LINE] or len(inbox) >= _CHUNK_LINE:
                raise Refusal(400, "a chunk starts with 1 to 8 hexadecimal digits and CRLF")
            return False
        size, end = int(line[1], 16), line.end()  # before `inbox` moves under the match
        del inbox[:end]
        self._check_chunk(size)
        self._left = size
        self._last = size == 0
        return True

    def _check_chunk(self, size: int) -> None:
        if len(self.data) + size > self._cap:
            raise Refusal(413, f"the body is larger than {self._cap} bytes")
        self._chunks += 1
        # Each chunk costs a round of this loop, so a body of one-byte chunks
        # would cost a thousand times what the same bytes cost in one piece.
        if self._chunks > 4096 + len(self.data) // 16:
            raise Refusal(400, "the chunks are too small: send larger ones")

    def _take_data(self, inbox: bytearray, left: int) -> int:
        count = min(left, len(inbox))
        self._charge(count)
        self.data += memoryview(inbox)[:count]
        del inbox[:count]
        return count


def _take_end(inbox: bytearray) -> bool:
    if not b"\r\n".startswith(inbox[:2]):
        raise Refusal(400, "a chunk ends with CRLF, and no trailer follows the last")
    if len(inbox) < 2:
        return False
    del inbox[:2]
    return True
