"""Auth: every endpoint times every trick, and not one way past the door.

What is asked is spoken by hand over sockets, since no client library would say it.
"""

import hashlib
import json
import logging
import socket
import traceback

import pytest

import maas
from maas.calls import CALL, Call

KEY = "correct-horse-battery-staple"
OTHERS = "key-of-a-tenant-who-may-only-echo"
READER = "key-that-may-only-describe"
CALLER = "key-that-may-only-call"
MOVER = "key-that-may-only-move-the-agent"
NOBODY = "key-without-any-grant"
PATIENT = 20.0

ran: list[str] = []


def net(x: int = 1) -> str:
    ran.append("net")
    return "the-answer-of-net"


def echo(text: str = "") -> str:
    ran.append("echo")
    return "the-answer-of-echo"


class Agent:
    @maas.method
    def move(self) -> str:
        ran.append("agent.move")
        return "the-answer-of-move"

    @maas.method
    def stop(self) -> str:
        ran.append("agent.stop")
        return "the-answer-of-stop"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


KEYS = f"""
[owner]
sha256 = "{digest(KEY)}"
[tenant]
sha256 = "{digest(OTHERS)}"
models = ["echo"]
[reader]
sha256 = "{digest(READER)}"
allow = ["describe"]
[caller]
sha256 = "{digest(CALLER)}"
allow = ["call"]
[mover]
sha256 = "{digest(MOVER)}"
models = ["agent.move"]
[nobody]
sha256 = "{digest(NOBODY)}"
allow = []
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    file = tmp_path_factory.mktemp("auth") / "keys.toml"
    file.write_text(KEYS)
    models = {"net": net, "echo": echo, "agent": Agent()}
    with maas.serve(models, port=0, auth=file, block=False) as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_ran():
    ran.clear()


def say(url: str, lines: list[str], body: bytes = b"") -> tuple[int, bytes]:
    """Sends a request as written and gives the status and all that came back."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), PATIENT) as sock:
        sock.sendall(
            "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("latin-1")
        )
        sock.sendall(body)
        reply = b""
        while data := sock.recv(65536):
            reply += data
    return int(reply.split(b" ", 2)[1]), reply


def ask(url, method, path, key=None, *extra, host="localhost", body=b"[]"):
    """A request with the usual headers, and others."""
    body = b'{"inputs": []}' if path.startswith("/v2/") else body
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [] if key is None else [f"Authorization: Bearer {key}"]
    lines += ["Content-Type: application/json", *extra]
    return say(url, lines, body if method == "POST" else b"")


ENDPOINTS = [
    ("GET", "/"),
    ("GET", "/net"),
    ("GET", "/net/"),
    ("HEAD", "/net"),
    ("GET", "/agent"),
    ("GET", "/net/readyz"),
    ("POST", "/net"),
    ("POST", "/echo"),
    ("POST", "/agent/move"),
    ("POST", "/agent/stop"),
    ("POST", "/net/nothing"),
    ("POST", "/nothing"),
    ("GET", "/nothing"),
    ("GET", "/nothing/readyz"),
    ("GET", "/v2"),
    ("GET", "/v2/"),
    ("GET", "/v2/models"),
    ("GET", "/v2/models/net"),
    ("GET", "/v2/models/net/versions/1"),
    ("HEAD", "/v2/models/net"),
    ("GET", "/v2/models/net/ready"),
    ("POST", "/v2/models/net/infer"),
    ("POST", "/v2/models/net/versions/1/infer"),
    ("POST", "/v2/models/echo/infer"),
    ("POST", "/v2/models/agent.move/infer"),
    ("POST", "/v2/models/agent.stop/infer"),
    ("GET", "/v2/models/nothing"),
    ("POST", "/v2/models/nothing/infer"),
]

