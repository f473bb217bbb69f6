"""A hostile server against our client: whatever it answers, a typed error, bounded cost.

The server first describes itself as any would, unless the attack is the description, and
answers the call with the attack. Every attack is tried by a call on the caller's thread, on the
I/O loop, and as a stream.
"""

import contextlib
import gzip
import itertools
import socket
import struct
import threading
import tracemalloc

import msgpack
import pytest

import maas
from maas import wire
from maas.calls import CALL, Call, Result
from maas.errors import CodecError, Error, LimitExceeded, ProtocolError, TransportError
from maas.http import MSGPACK, PROBLEM
from maas.limits import Limits
from maas.wire import Description, Failure, Item, Kind

PATIENT = 20.0
LIMITS = Limits(body=4 * 2**20, header=2**18, memory=8 * 2**20)
SLACK = 3 * 2**20
KEY = "the-key-that-must-not-travel"


def victim(x: int = 1) -> int:
    return x


class Streams:
    @maas.method
    def items(self, x: int = 1):
        yield x


def description(model, /, **changes):
    """What an honest server would say, with some of it changed."""
    info = maas.Model(model, name="m").info.to_data()
    return {"protocol": [1, 1], "model": "m", "models": {"m": info}} | changes


def message(data):
    return b"".join(wire.encode(Description(data), Limits()))


def reply(body, *headers, status=200, content=MSGPACK, length=None):
    """An HTTP reply around a body; a length of None is the true one, "" leaves it out."""
    length = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status} OK", f"content-type: {content}", *headers]
    lines += [] if length == "" else [f"content-length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def framed(kind, header, buffers=b"", total=None, version=1):
    """A message by hand, whose prefix says what we want it to."""
    total = 21 + len(header) + len(buffers) if total is None else total
    prefix = struct.pack(">5sBBBIBQ", b"\xa4maas", version, kind, 0xCE, len(header), 0xCF, total)
    return prefix + header + buffers


PAUSE = b""


class Hostile:
    """Answers GET with a description and POST with the attack; remembers what it was told."""

    def __init__(self, attack, described=None):
        self._attack = attack
        self._described = described
        self.heads: list[bytes] = []
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/m"
        self._threads = [threading.Thread(target=self._serve)]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENT)
        self._listener.close()
        assert not any(thread.is_alive() for thread in self._threads)

    def _serve(self):
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                sock, _ = self._listener.accept()
                thread = threading.Thread(target=self._converse, args=(sock,))
                thread.start()
                self._threads.append(thread)

    def _converse(self, sock):
        with sock, contextlib.suppress(OSError):
            sock.settimeout(0.05)
            while head := self._head(sock):
                self.heads.append(head)
                if head.startswith(b"GET") and self._described is not None:
                    sock.sendall(self._described)
                    continue
                self._say(sock)
                return

    def _say(self, sock):
        parts = self._attack() if callable(self._attack) else [self._attack]
        for part in parts:
            if self._ended.wait(0.01 if part is PAUSE else 0.0):
                return
            view = memoryview(part)
            while view and not self._ended.is_set():
                with contextlib.suppress(TimeoutError):
                    view = view[sock.send(view) :]

    def _head(self, sock):
        """The head of the next request; its small body is left in what follows."""
        data = b""
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                more = sock.recv(65536)
                if not more:
                    return b""
                data += more
                if b"\r\n\r\n" in data:
                    return data
        return b""


def call(model):
    return model(5)


def submit(model):
    return model.submit(5).result(PATIENT)


def stream(model):
    return list(itertools.islice(model.items.stream(5), 10))


WAYS = {"call": (victim, call), "submit": (victim, submit), "stream": (Streams(), stream)}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request):
    return request.param


def attacked(attack, way, timeout=PATIENT):
    """The error of a call that is answered by the attack, and how often the server was asked."""
    model, ask = way
    with Hostile(attack, reply(message(description(model)))) as server:
        error = outcome(server.url, ask, timeout)
        assert len([head for head in server.heads if head.startswith(b"POST")]) <= 2
        return error


def introduced(attack, way, timeout=PATIENT):
    """The error of a call to a server whose description is the attack."""
    with Hostile(attack) as server:
        return outcome(server.url, way[1], timeout)


