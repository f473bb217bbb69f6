"""What a server answers, asked as curl would: JSON in, JSON out, over a real socket."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import httpx
import numpy as np
import pytest
import torch

import maas
from maas import errors, wire
from maas.calls import CALL, Call
from maas.http import MSGPACK, PROBLEM, Response
from maas.limits import Limits
from maas.server.catalogue import RESERVED
from maas.server.front import Admission, Head
from maas.server.handler import Handler

PATIENT = 20.0
JSON = "application/json"


def tokens(text: str, *, lower: bool = True) -> list[int]:
    """Numbers for a text."""
    return [ord(letter) for letter in (text.lower() if lower else text)]


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def count(n: int) -> Iterator[int]:
    yield from range(n)


def breaks_off(n: int) -> Iterator[int]:
    yield from range(n)
    raise ValueError("no more")


class Held:
    """A model whose calls wait until they are let go, and say what became of them."""

    def __init__(self):
        self.started = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.ended = threading.Event()
        self.closed = threading.Event()
        self.runs = 0

    @maas.method
    def wait(self, n: int = 0) -> int:
        self.runs += 1
        self.started.release()
        assert self.go_on.wait(PATIENT)
        return n

    @maas.method
    async def wait_async(self) -> str:
        self.runs += 1
        self.started.release()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        return "never"

    @maas.method
    def forever(self) -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            self.closed.set()

    @maas.method
    async def aforever(self) -> AsyncIterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            self.closed.set()


def raises(name: str) -> None:
    """Raises the error of that name."""
    kind = getattr(errors, name)
    if name in ("Overloaded", "NotReady"):
        raise kind("said so", 2.3)
    raise kind("said so")


def value_error() -> None:
    raise ValueError("secret-path", 7)


@pytest.fixture(scope="module")
def client():
    models = {
        "tokens": tokens,
        "double": double,
        "count": count,
        "breaks-off": breaks_off,
        "raises": raises,
        "value-error": value_error,
        "net": torch.nn.Linear(2, 1).eval(),
    }
    with (
        maas.serve(models, port=0, block=False) as server,
        httpx.Client(base_url=server.url, timeout=PATIENT) as client,
    ):
        yield client


@contextlib.contextmanager
def serving(models, **options):
    """A server, and a client of it."""
    with (
        maas.serve(models, port=0, block=False, **options) as server,
        httpx.Client(base_url=server.url, timeout=PATIENT) as client,
    ):
        yield server, client


@pytest.fixture
def held():
    model = Held()
    yield model
    model.go_on.set()


# Calls.


@pytest.mark.parametrize(
    ("path", "body", "result"),
    [
        ("/tokens", {"text": "Ab"}, [97, 98]),
        ("/tokens", {"text": "Ab", "lower": False}, [65, 98]),
        ("/tokens", ["Ab"], [97, 98]),
        ("/tokens/", ["Ab"], [97, 98]),
        ("/tokens/__call__", ["Ab"], [97, 98]),
        ("/double", [[1.5, 2.0]], [3.0, 4.0]),
        ("/double", {"x": [[1, 2], [3, 4]]}, [[2, 4], [6, 8]]),
    ],
)
def test_call_in_json(client, path, body, result):
    """A POST of JSON calls the model, and its answer is JSON."""
    reply = client.post(path, json=body)
    assert (reply.status_code, reply.json()) == (200, {"result": result})
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("suffix", ["", "; charset=utf-8", " ;charset=UTF-8"])
def test_content_type_may_have_parameters(client, suffix):
    """`application/json; charset=utf-8` is JSON, in any case of its letters."""
    for name in ("application/json", "Application/JSON"):
        headers = {"content-type": name + suffix}
        assert client.post("/tokens", content=b'["a"]', headers=headers).json() == {"result": [97]}


@pytest.mark.parametrize(
    "content", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream", None]
)
def test_other_content_is_refused_by_its_name(client, content):
    """A body of a kind that this server does not read is 415, naming those it reads."""
    headers = {} if content is None else {"content-type": content}
    reply = client.post("/tokens", content=b'["a"]', headers=headers)
    assert reply.status_code == 415
    assert MSGPACK in reply.json()["detail"]
    assert "curl says it by -H 'content-type: application/json'" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[", 400),
        (b"1", 400),
        (b'"text"', 400),
        (b'["a", "b"]', 400),
        (b'{"txt": "a"}', 422),
        (b"[5]", 422),
        (b"[NaN]", 422),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 413),
    ],
)
def test_body_that_is_no_call_is_a_problem(client, body, status):
    """What cannot be read or does not fit the signature is the caller's fault, and said so."""
    reply = client.post("/tokens", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == PROBLEM
    assert client.post("/tokens", json=["a"]).status_code == 200


@pytest.mark.parametrize("kind", [MSGPACK, "application/msgpack", "application/x-msgpack"])
def test_message_that_is_none_is_refused_in_kind(client, kind):
    """Bytes that are no message are answered by a message, whatever msgpack is called."""
    reply = client.post("/tokens", content=b"\x93\x01\x02\x03", headers={"content-type": kind})
    assert reply.status_code == 400
    assert reply.headers["content-type"] == MSGPACK


def test_stream_is_lines_of_json(client):
    """A generator's items come as lines, and a last line says that they are all."""
    with client.stream("POST", "/count", json=[3]) as reply:
        assert reply.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in reply.iter_lines()]
    assert lines == [{"item": 0}, {"item": 1}, {"item": 2}, {"end": True}]