CREDENTIALS = {
    "none": [],
    "empty": ["Authorization:"],
    "no key": ["Authorization: Bearer"],
    "wrong": ["Authorization: Bearer wrong"],
    "truncated": [f"Authorization: Bearer {KEY[:-1]}"],
    "longer": [f"Authorization: Bearer {KEY}x"],
    "upper case": [f"Authorization: Bearer {KEY.upper()}"],
    "its hash": [f"Authorization: Bearer {digest(KEY)}"],
    "basic": ["Authorization: Basic b3duZXI6Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ=="],
    "other scheme": [f"Authorization: Token {KEY}"],
    "no scheme": [f"Authorization: {KEY}"],
    "twice, good first": [f"Authorization: Bearer {KEY}", "Authorization: Bearer wrong"],
    "twice, good last": ["Authorization: Bearer wrong", f"Authorization: Bearer {KEY}"],
    "twice the same": [f"Authorization: Bearer {KEY}"] * 2,
    "joined": [f"Authorization: Bearer wrong, Bearer {KEY}"],
    "proxy's": [f"Proxy-Authorization: Bearer {KEY}"],
    "cookie": [f"Cookie: authorization={KEY}; key={KEY}"],
    "api key": [f"X-Api-Key: {KEY}", f"Api-Key: {KEY}"],
    "forwarded": [f"X-Forwarded-Authorization: Bearer {KEY}", f"X-Original-Authorization: {KEY}"],
    "from inside": [
        "X-Forwarded-For: 127.0.0.1",
        "X-Real-IP: 127.0.0.1",
        "Forwarded: for=127.0.0.1",
    ],
    "as someone": ["X-Remote-User: owner", "X-Forwarded-User: owner", "Remote-User: owner"],
    "underscore": [f"Authorization_: Bearer {KEY}", f"HTTP_AUTHORIZATION: Bearer {KEY}"],
}


@pytest.mark.parametrize("credentials", CREDENTIALS.values(), ids=CREDENTIALS)
def test_no_credentials_but_the_key_pass_the_door(running, credentials):
    """Without the one whole key, sent once, no endpoint answers, runs or names a model."""
    for method, path in ENDPOINTS:
        status, reply = ask(running.url, method, path, None, *credentials)
        assert status in (400, 401), (method, path, reply)
        assert b"the-answer" not in reply
        assert b"echo" not in reply
        assert KEY.encode() not in reply
    assert ran == []


@pytest.mark.parametrize("where", ["?key={}", "?access_token={}", "?authorization=Bearer%20{}"])
def test_key_in_the_address_is_no_key(running, where):
    """A key in the query, where logs keep it, opens nothing."""
    for method, path in ENDPOINTS:
        assert ask(running.url, method, path + where.format(KEY))[0] == 401
    assert ran == []


PATHS = {
    "upper case": "/NET",
    "double slash": "//net",
    "double slash within": "/agent//move",
    "slash at the end": "/agent/move/",
    "many slashes": "///net",
    "a dot": "/./net",
    "dots": "/echo/../net",
    "dots, encoded": "/echo/%2e%2e/net",
    "slash, encoded": "/echo%2f..%2fnet",
    "encoded": "/%6eet",
    "encoded twice": "/%256eet",
    "NUL": "/net%00",
    "semicolon": "/net;x=1",
    "backslash": "/\\net",
    "space": "/net%20",
    "plus": "/net+",
    "absolute": "http://localhost/net",
    "full width": "/%ef%bd%8eet",
    "fragment": "/net%23",
    "health first": "/healthz/../net",
    "health last": "/net/healthz",
    "health as a method": "/healthz/net",
    "ready as a folder": "/readyz/net",
    "three parts": "/echo/net/move",
    "protocol, upper case": "/v2/models/NET/infer",
    "protocol, double slash": "/v2//models/net/infer",
    "protocol, dots": "/v2/models/echo/../net/infer",
    "protocol, encoded": "/v2/models/%6eet/infer",
    "protocol, health first": "/v2/health/live/../../models/net",
    "protocol, as a model": "/v2/net",
}


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "PUT", "OPTIONS", "TRACE", "post"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_no_spelling_of_a_path_passes_the_door(running, path, method):
    """However a path is written, what lies behind the door is not reached without its key."""
    for key in (None, OTHERS):
        status, reply = ask(running.url, method, path, key)
        assert status >= 400, reply
        assert b"the-answer-of-net" not in reply
    assert ran == []


