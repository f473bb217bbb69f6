"""`/metrics` and `/maas/status` of real servers, read as Prometheus and a program read them."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest
import torch
from prometheus_client import Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_text

import maas
from maas.server.exposition import NAMES

PATIENT = 20.0


def length(text: str) -> int:
    if text == "bad":
        raise ValueError("a secret")
    return len(text)


class Words:
    def __init__(self) -> None:
        self.waiting = threading.Semaphore(0)
        self.go_on = threading.Event()

    @maas.method
    def split(self, text: str) -> Iterator[str]:
        for word in text.split():
            if word == "bad":
                raise ValueError(word)
            yield word

    @maas.method
    def shout(self, text: str) -> str:
        return text.upper()

    @maas.method
    def hold(self) -> int:
        self.waiting.release()
        assert self.go_on.wait(PATIENT)
        return 1


@contextlib.contextmanager
def serving(models, **settings):
    with (
        maas.serve(models, port=0, block=False, **settings) as server,
        httpx.Client(base_url=server.url, timeout=PATIENT) as client,
    ):
        yield server, client


def samples(client, **headers) -> dict[tuple[str, ...], float]:
    """Name and the values of the labels but le, to the sample."""
    reply = client.get("/metrics", headers=headers)
    assert reply.status_code == 200, reply.text
    return {
        (sample.name, *(value for name, value in sample.labels.items())): sample.value
        for family in read_text(reply.text)
        for sample in family.samples
    }


def total(found, name, **labels):
    return sum(
        v for (n, *values), v in found.items() if n == name and {*labels.values()} <= {*values}
    )


def test_calls_are_counted():
    """Each call is counted once, by model, method and status, with its bytes and its times."""
    with serving({"net": torch.nn.Linear(3, 2), "length": length}) as (server, client):
        with maas.connect(f"{server.url}/net") as net:
            for _ in range(5):
                net(torch.zeros(4, 3))
        for text in ("a", "bad", "bad"):
            client.post("/length", json={"text": text})
        client.post("/length", json={"txet": "a"})
        found = samples(client)
    for name in ("maas_request_duration_seconds", "maas_queue_seconds", "maas_compute_seconds"):
        assert total(found, f"{name}_count", model="net") == 5
        assert 0 < total(found, f"{name}_sum", model="net") < PATIENT
    assert total(found, "maas_batch_rows_sum", model="net") == 5
    assert total(found, "maas_requests_total", model="net", code="200") == 5
    assert total(found, "maas_requests_total", model="length", code="200") == 1
    assert total(found, "maas_failures_total", model="length", error="model") == 2
    assert total(found, "maas_failures_total", model="length", error="signature") == 1
    assert total(found, "maas_received_bytes_total", model="net") > 5 * 48
    assert total(found, "maas_sent_bytes_total", model="net") > 5 * 32
    assert total(found, "maas_requests_in_flight") == 0
    assert total(found, "maas_connections") >= 1
    assert total(found, "process_cpu_seconds_total") > 0


@pytest.mark.parametrize(
    ("accept", "kind", "read"),
    [
        ("", "text/plain; version=0.0.4", read_text),
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4", read_text),
        (
            "application/openmetrics-text;version=1.0.0,*/*",
            "application/openmetrics-text",
            read_open,
        ),
    ],
)
def test_the_reader_chooses_the_form(accept, kind, read):
    """Prometheus gets the form it asks for, and every metric of ours is in it under its name."""
    with serving(length) as (_, client):
        client.post("/length", json=["a"])
        client.post("/length", json=["bad"])
        with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
            raw.sendall(b"no HTTP\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 400 ")
        reply = client.get("/metrics", headers={"accept": accept})
    assert reply.headers["content-type"].startswith(kind)
    assert reply.headers["cache-control"] == "no-store"
    families = {family.name: family.documentation for family in read(reply.text)}
    assert {name: families.get(name) for name in NAMES} == NAMES


def test_strangers_make_no_labels():
    """Names that the server does not know become no label, however many are asked for."""
    with serving(length) as (server, client):
        for number in range(30):
            client.post(f"/stranger-{number}", json=["a"])
            client.post(f"/length/stranger{number}", json=["a"])
            client.post(f"/{'x' * 70}/{number}", json=["a"])
        with maas.connect(f"{server.url}/length") as model:
            model("a")
        found = samples(client)
    assert not [key for key in found if "stranger" in str(key) or "xxx" in str(key)]
    assert total(found, "maas_requests_total", code="404") == 90
    assert len([key for key in found if key[0] == "maas_requests_in_flight"]) == 3


def test_streams_are_counted_to_their_last_item():
    """A stream counts its items and its failure, and lasts until its end."""
    with serving({"words": Words()}) as (server, client):
        with maas.connect(f"{server.url}/words") as words:
            assert list(words.split.stream("a b c")) == ["a", "b", "c"]
            with pytest.raises(ValueError, match="bad"):
                list(words.split.stream("a bad"))
        client.post("/words/split", json=["d e"])
        found = samples(client)
    assert total(found, "maas_stream_items_total", model="words") == 6
    assert total(found, "maas_requests_total", model="words", code="200") == 3
    assert total(found, "maas_failures_total", model="words") == 1
    assert total(found, "maas_requests_in_flight") == 0


def test_calls_in_flight_are_told():
    """A call counts as in flight while its model runs, and not after."""
    model = Words()
    with (
        serving({"words": model}) as (server, client),
        maas.connect(f"{server.url}/words") as words,
    ):
        jobs = [words.hold.submit() for _ in range(2)]
        model.waiting.acquire()
        told = client.get("/maas/status").json()["models"]["words"]["in_flight"]
        assert told in (1, 2)
        model.go_on.set()
        assert [job.result(PATIENT) for job in jobs] == [1, 1]
        assert client.get("/maas/status").json()["models"]["words"]["in_flight"] == 0


def test_callers_who_leave_are_counted():
    """A caller who goes away before the answer counts as 499, and is in flight no longer."""
    model = Words()
    with serving({"words": model}) as (_, client):
        with pytest.raises(httpx.TimeoutException):
            client.post("/words/hold", json=[], timeout=0.2)
        assert model.waiting.acquire(timeout=PATIENT)
        while not (figures := client.get("/maas/status").json()["models"]["words"])["requests"]:
            pass
        model.go_on.set()
    assert figures["codes"] == {"499": 1}
    assert figures["errors"] == {"cancelled": 1}
    assert figures["in_flight"] == 0


def test_a_keyed_call_runs_once_and_is_answered_twice():
    """Two requests with one key are two answers, and one run of the model."""
    with serving(length) as (_, client):
        for _ in range(2):
            client.post("/length", json=["abc"], headers={"idempotency-key": "k"})
        found = samples(client)
    assert total(found, "maas_requests_total", code="200") == 2
    assert total(found, "maas_queue_seconds_count") == 1


# Who may read.


KEYS = """
[all]
sha256 = "{0}"
[some]
sha256 = "{1}"
models = ["length", "words.split"]
[caller]
sha256 = "{2}"
allow = ["call"]
"""


@pytest.fixture
def locked(tmp_path):
    from hashlib import sha256

    names = ("all", "some", "caller")
    path = tmp_path / "keys.toml"
    path.write_text(KEYS.format(*(sha256(name.encode()).hexdigest() for name in names)))
    models = {"length": length, "words": Words(), "other": length}
    with serving(models, auth=path) as (_, client):
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", ["/metrics", "/maas/status", "/"])
def test_a_locked_server_shows_strangers_nothing(locked, path):
    """Without a key, or with one that may not describe, there are no figures."""
    headers = {"accept": "text/html"} if path == "/" else {}
    for key, status in (({}, 401), (bearer("wrong"), 401), (bearer("caller"), 403)):
        reply = locked.get(path, headers=headers | key)
        assert reply.status_code == status
        for told in ("length", "seconds_count", "Calls a second"):
            assert told not in reply.text.replace("'length': this needs", "")


def test_a_key_shows_the_figures_of_its_models(locked):
    """A key that is held to some models reads nothing of the others, nor of the process."""
    for name in ("length", "words/split", "words/shout", "other"):
        locked.post(f"/{name}", json=["a"], headers=bearer("all"))
    everything, some = samples(locked, **bearer("all")), samples(locked, **bearer("some"))
    assert total(everything, "maas_requests_total", code="200") == 4
    assert {key[0] for key in everything} > {"process_cpu_seconds_total", "maas_connections"}
    assert total(some, "maas_requests_total", code="200") == 2
    assert not [key for key in some if {"shout", "other"} & {*key}]
    assert not [key for key in some if not key[0].startswith("maas_")]
    assert "maas_connections" not in {key[0] for key in some}
    figures = locked.get("/maas/status", headers=bearer("some")).json()["models"]
    assert {name: told["requests"] for name, told in figures.items()} == {"length": 1, "words": 1}


def test_a_models_own_counters_are_exposed():
    """What a model counts with prometheus-client stands on the same page."""
    counter = Counter("test_exposition_tokens", "Tokens.")
    counter.inc(7)
    with serving(length) as (_, client):
        assert samples(client)["test_exposition_tokens_total",] == 7


def test_servers_of_one_process_count_apart():
    """Two servers in one process do not see each other's calls."""
    with serving(length) as (_, one), serving(length) as (_, other):
        one.post("/length", json=["a"])
        assert total(samples(one), "maas_requests_total") == 1
        assert total(samples(other), "maas_requests_total") == 0


def test_without_the_library_the_address_says_what_to_install():
    """Where prometheus-client is missing, /metrics is a 501 that names the extra."""
    code = """
import sys
sys.modules["prometheus_client"] = None
import httpx, maas
def f(a: int) -> int: return a
with maas.serve(f, port=0, block=False) as server:
    reply = httpx.get(server.url + "/metrics")
    print(reply.status_code, reply.json()["detail"])
    print(httpx.get(server.url + "/maas/status").status_code)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = run.stdout.splitlines()
    assert first.startswith("501 ")
    assert "pip install 'maas-sdk[metrics]'" in first
    assert second == "200"


def test_a_mounted_server_has_them_too():
    """Inside another application the same addresses hold; the connections are not ours to count."""
    app = maas.Server(length)

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            await client.post("/length", json=["a"])
            return await client.get("/metrics"), await client.get("/maas/status")

    text, told = asyncio.run(ask())
    assert (
        'maas_requests_total{code="200",method="__call__",model="length",version="v1"} 1.0'
        in text.text
    )
    assert "maas_connections" not in text.text
    assert told.json()["connections"] is None
