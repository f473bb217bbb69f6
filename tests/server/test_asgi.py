"""The front as an ASGI app: under uvicorn on a socket, and under httpx's own transport."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator

import fastapi
import httpx
import numpy as np
import pytest
import torch
import uvicorn

import maas
from maas.http import MSGPACK, PROBLEM
from maas.limits import Limits

PATIENT = 20.0


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def upper(text: str) -> str:
    return text.upper()


def fails() -> None:
    raise KeyError("missing", 3)


class Held:
    def __init__(self):
        self.started = threading.Event()
        self.ended = threading.Event()

    @maas.method
    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    @maas.method
    def forever(self) -> Iterator[int]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            self.ended.set()

    @maas.method
    async def wait(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    @maas.method
    async def acount(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number


@contextlib.contextmanager
def hosted(app, **options):
    """The app under uvicorn, in a thread, on a free port."""
    config = uvicorn.Config(app, port=0, log_level="critical", **options)
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def start(sockets=None):
        await startup(sockets)
        ready.set()

    server.startup = start
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(PATIENT)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENT)


def mounted(server, prefix="/models"):
    app = fastapi.FastAPI()

    @app.get("/own")
    def own():
        return "the host's own"

    app.mount(prefix, server)
    return app


@pytest.fixture(scope="module")
def held():
    return Held()


MODELS = {"double": double, "upper": upper, "fails": fails}


@pytest.fixture(scope="module")
def url(held):
    with hosted(mounted(maas.Server(MODELS | {"held": held}))) as url:
        yield url


# Under a prefix of another application.


def test_mounted_models_are_called_as_any(url):
    """A model under a prefix of FastAPI is connected to by its address, like any other."""
    with maas.connect(f"{url}/models/double") as model:
        x = torch.arange(6.0).reshape(2, 3)
        assert torch.equal(model(x), x * 2)
        assert torch.equal(model.submit(x).result(PATIENT), x * 2)
        assert model.name == "double"
    assert httpx.get(f"{url}/own").json() == "the host's own"
    assert httpx.get(f"{url}/double").status_code == 404


def test_mounted_models_answer_json(url):
    """curl finds models, health and descriptions under the prefix too."""
    assert httpx.post(f"{url}/models/upper", json=["a"]).json() == {"result": "A"}
    assert httpx.get(f"{url}/models/healthz").json() == {"status": "alive"}
    assert httpx.get(f"{url}/models/readyz").status_code == 200
    assert set(httpx.get(f"{url}/models/").json()["models"]) == {*MODELS, "held"}
    reply = httpx.get(f"{url}/models/nothing")
    assert (reply.status_code, reply.headers["content-type"]) == (404, PROBLEM)


def test_errors_cross_a_mount(url):
    """An error arrives as its class through another application's server."""
    with maas.connect(f"{url}/models/fails") as model:
        with pytest.raises(KeyError) as caught:
            model()
        assert caught.value.args == ("missing", 3)


@pytest.mark.parametrize("prefix", ["/models", "/a/b", "/double"])
def test_page_links_below_its_mount(prefix):
    """The index page's addresses begin with the prefix at which the server is mounted."""

    async def ask():
        transport = httpx.ASGITransport(mounted(maas.Server(MODELS), prefix))
        async with httpx.AsyncClient(transport=transport, base_url="http://example.org") as client:
            html = await client.get(f"{prefix}/", headers={"accept": "text/html"})
            assert html.status_code == 200
            assert f"http://example.org{prefix}/double" in html.text
            assert (await client.post(f"{prefix}/double", json=[[1.0]])).json() == {"result": [2.0]}

    asyncio.run(ask())


def test_mounts_may_be_nested(held):
    """A mount within a mount knows both prefixes."""
    inner = mounted(maas.Server(MODELS))
    outer = fastapi.FastAPI()
    outer.mount("/outer", inner)
    with hosted(outer) as url, maas.connect(f"{url}/outer/models/upper") as model:
        assert model("a") == "A"


def test_server_is_an_app_by_itself():
    """Without a host application a Server is one, with the lifespan that uvicorn asks for."""
    with hosted(maas.Server(upper), lifespan="on") as url, maas.connect(url) as model:
        assert model("a") == "A"


def test_no_lifespan_is_needed():
    """A server that never hears of its start answers all the same, as a mounted one must."""
    with (
        hosted(mounted(maas.Server(upper)), lifespan="off") as url,
        maas.connect(f"{url}/models/upper") as model,
    ):
        assert model("a") == "A"


