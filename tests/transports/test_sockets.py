import asyncio
import concurrent.futures
import http.server
import os
import signal
import socket
import ssl
import threading
import time

import pytest
import trustme

from maas.errors import (
    DeadlineExceeded,
    LimitExceeded,
    ProtocolError,
    StreamInterrupted,
    TransportError,
)
from maas.http import Request, header
from maas.loops import run
from maas.transports.base import StreamedResponse
from maas.transports.sockets import SocketTransport

PATIENCE = 30.0
MUCH = 32 * 2**20


def post(*body):
    return Request("POST", "/net", (("content-type", "text/plain"),), body)


def soon():
    return time.monotonic() + PATIENCE


async def asked(reader):
    """The body of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length: "):
            return await reader.readexactly(int(line[16:]))
    return b""


def reply(body, *, status=b"200 OK", extra=b""):
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), extra, body)


async def echo(reader, writer):
    while True:
        writer.write(reply(await asked(reader)))
        await writer.drain()


def answering(*pieces, then=None):
    """A script that answers every request with these bytes, and `then` does something."""

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


def closing(*pieces):
    async def close(_reader, writer):
        writer.close()

    return answering(*pieces, then=close)


def turn():
    """Returns after the I/O loop has seen what the kernel has for it."""
    for _ in range(3):
        run(asyncio.sleep(0)).result(PATIENCE)


class Leaving:
    """Tells when a client has left; `script` is what a server that awaits it does."""

    def __init__(self):
        self.left = threading.Event()

    async def __call__(self, reader, _writer):
        try:
            while await reader.read(2**16):
                pass
        except ConnectionError:
            pass
        finally:
            self.left.set()


# --- against the standard library's server


class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        for name, value in self.headers.items():
            self.send_header(f"got-{name}", value)
        self.send_header("got-port", str(self.client_address[1]))
        self.end_reply(body)

    def end_reply(self, body):
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class OldEcho(Echo):
    protocol_version = "HTTP/1.0"

    def end_reply(self, body):
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(params=[Echo, OldEcho], ids=["http/1.1", "http/1.0"])
def stdlib_server(request):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), request.param)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join(PATIENCE)
    server.server_close()


@pytest.mark.parametrize("size", [0, 10, MUCH])
def test_the_standard_librarys_server_gets_and_gives_every_byte(
    stdlib_server, transport_to, send, size
):
    """What is asked is answered, from nothing to megabytes, with and without a length."""
    body = bytes(range(250)) * (size // 250)
    transport = transport_to(("tcp", *stdlib_server.server_address))
    response = send(transport, post(b"head", memoryview(body), b"tail"))
    assert response.status == 200
    assert response.body == (b"head" + body + b"tail",)
    assert not memoryview(response.body[0]).readonly
    assert size >= 2**20 or type(response.body[0]) is bytearray
    assert header(response.headers, "got-host") == "test"
    assert header(response.headers, "got-content-type") == "text/plain"
    assert "maas/" in (header(response.headers, "got-user-agent") or "")
    assert header(response.headers, "got-accept-encoding") == "identity"


def test_calls_follow_each_other_on_one_connection(stdlib_server, transport_to, send):
    """A server that keeps the connection sees one port; one that does not sees many."""
    transport = transport_to(("tcp", *stdlib_server.server_address))
    ports = {header(send(transport, post(b"x")).headers, "got-port") for _ in range(5)}
    kept = stdlib_server.RequestHandlerClass is Echo
    assert len(ports) == (1 if kept else 5)


# --- what servers do


REPLIES = {
    "chunked": [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    ],
    "continued": [b"HTTP/1.1 100 Continue\r\n\r\n", reply(b"hello")],
    "slow": [bytes([byte]) for byte in reply(b"hello")],
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_may_come_in_any_form(village, transport_to, send, name):
    """Chunked, after a 1xx reply, or byte by byte; and the connection stays in use."""
    served = village.serve(answering(*REPLIES[name]))
    transport = transport_to(served.address)
    for _ in range(3):
        assert send(transport, post(b"x")).body == (b"hello",)
    assert served.connections == 1


def test_an_error_reply_is_a_response(village, transport_to, send):
    """A status is the executor's business."""
    served = village.serve(
        answering(reply(b"no", status=b"503 Later", extra=b"Retry-After: 7\r\n"))
    )
    response = send(transport_to(served.address), post(b"x"))
    assert (response.status, header(response.headers, "retry-after")) == (503, "7")