def outcome(url, ask, timeout):
    """The error of a call, whose cost in memory is bounded."""
    with maas.connect(url, limits=LIMITS) as model:
        tracemalloc.start()
        try:
            ask(model.with_options(timeout=timeout))
        except Error as error:
            # A traceback holds the frames, and they what was half built; the peak has seen it.
            _now, peak = tracemalloc.get_traced_memory()
            assert peak <= 2 * (LIMITS.body + LIMITS.memory) + SLACK
            return error.with_traceback(None)
        finally:
            tracemalloc.stop()
    raise AssertionError("the attack was taken for an answer")


INFO = ["here", None, 1, 0.0, 0.0]


def result(packed, **options):
    """A result around one packed value."""
    return reply(framed(Kind.RESULT, b"\x93" + packed + msgpack.packb(INFO) + b"\xc0", **options))


def array(dtype, shape, data=bytes(64)):
    """A result that says it holds such an array."""
    header = msgpack.packb([{"$array": [0, dtype, shape]}, INFO, None])
    padding = b"\xc0" * (-(21 + len(header) + 5) % 64)
    bins = padding + b"\xc6" + struct.pack(">I", len(data)) + data
    return reply(framed(Kind.RESULT, header, bins))


def encoded(thing, **options):
    return reply(b"".join(wire.encode(thing, Limits())), **options)


def endlessly(start, part):
    """Says the start, and then the part without end."""

    def say():
        yield start
        while True:
            yield part

    return say


GOOD = b"".join(wire.encode(Result(1), Limits()))
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.msgpack\r\n"
BLOCK = b"x" * 65536

