"""The protocol's pages as any HTTP client sees them, over real sockets and under another server."""

import asyncio
import contextlib
import json
import socket
import struct
import threading

import fastapi
import httpx
import numpy as np
import pytest
import torch

import maas
from maas.http import MSGPACK
from maas.limits import Limits
from maas.server.patience import Patience

PATIENT = 20.0


def double(x: np.ndarray) -> np.ndarray:
    return x * 2


def tokens(text: str, *, lower: bool = True) -> list[int]:
    return [ord(letter) for letter in (text.lower() if lower else text)]


def count(n: int):
    yield from range(n)


def busy() -> None:
    raise maas.Overloaded("come back", 2.3)


class Held:
    def __init__(self):
        self.started = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.ended = threading.Event()
        self.runs = 0

    @maas.method
    def wait(self, n: int = 0) -> int:
        self.runs += 1
        self.started.release()
        assert self.go_on.wait(PATIENT)
        return n

    @maas.method
    async def wait_async(self) -> str:
        self.started.release()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        return "never"


MODELS = {"double": double, "tokens": tokens, "count": count, "busy": busy}


@pytest.fixture
def held():
    model = Held()
    yield model
    model.go_on.set()


@contextlib.contextmanager
def serving(models, **options):
    with (
        maas.serve(models, port=0, block=False, **options) as server,
        httpx.Client(base_url=server.url, timeout=PATIENT) as client,
    ):
        yield server, client


@pytest.fixture(scope="module")
def client():
    with serving(MODELS | {"held": Held()}) as (_, client):
        yield client


def numbers(data, name="x", datatype="FP64"):
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data}


def one(value, name, datatype="INT64"):
    return {"inputs": [numbers([value], name, datatype)]}


# Pages.


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"live": True, "ready": True}),
        ("/v2/models/double/ready", {"name": "double", "ready": True}),
        ("/v2/models/held.wait/versions/1/ready", {"name": "held.wait", "ready": True}),
        (
            "/v2/models",
            {"models": ["busy", "double", "held.wait", "held.wait_async", "tokens"]},
        ),
    ],
)
def test_pages(client, path, wanted):
    """Health, readiness and names, with and without a slash at the end; HEAD has no body."""
    for suffix in ("", "/"):
        reply = client.get(path + suffix)
        assert (reply.status_code, reply.json()) == (200, wanted)
        assert reply.headers["content-type"] == "application/json"
        assert client.head(path + suffix).content == b""


def test_server_tells_of_itself(client):
    """The server's page is at both of the addresses that specifications give."""
    for path in ("/v2", "/v2/"):
        about = client.get(path).json()
        assert (about["name"], about["version"]) == ("maas", maas.__version__)
        assert about["extensions"] == ["binary_tensor_data", "parameters", "schedule_policy"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/double/infer", "POST"),
        ("HEAD", "/v2/models/double/infer", "POST"),
        ("POST", "/v2/models/double", "GET, HEAD"),
        ("POST", "/v2/health/live", "GET, HEAD"),
        ("DELETE", "/v2", "GET, HEAD"),
        ("OPTIONS", "/v2/models/double/infer", "POST"),
    ],
)
def test_methods(client, method, path, allowed):
    """A method that a page does not know is 405, with those that it does."""
    reply = client.request(method, path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allowed)
    assert method == "HEAD" or allowed in reply.json()["error"]


# Calls.


def test_json_both_ways(client):
    """A request as curl would send it, with whatever content type, gets the spec's answer."""
    body = json.dumps({"id": "7", "inputs": [numbers([1.5, 2])]}).encode()
    for headers in ({}, {"content-type": "application/json"}, {"content-type": "text/plain"}):
        reply = client.post("/v2/models/double/infer", content=body, headers=headers)
        assert reply.json() == {
            "model_name": "double",
            "model_version": "1",
            "id": "7",
            "outputs": [
                {"name": "output", "datatype": "FP64", "shape": [2], "data": [3.0, 4.0]},
            ],
        }


def test_nested_data(client):
    """Data are flat, or nested as the shape says, and go out flat."""
    for data in ([[1, 2], [3, 4]], [1, 2, 3, 4]):
        given = {"name": "x", "shape": [2, 2], "datatype": "INT32", "data": data}
        (output,) = client.post("/v2/models/double/infer", json={"inputs": [given]}).json()[
            "outputs"
        ]
        assert output == {
            "name": "output", "datatype": "INT32", "shape": [2, 2], "data": [2, 4, 6, 8],
        }  # fmt: skip