def test_websocket_is_declined():
    """A websocket is turned away, and not left to hang."""

    async def ask():
        sent = []
        events = iter([{"type": "websocket.connect"}])

        async def receive():
            return next(events)

        async def send(event):
            sent.append(event)

        await maas.Server(upper)({"type": "websocket", "path": "/"}, receive, send)
        assert [event["type"] for event in sent] == ["websocket.close"]

    asyncio.run(ask())


# Keys.


def test_keys_hold_under_a_mount():
    """Keys are asked for under a mount, whatever the host lets through."""
    with hosted(mounted(maas.Server(MODELS, auth="k"))) as url:
        for path in ("/models/", "/models/upper", "/models/%75pper", "/models//upper"):
            assert httpx.get(url + path).status_code in (401, 404)
            assert httpx.post(url + path, json=["a"]).status_code in (401, 404)
        twice = [("authorization", "Bearer k"), ("authorization", "Bearer k")]
        assert httpx.post(f"{url}/models/upper", json=["a"], headers=twice).status_code == 400
        with maas.connect(f"{url}/models/upper", auth="k") as model:
            assert model("a") == "A"


# Bodies.


def test_large_bodies_pass(url):
    """Many megabytes pass both ways unharmed, whatever their shape and dtype."""
    with maas.connect(f"{url}/models/double") as model:
        for x in (
            torch.arange(3 * 2**20, dtype=torch.float32),
            torch.ones(5, 0),
            torch.tensor(2.0),
        ):
            assert torch.equal(model(x), x * 2)
        array = np.arange(2**20, dtype=np.float64).reshape(2, -1)
        assert np.array_equal(model(array), array * 2)


def test_body_beyond_the_limit_is_refused():
    """A body beyond the limit is 413, announced or not."""
    with hosted(mounted(maas.Server(upper, limits=Limits(body=1000)))) as url:
        path = f"{url}/models/upper"
        assert httpx.post(path, json=["a" * 2000]).status_code == 413
        parts = iter([b'["', *[b"a" * 100] * 20, b'"]'])
        headers = {"content-type": "application/json"}
        assert httpx.post(path, content=parts, headers=headers).status_code == 413
        assert httpx.post(path, json=["a"]).status_code == 200


def test_body_that_is_not_wanted_is_not_received():
    """Who may not call is refused before the app asks for the body."""

    async def ask():
        asked, sent = [], []

        async def receive():
            asked.append(1)
            return {"type": "http.request", "body": b"", "more_body": True}

        async def send(event):
            sent.append(event)

        scope = {
            "type": "http", "method": "POST", "path": "/upper", "headers": [], "query_string": b"",
        }  # fmt: skip
        await maas.Server(upper, auth="k")(scope, receive, send)
        assert sent[0]["status"] == 401
        assert asked == []

    asyncio.run(ask())


# Streams.


@pytest.mark.parametrize("method", ["count", "acount"])
def test_streams_cross_a_mount(url, method):
    """A generator's items come through a host, as messages and as lines."""
    with maas.connect(f"{url}/models/held") as model:
        assert list(getattr(model, method).stream(50)) == list(range(50))
    lines = httpx.post(f"{url}/models/held/{method}", json=[2]).text.splitlines()
    assert [json.loads(line) for line in lines] == [{"item": 0}, {"item": 1}, {"end": True}]


def test_items_come_as_they_are_made(url, held):
    """Items of an endless generator arrive, and leaving closes it."""
    held.ended.clear()
    with httpx.stream("POST", f"{url}/models/held/forever", json=[]) as reply:
        assert json.loads(next(reply.iter_lines())) == {"item": 0}
    assert held.ended.wait(PATIENT)
    held.ended.clear()
    with maas.connect(f"{url}/models/held") as model, model.forever.stream() as stream:
        assert [next(stream) for _ in range(3)] == [0, 1, 2]
    assert held.ended.wait(PATIENT)


def test_call_of_who_leaves_is_cancelled(url, held):
    """A call whose caller gives up is cancelled, through a host as well."""
    held.ended.clear()
    held.started.clear()
    with maas.connect(f"{url}/models/held") as model:
        job = model.wait.submit()
        assert held.started.wait(PATIENT)
        job.cancel()
        assert held.ended.wait(PATIENT)


def test_message_is_one_body_of_bytes(url):
    """A reply has the length it announces, so that a host need not chunk it."""
    reply = httpx.get(f"{url}/models/double", headers={"accept": MSGPACK})
    assert int(reply.headers["content-length"]) == len(reply.content)
    assert "transfer-encoding" not in reply.headers