NO_HTTP = {
    "nothing": b"",
    "one byte": b"H",
    "garbage": bytes(range(256)) * 16,
    "zeros": bytes(65536),
    "a greeting": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.0": b"HTTP/3.0 200 OK\r\n\r\n",
    "a TLS alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "a request": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "status 99": b"HTTP/1.1 099 No\r\ncontent-length: 0\r\n\r\n",
    "status 999": b"HTTP/1.1 999 No\r\ncontent-length: 0\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Switch\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "cut in the head": OK,
    "cut in the body": OK + b"content-length: 100\r\n\r\n" + GOOD[:20],
    "two lengths": OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\nxx",
    "a length and chunks": OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": OK + b"content-length: -1\r\n\r\n",
    "a long length": OK + b"content-length: " + b"9" * 400 + b"\r\n\r\n",
    "an unknown coding": OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a bad chunk": OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
    "an overlong chunk": OK + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n\r\n",
    "two replies": reply(GOOD) + reply(GOOD),
    "a header with NUL": OK + b"x: a\0b\r\ncontent-length: 0\r\n\r\n",
    "a folded header": OK + b"x: a\r\n b\r\ncontent-length: 0\r\n\r\n",
}
ENDLESS = {
    "headers": endlessly(OK, b"x-header: " + b"x" * 1000 + b"\r\n"),
    "one header": endlessly(OK + b"x-header: ", BLOCK),
    "status line": endlessly(b"HTTP/1.1 200 ", BLOCK),
    "1xx replies": endlessly(b"", b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" * 100),
    "body": endlessly(OK + b"\r\n", BLOCK),
    "body of zeros": endlessly(OK + b"\r\n", bytes(65536)),
    "chunks": endlessly(OK + b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + BLOCK + b"\r\n"),
    "small chunks": endlessly(OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
    "chunk extension": endlessly(OK + b"transfer-encoding: chunked\r\n\r\n1;", BLOCK),
    "trailers": endlessly(OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 1000),
    "body of an error": endlessly(b"HTTP/1.1 500 No\r\ncontent-type: text/plain\r\n\r\n", BLOCK),
    "whitespace": endlessly(b"", b"\r\n" * 1000),
}
TOO_LARGE = {
    "a body beyond the limit": reply(b"", length=2**40),
    "a body just beyond it": reply(b"", length=LIMITS.body + 1),
    "a hundred thousand headers": OK + b"a: b\r\n" * 100_000 + b"content-length: 0\r\n\r\n",
}
ENCODED = {
    "gzip": reply(gzip.compress(GOOD), "content-encoding: gzip"),
    "a gzip bomb": reply(gzip.compress(bytes(10**8)), "content-encoding: gzip"),
    "gzip, twice": reply(gzip.compress(gzip.compress(GOOD)), "content-encoding: gzip, gzip"),
    "deflate": reply(GOOD, "content-encoding: deflate"),
    "br": reply(GOOD, "content-encoding: br"),
    "two encodings": reply(GOOD, "content-encoding: identity", "content-encoding: gzip"),
}
NO_ANSWER = {
    "a description": encoded(Description({"protocol": [1, 1]})),
    "a call": reply(b"".join(wire.encode_call(Call("m", CALL, (1,)), Limits()))),
    "another version": reply(framed(Kind.RESULT, msgpack.packb([1, INFO, None]), version=2)),
    "an unknown kind": reply(framed(99, msgpack.packb([1, INFO, None]))),
    "a wrong total": reply(framed(Kind.RESULT, msgpack.packb([1, INFO, None]), total=2**40)),
    "a small total": reply(framed(Kind.RESULT, msgpack.packb([1, INFO, None]), total=22)),
    "too few fields": reply(framed(Kind.RESULT, msgpack.packb([1]))),
    "fields of wrong types": reply(framed(Kind.RESULT, msgpack.packb([1, "info", 5]))),
    "bytes after the message": reply(GOOD + b"\0"),
    "plain msgpack": reply(msgpack.packb({"result": 1})),
    "an empty body": reply(b""),
    "a page": reply(b"<html>welcome</html>", content="text/html"),
    "JSON": reply(b'{"result": 1}', content="application/json"),
    "no type": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "a part": reply(GOOD[:5], "content-range: bytes 0-4/90", status=206),
    "a broken problem": reply(b'{"detail":', content=PROBLEM, status=500),
    "a deep problem": reply(b"[" * 60_000, content=PROBLEM, status=500),
    "a wordy problem": reply(b'{"detail": "' + b"x" * 10**6 + b'"}', content=PROBLEM, status=400),
    "a problem of no text": reply(b'{"detail": {"a": [1]}}', content=PROBLEM, status=409),
}
BOMBS = {
    "deep lists": result(b"\x91" * 100_000 + b"\xc0"),
    "deep maps": result(b"\x81\xa1a" * 50_000 + b"\xc0"),
    "empty maps": result(b"\xdd" + struct.pack(">I", 200_000) + b"\x80" * 200_000),
    "lying lengths": result(b"\xdd\x7f\xff\xff\xff" * 100),
    "a lying map": result(b"\xdf\x7f\xff\xff\xff"),
    "a lying text": result(b"\xdb\x7f\xff\xff\xff"),
    "a timestamp": result(b"\xd6\xff\0\0\0\0"),
    "an ext type": result(b"\xc7\x01\x05x"),
    "a lying array": array("float32", [2**32, 2**32]),
    "an array beyond memory": array("float64", [2**60]),
    "a negative array": array("float32", [-4, -4]),
    "an array of objects": array("object", [8]),
    "an array with too few bytes": array("float32", [17]),
    "an array with too many": array("float32", [15]),
    "bad booleans": array("bool", [64], b"\2" * 64),
    "a buffer nobody wants": reply(
        framed(Kind.RESULT, msgpack.packb([1, INFO, None]), b"\xc0" * 20 + b"\xc6\0\0\0\1x")
    ),
}
ATTACKS = {
    f"{family}: {name}": attack
    for family, attacks in [
        ("no HTTP", NO_HTTP),
        ("endless", ENDLESS),
        ("too large", TOO_LARGE),
        ("encoded", ENCODED),
        ("no answer", NO_ANSWER),
        ("bomb", BOMBS),
    ]
    for name, attack in attacks.items()
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_answer_is_an_attack(attack, way):
    """Whatever is sent for an answer, the caller gets a maas error, in bounded memory."""
    assert isinstance(attacked(attack, way), TransportError | CodecError | maas.Conflict)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_description_is_an_attack(attack):
    """Whatever is sent for a description, the caller gets a maas error, in bounded memory."""
    error = introduced(attack, WAYS["call"])
    assert isinstance(error, TransportError | CodecError | maas.Conflict)


@pytest.mark.parametrize("attack", [*ENDLESS, *TOO_LARGE])
def test_what_is_too_large_says_so(attack):
    """What would fill the memory is refused by its size, and not waited for."""
    error = attacked((ENDLESS | TOO_LARGE)[attack], WAYS["call"])
    assert isinstance(error, LimitExceeded | ProtocolError), repr(error)


STREAMED = {
    "a result amid items": [Item(1), Result(1)],
    "no end": [Item(1)],
    "a cut item": [Item(1), b"\xa4maas\x01"],
    "garbage amid items": [Item(1), b"garbage" * 100],
    "a lying item": [Item(1), framed(Kind.ITEM, b"\x91\xdd\x7f\xff\xff\xff")],
    "an endless item": [Item(1), framed(Kind.ITEM, b"", total=2**50)],
    "a large header": [struct.pack(">5sBBBIBQ", b"\xa4maas", 1, 4, 0xCE, 2**31, 0xCF, 2**31 + 21)],
    "a failure with garbage": [Item(1), framed(Kind.FAILURE, msgpack.packb([{"names": 5}, None]))],
    "an end with garbage": [Item(1), framed(Kind.END, msgpack.packb(["info", None]))],
}


@pytest.mark.parametrize("messages", STREAMED.values(), ids=STREAMED)
@pytest.mark.parametrize("chunked", [False, True], ids=["until closed", "chunked"])
def test_stream_is_an_attack(messages, chunked):
    """A stream that goes wrong after its first items ends in a maas error."""
    parts = [
        part if isinstance(part, bytes) else b"".join(wire.encode(part, Limits()))
        for part in messages
    ]
    if chunked:
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        attack = OK + b"transfer-encoding: chunked\r\n\r\n" + body
    else:
        attack = OK + b"\r\n" + b"".join(parts)
    assert isinstance(attacked(attack, WAYS["stream"]), TransportError | CodecError)


def test_stream_that_never_ends_is_read_no_faster_than_asked():
    """Items that nobody asks for wait at the server, not in our memory."""
    item = b"".join(wire.encode(Item(bytes(10_000)), Limits()))
    attack = endlessly(OK + b"\r\n", item * 10)
    with (
        Hostile(attack, reply(message(description(Streams())))) as server,
        maas.connect(server.url, limits=LIMITS) as model,
    ):
        tracemalloc.start()
        with model.items.stream(5) as items:
            for _ in range(100):
                assert len(next(items)) == 10_000
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 8 * 2**20


# Time.


def _slowly(text):
    def say():
        for byte in itertools.cycle(text):
            yield bytes([byte])
            yield PAUSE

    return say


SLOW = {
    "silence": lambda: itertools.repeat(PAUSE),
    "a head a byte at a time": _slowly(b"HTTP/1.1 200 OK\r\nx: " + b"x" * 10_000),
    "spaces before the head": _slowly(b"\r\n"),
}


@pytest.mark.parametrize("attack", SLOW.values(), ids=SLOW)
@pytest.mark.parametrize("first", [False, True], ids=["answer", "description"])
def test_slow_server_cannot_hold_a_call(attack, first, way):
    """A server that says nothing, or little at a time, holds no call beyond its deadline."""
    error = (introduced if first else attacked)(attack, way, timeout=0.3)
    assert isinstance(error, maas.DeadlineExceeded | TransportError)


# Redirects.


class Canary:
    """A listener that nobody should visit."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0)
        self.port = self._listener.getsockname()[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            visitor, _ = self._listener.accept()
        except BlockingIOError:
            pass
        else:
            visitor.close()
            pytest.fail("somebody followed")
        finally:
            self._listener.close()


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
@pytest.mark.parametrize("first", [False, True], ids=["answer", "description"])
def test_redirect_is_never_followed(status, first, way):
    """A reply that points elsewhere is an error; nobody goes there, and the key stays here."""
    with Canary() as canary:
        for place in (f"http://127.0.0.1:{canary.port}/m", f"//127.0.0.1:{canary.port}/m"):
            attack = reply(b"", f"location: {place}", status=status, content="text/plain")
            described = None if first else reply(message(description(way[0])))
            with (
                Hostile(attack, described) as server,
                maas.connect(server.url, auth=KEY) as model,
                pytest.raises(ProtocolError, match=str(status)) as caught,
            ):
                way[1](model)
            assert KEY not in str(caught.value)


def test_other_pointers_are_not_followed(way):
    """Headers by which web servers move their visitors move nobody."""
    with Canary() as canary:
        there = f"http://127.0.0.1:{canary.port}"
        attack = reply(
            b"", f"refresh: 0; url={there}", f"link: <{there}>; rel=preload",
            f"alt-svc: http/1.1=127.0.0.1:{canary.port}", f"content-location: {there}",
            "set-cookie: session=1", "connection: close", status=421, content="text/plain",
        )  # fmt: skip
        described = reply(
            message(description(way[0])),
            f'alt-svc: h2="127.0.0.1:{canary.port}"', "set-cookie: session=1",
        )  # fmt: skip
        with Hostile(attack, described) as server, maas.connect(server.url, auth=KEY) as model:
            for _ in range(2):
                with pytest.raises(ProtocolError):
                    way[1](model)
            assert not any(b"cookie" in head.lower() for head in server.heads)


# Descriptions that are well formed and lie.


INFO_OF_VICTIM = maas.Model(victim, name="m").info.to_data()
METHOD = INFO_OF_VICTIM["methods"][0]
LIES = {
    "no protocol": {"protocol": None},
    "a protocol of texts": {"protocol": ["1", "1"]},
    "a protocol of booleans": {"protocol": [True, True]},
    "three protocols": {"protocol": [1, 1, 1]},
    "no models": {"models": None},
    "models in a list": {"models": [1]},
    "models called by numbers": {"models": {1: {}, "a": {}}, "model": ""},
    "a number for a model": {"models": {1: {}}, "model": ""},
    "a model that is none": {"models": {"m": 5}},
    "another model": {"model": "other"},
    "no model at all": {"models": {}, "model": ""},
    "a model called by a number": {"model": 5},
    "a line break for a name": {"models": {"a\r\nx: y": INFO_OF_VICTIM}, "model": ""},
}
INFOS = {
    "unknown fields": {"more": 1},
    "no methods": {"methods": None},
    "a method that is none": {"methods": [5]},
    "a method with unknown fields": {"methods": [METHOD | {"more": 1}]},
    "a method without a signature": {"methods": [METHOD | {"signature": {}}]},
    "a method of wrong types": {"methods": [METHOD | {"pure": "yes"}]},
    "limits of nothing": {"limits": {"body": 1, "header": 1, "nodes": 1, "memory": 1}},
    "a training of texts": {"training": "yes"},
    "a kind that is none": {"kind": 7},
}


@pytest.mark.parametrize("changes", LIES.values(), ids=LIES)
def test_description_that_lies(changes, way):
    """A description with wrong parts is a maas error that names the place."""
    with (
        Hostile(reply(GOOD), reply(message(description(way[0], **changes)))) as server,
        maas.connect(server.url) as model,
        pytest.raises(Error),
    ):
        way[1](model)


@pytest.mark.parametrize("changes", INFOS.values(), ids=INFOS)
def test_model_that_is_described_wrongly(changes, way):
    """A model with wrong fields in its description is a maas error."""
    data = description(way[0])
    data["models"]["m"] |= changes
    with (
        Hostile(reply(GOOD), reply(message(data))) as server,
        maas.connect(server.url) as model,
        pytest.raises(Error),
    ):
        way[1](model)


def test_other_protocol_names_both_versions(way):
    """A server of another protocol is one clear error, naming both sides' versions."""
    described = reply(message(description(way[0], protocol=[2, 3])))
    with (
        Hostile(reply(GOOD), described) as server,
        maas.connect(server.url) as model,
        pytest.raises(maas.VersionMismatch, match=r"1.*2 to 3.*upgrade the client"),
    ):
        way[1](model)


# Errors that a server sends.


@pytest.mark.parametrize("after", [-1.0, float("nan"), float("inf"), "soon", True])
def test_error_cannot_put_the_client_to_sleep(after, way):
    """A wish to come back that is no number of seconds is refused, not slept."""
    error = maas.Overloaded("busy")
    error.retry_after = after
    failure = encoded(Failure(error))
    caught = attacked(failure, way)
    assert isinstance(caught, CodecError | maas.Overloaded)
    assert not isinstance(caught, maas.Overloaded) or caught.retry_after in (None, 0.0)


@pytest.mark.parametrize("status", [100, 418, 451, 500, 502, 511])
def test_status_that_means_nothing_here(status, way):
    """A reply of any other status is an error that tells the status."""
    attack = reply(b"who knows", status=status, content="text/plain")
    error = attacked(attack, way)
    assert isinstance(error, TransportError)
    assert status < 200 or str(status) in str(error)