def test_stream_that_breaks_off_says_why(client):
    """A generator's error is the last line, after the items before it."""
    with client.stream("POST", "/breaks-off", json=[2]) as reply:
        lines = [json.loads(line) for line in reply.iter_lines()]
    assert lines[:2] == [{"item": 0}, {"item": 1}]
    assert lines[2]["error"]["title"] == "ValueError"
    assert lines[2]["error"]["detail"] == "no more"
    assert len(lines) == 3


def test_items_come_as_they_are_made(held):
    """The first item arrives while the generator has not ended."""
    with serving({"held": held}) as (_, client):
        with client.stream("POST", "/held/forever", json=[]) as reply:
            lines = reply.iter_lines()
            assert [json.loads(next(lines)) for _ in range(3)] == [{"item": n} for n in range(3)]
        assert held.closed.wait(PATIENT)


# Descriptions.


def test_index_describes_every_model(client):
    """GET / says what is served, and in which protocol, versions and limits."""
    data = client.get("/").json()
    assert set(data["models"]) == {
        "tokens", "double", "count", "breaks-off", "raises", "value-error", "net",
    }  # fmt: skip
    assert data["protocol"] == [1, 1]
    assert data["versions"]["torch"] == torch.__version__
    assert data["limits"]["body"] == Limits().body


def test_model_describes_itself(client):
    """GET of a model describes that one alone, with its methods."""
    data = client.get("/tokens").json()
    assert set(data["models"]) == {"tokens"}
    (method,) = data["models"]["tokens"]["methods"]
    assert method["name"] == "__call__"
    assert method["doc"] == "Numbers for a text."


def test_description_in_msgpack_carries_a_digest(client):
    """A client that reads messages gets one, and the mark by which it knows a new server."""
    reply = client.get("/tokens", headers={"accept": MSGPACK})
    assert reply.headers["content-type"] == MSGPACK
    assert len(reply.headers["maas-digest"]) == 16
    assert (
        client.get("/double", headers={"accept": MSGPACK}).headers["maas-digest"]
        != (reply.headers["maas-digest"])
    )


def test_head_is_get_without_a_body(client):
    """HEAD gives GET's status and type, and no body."""
    reply = client.head("/tokens")
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
def test_other_methods_are_not_understood(client, method):
    """Only GET, HEAD and POST mean something here."""
    reply = client.request(method, "/tokens", json=["a"])
    assert reply.status_code == 501
    assert "POST" in reply.json()["detail"]


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/Tokens", "//tokens", "/tokens/a/b", "/tokens//", "/tok%65ns"],
)
def test_odd_path_is_not_found(client, path):
    """A path that is not exactly a model's is not found, and never repaired."""
    url = httpx.URL(client.base_url, raw_path=path.encode())
    for ask in (client.get(url), client.post(url, json=["a"])):
        assert ask.status_code == 404, path
        assert ask.headers["content-type"] == PROBLEM