def test_members_that_are_not_known_are_passed_by(client):
    """A request with members of a later protocol is answered as far as this one goes."""
    given = numbers([1.0]) | {"parameters": {"content_type": "np"}, "later": 1}
    body = {"inputs": [given], "later": {}, "parameters": {"triton_later": 1, "headers": "a"}}
    assert client.post("/v2/models/double/infer", json=body).status_code == 200


def test_outputs_in_binary(client):
    """Binary data follow the JSON, whose length a header field tells."""
    body = {"inputs": [numbers([1.5, 2])], "parameters": {"binary_data_output": True}}
    reply = client.post("/v2/models/double/infer", json=body)
    length = int(reply.headers["inference-header-content-length"])
    assert reply.headers["content-type"] == "application/octet-stream"
    (output,) = json.loads(reply.content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 16}
    assert reply.content[length:] == struct.pack("<2d", 3, 4)


def test_streams_are_for_our_own_clients(client):
    """A method that streams is refused with the place where it can be had."""
    reply = client.post("/v2/models/count/infer", json=one(3, "n"))
    assert reply.status_code == 501
    assert "POST /count/__call__" in reply.json()["error"]


def test_a_busy_server_says_when_to_come_back(client):
    """An error that knows when to come back says so in the header too."""
    reply = client.post("/v2/models/busy/infer", json={"inputs": []})
    assert (reply.status_code, reply.json()) == (429, {"error": "come back"})
    assert reply.headers["retry-after"] == "3"


def test_deadline_by_header(held):
    """`Maas-Timeout` and the parameter `timeout` both hold, and the sooner ends the call."""
    with serving({"held": held}) as (_, client):
        for seconds, microseconds in (("0.05", 10**8), ("100", 50_000)):
            body = one(1, "n") | {"parameters": {"timeout": microseconds}}
            headers = {"maas-timeout": seconds}
            reply = client.post("/v2/models/held.wait/infer", json=body, headers=headers)
            assert reply.status_code == 504
            assert "in time" in reply.json()["error"]


def test_call_of_who_leaves_is_cancelled(held):
    """A coroutine whose caller hangs up is cancelled."""
    with serving({"held": held}) as (server, _):
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), PATIENT) as sock:
            sock.sendall(
                b"POST /v2/models/held.wait_async/infer HTTP/1.1\r\nHost: localhost\r\n"
                b'Content-Length: 14\r\n\r\n{"inputs": []}'
            )
            assert held.started.acquire(timeout=PATIENT)
        assert held.ended.wait(PATIENT)


def test_key_runs_a_call_once(held):
    """The same key with the same request runs once; with another id, or call, it is a conflict."""
    held.go_on.set()
    with serving({"held": held}) as (_, client):
        headers = {"idempotency-key": "k"}
        body = one(5, "n") | {"id": "a"}
        path = "/v2/models/held.wait/infer"
        replies = [client.post(path, json=body, headers=headers).json() for _ in range(3)]
        assert [reply["outputs"][0]["data"] for reply in replies] == [[5]] * 3
        assert held.runs == 1
        for other in (one(6, "n") | {"id": "a"}, body | {"id": "b"}):
            reply = client.post(path, json=other, headers=headers)
            assert (reply.status_code, "new key" in reply.json()["error"]) == (409, True)
        # The same key in another form of call is another key.
        assert client.post("/held/wait", json=[5], headers=headers).json() == {"result": 5}


def test_gateway(client):
    """A server in front of a remote model speaks the protocol for it."""
    with (
        maas.connect(f"{client.base_url}/double") as remote,
        serving({"far": remote}) as (_, gateway),
    ):
        found = gateway.post("/v2/models/far/infer", json={"inputs": [numbers([2.5])]})
        assert found.json()["outputs"][0]["data"] == [5.0]
        assert gateway.get("/v2/models/far").json()["inputs"][0]["name"] == "x"


def test_arrays_lie_as_their_numbers_want():
    """However long the JSON before them is, arrays are aligned, writable and in C order."""

    def flags(x: np.ndarray) -> list[bool]:
        return [x.flags.aligned, x.flags.writeable, x.flags.c_contiguous]

    with serving({"flags": flags}) as (_, client):
        for pad in range(8):
            given = {"name": "x", "shape": [2, 3], "datatype": "FP64"}
            given["parameters"] = {"binary_data_size": 48}
            text = json.dumps({"id": "a" * pad, "inputs": [given]}).encode()
            headers = {"inference-header-content-length": str(len(text))}
            reply = client.post("/v2/models/flags/infer", content=text + bytes(48), headers=headers)
            assert reply.json()["outputs"][0]["data"] == [True] * 3


# Bodies that may not come.


