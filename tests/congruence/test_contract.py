"""What the API promises its users, in their own words: one program, and the place is one argument.

The sections are those of the contract: wrap and call; five ways to call; where; serve and embed;
options; errors; tests that run in every place. What takes a `maas_connect` runs in all five.
"""

import asyncio
import inspect
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

import fastapi
import httpx
import numpy as np
import pytest
import torch
import trustme
import uvicorn
from hypothesis import given

import maas
from maas import TensorSpec
from maas.parameters import Parameter

PATIENCE = 30.0

torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Linear(1000, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
).eval()
x = torch.randn(8, 1000)


@maas.Model
def tokens(text: str, *, lower: bool = True) -> list[int]:
    """A text's letters as numbers."""
    return [ord(letter) for letter in (text.lower() if lower else text)]


def gen(prompt: str) -> Iterator[str]:
    yield from prompt.split()


class Encoder:
    @maas.method
    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


encoder = Encoder()


def bare(module, value):
    with torch.no_grad():
        return module(value)


# 1. Wrap and call.


def test_a_module_is_called(maas_connect):
    """`y = model(x)` is what the bare module gives, bit for bit."""
    model = maas_connect(net)
    y = model(x)
    assert torch.equal(y, bare(net, x))
    assert (y.dtype, y.shape, y.requires_grad) == (torch.float32, (8, 10), False)


def test_a_function_is_called(maas_connect):
    """A decorated function is a model; its type hints are the schema."""
    model = maas_connect(tokens)
    assert model("Hi") == [104, 105]
    assert model("Hi", lower=False) == [72, 105]
    with pytest.raises(maas.SignatureError, match="text"):
        model(5)
    with pytest.raises(TypeError, match="uper"):
        model("Hi", uper=True)


def test_an_objects_methods_are_called(maas_connect):
    """Methods marked `@maas.method` are called the same way, here or there."""
    enc = maas_connect(encoder)
    assert enc.encode("hello") == [104, 101, 108, 108, 111]
    with pytest.raises(AttributeError, match="encode"):
        enc.decode([1])


SIGNATURE = maas.Signature(
    [Parameter("input", annotation=TensorSpec("float32", ("batch", 1000)))],
    TensorSpec("float32", ("batch", 10)),
)


@pytest.mark.parametrize("way", ["signature", "example"])
def test_a_signature_is_given_or_learned(maas_connect, way):
    """Arguments are checked against symbolic shapes before the model runs, in the same words."""
    options = {"signature": SIGNATURE} if way == "signature" else {"example": x}
    model = maas_connect(net, name="net", device="cpu", **options)
    assert torch.equal(model(x), bare(net, x))
    assert str(model.info.methods["__call__"].signature) == str(
        maas.Model(net, **options).info.methods["__call__"].signature
    )
    said = []
    for place in (model, maas.Model(net, name="net", **options)):
        with pytest.raises(maas.SignatureError, match="1000") as caught:
            place(torch.zeros(8, 7))
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("name", ["map", "close", "submit", "info"])
def test_a_method_with_a_name_of_models_own_is_refused(name):
    """Wrapping hints at `@maas.method(name=...)` where a name is taken, which then does."""

    def own(self) -> str:
        return "mine"

    taken = type("Taken", (), {name: maas.method(own)})
    with pytest.raises(ValueError, match=r"@maas\.method\(name="):
        maas.Model(taken())
    renamed = type("Renamed", (), {name: maas.method(name="mine")(own)})
    assert maas.Model(renamed()).mine() == "mine"


def test_a_model_describes_itself(maas_connect):
    """`describe()` lists a module's layers with parameters; `info` tells versions and device."""
    model = maas_connect(net)
    layers = {layer["name"]: layer for layer in model.describe()["details"]["layers"]}
    assert layers["0"]["parameters"]["weight"] == ["float32", [32, 1000]]
    assert model.info.versions["torch"].startswith(torch.__version__.partition("+")[0])
    assert model.info.device == "cpu"
    assert (model.info.limits != {}) == (maas_connect.place != "here")