def test_unknown_model_lists_those_there_are(client):
    """Who asks for a model that is not here hears which are."""
    assert "breaks-off, count, double" in client.post("/nothing", json=[]).json()["detail"]
    assert "tokens" in client.get("/nothing").json()["detail"]


def test_unknown_method_lists_those_there_are(held):
    """Who asks for a method that the model has not hears which it has."""
    with serving({"held": held}) as (_, client):
        reply = client.post("/held/nothing", json=[])
    assert reply.status_code == 404
    assert "wait_async" in reply.json()["detail"]


def test_index_is_a_page_for_a_browser(client):
    """Who wants HTML gets a page that names the models."""
    reply = client.get("/", headers={"accept": "text/html,application/xhtml+xml;q=0.9"})
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"


# Names.


@pytest.mark.parametrize(
    "name", [*sorted(RESERVED), "", "Net", "a/b", "a.b", "..", "a b", "x" * 65]
)
def test_name_that_makes_no_address_is_refused(name):
    """A model's name is part of an address, and none of the server's own."""
    with pytest.raises(ValueError, match="name"):
        Handler({name: maas.Model(tokens)})


# Health.


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/tokens/readyz"])
def test_health(client, path):
    """The server tells probes that it lives and takes calls, for all models and for each."""
    assert client.get(path).status_code == 200
    assert client.head(path).status_code == 200


def test_unknown_model_is_not_ready(client):
    """Readiness of a model that is not here is not found."""
    assert client.get("/nothing/readyz").status_code == 404


@pytest.mark.parametrize("path", ["/healthz/x", "/readyz/x", "/healthz/readyz"])
def test_there_is_nothing_below_health(client, path):
    """Addresses of the server itself have no children."""
    assert client.get(path).status_code == 404


def test_health_needs_no_key():
    """Probes carry no keys; a model's own readiness says that the model exists, so it wants one."""
    with serving({"tokens": tokens}, auth="k") as (_, client):
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
        assert client.get("/tokens/readyz").status_code == 401
        assert client.get("/nothing/readyz").status_code == 401
        key = {"authorization": "Bearer k"}
        assert client.get("/tokens/readyz", headers=key).status_code == 200


def test_health_while_every_compute_thread_is_busy():
    """Probes are answered while more calls run and wait than there are threads."""
    started, go_on = threading.Semaphore(0), threading.Event()

    def busy(n: int) -> int:
        started.release()
        assert go_on.wait(PATIENT)
        return n

    with (
        serving({"busy": busy}) as (server, client),
        maas.connect(f"{server.url}/busy") as model,
    ):
        jobs = [model.submit(n) for n in range(64)]
        assert started.acquire(timeout=PATIENT)
        for path in ("/healthz", "/readyz", "/busy/readyz"):
            assert client.get(path).status_code == 200
        go_on.set()
        assert [job.result(PATIENT) for job in jobs] == list(range(64))


def test_draining_server_lives_but_is_not_ready(held):
    """Once it drains, probes hear so; calls of those who have not heard yet are answered."""
    with serving({"held": held}) as (server, client):
        runner = server._background.runner
        with maas.connect(f"{server.url}/held") as model:
            job = model.wait.submit(7)
            assert held.started.acquire(timeout=PATIENT)
            runner.front.draining()
            assert client.get("/healthz").status_code == 200
            for reply in (client.get("/readyz"), client.get("/held/readyz")):
                assert reply.status_code == 503
                assert reply.headers["retry-after"] == "1"
            held.go_on.set()
            assert job.result(PATIENT) == 7
            assert client.post("/held/wait", json=[]).json() == {"result": 0}


# Errors.

STATUS = {
    "CodecError": 400, "LimitExceeded": 413, "SignatureError": 422, "NotFound": 404,
    "Unsupported": 501, "Unauthenticated": 401, "Forbidden": 403, "Conflict": 409,
    "VersionMismatch": 505, "DeadlineExceeded": 504, "Cancelled": 499, "Overloaded": 429,
    "NotReady": 503, "ForkError": 500, "ModelExit": 500, "InternalError": 500,
    "TransportError": 502, "ProtocolError": 502, "StreamInterrupted": 502,
    "WorkerLost": 502, "Error": 500, "Expired": 410, "TooLossy": 422,
    "DataError": 422,
}  # fmt: skip


