import asyncio
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest

from maas.errors import (
    DeadlineExceeded,
    LimitExceeded,
    ProtocolError,
    StreamInterrupted,
    TransportError,
)
from maas.http import Request, header
from maas.loops import run
from maas.transports.proxied import HttpxTransport, through

PATIENCE = 30.0


def post(*body):
    return Request("POST", "/net?x=%20a%2Fb", (("content-type", "text/plain"),), body)


def soon():
    return time.monotonic() + PATIENCE


async def asked(reader):
    """The next request: its head in lower case, and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return head, await reader.readexactly(int(length or b"0"))


def reply(body, *, status=b"200 OK", extra=b""):
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), extra, body)


async def echo(reader, writer):
    while True:
        head, body = await asked(reader)
        first, *lines = head.decode().split("\r\n")
        extra = "".join(f"got-{line}\r\n" for line in lines if line) + f"got-line: {first}\r\n"
        writer.write(reply(body, extra=extra.encode()))
        await writer.drain()


def answering(*pieces, then=None):
    async def script(reader, writer):
        while True:
            await asked(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if then is not None:
                await then(reader, writer)
                return

    return script


async def close(_reader, writer):
    writer.close()


@pytest.fixture
def through_httpx():
    """Makes transports over clients that are closed after the test."""
    client = httpx.Client()
    aclient = httpx.AsyncClient()

    def make(served, path=""):
        _, host, port = served.address
        return HttpxTransport(client, aclient, f"http://{host}:{port}{path}")

    yield make
    client.close()
    run(aclient.aclose()).result(PATIENCE)


CHUNKED = b"HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("size", [0, 4096, 4 * 2**20])
def test_what_is_asked_is_answered(village, through_httpx, send, size):
    """Target, headers and body arrive as they were given, and come back."""
    transport = through_httpx(village.serve(echo))
    response = send(transport, post(b"head", memoryview(b"x" * size)))
    assert response.status == 200
    assert response.body == (b"head" + b"x" * size,)
    assert type(response.body[0]) is bytearray
    assert header(response.headers, "got-line") == "post /net?x=%20a%2fb http/1.1"
    assert header(response.headers, "got-content-type") == "text/plain"
    assert "maas/" in (header(response.headers, "got-user-agent") or "")
    assert header(response.headers, "got-accept-encoding") == "identity"


def test_the_path_of_the_base_comes_first(village, through_httpx, send):
    """A gateway's prefix is part of every target."""
    response = send(through_httpx(village.serve(echo), "/models/"), post(b"x"))
    assert "/models/net?" in (header(response.headers, "got-line") or "")


def test_calls_follow_each_other_on_one_connection(village, through_httpx, send):
    """A reply that was read to its end leaves its connection to the next call."""
    served = village.serve(echo)
    transport = through_httpx(served)
    for _ in range(3):
        send(transport, post(b"x"))
    assert served.connections == 1


def test_nobody_is_followed_elsewhere(village, through_httpx, send):
    """A redirect is a reply like any other; a key never goes where it points."""
    served = village.serve(
        answering(reply(b"", status=b"307 There", extra=b"location: http://127.0.0.1:9/\r\n"))
    )
    assert send(through_httpx(served), post(b"x")).status == 307


def test_a_compressed_reply_is_refused(village, through_httpx, send):
    """Its size says nothing about the memory it wants."""
    served = village.serve(answering(reply(b"xx", extra=b"content-encoding: gzip\r\n")))
    with pytest.raises(ProtocolError, match="gzip"):
        send(through_httpx(served), post(b"x"))


