"""Replies as bytes: the head, the chunks of a stream, and the runner's own errors.

The runner alone frames replies (`content-length`, `transfer-encoding`,
`connection`), since only it knows how a connection goes on.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import cast

from maas.buffers import Buffer
from maas.http import PROBLEM, Headers, Response

__all__ = ["CONTINUE", "LAST_CHUNK", "chunk", "head", "octets", "problem", "size", "whole"]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_BODILESS = (204, 304)
_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}


def head(status: int, headers: Headers, *, framing: str, close: bool) -> bytes:
    """The head of a reply; `framing` is the line that tells where its body ends, if any does.

    Raises
    ------
    ValueError
        A header holds a line break or a character that HTTP has no byte for.
    """
    lines = _start(status, headers, close)
    if not framing or status in _BODILESS:
        return lines + b"\r\n"
    return b"%b%b\r\n\r\n" % (lines, framing.encode("latin-1"))


@lru_cache(256)  # nearly every reply has the status and the headers of another
def _start(status: int, headers: Headers, close: bool) -> bytes:
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Unknown')}", "server: maas"]
    lines += [f"{name}: {value}" for name, value in headers]
    if close:
        lines.append("connection: close")
    return _encode(lines)


def whole(response: Response, *, close: bool, bodiless: bool = False) -> list[Buffer]:
    """A reply whose body is all there, to be sent one buffer after the other."""
    body, status = cast("Sequence[Buffer]", response.body), response.status
    lines = _start(status, response.headers, close)
    if status in _BODILESS:
        return [lines + b"\r\n"]
    length = len(body[0]) if len(body) == 1 and type(body[0]) is bytes else size(body)
    start = b"%bcontent-length: %d\r\n\r\n" % (lines, length)
    return [start] if bodiless else [start, *body]


def _encode(lines: list[str]) -> bytes:
    text = "\r\n".join(lines) + "\r\n"
    # A value that repeats a caller's words must not start a line, or a reply, of its own.
    if not text.count("\n") == text.count("\r") == len(lines) or "\0" in text:
        raise ValueError("a reply header holds a line break or a NUL")
    return text.encode("latin-1")


def chunk(frame: Sequence[Buffer]) -> list[Buffer]:
    """A frame as one chunk; nothing for an empty frame, which would end the stream."""
    length = size(frame)
    return [b"%x\r\n" % length, *frame, b"\r\n"] if length else []


def size(buffers: Sequence[Buffer]) -> int:
    """Bytes in all; the length of a memoryview counts its items, not its bytes."""
    count = 0
    for buffer in buffers:
        count += buffer.nbytes if type(buffer) is memoryview else len(buffer)
    return count


def octets(buffer: Buffer) -> memoryview:
    """The bytes of a buffer, uncopied, as transports count them."""
    view = memoryview(buffer)
    if not view.nbytes:
        return memoryview(b"")  # an empty view of many dimensions cannot be cast
    return view.cast("B")


def problem(status: int, detail: str, headers: Headers = ()) -> Response:
    """An error of the server itself, as RFC 9457 has it.

    `error` says it again for clients of the Open Inference Protocol, who read nothing else:
    before a head is understood, nobody knows who asks.
    """
    title = _PHRASES.get(status, "Unknown")
    record = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    record["error"] = detail
    return Response(status, (("content-type", PROBLEM), *headers), (json.dumps(record).encode(),))