def test_every_error_has_its_status():
    """The table below names every error that maas has."""
    kinds = {name for name in errors.__all__ if issubclass(getattr(errors, name), errors.Error)}
    assert kinds == set(STATUS)


@pytest.mark.parametrize("name", STATUS)
def test_error_is_problem_details(client, name):
    """Every error of maas is told as RFC 9457 has it, with its own code and status."""
    reply = client.post("/raises", json=[name])
    assert reply.status_code == STATUS[name]
    assert reply.headers["content-type"] == PROBLEM
    assert reply.json() == {
        "type": f"urn:maas:{getattr(errors, name).code}",
        "title": name,
        "status": STATUS[name],
        "detail": "said so",
    }
    assert reply.headers.get("retry-after") == ("3" if STATUS[name] in (429, 503) else None)
    assert ("www-authenticate" in reply.headers) == (STATUS[name] == 401)


@pytest.mark.parametrize("name", STATUS)
def test_error_is_the_same_class_for_a_client(client, name):
    """A client of maas gets every error as the class it is."""
    with maas.connect(f"{client.base_url}/raises") as model:
        with pytest.raises(errors.Error, match="said so") as caught:
            model(name)
        assert type(caught.value) is getattr(errors, name)


@pytest.mark.parametrize("after", [None, float("inf"), float("nan"), -5.0, 1e300, "soon"])
def test_retry_after_is_always_a_number_of_seconds(after):
    """Whatever a model says about coming back, the header has sane seconds."""

    def busy() -> None:
        raise maas.Overloaded("busy", after)

    with serving({"busy": busy}) as (_, client):
        reply = client.post("/busy", json=[])
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")


def test_error_of_the_model(client):
    """An error of the model's own is a 500 that names its class and words."""
    reply = client.post("/value-error", json=[])
    assert reply.status_code == 500
    assert reply.json()["title"] == "ValueError"
    assert reply.json()["type"] == "urn:maas:model"
    assert "value_error" not in reply.text


def test_error_with_a_broken_text_does_not_break_the_server(client):
    """An exception that cannot even be printed is answered, and the server goes on."""

    class Unspeakable(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    def mute() -> None:
        raise Unspeakable

    with serving({"mute": mute}) as (_, client):
        assert client.post("/mute", json=[]).status_code == 500
        assert client.get("/healthz").status_code == 200


def _fails() -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError("outer") from error


def test_tracebacks_are_told_unless_forbidden():
    """A client sees where in the model an error arose; with tracebacks=False it sees nothing."""
    for told in (True, False):
        with (
            maas.serve({"fails": _fails}, port=0, block=False, tracebacks=told) as server,
            maas.connect(f"{server.url}/fails") as model,
        ):
            with pytest.raises(ValueError, match="outer") as caught:
                model()
            assert isinstance(caught.value.__cause__, KeyError)
            notes = [*getattr(caught.value, "__notes__", ())]
            assert any("_fails" in note for note in notes) is told
            assert (not notes) is not told


def test_no_traceback_leaks():
    """With tracebacks=False no byte of any failing reply names a file, in either form."""

    def fails_late(n: int) -> Iterator[int]:
        yield n
        _fails()

    def group() -> None:
        raise ExceptionGroup("several", [ValueError("one"), TypeError("two")])

    models = {"fails": _fails, "late": fails_late, "group": group, "tokens": tokens}
    with serving(models, tracebacks=False) as (_, client):
        message = b"".join(wire.encode_call(Call("m", CALL), Limits()))
        bodies = [(message, MSGPACK), (b"\xc1", MSGPACK), (b"[]", JSON), (b"[1]", JSON)]
        for path in ("/fails", "/late", "/group", "/tokens", "/nothing", "/tokens/nothing"):
            for content, kind in bodies:
                reply = client.post(path, content=content, headers={"content-type": kind})
                for word in (b".py", b"Traceback", b"site-packages", b'File "', b"line "):
                    assert word not in reply.content, (path, reply.content)


def test_gateway_keeps_tracebacks_back():
    """A gateway with tracebacks=False passes no traceback on that it was told."""
    with maas.serve({"fails": _fails}, port=0, block=False) as inner:
        upstream = maas.connect(f"{inner.url}/fails")
        with (
            maas.serve({"fails": upstream}, port=0, block=False, tracebacks=False) as outer,
            maas.connect(f"{outer.url}/fails") as model,
        ):
            with pytest.raises(ValueError, match="outer") as caught:
                model()
            assert not getattr(caught.value, "__notes__", ())
        upstream.close()


def test_refusals_of_the_server_have_no_traceback(client):
    """An error that the server itself finds tells nothing of its insides."""
    for content in (b"\xc1", b"\xa4maas\x01\x01"):
        reply = client.post("/tokens", content=content, headers={"content-type": MSGPACK})
        assert b".py" not in reply.content


# Limits.


def raw(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), PATIENT)


