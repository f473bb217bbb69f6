"""Slow clients: each kind must be shown out in time, and nobody else may notice."""

import http.client
import resource
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from maas.http import Response
from maas.server.front import Admission, Head
from maas.server.runner import Background, Patience, Runner

SHORT = Patience(header=0.3, body=0.3, body_rate=10_000, idle=0.6, write=0.3, linger=0.3)
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
LARGE = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"
MEDIUM = b"GET /medium HTTP/1.1\r\nHost: a\r\n\r\n"
SMALL = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PATIENT = 20.0  # seconds after which a test gives up


class Front:
    """A small reply, one of 20 kB, or one of 32 MB that no socket buffer takes."""

    def admit(self, head: Head) -> Admission:
        return Admission(10**6, head.path)

    async def answer(self, admission: Admission, body: bytearray) -> Response:
        replies = {"/large": bytes(32 * 2**20), "/medium": bytes(20_000)}
        return Response(200, (), (replies.get(str(admission.route), b"small"),))

    def draining(self) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Background]:
    with Background(Runner(Front(), port=0, patience=SHORT)) as background:
        yield background


def connect(server: Background) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(PATIENT)
    sock.connect(("127.0.0.1", server.runner.port))
    return sock


def until_closed(sock: socket.socket) -> bytes:
    """What the server still says before it closes; fails if it never does."""
    said = b""
    try:
        while data := sock.recv(65536):
            said += data
    except ConnectionResetError:
        pass
    return said


def trickle(sock: socket.socket, data: bytes, stop: threading.Event) -> None:
    """A byte every 20 ms, for as long as the server takes them."""
    for start in range(len(data)):
        try:
            sock.sendall(data[start : start + 1])
        except OSError:
            return
        if stop.wait(0.02):
            return


def silent(sock: socket.socket, stop: threading.Event) -> bytes:
    return until_closed(sock)


def trickled_head(sock: socket.socket, stop: threading.Event) -> bytes:
    trickle(sock, b"GET /" + b"a" * 1000, stop)
    return until_closed(sock)


def trickled_body(sock: socket.socket, stop: threading.Event) -> bytes:
    sock.sendall(HEAD)
    trickle(sock, b"x" * 1000, stop)
    return until_closed(sock)


def trickled_chunks(sock: socket.socket, stop: threading.Event) -> bytes:
    sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    trickle(sock, b"1\r\nx\r\n" * 200, stop)
    return until_closed(sock)


def no_body(sock: socket.socket, stop: threading.Event) -> bytes:
    sock.sendall(HEAD)
    return until_closed(sock)


def idle(sock: socket.socket, stop: threading.Event) -> bytes:
    sock.sendall(SMALL)
    return until_closed(sock).partition(b"small")[2]


def after_refusal(sock: socket.socket, stop: threading.Event) -> bytes:
    sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n")
    trickle(sock, b"x" * 1000, stop)
    return until_closed(sock)


ATTACKS: list[tuple[Callable[[socket.socket, threading.Event], bytes], bytes]] = [
    (silent, b""),
    (trickled_head, b"HTTP/1.1 408 "),
    (trickled_body, b"HTTP/1.1 408 "),
    (trickled_chunks, b"HTTP/1.1 408 "),
    (no_body, b"HTTP/1.1 408 "),
    (idle, b""),
    (after_refusal, b"HTTP/1.1 413 "),
]


@pytest.mark.parametrize(("attack", "wanted"), ATTACKS)
def test_a_slow_sender_is_shown_out(
    server: Background, attack: Callable[[socket.socket, threading.Event], bytes], wanted: bytes
) -> None:
    """Each way to send nothing, or next to nothing, ends in a close, after a 408 where one fits."""
    with connect(server) as sock:
        said = attack(sock, threading.Event())
    assert said.startswith(wanted)
    assert bool(said) == bool(wanted)


def closes(server: Background) -> bool:
    """Waits until the server has let go of every connection."""
    done = threading.Event()
    for _ in range(int(PATIENT / 0.05)):
        if not server.runner._shared.connections:
            return True
        done.wait(0.05)
    return False


def test_a_reply_that_nobody_reads_is_dropped(server: Background) -> None:
    """A peer that does not read its reply loses its connection."""
    with connect(server) as sock:
        sock.sendall(LARGE)
        assert sock.recv(1) == b"H"
        assert closes(server)


