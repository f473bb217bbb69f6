import asyncio
import contextlib
import gc
import http.client
import io
import json
import os
import random
import select
import signal
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trustme

from maas.buffers import Body, Buffer
from maas.http import Response
from maas.server import freight
from maas.server.framing import Refusal
from maas.server.front import Admission, Head
from maas.server.runner import Background, Patience, Runner, fastest_loop

PATIENT = 20.0
SMALL = b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n"


class Front:
    """Paths name what to do; events tell what happened."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.bodies: list[bytes] = []
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self.closed = threading.Event()
        self.drains = threading.Event()
        self.go_on = threading.Event()
        self.frames = 0

    def admit(self, head: Head) -> Admission | Response:
        self.heads.append(head)
        if head.path == "/refuse":
            return Response(401, (("www-authenticate", "Bearer"),), (b"no",))
        if head.path == "/full":  # meanwhile as much comes as the socket takes
            self.started.set()
            self.go_on.wait(PATIENT)
        if head.path == "/fault":
            raise RuntimeError("secret")
        return Admission(2**26, head)

    async def answer(self, admission: Admission, body: bytearray) -> Response:
        assert isinstance(admission.route, Head)
        respond = getattr(self, admission.route.path.strip("/"))
        response: Response = await respond(admission.route, body)
        return response

    def draining(self) -> None:
        self.drains.set()

    async def echo(self, head: Head, body: bytearray) -> Response:
        return Response(200, (("content-type", "text/plain"),), (body,))

    full = echo

    async def meet(self, head: Head, body: bytearray) -> Response:
        self.bodies.append(bytes(body))
        return Response(200, (), (head.query.encode(),))

    async def own(self, head: Head, body: Body) -> Response:
        if isinstance(body, bytearray):
            body.clear()  # raises if anybody still holds a view of it
        else:
            memory = weakref.ref(body.obj)
            body.release()
            assert memory() is None, "somebody still holds a view of it"
        return Response(200, (), (b"mine",))

    async def nothing(self, head: Head, body: bytearray) -> Response:
        return Response(204)

    async def bad_header(self, head: Head, body: bytearray) -> Response:
        return Response(200, (("x", "a\r\nset-cookie: b"),), (b"",))

    async def fail(self, head: Head, body: bytearray) -> Response:
        raise RuntimeError("secret")

    async def parts(self, head: Head, body: bytearray) -> Response:
        floats = memoryview(bytes(400_000)).cast("f", (100, 1000))
        return Response(
            200, (), (b"abc", cast("Buffer", floats), bytearray(b"def"), memoryview(b""))
        )

    async def wait(self, head: Head, body: bytearray) -> Response:
        self.started.set()
        try:
            await asyncio.to_thread(self.go_on.wait, PATIENT)
        except asyncio.CancelledError:
            self.cancelled.set()
            self.go_on.set()
            raise
        return Response(200, (), (b"waited",))

    async def count(self, head: Head, body: bytearray) -> Response:
        async def numbers() -> AsyncIterator[Sequence[Buffer]]:
            for number in range(5):
                yield (b"%d" % number, b",")
            yield ()
            yield (b"end",)

        return Response(200, (), numbers())

    async def endless(self, head: Head, body: bytearray) -> Response:
        return Response(200, (), Endless(self, int(head.query or 2**20)))

    async def block(self, head: Head, body: bytearray) -> Response:
        self.started.set()
        threading.Event().wait(1.0)  # a model that does not leave the loop alone
        return Response(200, (), (b"blocked",))

    async def pending(self, head: Head, body: bytearray) -> Response:
        return Response(200, (), self._one_then_wait())

    async def _one_then_wait(self) -> AsyncIterator[Sequence[Buffer]]:
        try:
            yield (b"first",)
            self.started.set()
            await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def broken(self, head: Head, body: bytearray) -> Response:
        async def frames() -> AsyncIterator[Sequence[Buffer]]:
            yield (b"first",)
            raise RuntimeError("secret")

        return Response(200, (), frames())


class Endless:
    """Frames of `size` bytes; no generator, so nothing closes it but who promised to."""

    def __init__(self, front: Front, size: int) -> None:
        self.front = front
        self.size = size

    def __aiter__(self) -> "Endless":
        return self

    async def __anext__(self) -> Sequence[Buffer]:
        self.front.frames += 1
        return (bytes(self.size),)

    async def aclose(self) -> None:
        self.front.closed.set()


@pytest.fixture(params=[fastest_loop, asyncio.new_event_loop], ids=["fastest", "asyncio"])
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    factory: Callable[[], asyncio.AbstractEventLoop] = request.param
    return factory


@pytest.fixture
def front() -> Front:
    return Front()


@pytest.fixture
def server(
    front: Front, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> Iterator[Background]:
    with Background(Runner(front, port=0), loop_factory=loop_factory) as background:
        yield background


def connect(server: Background) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.runner.port), timeout=PATIENT)


@contextmanager
def client(server: Background) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", server.runner.port, timeout=PATIENT)
    try:
        yield connection
    finally:
        connection.close()


def ask(connection: http.client.HTTPConnection, path: str, body: bytes = b"") -> bytes:
    connection.request("POST", path, body=body)
    return connection.getresponse().read()


def until_closed(sock: socket.socket) -> bytes:
    said = b""
    while data := sock.recv(2**20):
        said += data
    return said


def test_bodies_of_every_size_come_back_on_one_connection(server: Background) -> None:
    """A connection is kept, and what is sent arrives, whatever its size."""
    with client(server) as connection:
        for size in (0, 1, 65_535, 65_536, 65_537, 10**6, 5 * 10**6):
            body = os.urandom(size)
            connection.request("POST", "/echo", body=body)
            reply = connection.getresponse()
            assert reply.status == 200
            assert reply.getheader("content-length") == str(size)
            assert reply.getheader("server") == "maas"
            assert reply.getheader("connection") is None
            assert reply.read() == body


def test_httpx_agrees(server: Background) -> None:
    """Another client sends a body with a length, one in chunks, and reads both kinds of reply."""
    with httpx.Client(base_url=server.url, trust_env=False) as session:
        assert session.post("/echo", content=b"abc").content == b"abc"
        pieces = [b"x" * size for size in (1, 10, 100_000)]
        assert session.post("/echo", content=iter(pieces)).content == b"".join(pieces)
        assert session.get("/count").content == b"0,1,2,3,4,end"
        assert session.head("/count").status_code == 200
        assert session.post("/nothing").status_code == 204


def test_the_front_sees_the_head_as_it_was_sent(server: Background, front: Front) -> None:
    """Method, path, query and headers reach the front as sent, names in lower case."""
    with connect(server) as sock:
        sock.sendall(b"PUT /meet?a=%20b HTTP/1.1\r\nHOST: h:1\r\nX-A:  1\r\nx-a: \xe9\r\n\r\n")
        assert b"a=%20b" in sock.recv(1000)
    head = front.heads[0]
    assert (head.method, head.path, head.query) == ("PUT", "/meet", "a=%20b")
    assert head.headers == (("host", "h:1"), ("x-a", "1"), ("x-a", "é"))
    assert (head.secure, head.loopback) == (False, True)


def test_a_body_belongs_to_the_front(server: Background) -> None:
    """The front may change and resize a body that was received in place."""
    with client(server) as connection:
        for size in (0, 10, 10**6):
            assert ask(connection, "/own", bytes(size)) == b"mine"


def test_a_body_takes_its_own_size_of_memory(server: Background) -> None:
    """Receiving 64 MB takes at most 1.2 times as much memory."""
    size, piece = 64 * 2**20, bytes(2**18)
    tracemalloc.start()
    try:
        with connect(server) as sock:
            sock.sendall(b"POST /own HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(size // len(piece)):
                sock.sendall(piece)
            assert sock.recv(1000).endswith(b"mine")
        assert size <= tracemalloc.get_traced_memory()[1] <= 1.2 * size
    finally:
        tracemalloc.stop()


def test_a_large_body_leaves_others_their_turn(
    server: Background, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no thread carries it, a turn of the loop takes, or gives, 128 KiB of a body."""
    monkeypatch.setattr(freight, "WIDTH", 0)
    size, most = 2**23, 2**17
    steps: list[int] = []

    def watch(before: int) -> None:
        shared = server.runner._shared
        now = shared.held + sum(each._outlet._sent for each in shared.connections)
        steps.append(now - before)
        asyncio.get_running_loop().call_soon(watch, now)

    with connect(server) as sock:
        sock.sendall(b"POST /full HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        assert front.started.wait(PATIENT)
        cast("Any", server)._loop.call_soon_threadsafe(watch, 0)
        sent = received = 0
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while sent < size:
                sent += sock.send(bytes(min(size - sent, most)))
        assert sent > 2 * most
        sock.settimeout(PATIENT)
        front.go_on.set()
        sock.sendall(bytes(size - sent))
        while received < size:
            received += len(sock.recv(2**20))
    assert max(steps) <= most + 1000


def test_threads_carry_a_large_body(server: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large body goes through threads both ways, and comes back as it was sent."""
    carried: list[int] = []
    begin = freight.Freight.begin

    def counted(self: freight.Freight, stint: Callable[[], int]) -> "asyncio.Future[int] | None":
        def told() -> int:
            carried.append(stint())
            return carried[-1]

        return begin(self, told)

    monkeypatch.setattr(freight.Freight, "begin", counted)
    body = random.Random(0).randbytes(2**24)
    with client(server) as connection:
        for _ in range(2):
            carried.clear()
            assert ask(connection, "/echo", body) == body
            assert sum(carried) > len(body)


def test_a_body_goes_on_after_a_pause(server: Background) -> None:
    """A peer that pauses in the middle of a large body has no thread, and sends the rest later."""
    body = random.Random(1).randbytes(2**23)
    shared = server.runner._shared
    with connect(server) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 2**21):
            sock.sendall(body[start : start + 2**21])
            while shared.held < start + 2**21 or shared.freight.under_way:
                threading.Event().wait(0.001)
        received = bytearray()
        while len(received) < len(body):
            received += sock.recv(2**20)
        assert received.endswith(body[-1000:])
        assert body.startswith(received[received.find(b"\r\n\r\n") + 4 :])


def test_who_pauses_is_charged_for_what_he_sent(server: Background) -> None:
    """The budget for bodies is not spent by many who begin large ones and pause."""
    shared = server.runner._shared
    with connect(server) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\n\r\n")
        sent = 0
        for _ in range(3):
            sock.sendall(bytes(2**21))
            sent += 2**21
            until = time.monotonic() + PATIENT
            while not (sent <= shared.held <= sent + 2**17) and time.monotonic() < until:
                threading.Event().wait(0.001)
            assert sent <= shared.held <= sent + 2**17
    while shared.connections:
        threading.Event().wait(0.001)
    assert shared.held == 0


def test_a_body_times_out_while_it_is_carried(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that goes silent in the middle of a large body gets 408, whoever waits for it."""
    monkeypatch.setattr(freight, "PAUSE", 1.0)
    monkeypatch.setattr(freight, "LONGEST", PATIENT)
    patience = Patience(body=0.2, body_rate=2**30)
    with Background(Runner(front, port=0, patience=patience)) as server, connect(server) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\n\r\n")
        sock.sendall(bytes(2**22))
        assert sock.recv(100).startswith(b"HTTP/1.1 408 ")
        assert server.runner._shared.freight.under_way
        sock.sendall(bytes(2**20))
        sock.shutdown(socket.SHUT_WR)
        until_closed(sock)
    assert server.runner._shared.held == 0


def test_a_fault_while_a_body_is_carried_is_told(
    server: Background, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever sends a large body hears that the server failed at it, and the log tells why."""

    def fail(*_: object) -> int:
        raise MemoryError("none left")

    monkeypatch.setattr(freight, "_moved", fail)
    with connect(server) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\n\r\n")
        sock.sendall(bytes(2**22))
        sock.shutdown(socket.SHUT_WR)
        assert until_closed(sock).startswith(b"HTTP/1.1 500 ")
    assert "none left" in caplog.text
    assert {record.name for record in caplog.records} == {"maas.server"}


def test_a_fault_that_nobody_waits_for_is_silent(
    server: Background, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a body finds no memory and its peer is gone, nothing is logged."""
    begun, go_on = threading.Event(), threading.Event()

    def refuse(*_: object) -> int:
        begun.set()
        go_on.wait(PATIENT)
        raise Refusal(429, "no memory")

    monkeypatch.setattr(freight, "_moved", refuse)
    shared = server.runner._shared
    with connect(server) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\n\r\n")
        sock.sendall(bytes(2**22))
        assert begun.wait(PATIENT)
        (connection,) = shared.connections
        cast("Any", server)._loop.call_soon_threadsafe(connection.abort)
        while shared.connections:
            threading.Event().wait(0.001)
        del connection
        go_on.set()
    while shared.freight.under_way:
        threading.Event().wait(0.001)
    with client(server) as other:
        assert ask(other, "/echo", b"x") == b"x"
    gc.collect()
    assert not caplog.records


def test_the_budget_ends_while_a_body_is_carried(front: Front) -> None:
    """Of a large body no more is received than the server has memory for."""
    patience = Patience(bodies=5 * 2**20)
    with Background(Runner(front, port=0, patience=patience)) as server:
        for _ in range(2):
            with connect(server) as sock:
                sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    sock.sendall(bytes(2**23))
                assert until_closed(sock).startswith(b"HTTP/1.1 429 ")
            while server.runner._shared.freight.under_way:
                threading.Event().wait(0.001)
        with client(server) as connection:
            assert len(ask(connection, "/echo", bytes(5 * 2**20))) == 5 * 2**20


def test_an_announced_body_costs_nothing(front: Front) -> None:
    """A body takes memory as it comes, not as it is announced."""
    with (
        Background(Runner(front, port=0, patience=Patience(bodies=2**20))) as server,
        connect(server) as first,
        connect(server) as second,
        client(server) as third,
    ):
        for sock in (first, second):
            sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\n\r\nx")
        assert ask(third, "/echo", b"abc") == b"abc"


def test_bodies_have_a_budget_in_all(front: Front) -> None:
    """A body for which the server has no memory left gets 429, and the next finds it free again."""
    with Background(Runner(front, port=0, patience=Patience(bodies=2**20))) as server:
        for _ in range(3):
            with connect(server) as sock:
                sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n")
                sock.sendall(bytes(1_500_000))
                refusal = until_closed(sock)
                assert refusal.startswith(b"HTTP/1.1 429 ")
                assert b"\r\nretry-after: 1\r\n" in refusal
            with client(server) as connection:
                assert len(ask(connection, "/echo", bytes(2**20))) == 2**20
            while server.runner._shared.held:  # a peer may have its reply before the server knows
                threading.Event().wait(0.001)


def test_a_refused_body_is_never_read(server: Background, front: Front) -> None:
    """What the front does not admit is answered before its body, and the connection closed."""
    with connect(server) as sock:
        sock.sendall(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        said = until_closed(sock)
    assert said.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nwww-authenticate: Bearer\r\n" in said
    assert b"\r\nconnection: close\r\n" in said


def test_a_refusal_without_a_body_keeps_the_connection(server: Background) -> None:
    """A refused request whose end is known does not cost the connection."""
    with client(server) as connection:
        connection.request("GET", "/refuse")
        reply = connection.getresponse()
        assert (reply.status, reply.read()) == (401, b"no")
        assert reply.getheader("connection") is None
        assert ask(connection, "/echo", b"abc") == b"abc"


def test_a_refusal_reaches_a_peer_that_is_still_sending(server: Background) -> None:
    """The reply to a body too large is not lost to a reset, though the peer sends on."""
    with connect(server) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n")
        for _ in range(100):
            sock.sendall(bytes(50_000))
        said = until_closed(sock)
    assert said.startswith(b"HTTP/1.1 413 ")
    problem = json.loads(said.partition(b"\r\n\r\n")[2])
    assert set(problem) == {"type", "title", "status", "detail", "error"}
    assert problem["status"] == 413


def test_continue_is_said_after_admission(server: Background) -> None:
    """A peer that waits for leave to send gets it once admitted, and a refusal otherwise."""
    head = b" HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    with connect(server) as sock:
        sock.sendall(b"POST /echo" + head)
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert sock.recv(1000).endswith(b"\r\n\r\nabc")
        sock.sendall(b"POST /echo" + head + b"abc")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        sock.sendall(b"POST /refuse" + head)
        assert until_closed(sock).startswith(b"HTTP/1.1 401 ")


def read_one(replies: io.BufferedReader) -> bytes:
    """The body of the next reply of known length."""
    length = 0
    for line in iter(replies.readline, b"\r\n"):
        name, _, value = line.partition(b":")
        length = int(value) if name == b"content-length" else length
    return replies.read(length)


def test_pipelined_requests_are_answered_in_order(server: Background) -> None:
    """Replies come in the order of the requests, however many are sent at once."""
    requests = [b"GET /meet?%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(5000)]
    with connect(server) as sock, sock.makefile("rb") as replies:
        sender = threading.Thread(target=sock.sendall, args=(b"".join(requests),))
        sender.start()
        for number in range(len(requests)):
            assert read_one(replies) == b"%d" % number
        sender.join()


def test_a_pipeline_is_not_read_without_end(server: Background, front: Front) -> None:
    """While a request is answered, no more than 64 KiB of what follows it is kept in memory."""
    with connect(server) as sock:
        sock.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        assert front.started.wait(PATIENT)
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            for _ in range(200):
                sock.sendall(SMALL * 4000)
        (connection,) = server.runner._shared.connections
        assert len(connection._inbox) <= 65_536
        front.go_on.set()


def test_a_body_in_crumbs_is_refused(server: Background) -> None:
    """Chunks of a byte each, which cost far more than their bytes, are refused in number."""
    with connect(server) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        sock.sendall(b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n")
        assert until_closed(sock).startswith(b"HTTP/1.1 400 ")


def test_a_server_that_stood_still_blames_nobody(
    front: Front, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """While the loop is blocked, by a model of 1 s say, nobody's time runs out."""
    runner = Runner(front, port=0, patience=Patience(header=0.6))
    with Background(runner, loop_factory=loop_factory) as server, client(server) as connection:
        connection.request("GET", "/block")
        assert front.started.wait(PATIENT)
        before = runner._shared.clock
        assert connection.getresponse().read() == b"blocked"
        while runner._shared.clock == before:
            threading.Event().wait(0.01)
        assert runner._shared.clock - before < 0.6


def test_the_last_reply_says_so(server: Background) -> None:
    """The connection closes after the reply when the peer asks for it, or speaks HTTP/1.0."""
    for head in (b"HTTP/1.1\r\nHost: a\r\nConnection: foo, Close", b"HTTP/1.0\r\nHost: a"):
        with connect(server) as sock:
            sock.sendall(b"GET /echo " + head + b"\r\n\r\n" + SMALL)
            said = until_closed(sock)
            assert said.count(b"HTTP/1.1 200 OK\r\n") == 1
            assert b"\r\nconnection: close\r\n" in said


def test_a_stream_to_an_old_client_has_no_chunks(server: Background) -> None:
    """HTTP/1.0 knows no chunks: the end of the connection is the end of the stream."""
    with connect(server) as sock:
        sock.sendall(b"GET /count HTTP/1.0\r\nHost: a\r\n\r\n")
        head, _, body = until_closed(sock).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body == b"0,1,2,3,4,end"


def test_a_head_request_has_no_body(server: Background) -> None:
    """HEAD gets the head of the reply, and the next request its own reply."""
    with client(server) as connection:
        for path in ("/echo", "/parts", "/count"):
            connection.request("HEAD", path)
            assert connection.getresponse().read() == b""
            assert ask(connection, "/echo", b"abc") == b"abc"


def test_buffers_of_every_kind_are_sent_whole(server: Background) -> None:
    """A reply may be made of views of any shape and type: their bytes are sent in order."""
    with client(server) as connection:
        assert ask(connection, "/parts") == b"abc" + bytes(400_000) + b"def"


def test_a_reply_cannot_be_split(server: Background) -> None:
    """A header that holds a line break breaks the connection off rather than the reply in two."""
    with connect(server) as sock:
        sock.sendall(b"GET /bad_header HTTP/1.1\r\nHost: a\r\n\r\n")
        assert until_closed(sock) == b""


@pytest.mark.parametrize("path", ["/fail", "/fault"])
def test_a_fault_of_the_front_is_told_to_nobody(server: Background, path: str) -> None:
    """An exception of the front becomes a bare 500, and the connection goes on."""
    with client(server) as connection:
        connection.request("GET", path)
        reply = connection.getresponse()
        assert reply.status == 500
        assert b"secret" not in reply.read()
        assert ask(connection, "/echo", b"abc") == b"abc"


def test_a_stream_that_fails_is_cut_off(server: Background) -> None:
    """A stream that breaks has no last chunk, so nobody takes it for whole."""
    with client(server) as connection:
        connection.request("GET", "/broken")
        reply = connection.getresponse()
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            reply.read()


def test_a_disconnect_cancels(server: Background, front: Front) -> None:
    """When the peer leaves, the answer it waited for is cancelled."""
    with connect(server) as sock:
        sock.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        assert front.started.wait(PATIENT)
    assert front.cancelled.wait(PATIENT)


@pytest.mark.parametrize("path", [b"/endless", b"/pending"])
def test_a_disconnect_closes_the_stream(server: Background, front: Front, path: bytes) -> None:
    """When the peer leaves, the iterator of a stream is closed, busy or waiting."""
    with connect(server) as sock:
        sock.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(1) == b"H"
    assert front.closed.wait(PATIENT)


@pytest.mark.parametrize("size", [2**10, 2**20])
def test_a_stream_waits_for_its_reader(server: Background, front: Front, size: int) -> None:
    """A producer stops while the peer does not read, and goes on when it does."""
    with connect(server) as sock:
        sock.sendall(b"GET /endless?%d HTTP/1.1\r\nHost: a\r\n\r\n" % size)
        assert sock.recv(1) == b"H"
        made = settled(lambda: front.frames)
        assert made * size < 50 * 2**20  # what the sockets' buffers hold, and one frame more
        taken = 0
        while taken < made * size + 5 * 2**20:
            taken += len(sock.recv(2**20))
        assert front.frames > made


def settled(read: Callable[[], int]) -> int:
    """The value once it has stayed the same for half a second."""
    pause = threading.Event()
    value, same = read(), 0
    while same < 5:
        pause.wait(0.1)
        same = same + 1 if read() == value else 0
        value = read()
    return value


def test_a_large_reply_is_cut_off_with_its_reader(server: Background) -> None:
    """A peer that leaves in the middle of a large reply leaves nothing behind."""
    with connect(server) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\n\r\n")
        sock.sendall(bytes(60_000_000))
        assert sock.recv(1) == b"H"
    shared = server.runner._shared
    pause = threading.Event()
    while shared.connections or shared.tasks:
        pause.wait(0.01)
    assert shared.held == 0


def test_half_a_close_does_not_lose_the_reply(server: Background) -> None:
    """A peer that has said all it has to say still gets a reply that is on its way."""
    with connect(server) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000000\r\n\r\n")
        sock.sendall(bytes(60_000_000))
        assert sock.recv(1) == b"H"
        sock.shutdown(socket.SHUT_WR)
        assert len(until_closed(sock)) > 60_000_000


def test_more_connections_than_allowed_hear_so(front: Front) -> None:
    """One connection too many is told 429, and finds a place once another is free."""
    with Background(Runner(front, port=0, patience=Patience(max_connections=2))) as server:
        with client(server) as first, client(server) as second:
            assert ask(first, "/echo", b"a") == ask(second, "/echo", b"a")
            with connect(server) as third:
                assert until_closed(third).startswith(b"HTTP/1.1 429 ")
            assert ask(first, "/echo", b"a") == b"a"
        while server.runner._shared.connections:
            threading.Event().wait(0.01)
        with client(server) as fourth:
            assert ask(fourth, "/echo", b"a") == b"a"


def test_a_drain_finishes_what_is_in_flight(server: Background, front: Front) -> None:
    """A drain tells the front, closes idle connections, refuses new ones and answers old ones."""
    with client(server) as idle, client(server) as busy:
        assert ask(idle, "/echo", b"a") == b"a"
        busy.request("GET", "/wait")
        assert front.started.wait(PATIENT)
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        assert front.drains.wait(PATIENT)
        assert idle.sock.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(server)
        front.go_on.set()
        reply = busy.getresponse()
        assert reply.read() == b"waited"
        assert reply.getheader("connection") == "close"
        stopper.join(PATIENT)
        assert not stopper.is_alive()


def test_a_drain_keeps_the_word_of_a_reply(
    front: Front, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A drain that begins after a reply said "keep-alive" answers the request that follows it."""
    runner = Runner(front, port=0, patience=Patience(delay=PATIENT))
    drains: list[asyncio.Task[None]] = []

    async def begin(head: Head, body: bytearray) -> Response:
        drains.append(asyncio.get_running_loop().create_task(runner.drain()))
        return Response(200, (), (b"begun",))

    front.begin = begin  # type: ignore[attr-defined]
    server = Background(runner, loop_factory=loop_factory)
    server.start()
    try:
        with client(server) as connection:
            connection.request("GET", "/begin")
            reply = connection.getresponse()
            assert (reply.read(), reply.getheader("connection")) == (b"begun", None)
            assert front.drains.wait(PATIENT)
            heard = select.poll()  # the suite may hold more files than select() can number
            heard.register(connection.sock, select.POLLIN)
            assert not heard.poll(100)
            connection.request("POST", "/echo", body=b"a")
            reply = connection.getresponse()
            assert (reply.read(), reply.getheader("connection")) == (b"a", "close")
    finally:
        assert server._loop is not None
        server._loop.call_soon_threadsafe(drains[0].cancel)
        server._loop.call_soon_threadsafe(setattr, runner._shared, "draining", False)
        runner.patience = Patience()
        server.stop()


def test_a_drain_has_an_end(server: Background, front: Front) -> None:
    """What is not answered in time is cancelled."""
    with connect(server) as sock:
        sock.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        assert front.started.wait(PATIENT)
        server.stop(timeout=0.2)
        assert front.cancelled.is_set()


def test_stopping_twice_is_stopping_once(front: Front) -> None:
    """A server may be stopped before it started, and again when it has stopped."""
    server = Background(Runner(front, port=0))
    server.stop()
    server.start()
    server.stop()
    server.stop()


def test_an_address_in_use_is_an_error(server: Background, front: Front) -> None:
    """A server that cannot listen says so where it is started."""
    with pytest.raises(OSError, match="in use"):
        Background(Runner(front, port=server.runner.port)).start()


def test_a_unix_socket_is_private_and_goes_with_the_server(front: Front, tmp_path: Path) -> None:
    """A socket file is its owner's only, counts as secure, and is removed at the stop."""
    path = tmp_path / "maas.sock"
    with Background(Runner(front, uds=str(path))) as server:
        assert server.url == "http+unix://" + str(path).replace("/", "%2F")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport) as session:
            assert session.post("http://localhost/echo", content=b"abc").content == b"abc"
    assert (front.heads[0].secure, front.heads[0].loopback) == (True, True)
    assert not path.exists()


def test_a_unix_socket_of_a_dead_server_is_replaced(front: Front, tmp_path: Path) -> None:
    """Nobody listens on a stale socket file, so it is taken over."""
    path = tmp_path / "maas.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Background(Runner(front, uds=str(path))), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))


def test_a_unix_socket_of_a_live_server_is_left_alone(front: Front, tmp_path: Path) -> None:
    """A second server on the same path is refused, and so is a path that is no socket."""
    path = tmp_path / "maas.sock"
    with Background(Runner(front, uds=str(path))):
        with pytest.raises(OSError, match="a live server listens here"):
            Background(Runner(Front(), uds=str(path))).start()
        assert path.exists()
    plain = tmp_path / "file"
    plain.write_text("precious")
    with pytest.raises(OSError, match="no socket"):
        Background(Runner(front, uds=str(plain))).start()
    assert plain.read_text() == "precious"


def test_tls(front: Front, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Over TLS, bodies and streams of every size cross, and the head counts as secure."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    runner = Runner(front, port=0, tls=context)
    with Background(runner, loop_factory=loop_factory) as server:
        assert server.url.startswith("https://")
        with httpx.Client(base_url=server.url, verify=trusting, trust_env=False) as session:
            for size in (0, 10, 10**6):
                body = os.urandom(size)
                assert session.post("/echo", content=body).content == body
            assert session.get("/count").content == b"0,1,2,3,4,end"
            assert session.post("/echo", content=b"a", headers={"connection": "close"}).is_success
    assert front.heads[0].secure


SERVE = """
    import asyncio, sys
    from maas.http import Response
    from maas.server.front import Admission
    from maas.server.runner import Runner, run

    class Front:
        def admit(self, head): return Admission(0, head.path)
        async def answer(self, admission, body):
            print("asked", flush=True)
            await asyncio.sleep(0.3 if admission.route == "/short" else 1000)
            return Response(200, (), (b"done",))
        def draining(self): print("draining", flush=True)

    run(Runner(Front(), port=0), lambda runner: print(runner.port, flush=True))
    print("returned", flush=True)
"""


@contextmanager
def serving() -> Iterator[tuple["subprocess.Popen[str]", socket.socket]]:
    command = [sys.executable, "-c", textwrap.dedent(SERVE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = ("127.0.0.1", int(process.stdout.readline()))
        with socket.create_connection(address, timeout=PATIENT) as sock:
            yield process, sock
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals) -> None:
    """SIGTERM and SIGINT let requests in flight finish; then `run` returns."""
    with serving() as (process, sock):
        assert process.stdout is not None
        sock.sendall(b"GET /short HTTP/1.1\r\nHost: a\r\n\r\n")
        assert process.stdout.readline() == "asked\n"
        process.send_signal(number)
        assert process.stdout.readline() == "draining\n"
        assert until_closed(sock).endswith(b"done")
        assert process.stdout.readline() == "returned\n"
        assert process.wait(PATIENT) == 0


def test_a_second_signal_ends_at_once() -> None:
    """Whoever signals twice does not wait for a drain."""
    with serving() as (process, sock):
        assert process.stdout is not None
        sock.sendall(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "draining\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENT) == -signal.SIGTERM


def test_patience_is_checked() -> None:
    """A time that is not positive is refused when it is given."""
    for name in ("header", "body", "body_rate", "idle", "write", "max_connections"):
        for value in (0, -1, float("nan")):
            with pytest.raises(ValueError, match=name):
                Patience(**cast("dict[str, Any]", {name: value}))


def test_nothing_is_left_behind(front: Front) -> None:
    """A stopped server leaves no thread, no task and no open socket."""
    before = set(threading.enumerate())
    with Background(Runner(front, port=0)) as server, client(server) as connection:
        assert ask(connection, "/echo", b"a") == b"a"
    gc.collect()  # an unclosed transport would warn, and warnings are errors
    assert not set(threading.enumerate()) - before
    assert not server.runner._shared.tasks
