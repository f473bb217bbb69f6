import contextlib
import datetime as dt
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap

import httpx
import pytest
import torch
import trustme

import maas
from maas.errors import TransportError
from maas.server import app
from maas.server.patience import Patience
from maas.server.runner import Runner

PATIENT = 20.0


def upper(text: str) -> str:
    return text.upper()


class Agent:
    @maas.method
    def move(self, to: int) -> int:
        return to


# What a server takes.


def test_one_target_has_its_own_name():
    """A single model is served under its own name, and found without naming it."""
    with maas.serve(upper, port=0, block=False) as server:
        for url in (server.url, f"{server.url}/upper"):
            with maas.connect(url) as model:
                assert model("a") == "A"
                assert model.name == "upper"


@pytest.mark.parametrize(
    ("target", "name"), [(upper, "upper"), (Agent(), "agent"), (torch.nn.Linear(1, 1), "linear")]
)
def test_target_is_named_after_itself(target, name):
    """A target's function or class gives the name, a Model's name is kept."""
    assert list(maas.Server(target).handler.models) == [name]
    assert list(maas.Server(maas.Model(target, name="mine")).handler.models) == ["mine"]


def test_one_of_several_must_be_named():
    """Who connects to a server of several without naming one hears their names."""
    with (
        maas.serve({"upper": upper, "agent": Agent()}, port=0, block=False) as server,
        maas.connect(server.url) as model,
        pytest.raises(maas.NotFound, match="agent, upper"),
    ):
        model("a")


@pytest.mark.parametrize("models", [{}, {"Net": upper}, {"healthz": upper}, {"a/b": upper}])
def test_what_cannot_be_served_is_an_error(models):
    """No models, or a name that makes no address, is an error when the server is made."""
    with pytest.raises(ValueError, match="model"):
        maas.Server(models)


def test_server_is_a_place():
    """`connect(server)` asks through the whole wire, without a socket."""
    server = maas.Server({"upper": upper, "agent": Agent()}, auth="k")
    with maas.connect(server, model="upper", auth="k") as model:
        assert model("a") == "A"
    with maas.connect(server, model="upper") as model, pytest.raises(maas.Unauthenticated):
        model("a")
    with maas.connect(server, auth="k") as model, pytest.raises(maas.NotFound):
        model("a")


def test_server_may_be_served():
    """`serve` takes a Server as it is, with its own keys."""
    with maas.serve(maas.Server(upper, auth="k"), port=0, block=False) as server:
        with maas.connect(server.url) as model, pytest.raises(maas.Unauthenticated):
            model("a")
        with maas.connect(server.url, auth="k") as model:
            assert model("a") == "A"


# Start and stop.


def test_url_tells_where():
    """`url` is where clients reach the server, its free port included."""
    with maas.serve(upper, port=0, block=False) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert not server.url.endswith(":0")
        assert server.url in repr(server)


def test_taken_port_is_an_error():
    """A port that somebody else listens on is an OSError at once."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError):
        maas.serve(upper, port=taken.getsockname()[1], block=False)


def test_closed_server_is_gone():
    """After `close` nobody listens, and closing again does nothing."""
    server = maas.serve(upper, port=0, block=False)
    with maas.connect(server.url) as model:
        assert model("a") == "A"
        server.close()
        server.close()
        with pytest.raises(TransportError):
            model("a")


def test_unix_socket(tmp_path_factory):
    """A server on a unix socket is reached by its path, by this user alone, and cleans up."""
    path = tmp_path_factory.mktemp("s") / "s"
    with maas.serve(upper, uds=str(path), block=False) as server:
        assert path.stat().st_mode & 0o777 == 0o600
        with maas.connect(f"{server.url}/upper") as model:
            assert model("a") == "A"
    assert not path.exists()


SCRIPT = """
import maas

def upper(text: str) -> str:
    return text.upper()

maas.serve(upper, port=0)
print("drained", flush=True)
"""


def test_a_server_says_which_calls_share_no_runs(capsys):
    """Below its address a server names the models that were to be batched and are not, and why."""
    net = torch.nn.Linear(2, 1)
    with contextlib.closing(
        maas.Server(maas.Model(net, batching=maas.Batching(8), name="net"))
    ) as (server):
        app._announce(server, Runner(server.handler, port=1))
        assert "net: each call of __call__ runs alone: the model is in train mode" in (
            capsys.readouterr().out
        )
        net.eval()
        app._announce(server, Runner(server.handler, port=1))
        assert capsys.readouterr().out == "maas serves net at http://127.0.0.1:1\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_server_gracefully(number):
    """A server says where it is, serves until SIGTERM or Ctrl-C, drains, and returns."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(SCRIPT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        line = process.stdout.readline()
        url = line.split()[-1]
        assert line.startswith("maas serves upper at http://127.0.0.1:")
        with maas.connect(url) as model:
            assert model("a") == "A"
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENT)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (0, "drained\n", "")


# Off this machine.


def test_locked_and_encrypted_server_may_be_reached(tmp_path):
    """With a key and TLS a server may listen for others."""
    certificate = trustme.CA().issue_cert("localhost")
    files = _files(tmp_path, certificate)
    with maas.serve(upper, host="0.0.0.0", port=0, auth="k", block=False, **files) as server:
        assert server.url.startswith("https://0.0.0.0:")