# 2. Five ways to call.


def test_five_ways_to_call_a_module(maas_connect):
    """Now, later, awaited, many, batched: the same numbers."""
    model = maas_connect(net)
    y = model(x)
    job = model.submit(x)
    assert torch.equal(job.result(PATIENCE), y)
    assert job.info.batch_size == 1
    assert job.info.compute_seconds > 0
    assert job.info.queue_seconds >= 0
    assert job.info.where == model.where

    async def awaited():
        return await model.submit(x)

    assert torch.equal(asyncio.run(awaited()), y)
    assert all(map(torch.equal, model.map([x] * 3), [y] * 3))
    xs = list(torch.randn(70, 1000).unbind())
    rows = list(model.map(xs, batch_size=32))
    wanted = [row for part in (xs[:32], xs[32:64], xs[64:]) for row in bare(net, torch.stack(part))]
    assert len(rows) == 70
    assert all(map(torch.equal, rows, wanted))


def test_a_generator_streams(maas_connect):
    """`for t in gen.stream(prompt)` and `async for` give the items in order."""
    model = maas_connect(gen)
    assert list(model.stream("a b c")) == ["a", "b", "c"]

    async def walked():
        return [t async for t in model.stream("a b c")]

    assert asyncio.run(walked()) == ["a", "b", "c"]


def test_a_method_is_asked_in_the_same_ways(maas_connect):
    """What a model has, each of its methods has."""
    enc = maas_connect(encoder)
    assert enc.encode.submit("a").result(PATIENCE) == [97]
    assert list(enc.encode.map(["a", "b"])) == [[97], [98]]
    assert enc.encode.with_options(timeout=PATIENCE)("a") == [97]


# 3. Where.


@contextmanager
def everywhere(tmp_path, monkeypatch) -> Iterator[dict[str, maas.Model]]:
    """The same module by each way that the contract has to say where."""
    (tmp_path / "mypkg.py").write_text(
        "import torch\n"
        "from test_contract_net import net\n"
        "def build() -> torch.nn.Module:\n    return net\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_contract_net", sys.modules[__name__])
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "tls.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = {"tls_cert": str(tmp_path / "tls.pem"), "tls_key": str(tmp_path / "tls.pem")}
    sock = str(tmp_path / "maas.sock")
    with (
        maas.serve({"net": net}, uds=sock, block=False),
        maas.serve({"net": net}, port=0, auth="token", block=False, **tls) as far,
    ):
        monkeypatch.setenv("MAAS_NET", f"http+unix://{urllib.parse.quote(sock, safe='')}/net")
        yield {
            "here": maas.connect(net),
            "wire": maas.connect(maas.Server(net)),
            "unix": maas.connect(f"http+unix://{urllib.parse.quote(sock, safe='')}/net"),
            "https": maas.connect(f"{far.url}/net", auth="token", verify=str(tmp_path / "ca.pem")),
            "local": maas.connect("local:mypkg:build"),
            "env": maas.connect(net, env="MAAS_NET"),
        }


@pytest.mark.skipif(sys.platform == "win32", reason="this platform has no unix sockets")
def test_where_is_one_argument(tmp_path, monkeypatch):
    """Whatever `connect` is told, the model is asked in the same words and answers the same."""
    with everywhere(tmp_path, monkeypatch) as models:
        for place, found in models.items():
            with found as model:
                assert model.ready(PATIENCE) is model, place
                assert torch.equal(model(x), bare(net, x)), place
        assert models["here"].where == models["local"].where == "here"
        assert models["env"].where == models["unix"].where
        assert models["https"].where.startswith("https://")