def test_a_connection_that_the_server_closed_while_idle_is_not_used(village, transport_to, send):
    """The next call takes a new one, and its caller never hears of it."""
    closed = threading.Event()

    async def once(reader, writer):
        await echo_once(reader, writer)
        writer.close()
        await writer.wait_closed()
        closed.set()

    served = village.serve(once)
    transport = transport_to(served.address)
    for _ in range(3):
        closed.clear()
        assert send(transport, post(b"x")).body == (b"x",)
        assert closed.wait(PATIENCE)
        turn()
    assert served.connections == 3


async def echo_once(reader, writer):
    writer.write(reply(await asked(reader)))
    await writer.drain()


def test_bytes_nobody_asked_for_never_answer_the_next_call(village, transport_to, send):
    """A reply that comes twice costs the connection, not the next caller's answer."""
    written = threading.Event()

    async def stutter(reader, writer):
        await echo_once(reader, writer)
        if served.connections == 1:
            assert await asyncio.to_thread(go_on.wait, PATIENCE)
            writer.write(reply(b"poison"))
            await writer.drain()
            written.set()
        await reader.read()

    go_on = threading.Event()
    served = village.serve(stutter)
    transport = transport_to(served.address)
    assert send(transport, post(b"one")).body == (b"one",)
    go_on.set()
    assert written.wait(PATIENCE)
    turn()
    assert send(transport, post(b"two")).body == (b"two",)
    assert served.connections == 2


def test_a_server_that_closes_without_a_word_may_have_had_the_call(village, transport_to, send):
    """The error says that the request left and that nothing came back."""
    served = village.serve(closing())
    with pytest.raises(TransportError) as caught:
        send(transport_to(served.address), post(b"x"))
    assert (caught.value.sent, caught.value.answered) == (True, False)


def test_a_kept_connection_that_dies_under_a_call_is_reported_too(village, transport_to, send):
    """Whether to ask again is not the transport's decision once a byte has left."""

    async def once(reader, writer):
        await echo_once(reader, writer)
        await asked(reader)

    served = village.serve(once)
    transport = transport_to(served.address)
    send(transport, post(b"x"))
    with pytest.raises(TransportError) as caught:
        send(transport, post(b"x"))
    assert (caught.value.sent, caught.value.answered) == (True, False)
    assert served.connections == 1


def test_a_kept_connection_that_takes_no_byte_is_replaced(village, transport_to):
    """A call that certainly was not sent may be sent again, and is."""

    async def once(reader, writer):
        await echo_once(reader, writer)
        await asyncio.Event().wait()

    served = village.serve(once)
    transport = transport_to(served.address)
    transport.send(post(b"x"), soon(), 100)
    connection = transport._sockets.take()
    transport._sockets.give(connection)
    connection._socket.shutdown(socket.SHUT_WR)
    assert transport.send(post(b"y"), soon(), 100).body == (b"y",)


CUT = {
    "head": b"HTTP/1.1 200 OK\r\ncontent-le",
    "body": b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
    "chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhal",
}


@pytest.mark.parametrize("name", CUT)
def test_a_reply_cut_short_is_reported_as_answered(village, transport_to, send, name):
    """The server certainly had the call."""
    served = village.serve(closing(CUT[name]))
    with pytest.raises(TransportError) as caught:
        send(transport_to(served.address), post(b"x"))
    assert (caught.value.sent, caught.value.answered) == (True, True)


