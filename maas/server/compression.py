"""Compressed bodies, opened within a bound: a kilobyte may be a megabyte of zeros.

zlib opens a body in pieces, each charged before the next is made, in a thread, as 256 MB
take it about a second. So many bytes are held at once over all requests: the runner's own count
(`Patience.bodies`) has seen only what came.
"""

import asyncio
import contextlib
import threading
import zlib
from collections.abc import AsyncIterator, Iterator

from maas.buffers import Body
from maas.errors import Cancelled, CodecError, LimitExceeded, Overloaded
from maas.http import Headers

__all__ = ["ACCEPTED", "Inflater", "UnknownCoding", "coding"]

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""For zlib: gzip's container, or its own, which is what HTTP calls deflate (RFC 9110, 8.4.1)."""

ACCEPTED: Headers = (("accept-encoding", "gzip, deflate"),)
"""What a refusal of another coding tells (RFC 9110, 15.5.16)."""

_STEP = 2**20
_SLICE = 64 * 2**10
_SHARE = 4


class UnknownCoding(CodecError):
    """A content coding that this server does not open."""

    code = "content-coding"
    status = 415


def coding(field: str | None) -> str:
    """The coding that a `Content-Encoding` names; empty for none.

    Raises
    ------
    UnknownCoding
        Any but gzip and deflate, and more than one.
    """
    name = (field or "").strip().lower()
    if name in ("", "identity"):
        return ""
    if name not in _WINDOWS:
        raise UnknownCoding(f"content-encoding {name!r:.60}; this server opens gzip and deflate")
    return name


class Inflater:
    """Opens bodies of up to `most` bytes each, and four times that at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._lock = threading.Lock()

    @contextlib.asynccontextmanager
    async def opened(self, name: str, body: Body) -> AsyncIterator[bytearray]:
        """The body without its coding, charged for as long as the context lasts.

        Raises
        ------
        CodecError
            The body is not what its coding says.
        LimitExceeded
            It opens to more than `most` bytes.
        Overloaded
            Too much is open already.
        """
        lease = _Lease(self)
        try:
            yield await asyncio.to_thread(_inflate, name, body, lease)
        finally:
            lease.close()

    def charge(self, count: int) -> None:
        """Counts bytes before they are made."""
        with self._lock:
            if self.held + count > _SHARE * self.most:
                raise Overloaded(
                    "the server holds as many opened bodies as it may; try again", retry_after=1.0
                )
            self.held += count

    def release(self, count: int) -> None:
        """Counts bytes that are gone."""
        with self._lock:
            self.held -= count


class _Lease:
    """What one body has taken; once closed, the thread that still opens it stops."""

    def __init__(self, inflater: Inflater) -> None:
        self._inflater = inflater
        self._lock = threading.Lock()
        self._taken = 0
        self._closed = False

    def take(self, count: int) -> None:
        with self._lock:
            if self._closed:
                raise Cancelled("the caller left")
            if self._taken + count > self._inflater.most:
                raise LimitExceeded(f"the body opens to more than {self._inflater.most} bytes")
            self._inflater.charge(count)
            self._taken += count

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._inflater.release(self._taken)


def _inflate(name: str, body: Body, lease: _Lease) -> bytearray:
    opener = zlib.decompressobj(_WINDOWS[name])
    opened = bytearray()
    try:
        for piece in _pieces(opener, memoryview(body)):
            lease.take(len(piece))
            opened += piece
    except zlib.error as error:
        raise CodecError(f"the body is no {name}: {error}") from None
    return opened


def _pieces(opener: "zlib._Decompress", body: memoryview) -> Iterator[bytes]:
    """What the body opens to. Fed by the slice, for zlib copies what it has not used of one."""
    used = 0
    while used < len(body) and not opener.eof:
        rest: memoryview | bytes = body[used : used + _SLICE]
        used += len(rest)
        while rest and not opener.eof:
            yield opener.decompress(rest, _STEP)
            rest = opener.unconsumed_tail
    while not opener.eof:
        piece = opener.decompress(b"", _STEP)
        if not piece:
            raise CodecError("the compressed body ends before its data do")
        yield piece
    surplus = len(body) - used + len(opener.unused_data)
    if surplus:
        raise CodecError(f"{surplus} bytes follow the compressed data")