def test_like_keeps_types_and_finds_what_differs():
    """`connect(url, like=tokens)` is a signature diff if the server differs."""

    def longer(text: str, *, lower: bool = True, limit: int) -> list[int]:
        return []

    with maas.serve({"tokens": tokens, "longer": longer}, port=0, block=False) as server:
        with maas.connect(f"{server.url}/tokens", like=tokens) as model:
            assert model("Hi") == tokens("Hi")
        other = maas.connect(f"{server.url}/longer", like=tokens)
        with other as model, pytest.raises(maas.SignatureError, match="limit"):
            model("Hi")


def test_an_option_of_another_place_is_an_error():
    """A connect option that makes no sense is refused; call options are taken everywhere."""
    for option in ({"auth": "token"}, {"verify": "ca.pem"}, {"insecure": True}):
        with pytest.raises(TypeError, match=next(iter(option))):
            maas.connect(net, **option)
    with pytest.raises(TypeError, match="device"):
        maas.connect("http://localhost:1/net", device="cpu")


def test_call_options_are_taken_in_every_place(maas_connect):
    """`timeout`, `retries` and `priority` change nothing where nothing goes wrong."""
    model = maas_connect(net).with_options(timeout=PATIENCE, retries=2, priority=1)
    assert torch.equal(model(x), bare(net, x))


def test_what_may_not_run_twice_is_not_retried(maas_connect):
    """`retries` on a method that is neither pure nor carries a key is an error in every place."""
    with pytest.raises(maas.Unsupported, match="pure"):
        maas_connect(tokens).with_options(retries=2)("Hi")
    assert maas_connect(tokens).with_options(retries=2, key="once")("Hi") == [104, 105]


def test_there_is_no_fallback():
    """A model that cannot be reached is an error, and never run here instead."""
    gone = maas.connect("http://127.0.0.1:1/tokens", like=tokens)
    with gone as model, pytest.raises(maas.TransportError) as caught:
        model("Hi")
    assert isinstance(caught.value, ConnectionError)


# 4. Serve and embed.

BLOCKING = """
import maas

def tokens(text: str) -> list[str]:
    return text.split()

maas.serve({"tokens": tokens, "again": tokens}, port=0)
"""


