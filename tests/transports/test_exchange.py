import contextlib
import http.client
import io
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas.errors import LimitExceeded, ProtocolError, TransportError
from maas.http import Request
from maas.transports.exchange import Exchange

POST = Request("POST", "/net", (("content-type", "text/plain"),), (b"question",))


def fed(pieces, request=POST, *, cap=10_000, eof=False, **options):
    """An exchange that received these pieces, each in as many reads as its buffers asked for."""
    exchange = Exchange(request, "test", cap=cap, **options)
    exchange.sent = True
    for piece in map(io.BytesIO, pieces):
        while not exchange.done and (n := piece.readinto(exchange.buffer())):
            exchange.received(n)
    if eof:
        exchange.eof()
    return exchange


def seen(exchange):
    return (
        exchange.status,
        exchange.headers,
        exchange.body,
        exchange.done,
        exchange.reusable,
    )


def chunked(chunks, trailer=b""):
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"transfer-encoding: chunked\r\n\r\n" + framed + b"0\r\n" + trailer + b"\r\n"


REPLIES = {
    "sized": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    "upgrade offered": b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n"
    b"content-length: 5\r\n\r\nhello",
    "empty": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\nx: y\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n",
    "no reason": b"HTTP/1.1 404 \r\ncontent-length: 2\r\n\r\nno",
    "chunked": b"HTTP/1.1 200 OK\r\n" + chunked([b"he", b"llo" * 100]),
    "trailer": b"HTTP/1.1 200 OK\r\n" + chunked([b"hello"], b"digest: abc\r\n"),
    "close": b"HTTP/1.1 500 Oops\r\nConnection: Close\r\ncontent-length: 2\r\n\r\nno",
    "old": b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    "old kept": b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello",
    "continued": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    b"HTTP/1.1 201 Created\r\ncontent-length: 5\r\n\r\nhello",
}