LARGE = {
    "announced": b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n",
    "chunked": CHUNKED + b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_reply_beyond_its_cap_is_refused(village, through_httpx, send, name):
    """Announced or not, no more than the cap is received."""
    with pytest.raises(LimitExceeded):
        send(through_httpx(village.serve(answering(LARGE[name]))), post(b"x"), cap=1000)


BROKEN = {
    "no reply": (b"", False),
    "half a head": (b"HTTP/1.1 200 OK\r\nconte", False),
    "half a body": (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", True),
    "no reply but noise": (b"SSH-2.0-OpenSSH\r\n\r\n", False),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_reply_says_how_far_the_call_got(village, through_httpx, send, name):
    """It was sent; it counts as answered once there was a head."""
    data, answered = BROKEN[name]
    with pytest.raises(TransportError) as caught:
        send(through_httpx(village.serve(answering(data, then=close))), post(b"x"))
    assert (caught.value.sent, caught.value.answered) == (True, answered)


def test_nobody_listening_is_known_before_anything_was_sent(village, through_httpx, send):
    """A refused connection cannot have carried the call."""
    served = village.serve(echo)
    served.address = ("tcp", "127.0.0.1", 1)
    with pytest.raises(TransportError) as caught:
        send(through_httpx(served), post(b"x"))
    assert not caught.value.sent


@pytest.mark.parametrize("pieces", [[], [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"]])
def test_past_its_deadline_a_call_ends(village, through_httpx, send, pieces):
    """Waiting for a head or for a body makes no difference, and the server is left."""
    left = threading.Event()

    async def wait(reader, _writer):
        await reader.read()
        left.set()

    served = village.serve(answering(*pieces, then=wait))
    with pytest.raises(DeadlineExceeded):
        send(through_httpx(served), post(b"x"), seconds=0.2)
    assert left.wait(PATIENCE)


def test_a_passed_deadline_sends_nothing(village, through_httpx, send):
    """A call that is too late already does not trouble the server."""
    served = village.serve(echo)
    with pytest.raises(DeadlineExceeded):
        send(through_httpx(served), post(b"x"), seconds=-1)
    assert served.connections == 0


@pytest.mark.parametrize(
    "request_", [Request("GET", "/a b"), Request("GET", "/", (("a", "b\r\nc: d"),))]
)
def test_a_request_cannot_be_made_into_two(village, through_httpx, send, request_):
    """The rules of writing are those of the other transports."""
    with pytest.raises(ValueError, match="forbids"):
        send(through_httpx(village.serve(echo)), request_)


def test_a_closed_transport_says_so_and_leaves_the_clients_alone(village, through_httpx, send):
    """They are the caller's, who may go on with them."""
    served = village.serve(echo)
    transport = through_httpx(served)
    transport.close()
    with pytest.raises(RuntimeError, match="closed"):
        send(transport, post(b"x"))
    assert send(through_httpx(served), post(b"x")).status == 200


def test_a_stream_is_read_as_it_comes(village, through_httpx):
    """Each frame is there once the server has sent it; the end is no frame."""
    more = threading.Event()

    async def rest(reader, writer):
        await asyncio.to_thread(more.wait, PATIENCE)
        writer.write(b"3\r\nond\r\n0\r\n\r\n")
        await reader.read()

    served = village.serve(answering(CHUNKED + b"8\r\nfirstsec\r\n", then=rest))
    got = run(through_httpx(served).stream(post(b"x"), soon(), 100)).result(PATIENCE)
    assert (got.status, header(got.headers, "x")) == (200, "y")
    assert run(got.frames.read(5)).result(PATIENCE) == b"first"
    more.set()
    assert run(got.frames.read(6)).result(PATIENCE) == b"second"
    with pytest.raises(StreamInterrupted):
        run(got.frames.read(1)).result(PATIENCE)


def test_another_status_than_200_comes_whole(village, through_httpx):
    """An error is no stream."""
    served = village.serve(answering(reply(b"none", status=b"404 Not Found")))
    response = run(through_httpx(served).stream(post(b"x"), soon(), 100)).result(PATIENCE)
    assert (response.status, response.body) == (404, (b"none",))


def test_a_stream_that_breaks_is_interrupted(village, through_httpx):
    """What had come before is whole."""
    served = village.serve(answering(CHUNKED + b"4\r\nitem\r\n4\r\nit", then=close))
    got = run(through_httpx(served).stream(post(b"x"), soon(), 100)).result(PATIENCE)
    assert run(got.frames.read(4)).result(PATIENCE) == b"item"
    with pytest.raises(StreamInterrupted):
        run(got.frames.read(4)).result(PATIENCE)


@pytest.mark.parametrize("how", ["close", "deadline", "cancel"])
def test_a_stream_that_is_given_up_leaves_its_server(village, through_httpx, how):
    """The server sees the disconnect, so that it can stop computing."""
    left = threading.Event()

    async def wait(reader, _writer):
        await reader.read()
        left.set()

    served = village.serve(answering(CHUNKED + b"4\r\nitem\r\n", then=wait))
    deadline = time.monotonic() + 0.5 if how == "deadline" else soon()
    got = run(through_httpx(served).stream(post(b"x"), deadline, 100)).result(PATIENCE)
    if how == "close":
        run(got.frames.close()).result(PATIENCE)
    elif how == "deadline":
        with pytest.raises(DeadlineExceeded):
            run(got.frames.read(5)).result(PATIENCE)
    else:
        future = run(got.frames.read(5))
        run(asyncio.sleep(0)).result(PATIENCE)
        future.cancel()
    assert left.wait(PATIENCE)


def test_a_call_goes_through_the_proxy_it_is_told_to(village):
    """With `proxy=` a request reaches its server by way of the proxy, and by no other."""
    behind = village.serve(echo)
    passed = []

    async def relay(reader, writer):
        head, body = await asked(reader)
        method, url, version = head.partition(b"\r\n")[0].upper().split()
        parts = urlsplit(url.decode().lower())
        passed.append(parts.path)
        onward_reader, onward = await asyncio.open_connection(parts.hostname, parts.port)
        onward.write(b" ".join((method, parts.path.encode(), version)) + b"\r\n")
        onward.write(head.partition(b"\r\n")[2] + body)
        writer.write(
            await onward_reader.readuntil(b"\r\n\r\n") + await onward_reader.readexactly(5)
        )
        await writer.drain()
        onward.close()
        await onward.wait_closed()

    proxy = village.serve(relay)
    transport = through(
        f"http://127.0.0.1:{proxy.address[2]}",
        f"http://127.0.0.1:{behind.address[2]}/net",
        tls=None,
        connect_timeout=PATIENCE,
    )
    request = Request("POST", "/net", (), (b"hello",))
    assert transport.send(request, soon(), 100).body == (b"hello",)
    assert run(transport.asend(request, soon(), 100)).result().body == (b"hello",)
    assert passed == ["/net", "/net"]
    transport.close()