@pytest.mark.parametrize(
    "trick",
    [
        "X-HTTP-Method-Override: GET",
        "X-HTTP-Method: GET",
        "X-Method-Override: GET",
        "X-Original-URL: /healthz",
        "X-Rewrite-URL: /healthz",
        "X-Forwarded-Path: /healthz",
        "X-Forwarded-Prefix: /net",
        "X-Forwarded-Host: localhost",
        "X-Forwarded-Proto: https",
        "X-Original-Method: GET",
        "Upgrade: h2c",
        "X-Custom-IP-Authorization: 127.0.0.1",
    ],
)
def test_no_header_changes_what_is_asked(running, trick):
    """Headers that other servers take for the method or the path are words without weight."""
    for method, path in ENDPOINTS:
        assert ask(running.url, method, path, None, trick)[0] == 401
        assert (
            ask(running.url, method, f"{path}?_method=GET", READER, trick)[0]
            == (ask(running.url, method, path, READER)[0])
        )
    # A call that pretends to be a description stays a call.
    assert ask(running.url, "POST", "/net", READER, trick)[0] == 403
    assert ran == []


# What a good key may not do.

GRANTED = {
    OTHERS: {("POST", "/echo")},
    READER: {("GET", "/"), ("GET", "/net"), ("GET", "/net/"), ("HEAD", "/net"), ("GET", "/agent")}
    | {("GET", "/net/readyz")},
    CALLER: {("POST", "/net"), ("POST", "/echo"), ("POST", "/agent/move"), ("POST", "/agent/stop")}
    | {("GET", "/net/readyz")},
    MOVER: {("GET", "/"), ("GET", "/agent"), ("POST", "/agent/move")},
    NOBODY: {("GET", "/net/readyz")},
}
GRANTED[OTHERS] |= {("GET", "/")}
V2 = "/v2/models"
ABOUT = {("GET", "/v2"), ("GET", "/v2/")}
GRANTED[OTHERS] |= ABOUT | {("GET", V2), ("POST", f"{V2}/echo/infer")}
GRANTED[READER] |= ABOUT | {
    ("GET", V2),
    ("GET", f"{V2}/net"),
    ("GET", f"{V2}/net/versions/1"),
    ("HEAD", f"{V2}/net"),
    ("GET", f"{V2}/net/ready"),
}
GRANTED[CALLER] |= ABOUT | {
    ("GET", f"{V2}/net/ready"),
    ("POST", f"{V2}/net/infer"),
    ("POST", f"{V2}/net/versions/1/infer"),
    ("POST", f"{V2}/echo/infer"),
    ("POST", f"{V2}/agent.move/infer"),
    ("POST", f"{V2}/agent.stop/infer"),
}
GRANTED[MOVER] |= ABOUT | {("GET", V2), ("POST", f"{V2}/agent.move/infer")}
GRANTED[NOBODY] |= ABOUT | {("GET", f"{V2}/net/ready")}


@pytest.mark.parametrize("key", GRANTED, ids=["tenant", "reader", "caller", "mover", "nobody"])
def test_key_does_what_it_is_granted_and_no_more(running, key):
    """Over all endpoints, a key passes exactly where its grants and its models say so."""
    passed = {endpoint for endpoint in ENDPOINTS if ask(running.url, *endpoint, key)[0] == 200}
    assert passed == GRANTED[key]


@pytest.mark.parametrize("key", [OTHERS, MOVER], ids=["tenant", "mover"])
def test_models_of_others_cannot_be_told_from_none(running, key):
    """A model that a key may not see is refused in the same words as one that does not exist."""
    for method, path in [
        ("GET", "/net"),
        ("POST", "/net"),
        ("GET", "/net/readyz"),
        ("POST", "/net/move"),
        ("GET", "/v2/models/net"),
        ("GET", "/v2/models/net/ready"),
        ("POST", "/v2/models/net/infer"),
        ("POST", "/v2/models/net.move/infer"),
    ]:
        there = ask(running.url, method, path, key)
        nowhere = ask(running.url, method, path.replace("net", "not"), key)
        assert there[0] == nowhere[0]
        assert there[1].replace(b"net", b"not") == nowhere[1]