def test_a_reset_connection_is_an_error_of_the_transport(village, transport_to, send):
    """A server that dies resets; no OSError of the platform reaches the caller."""

    async def reset(_reader, writer):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    served = village.serve(answering(b"HTTP/1.1 200", then=reset))
    with pytest.raises(TransportError, match=r"broke|closed") as caught:
        send(transport_to(served.address), post(b"x"))
    assert type(caught.value) is TransportError
    assert caught.value.sent


def test_a_malformed_reply_costs_the_connection(village, transport_to, send):
    """Nobody knows where the next reply would begin."""
    leaving = Leaving()
    served = village.serve(answering(b"HTTP/1.1 two hundred\r\n\r\n", then=leaving))
    with pytest.raises(ProtocolError):
        send(transport_to(served.address), post(b"x"))
    assert leaving.left.wait(PATIENCE)


ENDLESS = {
    "head": (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 1000),
    "1xx": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "body": (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000),
    "chunks": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
    "announced": (b"HTTP/1.1 200 OK\r\ncontent-length: 100001\r\n\r\n", b"x"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_reply_is_refused_and_its_server_left(village, transport_to, send, name):
    """The caller gets LimitExceeded, the server a closed connection."""
    left = threading.Event()
    start, more = ENDLESS[name]

    async def endless(reader, writer):
        await asked(reader)
        writer.write(start)
        try:
            while not reader.at_eof():
                writer.write(more)
                await writer.drain()
                await asyncio.sleep(0)
        finally:
            left.set()

    served = village.serve(endless)
    with pytest.raises(LimitExceeded):
        send(transport_to(served.address), post(b"x"), cap=100_000)
    assert left.wait(PATIENCE)


@pytest.mark.parametrize("pieces", [[], [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"]])
def test_past_its_deadline_a_call_ends_and_the_server_knows(village, transport_to, send, pieces):
    """Waiting for a head or for a body makes no difference."""
    leaving = Leaving()
    served = village.serve(answering(*pieces, then=leaving))
    with pytest.raises(DeadlineExceeded):
        send(transport_to(served.address), post(b"x"), seconds=0.1)
    assert leaving.left.wait(PATIENCE)


def test_bytes_that_trickle_do_not_prolong_the_deadline(village, transport_to, send):
    """The deadline is of the whole call, not of each wait."""

    async def trickle(reader, writer):
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    served = village.serve(trickle)
    with pytest.raises(DeadlineExceeded, match="of the 1000000 bytes"):
        send(transport_to(served.address), post(b"x"), seconds=0.2)


def test_a_server_that_does_not_read_cannot_hold_a_call(village, transport_to, send):
    """Sending counts against the deadline as well."""

    async def deaf(_reader, _writer):
        await asyncio.sleep(PATIENCE)

    served = village.serve(deaf)
    with pytest.raises(DeadlineExceeded):
        send(transport_to(served.address), post(bytes(MUCH)), seconds=0.2)


def test_a_passed_deadline_sends_nothing(village, transport_to, send):
    """A call that is too late already does not trouble the server."""
    served = village.serve(echo)
    with pytest.raises(DeadlineExceeded):
        send(transport_to(served.address), post(b"x"), seconds=-1)
    assert served.connections == 0


def test_a_refusal_is_heard_while_the_request_is_still_being_sent(village, transport_to, send):
    """A server may answer 413 and stop reading; the answer is not lost, the connection is."""
    leaving = Leaving()

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(b"too much", status=b"413 Too Large"))
        await writer.drain()
        writer.transport.pause_reading()
        assert await asyncio.to_thread(answered.wait, PATIENCE)
        writer.transport.resume_reading()
        await leaving(reader, writer)

    answered = threading.Event()
    served = village.serve(refuse)
    response = send(transport_to(served.address), post(bytes(MUCH)))
    answered.set()
    assert (response.status, response.body) == (413, (b"too much",))
    assert leaving.left.wait(PATIENCE)


def test_a_refusal_outlives_the_reset_that_follows_it(village, transport_to):
    """A server that closes with the request half read resets; what it said before still counts."""

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(b"too much", status=b"413 Too Large"))
        await writer.drain()

    served = village.serve(refuse)
    response = transport_to(served.address).send(post(bytes(MUCH)), soon(), 100)
    assert (response.status, response.body) == (413, (b"too much",))


def test_many_buffers_are_sent_in_their_order(village, transport_to, send):
    """More of them than the system takes at once, empty ones among them."""
    served = village.serve(echo)
    parts = [b"%05d" % i * 20 for i in range(2000)] + [b"", memoryview(b"end")]
    assert send(transport_to(served.address), post(*parts)).body == (b"".join(map(bytes, parts)),)


# --- where there is no server


def test_nobody_listening_is_known_before_anything_was_sent(transport_to, send):
    """A refused connection cannot have carried the call."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(TransportError, match=f":{port}: nobody listens there") as caught:
        send(transport_to(("tcp", "127.0.0.1", port)), post(b"x"))
    assert (caught.value.sent, caught.value.answered) == (False, False)


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 64 + ".invalid"])
def test_a_name_without_an_address_was_sent_nothing(transport_to, send, host):
    """That holds for names that DNS cannot even spell."""
    transport = transport_to(("tcp", host, 80), connect_timeout=5)
    with pytest.raises(TransportError, match="cannot connect") as caught:
        send(transport, post(b"x"))
    assert not caught.value.sent


def test_a_missing_unix_socket_was_sent_nothing(transport_to, send, tmp_path):
    """The error names the path that was asked for."""
    with pytest.raises(TransportError, match=r"nobody\.sock: nobody listens") as caught:
        send(transport_to(("unix", str(tmp_path / "nobody.sock"))), post(b"x"))
    assert not caught.value.sent


def _full(family, address):
    """A listener that accepts nobody, and the connections that fill its backlog."""
    listener = socket.socket(family)
    listener.bind(address)
    listener.listen(0)
    waiting = []
    while True:
        sock = socket.socket(family)
        sock.settimeout(0.2)
        waiting.append(sock)
        try:
            sock.connect(listener.getsockname())
        except (BlockingIOError, TimeoutError):
            return listener, waiting


@pytest.fixture(params=["tcp", "unix"])
def full(request, tmp_path):
    family = getattr(socket, {"tcp": "AF_INET", "unix": "AF_UNIX"}[request.param])
    place = ("127.0.0.1", 0) if request.param == "tcp" else str(tmp_path / "full.sock")
    listener, waiting = _full(family, place)
    name = listener.getsockname()
    yield listener, ("unix", name) if request.param == "unix" else ("tcp", *name)
    for sock in [listener, *waiting]:
        sock.close()


def test_a_server_that_accepts_nobody_cannot_hold_a_call(full, transport_to, send):
    """Connecting ends at the deadline."""
    with pytest.raises(DeadlineExceeded):
        send(transport_to(full[1]), post(b"x"), seconds=0.2)


def test_a_server_that_accepts_nobody_is_given_up_even_without_a_deadline(full, transport_to, send):
    """Connecting has a time of its own."""
    with pytest.raises(TransportError, match=r"no answer for 0\.2 s") as caught:
        send(transport_to(full[1], connect_timeout=0.2), post(b"x"), seconds=None)
    assert not caught.value.sent


def test_a_full_unix_socket_is_waited_for(transport_to, send, tmp_path):
    """A backlog that empties in time lets the call through."""
    listener, waiting = _full(socket.AF_UNIX, str(tmp_path / "full.sock"))

    def serve():
        for _ in waiting[:-1]:
            listener.accept()[0].close()
        connection, _ = listener.accept()
        with connection:
            connection.recv(2**16)
            connection.sendall(reply(b"at last"))
            connection.recv(2**16)

    thread = threading.Timer(0.1, serve)
    thread.start()
    transport = transport_to(("unix", listener.getsockname()))
    assert send(transport, post(b"x")).body == (b"at last",)
    transport.close()
    thread.join(PATIENCE)
    for sock in [listener, *waiting]:
        sock.close()


def test_all_addresses_of_a_name_are_tried(village, transport_to, send):
    """A name may mean ::1 first, where nobody listens."""
    served = village.serve(echo)
    transport = transport_to(("tcp", "localhost", served.address[2]))
    assert send(transport, post(b"x")).body == (b"x",)


# --- unix sockets and TLS


def test_a_unix_socket_carries_the_same(village, transport_to, send, tmp_path):
    """Small and large, on one connection."""
    served = village.serve(echo, uds=str(tmp_path / "maas.sock"))
    transport = transport_to(served.address)
    for size in (1, MUCH, 10):
        assert send(transport, post(b"x" * size)).body == (b"x" * size,)
    assert served.connections == 1


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls(authority):
    """Contexts of a server called model.test and of a client that trusts it."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("model.test").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_carries_the_same(village, transport_to, send, tls, version):
    """Small and large, on one connection, whatever tickets the server sends in between."""
    server, client = tls
    client.minimum_version = client.maximum_version = version
    served = village.serve(echo, tls=server)
    transport = transport_to(served.address, tls=client, server_name="model.test")
    for size in (1, MUCH // 4, 10):
        body = b"x" * size
        assert send(transport, post(b"a", body)).body == (b"a" + body,)
    assert served.connections == 1


def test_a_certificate_for_another_name_is_refused(village, transport_to, send, tls):
    """Nothing is sent to a server that is not the one that was meant."""
    server, client = tls
    served = village.serve(echo, tls=server)
    with pytest.raises(TransportError, match=r"other\.test") as caught:
        send(transport_to(served.address, tls=client, server_name="other.test"), post(b"x"))
    assert not caught.value.sent


def test_an_unknown_authority_is_refused(village, transport_to, send, tls):
    """The default context trusts public authorities alone."""
    served = village.serve(echo, tls=tls[0])
    context = ssl.create_default_context()
    with pytest.raises(TransportError, match="verify failed") as caught:
        send(transport_to(served.address, tls=context, server_name="model.test"), post(b"x"))
    assert not caught.value.sent


def test_a_plain_server_is_no_tls_server(village, transport_to, send, tls):
    """What is meant to be secret does not fall back to plain text."""

    async def plain(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    served = village.serve(plain)
    with pytest.raises(TransportError) as caught:
        send(transport_to(served.address, tls=tls[1], server_name="model.test"), post(b"x"))
    assert not caught.value.sent


def test_a_silent_server_cannot_hold_a_handshake(village, transport_to, send, tls):
    """The handshake counts against the deadline."""

    async def silent(reader, _writer):
        await reader.read()

    served = village.serve(silent)
    transport = transport_to(served.address, tls=tls[1], server_name="model.test")
    with pytest.raises(DeadlineExceeded):
        send(transport, post(b"x"), seconds=0.2)


def test_a_tls_reply_that_ends_with_the_connection_cannot_be_cut(transport_to, send, tls):
    """Only the server itself can end it: a bare TCP close may be anybody's."""
    listener = socket.create_server(("127.0.0.1", 0))

    def cut():
        connection = tls[0].wrap_socket(listener.accept()[0], server_side=True)
        connection.recv(2**16)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        connection.close()

    thread = threading.Thread(target=cut)
    thread.start()
    transport = transport_to(("tcp", *listener.getsockname()), tls=tls[1], server_name="model.test")
    with pytest.raises(TransportError):
        send(transport, post(b"x"))
    thread.join(PATIENCE)
    listener.close()


# --- many at once, and leaving


def test_threads_do_not_mix_their_answers(village, transport_to):
    """One transport for all; everyone gets what they asked for."""
    served = village.serve(echo)
    transport = transport_to(served.address)

    def ask(i):
        return transport.send(post(b"%d" % i), soon(), 100).body[0] == b"%d" % i

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(320)))
    assert served.connections <= 16


def test_coroutines_do_not_mix_their_answers(village, transport_to):
    """64 in flight on the loop need at most 64 connections, whatever their number in all."""
    served = village.serve(echo)
    transport = transport_to(served.address)

    async def worker(k):
        for i in range(k, 640, 64):
            response = await transport.asend(post(b"%d" % i), soon(), 100)
            assert response.body == (b"%d" % i,)

    async def all_of_them():
        await asyncio.gather(*map(worker, range(64)))

    run(all_of_them()).result(PATIENCE)
    assert served.connections <= 64


@pytest.mark.parametrize("pieces", [[], [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"]])
@pytest.mark.parametrize("way", ["asend", "stream"])
def test_a_cancelled_call_leaves_its_server(village, transport_to, way, pieces):
    """The server sees the disconnect, so that it can stop computing."""
    asked_for, leaving = threading.Event(), Leaving()

    async def begin(reader, writer):
        asked_for.set()
        await leaving(reader, writer)

    served = village.serve(answering(*pieces, then=begin))
    transport = transport_to(served.address)

    async def call():
        got = await getattr(transport, way)(post(b"x"), soon(), 100)
        await got.frames.read(9)

    future = run(call())
    assert asked_for.wait(PATIENCE)
    future.cancel()
    assert leaving.left.wait(PATIENCE)


def test_an_interrupted_thread_leaves_its_server(village, transport_to):
    """Ctrl-C in the middle of a call drops the connection with its half-read reply."""
    leaving = Leaving()

    async def interrupt(reader, writer):
        os.kill(os.getpid(), signal.SIGINT)
        await leaving(reader, writer)

    served = village.serve(answering(b"HTTP/1.1 200", then=interrupt))
    with pytest.raises(KeyboardInterrupt):
        transport_to(served.address).send(post(b"x"), soon(), 100)
    assert leaving.left.wait(PATIENCE)


def test_closing_drops_what_is_idle_and_refuses_what_is_new(village, transport_to, send):
    """A closed transport says so; it does not open connections behind one's back."""
    leaving = Leaving()
    served = village.serve(answering(reply(b"x"), then=leaving))
    transport = transport_to(served.address)
    send(transport, post(b"x"))
    transport.close()
    assert leaving.left.wait(PATIENCE)
    with pytest.raises(RuntimeError, match="closed"):
        send(transport, post(b"x"))


def test_a_forgotten_transport_leaves_nothing_open(village, transport_to, send):
    """Collecting it closes its connections, without a ResourceWarning."""
    leaving = Leaving()
    served = village.serve(answering(reply(b"x"), then=leaving))

    def use():
        transport = SocketTransport(served.address, tls=None, server_name=None, host="test")
        send(transport, post(b"x"))

    use()
    assert leaving.left.wait(PATIENCE)


def test_only_the_io_loop_may_wait(village, transport_to):
    """Connections belong to one loop; another one is told so at once."""
    transport = transport_to(village.serve(echo).address)
    with pytest.raises(RuntimeError, match="I/O loop"):
        asyncio.run(transport.asend(post(b"x"), None, 100))


# --- streams


def streaming(transport, request=None, deadline=None):
    return run(transport.stream(request or post(b"x"), deadline or soon(), 1000)).result(PATIENCE)


def read(frames, n):
    return run(frames.read(n)).result(PATIENCE)


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = b"HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n"


def test_a_stream_is_read_as_it_comes(village, transport_to):
    """Each frame is there once the server has sent it, long before the end."""
    more = threading.Event()

    async def script(reader, writer):
        await asked(reader)
        writer.write(CHUNKED + chunk(b"first") + chunk(b"sec"))
        await asyncio.to_thread(more.wait, PATIENCE)
        writer.write(chunk(b"ond") + b"0\r\n\r\n")
        await reader.read()

    served = village.serve(script)
    transport = transport_to(served.address)
    reply = streaming(transport)
    assert type(reply) is StreamedResponse
    assert (reply.status, header(reply.headers, "x")) == (200, "y")
    assert read(reply.frames, 5) == b"first"
    more.set()
    second = read(reply.frames, 6)
    assert (type(second), second) == (bytearray, b"second")
    assert read(reply.frames, 0) == b""
    with pytest.raises(StreamInterrupted, match="ended early"):
        read(reply.frames, 1)


FRAMINGS = {
    "chunked": CHUNKED + chunk(b"hello") + b"0\r\n\r\n",
    "sized": reply(b"hello"),
    "until close": b"HTTP/1.1 200 OK\r\n\r\nhello",
}


@pytest.mark.parametrize("name", FRAMINGS)
def test_a_stream_may_be_framed_in_any_way(village, transport_to, name):
    """A complete one leaves its connection to the next call, if that has no other end."""
    served = village.serve((closing if name == "until close" else answering)(FRAMINGS[name]))
    transport = transport_to(served.address)
    for _ in range(3):
        frames = streaming(transport).frames
        assert read(frames, 5) == b"hello"
        with pytest.raises(StreamInterrupted):
            read(frames, 1)
        run(frames.close()).result(PATIENCE)
    assert served.connections == (3 if name == "until close" else 1)


def test_another_status_than_200_comes_whole(village, transport_to):
    """An error is no stream, and its body is held to the cap."""
    served = village.serve(answering(reply(b"no such model", status=b"404 Not Found")))
    response = streaming(transport_to(served.address))
    assert (response.status, response.body) == (404, (b"no such model",))
    served = village.serve(answering(reply(b"x" * 1001, status=b"404 Not Found")))
    with pytest.raises(LimitExceeded):
        streaming(transport_to(served.address))


def test_a_slow_reader_slows_the_server_down(village, transport_to):
    """Of an endless stream little more than a megabyte waits in this process."""

    async def script(reader, writer):
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (2 * MUCH))
        writer.write(b"x" * (2 * MUCH))
        await reader.read()

    served = village.serve(script)
    frames = streaming(transport_to(served.address)).frames
    while not frames.exchange.paused:
        turn()
    for _ in range(100):
        turn()
    assert len(frames.exchange.body) < 2**21
    for n in (10, MUCH, MUCH - 10):
        assert read(frames, n) == b"x" * n
    assert frames.exchange.done


def test_a_stream_that_breaks_gives_first_what_had_come(village, transport_to):
    """Items before the break are whole; then StreamInterrupted says where it ended."""
    served = village.serve(closing(CHUNKED + chunk(b"item") + chunk(b"it")))
    frames = streaming(transport_to(served.address)).frames
    assert read(frames, 4) == b"item"
    with pytest.raises(StreamInterrupted) as caught:
        read(frames, 4)
    assert (caught.value.sent, caught.value.answered) == (True, True)


def test_a_malformed_stream_is_a_protocol_error(village, transport_to):
    """A chunk that is none ends the stream for its own reason."""
    served = village.serve(answering(CHUNKED + chunk(b"item"), b"oops\r\n", then=Leaving()))
    frames = streaming(transport_to(served.address)).frames
    with pytest.raises(ProtocolError):
        read(frames, 100)


def test_a_stream_has_one_deadline_for_the_whole(village, transport_to):
    """It ends even while items come."""
    leaving = Leaving()
    served = village.serve(answering(CHUNKED + chunk(b"item"), then=leaving))
    frames = streaming(transport_to(served.address), deadline=time.monotonic() + 0.5).frames
    assert read(frames, 4) == b"item"
    with pytest.raises(DeadlineExceeded):
        read(frames, 4)
    assert leaving.left.wait(PATIENCE)


def test_a_stream_that_is_closed_leaves_its_server(village, transport_to):
    """The server sees the disconnect; further reading is an interruption."""
    leaving = Leaving()
    served = village.serve(answering(CHUNKED + chunk(b"item"), then=leaving))
    frames = streaming(transport_to(served.address)).frames
    run(frames.close()).result(PATIENCE)
    assert leaving.left.wait(PATIENCE)
    with pytest.raises(StreamInterrupted):
        read(frames, 100)
