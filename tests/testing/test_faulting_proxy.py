"""The proxy that breaks connections: what the client and the server see of each fault."""

import contextlib
import socket
import threading

import attrs
import pytest

import maas
from maas.testing import Fault, FaultingProxy
from maas.testing.faulting_proxy import FAULTS

PATIENT = 20.0
LARGE = bytes(range(256)) * 2000


@maas.method(pure=True)
def repeat(data: bytes) -> bytes:
    return data


class Parrot:
    """A server of sixteen bytes at a time, which it says back; it knows what came."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.heard = []
        self.ended = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                threading.Thread(target=self._talk, args=(sock,), daemon=True).start()

    def _talk(self, sock):
        heard = bytearray()
        self.heard.append(heard)
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(16):
                heard += data
                if len(heard) % 16 == 0:
                    sock.sendall(heard[-16:])
        self.ended.release()


@pytest.fixture
def parrot():
    parrot = Parrot()
    yield parrot
    parrot.listener.close()


def said(proxy, *requests):
    """What a client hears of each request in turn, and how it ends: by a close or a reset."""
    port = int(proxy.url.rpartition(":")[2])
    heard = []
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENT) as sock:
            for request in requests:
                sock.sendall(request)
                heard.append(_sixteen(sock))
    except EOFError as end:
        return [*heard, end.args[0]], "closed"
    except ConnectionError:
        return heard, "reset"
    return heard, "open"


def _sixteen(sock):
    data = b""
    while len(data) < 16:
        more = sock.recv(16 - len(data))
        if not more:
            raise EOFError(data)
        data += more
    return data


FIRST, SECOND = b"0123456789abcdef", b"fedcba9876543210"

CASES = {
    # name: bytes that the server gets of two requests; what the client hears at most, and its end
    "latency": (32, 32, {"open"}),
    "one byte at a time": (32, 32, {"open"}),
    "bandwidth": (32, 32, {"open"}),
    "reset before the request": (0, 0, {"reset"}),
    "reset in the request": (15, 0, {"reset"}),
    "reset before the reply": (16, 0, {"reset"}),
    "reset in the reply": (16, 15, {"reset"}),
    "reset after the reply": (16, 16, {"reset"}),
    "truncated reply": (16, 15, {"closed", "reset"}),
    "closed before the reply": (16, 0, {"closed", "reset"}),
    "held-back FIN": (16, 16, {"closed", "reset"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_where_its_name_says(parrot, name):
    """Of each kind: so much reaches the server, so much the client, and the connection ends so."""
    asked, answered, ends = CASES[name]
    with FaultingProxy(parrot.url, {name: FAULTS[name]}, seed=3) as proxy:
        heard, end = said(proxy, FIRST, SECOND)
        if end != "open":
            assert parrot.ended.acquire(timeout=PATIENT)
    words = b"".join(heard)
    assert end in ends
    assert words == (FIRST + SECOND)[: len(words)]
    assert len(words) <= answered
    assert len(parrot.heard[0]) <= asked
    assert (len(words) == answered) or answered % 16
    assert (len(parrot.heard[0]) == asked) or asked % 16
    assert proxy.met[name] == (2 if end == "open" else 1)


@pytest.mark.parametrize("place", ["tcp", "unix"])
def test_without_faults_nothing_is_changed(tmp_path, place):
    """What passes a proxy that has nothing to do arrives as it was, by TCP and by unix socket."""
    door = {"port": 0} if place == "tcp" else {"uds": str(tmp_path / "s")}
    with (
        maas.serve(repeat, block=False, **door) as running,
        FaultingProxy(running.url, share=0) as proxy,
        maas.connect(f"{proxy.url}/repeat") as echo,
    ):
        assert echo(LARGE) == LARGE
        assert echo(b"") == b""
    assert not proxy.met


@pytest.mark.parametrize("name", ["one byte at a time", "bandwidth", "latency"])
def test_slow_ways_lose_nothing(name):
    """A message in single bytes, or slowly, is the same message."""
    with (
        maas.serve(repeat, block=False, port=0) as running,
        FaultingProxy(running.url, {name: FAULTS[name]}) as proxy,
        maas.connect(f"{proxy.url}/repeat") as echo,
    ):
        assert echo(LARGE[:2000]) == LARGE[:2000]


def test_a_seed_draws_the_same_again(parrot):
    """Two proxies of one seed do the same to the same connections, another one something else."""

    def met(seed):
        with FaultingProxy(parrot.url, share=0.7, seed=seed) as proxy:
            return [said(proxy, FIRST, SECOND) for _ in range(20)], proxy.met

    assert met(1)[1] == met(1)[1]
    assert met(1)[1] != met(2)[1]


def test_another_share_leaves_the_rest_as_it_was(parrot):
    """What an exchange meets does not depend on how many others meet something."""
    with FaultingProxy(parrot.url, {"cut": Fault(cut="before the reply")}, share=0.5) as proxy:
        half = [said(proxy, FIRST)[1] for _ in range(20)]
    with FaultingProxy(parrot.url, {"cut": Fault(cut="before the reply")}, share=0.8) as proxy:
        most = [said(proxy, FIRST)[1] for _ in range(20)]
    assert 0 < half.count("reset") < most.count("reset") < 20
    assert all(end == "reset" for end, other in zip(most, half, strict=True) if other == "reset")


def test_a_server_that_is_not_there_is_a_reset(parrot):
    """A proxy whose server is gone breaks the connection, and goes on."""
    with FaultingProxy(parrot.url, share=0) as proxy:
        parrot.listener.shutdown(socket.SHUT_RDWR)
        parrot.listener.close()
        assert said(proxy, FIRST) in (([], "reset"), ([b""], "closed"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: FaultingProxy("ftp://here"), "no server's URL"),
        (lambda: FaultingProxy("http:///net"), "no server's URL"),
        (lambda: FaultingProxy("http://here", share=2), "from 0 to 1"),
        (lambda: Fault(cut="somewhere"), "cut"),
        (lambda: attrs.evolve(FAULTS["latency"], latency=-1), "latency"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, words):
    """A wrong address, share or fault is an error at once, in its own words."""
    with pytest.raises(ValueError, match=words):
        wrong()