def test_key_sees_only_its_models_and_methods(running):
    """What a key is told of is what it may ask."""

    def seen(key):
        _, reply = ask(running.url, "GET", "/", key)
        models = json.loads(reply.partition(b"\r\n\r\n")[2])["models"]
        return {
            name: [method["name"] for method in model["methods"]] for name, model in models.items()
        }

    assert seen(OTHERS) == {"echo": ["__call__"]}
    assert seen(MOVER) == {"agent": ["move"]}
    assert set(seen(READER)) == {"agent", "echo", "net"}


def test_client_with_a_key_to_one_method_can_use_it(running):
    """`connect` works with a key that is held to one method, and refuses the others."""
    with maas.connect(f"{running.url}/agent", auth=MOVER) as agent:
        assert agent.move() == "the-answer-of-move"
        with pytest.raises(AttributeError, match="stop"):
            agent.stop()
    with maas.connect(f"{running.url}/net", auth=MOVER) as model, pytest.raises(maas.NotFound):
        model()
    assert ran == ["agent.move"]


def test_client_hears_which_grant_is_missing(running):
    """A key without a grant is told its name, as an error of the class that says so."""
    with maas.connect(f"{running.url}/net", auth=READER) as model:
        assert model.info.name == "net"
        with pytest.raises(maas.Forbidden, match="'call'"):
            model()
    with (
        maas.connect(f"{running.url}/net", auth=CALLER) as model,
        pytest.raises(maas.Forbidden, match="'describe'"),
    ):
        model()
    with maas.connect(f"{running.url}/net") as model, pytest.raises(maas.Unauthenticated):
        model()
    assert ran == []


# The Host.


@pytest.fixture(scope="module")
def unlocked():
    with maas.serve({"net": net}, port=0, block=False) as server:
        yield server


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        ["Host:"],
        ["Host: evil.example"],
        ["Host: evil.example:80"],
        ["Host: localhost.evil.example"],
        ["Host: evil.localhost"],
        ["Host: 127.0.0.1.nip.io"],
        ["Host: localhost@evil.example"],
        ["Host: localhost, evil.example"],
        ["Host: evil.example", "Host: localhost"],
        ["Host: localhost", "Host: evil.example"],
        ["Host: localhost", "Host: localhost"],
        ["Host: 192.168.0.1"],
        ["Host: 0.0.0.0"],
        ["Host: [::ffff:127.0.0.1]"],
        ["Host: evil.example", "X-Forwarded-Host: localhost"],
        ["Host: evil.example", "Origin: http://localhost"],
    ],
)
def test_web_page_cannot_rebind_its_name_to_this_machine(unlocked, hosts):
    """A server without a key answers only for this machine's own names, said exactly once."""
    for method, path in [
        ("GET", "/"),
        ("POST", "/net"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/v2/health/live"),
        ("POST", "/v2/models/net/infer"),
    ]:
        lines = [f"{method} {path} HTTP/1.1", *hosts, "Content-Type: application/json"]
        status, reply = say(unlocked.url, [*lines, "Connection: close"], b"[]")
        assert status in (400, 421), reply
    assert ran == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "localhost:8000"])
def test_own_names_are_answered(unlocked, host):
    """The machine's own names pass, with and without a port."""
    assert ask(unlocked.url, "GET", "/net", host=host)[0] == 200


@pytest.mark.parametrize(
    "content",
    [
        "text/plain",
        "text/plain; application/json",
        "text/plain;charset=application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "text/json",
        "application/jsonp",
        "application/json, text/plain",
    ],
)
def test_form_of_another_site_cannot_call(unlocked, content):
    """What a web page may send to another site without asking first is not read (CSRF)."""
    lines = ["POST /net HTTP/1.1", "Host: localhost", "Connection: close", "Origin: http://evil"]
    status, reply = say(unlocked.url, [*lines, f"Content-Type: {content}"], b"[]")
    assert status == 415, reply
    assert ran == []


