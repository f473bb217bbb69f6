"""The access log and the two forms of a log line, against what strangers may write into them."""

import asyncio
import datetime as dt
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maas
from maas.server.access import quoted
from maas.server.logs import JSONLines, TextLines

PATIENT = 30.0
KEY = "hunter2-is-the-key"


def length(text: str) -> int:
    return len(text)


class Words:
    @maas.method
    def split(self, text: str) -> Iterator[str]:
        yield from text.split()


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self, form: logging.Formatter) -> list[str]:
        return [form.format(record) for record in self.records]


@pytest.fixture
def kept():
    """The access log, switched on as a program would."""
    log, handler = logging.getLogger("maas.access"), Kept()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.setLevel(logging.NOTSET)
    log.removeHandler(handler)


# Lines of requests.


def test_a_call_is_one_line(kept):
    """A call's line tells what was asked by whom, how it went, and how long each part took."""
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    with maas.serve({"length": length, "words": Words()}, port=0, block=False, auth=KEY) as server:
        headers = {"authorization": f"Bearer {KEY}", "traceparent": trace}
        with httpx.Client(base_url=server.url, headers=headers, timeout=PATIENT) as client:
            client.post("/length?a=secret", json={"text": "a secret"})
            client.post("/words/split", json=["a secret"])
            client.post("/length", json=[7])
    one, stream, wrong = (json.loads(line) for line in kept.lines(JSONLines()))
    assert re.fullmatch(r"POST /length 200 in \d+\.\d{3} ms", one["message"])
    assert (one["logger"], one["level"], one["status"]) == ("maas.access", "INFO", 200)
    assert (one["model"], one["caller"], one["trace_id"]) == ("length", "key-0", "a" * 32)
    assert one["span_id"] != "b" * 16
    assert 0 <= one["compute_seconds"] <= one["seconds"]
    assert (one["batch_rows"], one["received_bytes"]) == (1, len('{"text":"a secret"}'))
    assert dt.datetime.fromisoformat(one["time"]).tzinfo is dt.UTC
    assert (stream["method"], stream["items"]) == ("split", 2)
    assert (wrong["status"], wrong["error"]) == (422, "signature")


def test_a_refusal_is_a_line_too(kept):
    """What is turned away has its line, and so has a description; probes and scrapes have none."""
    with (
        maas.serve(length, port=0, block=False, auth=KEY) as server,
        httpx.Client(base_url=server.url, timeout=PATIENT) as client,
    ):
        client.post("/length", json=["a"])
        for path in (
            "/nobody?x=secret",
            "/length",
            "/healthz",
            "/readyz",
            "/metrics",
            "/maas/status",
        ):
            client.get(path, headers={"authorization": f"Bearer {KEY}"})
    told = [record.getMessage().rpartition(" in ")[0] for record in kept.records]
    assert told == ["POST /length 401", "GET /nobody 404", "GET /length 200"]
    assert kept.records[0].fields["error"] == "unauthenticated"