def test_a_program_serves_until_it_is_told_to_stop():
    """`maas.serve({...})` blocks, says where, and ends well at SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", BLOCKING],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[-1]
        with maas.connect(f"{url}/tokens") as model:
            assert model("a b") == ["a", "b"]
        assert "again" in httpx.get(f"{url}/", headers={"accept": "text/html"}).text
    finally:
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")


def test_a_notebook_serves_in_the_background():
    """`with maas.serve(net, port=0, block=False) as s: s.url` is all a test needs."""
    with maas.serve(net, port=0, block=False) as s, maas.connect(s.url) as model:
        assert torch.equal(model(x), bare(net, x))
        assert httpx.get(f"{s.url}/healthz").json() == {"status": "alive"}
        reply = httpx.post(f"{model.where}/sequential", json=[x.tolist()])
        assert np.allclose(reply.json()["result"], bare(net, x))


def test_an_app_mounts_models():
    """`app.mount("/models", maas.Server({"net": net}))` serves beside the app's own routes."""
    app = fastapi.FastAPI()
    app.mount("/models", maas.Server({"net": net}))
    app.get("/own")(lambda: "mine")
    started = threading.Event()

    class Uvicorn(uvicorn.Server):
        async def startup(self, sockets=None) -> None:
            await super().startup(sockets)
            started.set()

    server = Uvicorn(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(PATIENCE)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/own").json() == "mine"
        with maas.connect(f"{url}/models/net") as model:
            assert torch.equal(model(x), bare(net, x))
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


@pytest.mark.parametrize("command", ["serve", "describe", "call", "bench"])
def test_the_command_line_has_these(command):
    """`maas serve | describe | call | bench` exist, also as `python -m maas`."""
    done = subprocess.run(
        [sys.executable, "-m", "maas", command, "--help"],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_server_stands_in_front_of_any_model(maas_connect):
    """A gateway is a server over a connected model, with no code of its own."""
    with (
        maas.serve({"net": maas_connect(net)}, port=0, block=False) as gateway,
        maas.connect(f"{gateway.url}/net") as model,
    ):
        assert torch.equal(model(x), bare(net, x))


def test_what_is_not_granted_is_refused():
    """A server lets callers call and describe unless told more; the error names the grant."""
    with pytest.raises(ValueError, match="insecure=True"):
        maas.serve(net, host="0.0.0.0", port=0, block=False)
    told = maas.Server(net, allow={"call", "grad", "train", "compress", "explain"})
    shy = maas.connect(maas.Server(net, allow={"describe"}))
    with shy as model, pytest.raises(maas.Forbidden, match="'call'"):
        model(x)
    with maas.connect(told) as model, pytest.raises(maas.Forbidden, match="'describe'"):
        model(x)


# 5. Options never mix with the model's own arguments.


class Held(torch.nn.Module):
    """A module that takes as long as it is held, and has an argument called `timeout`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def forward(self, x: torch.Tensor, *, timeout: float = 0.0) -> torch.Tensor:
        if timeout == 0:
            self.gate.wait(PATIENCE)
        return x + timeout


def test_options_are_not_arguments(maas_connect):
    """`with_options(timeout=0.5, ...)` bounds the call, which raises a TimeoutError; the model's
    own `timeout` is its own.
    """
    held = Held().eval()
    try:
        model = maas_connect(held)
        fast = model.with_options(timeout=0.5, retries=2, seed=7, priority=1)
        with pytest.raises(maas.DeadlineExceeded) as caught:
            fast(x)
        assert isinstance(caught.value, TimeoutError)
    finally:
        held.gate.set()
    assert torch.equal(model(x, timeout=0.25), x + 0.25)
    with pytest.raises(TypeError, match="tiemout"):
        model.with_options(tiemout=0.5)


# 6. Errors: the class you would get locally.


def refuse(bad: str) -> str:
    try:
        raise KeyError(bad)
    except KeyError as error:
        raise ValueError("not this", bad) from error


def test_an_error_is_the_class_it_would_be_here(maas_connect):
    """`except ValueError as e` catches it in every place, with arguments and cause; where it came
    from elsewhere, the traceback there is its last note.
    """
    model = maas_connect(refuse)
    with pytest.raises(ValueError, match="not this") as caught:
        model("bad")
    error = caught.value
    assert (type(error), error.args) == (ValueError, ("not this", "bad"))
    assert type(error.__cause__) is KeyError
    notes = getattr(error, "__notes__", ())
    assert [("in refuse" in note) for note in notes] == [True] * (maas_connect.place != "here")


def test_every_error_of_ours_is_in_one_tree():
    """Each class has its wire code and HTTP status, and is the standard class one would expect."""
    classes = [value for name in maas.__all__ if inspect.isclass(value := getattr(maas, name))]
    ours = [cls for cls in classes if issubclass(cls, Exception) and not issubclass(cls, Warning)]
    assert all(issubclass(cls, maas.Error) for cls in ours)
    assert len({cls.code for cls in ours}) == len(ours)
    assert all(400 <= cls.status < 600 for cls in ours)
    assert issubclass(maas.TransportError, ConnectionError)
    assert issubclass(maas.DeadlineExceeded, TimeoutError)
    assert issubclass(maas.SignatureError, TypeError)
    assert issubclass(maas.CodecError, ValueError)


# 10. Tests that run in every place.


def test_shape(maas_connect):
    """The fixture as the contract has it."""
    assert maas_connect(net)(x).shape == (8, 10)


@given(call=maas.testing.calls(tokens))
def test_same(maas_connect, call):
    """The strategy from a signature, and the comparison, as the contract has them."""
    maas.testing.assert_congruent(tokens, maas_connect(tokens), call)