def said(port, *pieces):
    """Sends the pieces and gives all that comes back."""
    with socket.create_connection(("127.0.0.1", port), PATIENT) as sock:
        for piece in pieces:
            sock.sendall(piece)
        reply = b""
        while data := sock.recv(65536):
            reply += data
    return reply


def exchange(port, *pieces):
    """Status, content type and JSON of the reply to the pieces."""
    head, _, body = said(port, *pieces).partition(b"\r\n\r\n")
    kind = next(
        line.partition(b": ")[2] for line in head.split(b"\r\n") if line.startswith(b"content-type")
    )
    return int(head.split(b" ", 2)[1]), kind, json.loads(body)


START = b"POST /v2/models/double/infer HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("pieces", "status", "words"),
    [
        ([START, b"Content-Length: 5000\r\n\r\n"], 413, "4096"),
        ([START, b"Transfer-Encoding: chunked\r\n\r\n1388\r\n"], 413, "4096"),
        ([START, b"Transfer-Encoding: chunked\r\n\r\nx\r\n"], 400, "hexadecimal"),
        ([START, b"Content-Length: 100\r\n\r\nabc"], 408, "too long"),
        ([b"GET /v2/models/double HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"],
         413, "0 bytes"),
    ],
)  # fmt: skip
def test_bodies_that_may_not_come(pieces, status, words):
    """A body that is too large, too slow or badly framed is refused in the protocol's words."""
    patience = Patience(body=0.3)
    with serving(MODELS, limits=Limits(body=4096), patience=patience) as (server, _):
        found = exchange(int(server.url.rpartition(":")[2]), *pieces)
    assert found[:2] == (status, b"application/json")
    assert found[2].keys() == {"error"}
    assert words in found[2]["error"]


def test_the_next_request_of_a_connection_has_its_own_words():
    """A request after one of the protocol's is refused in the server's usual words."""
    body = json.dumps({"inputs": [numbers([1.5])]}).encode()
    first = START + b"Content-Length: %d\r\n\r\n" % len(body) + body
    malformed = b"POST /double HTTP/1.1\r\n\r\n"
    large = b"POST /double HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
    large += b"Content-Type: application/json\r\n\r\n"
    with serving(MODELS, limits=Limits(body=4096)) as (server, _):
        port = int(server.url.rpartition(":")[2])
        for second in (malformed, large):
            reply = said(port, first + second)
            assert reply.count(b"HTTP/1.1 ") == 2
            assert reply.count(b"application/problem+json") == 1


def test_a_head_that_is_not_understood_has_its_error_too(client):
    """Before the address is known, an error has the member that the protocol's clients read."""
    port = client.base_url.port
    status, _, data = exchange(port, b"POST /v2/models/double/infer HTTP/1.1\r\n\r\n")
    assert status == 400
    assert "Host" in data["error"]


# Under another server.


def test_under_a_mount():
    """Mounted in another application, the protocol answers below the mount, errors included."""
    app = fastapi.FastAPI()
    app.mount("/models", maas.Server(MODELS, limits=Limits(body=4096)))

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            path = "/models/v2/models/double/infer"
            fine = await client.post(path, json={"inputs": [numbers([1.0])]})
            assert fine.json()["outputs"][0]["data"] == [2.0]
            for missing in ("/models/v2/nothing", "/models/v2/models/nothing"):
                reply = await client.get(missing)
                assert (reply.status_code, type(reply.json()["error"])) == (404, str)

            async def pieces():
                yield bytes(5000)

            for content in (bytes(5000), pieces()):
                reply = await client.post(path, content=content)
                assert (reply.status_code, reply.headers["content-type"]) == (
                    413, "application/json",
                )  # fmt: skip
                assert "4096" in reply.json()["error"]

    asyncio.run(ask())


def test_our_own_forms_are_as_before(client):
    """A model is still called by our own forms, and none may be named as the protocol's root."""
    assert client.post("/double", json=[[1.5]]).json() == {"result": [3.0]}
    assert client.get("/double", headers={"accept": MSGPACK}).status_code == 200
    with pytest.raises(ValueError, match="name"):
        maas.Server({"v2": double})


def test_arrays_are_numpy_for_functions_and_tensors_for_modules():
    """A function is given NumPy arrays and a torch module tensors, as in our own JSON calls."""
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x):
            seen.append(type(x))
            return x

    def function(x):
        seen.append(type(x))
        return x

    with serving({"net": Net().eval(), "function": function}) as (_, client):
        for model in ("net", "function"):
            body = {"inputs": [numbers([1.0])]}
            assert client.post(f"/v2/models/{model}/infer", json=body).status_code == 200
    assert seen == [torch.Tensor, np.ndarray]