def test_body_that_is_too_large_is_refused_before_it_is_read():
    """A body beyond the limit is refused by its announced length, before a byte of it came."""
    with serving({"tokens": tokens}, limits=Limits(body=1000)) as (server, client):
        with raw(server.url) as sock:
            sock.sendall(
                b"POST /tokens HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 1001\r\n\r\n"
            )
            assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")
        assert client.post("/tokens", json=["a" * 2000]).status_code == 413
        chunks = (b"[", *(b" " * 100 for _ in range(20)), b"]")
        headers = {"content-type": "application/json"}
        assert client.post("/tokens", content=iter(chunks), headers=headers).status_code == 413
        assert client.post("/tokens", json=["a"]).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/nothing", "Content-Type: application/json", 404),
        ("/tokens", "Content-Type: text/plain", 415),
        ("/tokens", "Content-Type: application/json\r\nAuthorization: Bearer wrong", 401),
        ("/tokens", "Content-Type: application/json\r\nMaas-Timeout: soon", 400),
        ("/tokens", "Content-Type: application/json\r\nIdempotency-Key: " + "k" * 257, 400),
        ("/tokens", "Content-Type: application/json\r\nIdempotency-Key:", 400),
    ],
)
def test_what_the_head_decides_is_decided_before_the_body(path, headers, status):
    """A request that will be refused is refused by its head; its body is never waited for."""
    auth = "key" if status == 401 else None
    with serving({"tokens": tokens}, auth=auth) as (server, _), raw(server.url) as sock:
        sock.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
            "Content-Length: 1000000\r\n\r\n".encode()
        )
        assert sock.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())


def test_larger_limits_hold_for_all_of_a_call():
    """A server with larger limits takes what they allow, whichever grad mode the caller is in."""
    limits = Limits(nodes=300_000, header=4 * 2**20, memory=128 * 2**20)

    def total(xs: list) -> int:
        return len(xs)

    with (
        maas.serve({"total": total}, port=0, block=False, limits=limits) as server,
        maas.connect(f"{server.url}/total", limits=limits) as model,
    ):
        with torch.no_grad():
            wanted = _outcome(lambda: model([1] * 100_000))
        assert _outcome(lambda: model([1] * 100_000)) == wanted


def _outcome(action):
    try:
        return action()
    except Exception as error:
        return type(error), str(error)


# Deadlines.


def test_deadline_by_header(held):
    """`Maas-Timeout` is how long a caller waits; then it hears 504, and the call is dropped."""
    with serving({"held": held}) as (_, client):
        reply = client.post("/held/wait", json=[], headers={"maas-timeout": "0.05"})
        assert reply.status_code == 504
        assert reply.json()["type"] == "urn:maas:deadline"
        assert client.post("/held/wait", json=[], headers={"maas-timeout": "0"}).status_code == 504
        held.go_on.set()
        headers = {"maas-timeout": "20.5"}
        assert client.post("/held/wait", json=[3], headers=headers).json() == {"result": 3}


@pytest.mark.parametrize("text", ["", "soon", "-1", "1e3", "inf", "nan", "1,5", "0x1", "9" * 10])
def test_deadline_that_is_none_is_refused(client, text):
    """A timeout that is no plain number of seconds is an error, not no timeout."""
    reply = client.post("/tokens", json=["a"], headers={"maas-timeout": text})
    assert reply.status_code == 400
    assert "maas-timeout" in reply.json()["detail"]


def test_deadline_by_message(held):
    """A client's timeout travels with the call and ends it at the server too."""
    with serving({"held": held}) as (server, client), maas.connect(f"{server.url}/held") as model:
        quick = model.with_options(timeout=0.2)
        with pytest.raises(maas.DeadlineExceeded):
            quick.wait_async()
        assert held.ended.wait(PATIENT)
        assert client.get("/held/readyz").status_code == 200