def test_other_sites_are_not_let_in_when_they_ask_first(unlocked):
    """A browser's question whether another site may call is not answered with yes."""
    wish = "Access-Control-Request-Method: POST"
    status, reply = ask(unlocked.url, "OPTIONS", "/net", None, wish)
    assert status >= 400
    assert b"access-control" not in reply.lower()


# Keys that were withdrawn.


def test_withdrawn_key_is_refused_on_its_open_connection(tmp_path):
    """A key taken out of the file stops working at the next request, on the same connection."""
    file = tmp_path / "keys.toml"
    file.write_text(KEYS)
    with (
        maas.serve({"net": net}, port=0, auth=file, block=False) as server,
        maas.connect(f"{server.url}/net", auth=KEY) as model,
    ):
        assert model() == "the-answer-of-net"
        file.write_text(KEYS.replace(digest(KEY), digest("another")))
        with pytest.raises(maas.Unauthenticated):
            model()


def test_broken_key_file_closes_the_door_and_says_so(tmp_path, caplog):
    """While the key file is broken nobody is let in; callers hear so, and the log hears why."""
    file = tmp_path / "keys.toml"
    file.write_text(KEYS)
    with maas.serve({"net": net}, port=0, auth=file, block=False) as server:
        assert ask(server.url, "POST", "/net", KEY)[0] == 200
        with caplog.at_level(logging.ERROR, "maas"):
            file.write_text(KEYS + "\n[")
            status, reply = ask(server.url, "POST", "/net", KEY)
        assert status == 503
        assert b"retry-after: " in reply
        assert str(tmp_path).encode() not in reply
        assert str(file) in caplog.text
        assert ask(server.url, "GET", "/healthz")[0] == 200
        file.write_text(KEYS)
        assert ask(server.url, "POST", "/net", KEY)[0] == 200


# The secret stays secret.


def test_key_is_nowhere_to_be_read(tmp_path, caplog, capfd):
    """No repr, message, traceback, reply, description or log of either side holds a key."""
    with caplog.at_level(logging.DEBUG), maas.serve(net, port=0, auth=KEY, block=False) as server:
        shown = [repr(server)]
        with maas.connect(f"{server.url}/net", auth=KEY) as model:
            model()
            executor = model._executor
            requests = [executor._request(executor._place, Call("net", CALL))]
            shown += [repr(model), repr(executor), repr(requests), repr(model.info)]
            shown += [traced(lambda: model("no number")), traced(lambda: model.nothing)]
        with maas.connect(f"{server.url}/net", auth=f"{KEY}-wrong") as model:
            shown += [repr(model), traced(model)]
        with maas.connect(f"{server.url}/net", auth=f"{KEY}\r\nX-Evil: 1") as model:
            shown += [traced(model)]
        for credentials in CREDENTIALS.values():
            shown += [str(ask(server.url, "GET", "/", None, *credentials)[1])]
    shown += [traced(lambda: maas.connect("http://192.0.2.1/net", auth=KEY))]
    shown += [traced(lambda: maas.connect(f"https://user:{KEY}@192.0.2.1/net"))]
    shown += [caplog.text, *capfd.readouterr()]
    assert len(shown) > 30
    assert not [text for text in shown if KEY in text]


def traced(action) -> str:
    """The traceback of the error that the action must raise."""
    with pytest.raises(Exception) as caught:
        action()
    return "".join(traceback.format_exception(caught.value)) + repr(caught.value)


# Off this machine.


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
def test_server_others_can_reach_wants_a_key_and_tls(host):
    """Without a key and TLS, or the word `insecure`, no server listens beyond this machine."""
    for options in ({}, {"auth": KEY}, {"auth": None}):
        with pytest.raises(ValueError, match="insecure=True"):
            maas.serve(net, host=host, port=0, block=False, **options)


def test_insecure_is_said_aloud():
    """`insecure=True` listens beyond this machine, for what something else protects."""
    with maas.serve(net, host="0.0.0.0", port=0, insecure=True, block=False) as server:
        port = int(server.url.rpartition(":")[2])
        assert ask(f"http://127.0.0.1:{port}", "POST", "/net")[0] == 200