@given(st.data())
@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_the_same_however_its_bytes_are_split(name, data):
    """Where the network cuts a reply makes no difference, neither whole nor streamed."""
    reply = REPLIES[name]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(reply) - 1))))
    streamed = data.draw(st.booleans())
    pieces = [reply[a:b] for a, b in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    assert seen(fed(pieces, streamed=streamed)) == seen(fed([reply], streamed=streamed))
    assert fed(pieces).done


class _Wire(socket.socket):
    def __init__(self, data):
        super().__init__()
        self._data = data

    def makefile(self, *_args, **_options):
        self.close()
        return io.BytesIO(self._data)


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_read_as_the_standard_library_reads_it(name):
    """Status, headers, body and keep-alive are those that http.client finds."""
    exchange = fed([REPLIES[name]])
    # http.client skips 100 alone; other 1xx replies it takes for the answer.
    oracle = http.client.HTTPResponse(
        _Wire(REPLIES[name].replace(b"103 Early Hints", b"100 Go on")), method="POST"
    )
    oracle.begin()
    assert exchange.status == oracle.status
    assert exchange.headers == tuple((k.lower(), v) for k, v in oracle.getheaders())
    assert exchange.body == oracle.read()
    assert exchange.reusable is not oracle.will_close


def test_a_reply_without_a_length_ends_with_the_connection():
    """The peer's close completes it, and the connection is not used again."""
    exchange = fed([b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo"], eof=True)
    assert (exchange.body, exchange.done, exchange.reusable) == (b"hello", True, False)


def test_a_reply_to_head_has_no_body():
    """Its content-length is what a GET would have had."""
    exchange = fed([REPLIES["sized"][:-5]], Request("HEAD", "/"))
    assert exchange.done
    assert exchange.body == b""
    assert exchange.reusable


def test_a_large_body_is_the_readers_own():
    """It can be written."""
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % 2**21
    exchange = fed([head, bytes(2**21)], cap=2**21)
    exchange.body[-1:] = b"x"
    assert bytes(exchange.body) == bytes(2**21 - 1) + b"x"


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_body_is_the_readers_own(size):
    """It is a bytearray that can be written and resized."""
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size
    exchange = fed([head + b"x" * size], cap=size)
    body = exchange.body
    body[0] = 0
    body += b"more"
    assert len(body) == size + 4


BROKEN = {
    "not http": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "http/2": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "http/0.9": b"<html>hello</html>\r\n\r\n",
    "status 99": b"HTTP/1.1 099 Low\r\ncontent-length: 0\r\n\r\n",
    "status 600": b"HTTP/1.1 600 High\r\ncontent-length: 0\r\n\r\n",
    "status 1000": b"HTTP/1.1 1000 High\r\ncontent-length: 0\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 Up\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "switch without a word to what": b"HTTP/1.1 101 Up\r\ncontent-length: 0\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n\r\n\r\n",
    "bare line feed ends the head": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\nok\r\n\r\n",
    "folded header": b"HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 0\r\n\r\n",
    "space before colon": b"HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n",
    "nul in header": b"HTTP/1.1 200 OK\r\na: \0\r\ncontent-length: 0\r\n\r\n",
    "header without name": b"HTTP/1.1 200 OK\r\n: b\r\ncontent-length: 0\r\n\r\n",
    "empty lines": b"\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "both framings": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n" + chunked([b"hello"]),
    "both framings, the other order": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n"
    b"content-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "listed lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nab",
    "signed length": b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nab",
    "negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nab",
    "hexadecimal length": b"HTTP/1.1 200 OK\r\ncontent-length: 0x2\r\n\r\nab",
    "long length": b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 40 + b"\r\n\r\nab",
    "length in other digits": "HTTP/1.1 200 OK\r\ncontent-length: ٢\r\n\r\nab".encode(),
    "no length": b"HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\nab",
    "unknown coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nab",
    "coding upon coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "compressed": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nab",
    "bytes beyond a length": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabc",
    "bytes beyond nothing": b"HTTP/1.1 204 No\r\n\r\nabc",
    "a second reply": REPLIES["sized"] * 2,
    "a second chunked reply": REPLIES["chunked"] * 2,
    "bytes beyond the last chunk": REPLIES["chunked"] + b"abc",
    "chunk size not hexadecimal": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxy\r\n",
    "chunk longer than its size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"2\r\nabc\r\n0\r\n\r\n",
    "chunk size of 17 digits": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"10000000000000000\r\n",
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", BROKEN)
def test_what_could_be_read_in_two_ways_is_refused(name, streamed):
    """A reply that breaks HTTP, or bends it, is a ProtocolError that says it was answered."""
    with pytest.raises(ProtocolError) as caught:
        fed([BROKEN[name]], streamed=streamed)
    assert caught.value.sent
    assert caught.value.answered


@given(st.binary(max_size=300), st.sampled_from(sorted(REPLIES)), st.integers(0, 200))
def test_no_bytes_make_anything_but_a_reply_or_a_refusal(junk, name, at):
    """Whatever a server sends ends in one of the documented errors, or in waiting for more."""
    reply = REPLIES[name]
    with contextlib.suppress(ProtocolError, LimitExceeded):
        fed([reply[:at] + junk + reply[at:]])


ENDLESS = {
    "head": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000,
    "header": b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000,
    "first line": b"HTTP/1.1 200 " + b"O" * 100_000,
    "1xx replies": b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
    "number of headers": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 129 + b"\r\n",
    "announced body": b"HTTP/1.1 200 OK\r\ncontent-length: 10001\r\n\r\n",
    "announced error": b"HTTP/1.1 500 OK\r\ncontent-length: 10001\r\n\r\n",
    "body until close": b"HTTP/1.1 500 Oops\r\n\r\n" + b"x" * 10_001,
    "chunked body": b"HTTP/1.1 500 OK\r\n" + chunked([b"x" * 100] * 101),
    "one long chunk": b"HTTP/1.1 500 OK\r\n" + chunked([b"x" * 10_001]),
    "trailer": b"HTTP/1.1 200 OK\r\n" + chunked([b"x"], b"a: b\r\n" * 60_000),
    "chunk extension": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;a="
    + b"b" * 300_000,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_nothing_of_a_reply_is_endless(name):
    """Head, body and framing are refused once they pass what the caller allows."""
    with pytest.raises(LimitExceeded):
        fed([ENDLESS[name]])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of a moment")
def test_an_announced_body_costs_nothing():
    """The memory of a large body is taken as it comes, not as it is announced."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % 2**30
    exchange = fed([head, b"first"], cap=2**30)
    assert not exchange.done
    assert resident() - before < 2**25


def test_an_announced_body_is_refused_before_memory_is_taken():
    """A length beyond the cap costs nothing: not a byte of it is allocated."""
    exchange = Exchange(POST, "test", cap=100)
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000000000000000\r\n\r\n"
    exchange.buffer()[: len(head)] = head
    with pytest.raises(LimitExceeded, match="100000000000000000"):
        exchange.received(len(head))
    assert exchange.body == b""


@pytest.mark.parametrize("size", [65_536, 65_537])
def test_a_head_may_have_exactly_its_cap(size):
    """64 KiB of head are read, one byte more is refused, in however many reads it comes."""
    start, end = b"HTTP/1.1 204 OK\r\na: ", b"\r\n\r\n"
    head = start + b"b" * (size - len(start) - len(end)) + end
    for pieces in ([head], [head[:40_000], head[40_000:]]):
        if size <= 65_536:
            assert fed(pieces).done
        else:
            with pytest.raises(LimitExceeded):
                fed(pieces)


CUT = {
    "nothing": (b"", False),
    "half a head": (b"HTTP/1.1 200 OK\r\ncontent-le", True),
    "half a body": (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", True),
    "no last chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", True),
    "only a 1xx": (b"HTTP/1.1 100 Continue\r\n\r\n", True),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", CUT)
def test_a_reply_cut_short_is_no_reply(name, streamed):
    """The error says whether anything had come."""
    data, answered = CUT[name]
    with pytest.raises(TransportError, match="closed the connection") as caught:
        fed([data], eof=True, streamed=streamed)
    assert caught.value.answered is answered
    assert caught.value.sent


def test_a_stream_asks_for_a_pause_when_its_reader_is_slow():
    """Little more than a megabyte waits; taking from it ends the pause."""
    exchange = fed([b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n"], streamed=True)
    while not exchange.paused:
        exchange.received(len(exchange.buffer()))
    assert 2**20 < len(exchange.body) < 2**20 + 2**17
    assert len(exchange.take(1_000_000)) == 1_000_000
    assert not exchange.paused


def test_a_request_is_written_as_it_was_given():
    """Request line, host, own headers, length and body, and a client that names itself."""
    exchange = Exchange(POST, "host:80", cap=1)
    head, _, body = b"".join(exchange.parts).partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    assert first == "POST /net HTTP/1.1"
    assert headers[0] == "host: host:80"
    assert headers[1].startswith("user-agent: maas/")
    assert headers[2:] == [
        "accept-encoding: identity",
        "content-type: text/plain",
        "content-length: 8",
    ]
    assert body == b"question"


def test_small_requests_are_one_buffer_and_large_ones_are_not_copied():
    """One write for little; for much the caller's own memory is written."""
    assert len(Exchange(POST, "test", cap=1).parts) == 1
    large = bytearray(100_000)
    parts = Exchange(Request("POST", "/", (), (b"a", large)), "test", cap=1).parts
    assert parts[-1] is large


def test_a_buffer_of_any_format_counts_in_bytes():
    """A view of doubles has eight times as many bytes as items."""
    view: Any = memoryview(bytearray(64)).cast("d", (2, 4))
    empty: Any = memoryview(bytearray()).cast("d")
    exchange = Exchange(Request("POST", "/", (), (view, empty)), "test", cap=1)
    assert b"content-length: 64\r\n" in exchange.head


@pytest.mark.parametrize(
    ("method", "line"),
    [("GET", False), ("HEAD", False), ("POST", True), ("PUT", True), ("DELETE", True)],
)
def test_a_request_that_could_have_a_body_says_that_it_has_none(method, line):
    """Without content-length: 0 some servers wait for one."""
    head = Exchange(Request(method, "/"), "test", cap=1).head
    assert (b"content-length: 0\r\n" in head) is line


FORBIDDEN = {
    "target with a space": Request("GET", "/a b"),
    "target with a line": Request("GET", "/ HTTP/1.1\r\nx: y\r\n\r\n"),
    "target beyond ascii": Request("GET", "/\xe9"),
    "empty target": Request("GET", ""),
    "method with a space": Request("GET /", "/"),
    "value with a line": Request("GET", "/", (("a", "b\r\nc: d"),)),
    "value with a line feed": Request("GET", "/", (("a", "b\n"),)),
    "value with nul": Request("GET", "/", (("a", "\0"),)),
    "value beyond latin-1": Request("GET", "/", (("a", "\u20ac"),)),
    "name with a colon": Request("GET", "/", (("a:", "b"),)),
    "empty name": Request("GET", "/", (("", "b"),)),
    "own host": Request("GET", "/", (("Host", "elsewhere"),)),
    "own length": Request("POST", "/", (("content-length", "5"),)),
    "own coding": Request("POST", "/", (("transfer-encoding", "chunked"),)),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_request_cannot_be_made_into_two(name):
    """What would end a line, or frame the body differently, is refused before it is sent."""
    with pytest.raises(ValueError, match=r"request|transport"):
        Exchange(FORBIDDEN[name], "test", cap=1)


def test_a_refused_header_does_not_show_its_value():
    """The value may be a key."""
    with pytest.raises(ValueError, match="authorization") as caught:
        Exchange(Request("GET", "/", (("authorization", "secret\n"),)), "test", cap=1)
    assert "secret" not in str(caught.value)