@pytest.mark.parametrize("option", ["auth", "tls"])
def test_half_a_lock_is_none(tmp_path, option):
    """A key without TLS, or TLS without a key, does not do for an address that others reach."""
    certificate = trustme.CA().issue_cert("localhost")
    options = {"auth": "k"} if option == "auth" else _files(tmp_path, certificate)
    with pytest.raises(ValueError, match="insecure=True"):
        maas.serve(upper, host="0.0.0.0", port=0, block=False, **options)


def test_tls_key_without_certificate_is_an_error(tmp_path):
    """Half of a certificate is said to be one."""
    with pytest.raises(ValueError, match="tls_cert"):
        maas.serve(upper, port=0, tls_key="key.pem", block=False)


# TLS.


def _files(folder, certificate):
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    return {"tls_cert": str(chain), "tls_key": str(key)}


def _authority(folder, authority, name="ca.pem"):
    path = folder / name
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def authority():
    return trustme.CA()


def test_tls_round_trip(tmp_path, authority):
    """A call over TLS gives what a call gives, now, later and streamed."""
    files = _files(tmp_path, authority.issue_cert("127.0.0.1", "localhost"))
    with maas.serve(upper, port=0, auth="k", block=False, **files) as server:
        ca = _authority(tmp_path, authority)
        url = server.url.replace("127.0.0.1", "localhost")
        for where in (server.url, url):
            with maas.connect(f"{where}/upper", auth="k", verify=ca) as model:
                assert model("a") == "A"
                assert model.submit("b").result(PATIENT) == "B"
                assert list(model.map(["c"] * 50)) == ["C"] * 50


def test_tls_with_a_large_body(tmp_path, authority):
    """Many megabytes pass TLS both ways unharmed."""
    files = _files(tmp_path, authority.issue_cert("127.0.0.1"))

    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    x = torch.arange(3 * 2**20, dtype=torch.float32)
    with (
        maas.serve(twice, port=0, block=False, **files) as server,
        maas.connect(server.url, verify=_authority(tmp_path, authority)) as model,
    ):
        assert torch.equal(model(x), x * 2)
        assert torch.equal(model.submit(x).result(PATIENT), x * 2)


def test_context_of_ones_own(tmp_path, authority):
    """An `ssl.SSLContext` does in place of a file."""
    files = _files(tmp_path, authority.issue_cert("127.0.0.1"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with (
        maas.serve(upper, port=0, block=False, **files) as server,
        maas.connect(server.url, verify=context) as model,
    ):
        assert model("a") == "A"


def _wrong_authority(folder, authority):
    return authority.issue_cert("127.0.0.1"), _authority(folder, trustme.CA(), "other.pem")


def _no_authority(folder, authority):
    return authority.issue_cert("127.0.0.1"), None


def _wrong_host(folder, authority):
    return authority.issue_cert("example.com", "127.0.0.2"), _authority(folder, authority)


def _expired(folder, authority):
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    certificate = authority.issue_cert("127.0.0.1", not_after=yesterday)
    return certificate, _authority(folder, authority)


@pytest.mark.parametrize("case", [_wrong_authority, _no_authority, _wrong_host, _expired])
def test_certificate_that_proves_nothing_is_refused(tmp_path, authority, case):
    """Of a server whose certificate does not hold, the key is never shown, by either way to ask."""
    certificate, verify = case(tmp_path, authority)
    seen = []

    def spy(text: str) -> str:
        seen.append(text)
        return text

    files = _files(tmp_path, certificate)
    with (
        maas.serve(spy, port=0, auth="k", block=False, **files) as server,
        maas.connect(f"{server.url}/spy", auth="k", verify=verify) as model,
    ):
        for ask in (model, lambda text: model.submit(text).result(PATIENT)):
            with pytest.raises(TransportError, match="certificate") as caught:
                ask("secret")
            assert not caught.value.sent
            unknown = case is _wrong_authority or case is _no_authority
            assert ("an authority to trust" in str(caught.value)) == unknown
    assert seen == []


def test_plain_http_to_a_tls_port_is_an_error_of_transport(tmp_path, authority):
    """Who speaks without TLS to a server with it, or with TLS to one without, hears so in time."""
    files = _files(tmp_path, authority.issue_cert("127.0.0.1"))
    patience = Patience(header=1.0)
    with maas.serve(upper, port=0, block=False, patience=patience, **files) as server:
        clear = maas.connect(server.url.replace("https", "http"))
        with clear as model, pytest.raises(TransportError):
            model("a")
        with maas.connect(server.url, verify=_authority(tmp_path, authority)) as model:
            assert model("a") == "A"
    with maas.serve(upper, port=0, block=False) as server:
        encrypted = maas.connect(server.url.replace("http", "https"))
        with encrypted as model, pytest.raises(TransportError, match="is it http:// there"):
            model("a")


def test_old_tls_is_refused(tmp_path, authority):
    """TLS 1.1 and older are not spoken."""
    files = _files(tmp_path, authority.issue_cert("127.0.0.1"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with maas.serve(upper, port=0, block=False, **files) as server:
        assert httpx.get(f"{server.url}/healthz", verify=context).status_code == 200
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/healthz", verify=context)