# Who leaves.


def post_and_leave(url: str, path: str, arrived: threading.Semaphore) -> None:
    """Asks, waits until the model runs, and hangs up."""
    with raw(url) as sock:
        sock.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Content-Length: 2\r\n\r\n[]".encode()
        )
        assert arrived.acquire(timeout=PATIENT)


def test_call_of_who_leaves_is_cancelled(held):
    """A coroutine whose caller hangs up is cancelled."""
    with serving({"held": held}) as (server, _):
        post_and_leave(server.url, "/held/wait_async", held.started)
        assert held.ended.wait(PATIENT)


def test_waiting_call_of_who_leaves_is_never_run(held):
    """A call that waits for its turn is not begun once its caller has hung up."""
    with serving({"held": held}) as (server, client), maas.connect(f"{server.url}/held") as model:
        first = model.wait.submit(1)
        assert held.started.acquire(timeout=PATIENT)
        gone = model.wait.submit(2)
        gone.cancel()
        with raw(server.url) as sock:
            sock.sendall(
                b"POST /held/wait HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 3\r\n\r\n[3]"
            )
        # The second is read in a later turn of the loop, and so after the close of the connection.
        for _ in range(2):
            assert client.get("/healthz").status_code == 200
        held.go_on.set()
        assert first.result(PATIENT) == 1
        assert model.wait(4) == 4
    assert held.runs == 2


@pytest.mark.parametrize("method", ["forever", "aforever"])
def test_generator_of_who_leaves_is_closed(held, method):
    """A generator whose reader hangs up runs its `finally`."""
    with serving({"held": held}) as (server, client):
        with client.stream("POST", f"/held/{method}", json=[]) as reply:
            assert next(reply.iter_lines())
        assert held.closed.wait(PATIENT)
        held.closed.clear()
        with maas.connect(f"{server.url}/held") as model:
            stream = getattr(model, method).stream()
            assert next(stream) == 0
            stream.close()
            assert held.closed.wait(PATIENT)


# Idempotency.


def test_key_runs_a_call_once(held):
    """The same key with the same call runs once, and both get its answer."""
    held.go_on.set()
    with serving({"held": held}) as (server, client):
        headers = {"idempotency-key": "k"}
        replies = [client.post("/held/wait", json=[5], headers=headers).json() for _ in range(3)]
        assert replies == [{"result": 5}] * 3
        assert held.runs == 1
        with maas.connect(f"{server.url}/held") as model:
            keyed = model.with_options(key="k")
            assert [keyed.wait(6) for _ in range(3)] == [6] * 3
        assert held.runs == 2


def test_key_runs_a_call_once_at_the_same_time(held):
    """Attempts that overlap share one run."""
    with serving({"held": held}) as (server, _), maas.connect(f"{server.url}/held") as model:
        keyed = model.with_options(key="k")
        jobs = [keyed.wait.submit(5) for _ in range(8)]
        assert held.started.acquire(timeout=PATIENT)
        held.go_on.set()
        assert [job.result(PATIENT) for job in jobs] == [5] * 8
    assert held.runs == 1


def test_key_survives_a_disconnect(held):
    """An attempt whose connection broke left its run behind, whose answer the next one gets."""
    with serving({"held": held}) as (server, client):
        with raw(server.url) as sock:
            sock.sendall(
                b"POST /held/wait HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Idempotency-Key: k\r\nContent-Length: 3\r\n\r\n[9]"
            )
            assert held.started.acquire(timeout=PATIENT)
        held.go_on.set()
        reply = client.post("/held/wait", json=[9], headers={"idempotency-key": "k"})
        assert reply.json() == {"result": 9}
    assert held.runs == 1


def test_key_survives_a_deadline(held):
    """An attempt that ran out of time left its run behind as well."""
    with serving({"held": held}) as (_, client):
        headers = {"idempotency-key": "k"}
        late = client.post("/held/wait", json=[9], headers=headers | {"maas-timeout": "0.05"})
        assert late.status_code == 504
        held.go_on.set()
        assert client.post("/held/wait", json=[9], headers=headers).json() == {"result": 9}
    assert held.runs == 1