def test_it_is_off_unless_switched_on():
    """A program that asked for no log gets none."""
    code = """
import httpx, maas
def f(a: int) -> int: return a
with maas.serve(f, port=0, block=False) as server:
    httpx.post(server.url + "/f", json=[1]), httpx.post(server.url + "/none", json=[1])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


SECRETS = [KEY, "hunter2", "argument", "querystring", "wrong-key"]


def test_secrets_are_in_no_line(kept):
    """Neither arguments, results, keys nor query strings are in any line, in either form."""
    with (
        maas.serve(length, port=0, block=False, auth=KEY) as server,
        httpx.Client(base_url=server.url, timeout=PATIENT) as client,
    ):
        good, bad = ({"authorization": f"Bearer {key}"} for key in (KEY, "wrong-key"))
        for headers in (good, bad, {}):
            for body in ('{"text": "argument"}', '["argument", "argument"]', "argument"):
                client.post(
                    "/length?querystring",
                    content=body,
                    headers=headers | {"content-type": "application/json"},
                )
            client.post("/length", headers=headers | {"maas-timeout": "argument"})
            client.get("/length?querystring", headers=headers)
    assert len(kept.records) == 15
    for form in (TextLines(), JSONLines()):
        text = "\n".join(kept.lines(form))
        assert [secret for secret in SECRETS if secret in text] == []


def test_a_path_cannot_forge_a_line(kept):
    """Line breaks and control characters in a path, which ASGI hands on decoded, stay escaped."""
    app = maas.Server(length)
    paths = [
        "/a%0A2026-01-01T00:00:00.000Z%20INFO%20forged",
        "/%1b[2J%00",
        "/a%20200%20in%200",
        "/%E2%80%AE",
    ]

    async def ask() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            for path in paths:
                await client.post(path, json=[])

    asyncio.run(ask())
    for form in (TextLines(), JSONLines()):
        lines = kept.lines(form)
        assert len(lines) == len(paths)
        assert all(line.isprintable() for line in lines)
    assert all(re.search(r'POST "/.*" 404 in 0\.000 ms', line) for line in kept.lines(TextLines()))


# Forms of a line.


def record(message: str, fields: object = None, error: Exception | None = None):
    exc_info = (type(error), error, None) if error is not None else None
    made = logging.LogRecord("maas", logging.INFO, __file__, 1, "%s", (message,), exc_info)
    if fields is not None:
        made.fields = fields
    return made


names = st.from_regex(r"[a-z_]{1,20}", fullmatch=True)


@given(st.text(), st.dictionaries(names, st.text() | st.integers() | st.floats()))
def test_a_record_is_one_line(message, fields):
    """Whatever a message and its fields hold, a record is one printable line in both forms."""
    for form in (TextLines(), JSONLines()):
        line = form.format(record(message, fields))
        assert line.isprintable()


@given(st.text(), st.dictionaries(names, st.text() | st.integers()))
def test_a_json_line_keeps_all(message, fields):
    """A JSON line gives back the message and the fields, and fields displace nothing."""
    told = json.loads(JSONLines().format(record(message, fields | {"level": "FORGED"})))
    assert told["message"] == message
    assert (told["level"], told["logger"]) == ("INFO", "maas")
    for name, value in fields.items():
        if name not in ("time", "level", "logger", "message"):
            assert told[name] == value


@given(st.text())
def test_a_traceback_cannot_forge_a_line(words):
    """The words of an exception stay on indented lines, or within the one line of JSON."""
    made = record("failed", error=ValueError(words))
    first, *below = TextLines().format(made).split("\n")
    assert first.endswith(" INFO maas failed")
    assert below
    assert all(line.startswith("  ") and line.isprintable() for line in below)
    line = JSONLines().format(made)
    assert line.isprintable()
    assert json.loads(line)["traceback"].startswith("ValueError")


@given(st.text())
def test_a_word_is_one_word(text):
    """What is told in a line is one word without a space, or is quoted."""
    word = quoted(text)
    assert word.isascii()
    assert word.isprintable()
    assert word == text or json.loads(word) == text[:200]


# The command line.


@pytest.mark.parametrize("form", ["text", "json", None])
def test_serve_writes_the_log(tmp_path, form):
    """`maas serve --access-log` writes a line a request to standard error, in the form asked."""
    (tmp_path / "shop.py").write_text("def length(text: str) -> int:\n    return len(text)\n")
    options = ["--access-log", *(["--log-format", form] if form else [])]
    command = [sys.executable, "-m", "maas", "serve", "shop:length", "--port", "0", *options]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    httpx.post(f"{url}/length", json=["a"], timeout=PATIENT)
    process.send_signal(signal.SIGTERM)
    _, written = process.communicate(timeout=PATIENT)
    assert process.returncode == 0
    [line] = written.splitlines()
    if form == "json":
        assert json.loads(line)["model"] == "length"
    else:
        assert re.fullmatch(r"\S+Z INFO maas\.access POST /length 200 in .* model=length .*", line)