def test_a_reply_read_a_byte_at_a_time_is_dropped(server: Background) -> None:
    """A byte now and then is no progress."""
    stop = threading.Event()

    def sip(sock: socket.socket) -> None:
        while not stop.wait(0.02):
            try:
                if not sock.recv(1):
                    return
            except OSError:
                return

    with connect(server) as sock:
        sock.sendall(LARGE)
        reader = threading.Thread(target=sip, args=(sock,))
        reader.start()
        gone = closes(server)
        stop.set()
        reader.join()
    assert gone


def test_a_reply_read_below_the_floor_rate_is_dropped() -> None:
    """Steady progress is not enough: a reply has a floor rate, as a request has."""
    runner = Runner(Front(), port=0, patience=Patience(write=0.4, body_rate=500 * 2**20))
    with Background(runner), socket.create_connection(("127.0.0.1", runner.port), PATIENT) as sock:
        sock.sendall(LARGE)
        taken = len(sock.recv(1))
        pause = threading.Event()
        while runner._shared.connections and taken < 32 * 2**20:
            taken += len(sock.recv(2**18))
            pause.wait(0.02)
        assert taken + len(until_closed(sock)) < 32 * 2**20


def test_the_end_of_a_reply_has_the_time_of_its_beginning() -> None:
    """Lingering begins when the last reply is out, not while its end waits for the peer."""
    runner = Runner(Front(), port=0, patience=Patience(linger=0.2))
    with Background(runner) as server, connect(server) as sock:
        pause = threading.Event()
        sent = 0
        while not waiting(runner):
            sock.sendall(MEDIUM)
            sent += 1
            pause.wait(0.002)
        sock.sendall(MEDIUM.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        pause.wait(0.8)
        assert until_closed(sock).count(b"HTTP/1.1 200 OK\r\n") == sent + 1


def waiting(runner: Runner) -> int:
    """Bytes that the sockets would not take any more."""
    return sum(connection._outlet.waiting for connection in runner._shared.connections)


def test_a_steady_upload_may_take_longer_than_the_grace() -> None:
    """A body that comes at the floor rate or above is received, however long it takes."""
    patience = Patience(header=0.3, body=0.2, body_rate=1000)
    with Background(Runner(Front(), port=0, patience=patience)) as server, connect(server) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n")
        pause = threading.Event()
        for _ in range(20):  # 1 s in all: five times the grace, at 20 times the rate
            sock.sendall(b"x" * 1000)
            pause.wait(0.05)
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_peer_that_never_shakes_hands_is_shown_out() -> None:
    """The TLS handshake has the deadline of a head."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    runner = Runner(Front(), port=0, patience=SHORT, tls=context)
    with Background(runner) as server, connect(server) as sock:
        assert until_closed(sock) == b""


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def besiege(server: Background, count: int) -> None:
    """`count` connections of each kind at once, while good clients are served."""
    with ExitStack() as stack:
        for opening in (b"", b"GET /aaa", HEAD + b"x", LARGE):
            for number in range(count):
                stack.enter_context(connect(server)).sendall(opening)
                if number % 10 == 0:
                    serve_one(server)
        assert closes(server)


def serve_one(server: Background) -> None:
    client = http.client.HTTPConnection("127.0.0.1", server.runner.port, timeout=PATIENT)
    client.request("GET", "/")
    assert client.getresponse().read() == b"small"
    client.close()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors by /proc")
@pytest.mark.parametrize(
    "count", [pytest.param(50, id="50"), pytest.param(1000, id="1000", marks=pytest.mark.long)]
)
def test_a_siege_of_slow_clients_changes_nothing(count: int) -> None:
    """Good clients are answered during a siege, and afterwards no descriptor is missing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10 * count + 1000
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, wanted), hard), hard))
    try:
        patience = Patience(
            header=3, body=3, write=3, linger=1, idle=3, max_connections=5 * count + 100
        )
        with Background(Runner(Front(), port=0, patience=patience)) as server:
            serve_one(server)
            assert closes(server)
            before = descriptors()
            besiege(server, count)
            serve_one(server)
            assert closes(server)
            assert descriptors() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