def test_key_with_another_call_is_a_conflict(held):
    """A key is one call's; another call under it is refused and not run."""
    held.go_on.set()
    with serving({"held": held}) as (server, client):
        headers = {"idempotency-key": "k"}
        assert client.post("/held/wait", json=[1], headers=headers).status_code == 200
        assert client.post("/held/wait", json=[2], headers=headers).status_code == 409
        with maas.connect(f"{server.url}/held") as model:
            keyed = model.with_options(key="other")
            assert keyed.wait(1) == 1
            with pytest.raises(maas.Conflict):
                keyed.wait(2)
    assert held.runs == 2


def test_equal_key_of_another_caller_is_another_key(held):
    """Callers cannot meet each other's answers, nor block each other's keys."""
    held.go_on.set()
    with serving({"held": held}, auth=["alice", "bob"]) as (_, client):

        def ask(who, n):
            headers = {"idempotency-key": "k", "authorization": f"Bearer {who}"}
            return client.post("/held/wait", json=[n], headers=headers)

        assert ask("alice", 1).json() == {"result": 1}
        assert ask("bob", 2).json() == {"result": 2}
        assert ask("alice", 2).status_code == 409
    assert held.runs == 2


def test_failure_under_a_key_is_not_repeated():
    """A call that failed under its key is not run again, for it may have had effects."""
    runs = []

    def fails() -> None:
        runs.append(1)
        raise ValueError("no")

    with serving({"fails": fails}) as (_, client):
        for _ in range(2):
            reply = client.post("/fails", json=[], headers={"idempotency-key": "k"})
            assert reply.status_code == 500
    assert len(runs) == 1


def test_refusal_under_a_key_is_forgotten():
    """A call that was turned away for now may come back under its key."""
    runs = []

    def busy() -> str:
        runs.append(1)
        if len(runs) == 1:
            raise maas.Overloaded("later")
        return "done"

    with serving({"busy": busy}) as (_, client):
        headers = {"idempotency-key": "k"}
        assert client.post("/busy", json=[], headers=headers).status_code == 429
        assert client.post("/busy", json=[], headers=headers).json() == {"result": "done"}


def test_stream_under_a_key_is_given_once(client):
    """A stream's items are not run twice under one key."""
    headers = {"idempotency-key": "stream"}
    assert client.post("/count", json=[2], headers=headers).status_code == 200
    assert client.post("/count", json=[2], headers=headers).status_code == 409


# Without a socket: what a head alone decides.


def head(path: str, method: str = "GET", root: str = "", secure: bool = False, **headers: str):
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Head(method, path, "", pairs, secure=secure, loopback=True, root=root)


@pytest.mark.parametrize(
    ("options", "base"),
    [
        ({"host": "example.org"}, "http://example.org"),
        ({"host": "example.org:8443", "secure": True}, "https://example.org:8443"),
        ({"host": "example.org", "root": "/models"}, "http://example.org/models"),
        ({}, "http://localhost"),
    ],
)
def test_page_knows_its_own_address(options, base):
    """The index page links to where it was asked for, under the prefix it is mounted at."""
    admission = Handler({"tokens": maas.Model(tokens)}).admit(head("/", **options))
    assert isinstance(admission, Admission)
    assert admission.route.base == base


def test_description_has_no_body():
    """A description takes no body, so none is received for it."""
    admission = Handler({"tokens": maas.Model(tokens)}).admit(head("/tokens"))
    assert isinstance(admission, Admission)
    assert admission.body_cap == 0


def test_refusal_is_a_response():
    """A front never raises at what a stranger sent."""
    response = Handler({"tokens": maas.Model(tokens)}).admit(head("/nothing", "POST"))
    assert isinstance(response, Response)
    assert response.status == 404


def test_large_answers_are_whole():
    """An answer of many megabytes comes whole, as JSON and as a message."""
    x = np.arange(2**18 - 8, dtype=np.float64)

    def same(x: np.ndarray) -> np.ndarray:
        return x

    with serving({"same": same}) as (server, client), maas.connect(f"{server.url}/same") as model:
        big = np.arange(2**21, dtype=np.float64)
        assert np.array_equal(model(big), big)
        reply = client.post("/same", json=[x[:1000].tolist()])
        assert reply.json() == {"result": x[:1000].tolist()}
