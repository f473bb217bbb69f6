"""Every test starts the command as a shell does, and looks at what a shell sees."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import attrs
import numpy as np
import pytest
import torch
import trustme

import maas
from maas.plots import plot

ROOT = Path(__file__).parents[1]
PATIENT = 60.0

NETS = """
import torch
import maas

torch.manual_seed(0)
net = torch.nn.Linear(3, 2)
learned = maas.Model(torch.nn.Linear(3, 2), name="learned", example=torch.zeros(8, 3))
"""

# Apart, since torch takes seconds to load.
TEXTS = '''
from collections.abc import Iterator
import maas

def tokens(text: str, *, lower: bool = True) -> list[str]:
    """Split a text into words."""
    return (text.lower() if lower else text).split()

class Chat:
    @maas.method
    def reply(self, prompt: str) -> Iterator[str]:
        """The answer, word by word."""
        yield from prompt.split()

    @maas.method
    def refuse(self):
        raise KeyError("no")

chat = Chat()
wrapped = maas.Model(tokens)
server = maas.Server({"tokens": tokens}, auth="open sesame")
number = object()
'''


@attrs.frozen
class Done:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a package of models, in which commands run."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "shop").mkdir()
    (folder / "shop" / "__init__.py").touch()
    (folder / "shop" / "nets.py").write_text(NETS)
    (folder / "shop" / "texts.py").write_text(TEXTS)
    (folder / "shop" / "broken.py").write_text("import nothing_of_the_kind\n")
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(3, 2))
    maas.save(maas.Model(net, name="saved"), folder / "store" / "saved")
    maas.save(maas.Model(net, name="other"), folder / "store" / "second")
    np.save(folder / "x.npy", np.ones((1, 3), np.float32))
    return folder


def environment(**variables: str) -> dict[str, str]:
    known = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {**known, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **variables}


def run(folder: Path, *arguments: str, stdin: str = "", **variables: str) -> Done:
    """`maas` with these arguments, to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "maas", *arguments],
        cwd=folder,
        env=environment(**variables),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENT,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def serving(folder: Path, *arguments: str, **variables: str) -> Iterator[str]:
    """`maas serve` with these arguments; gives its URL, and sees that SIGTERM ends it well."""
    process = subprocess.Popen(
        [sys.executable, "-m", "maas", "serve", *arguments],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield announced(process)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENT)
    assert process.returncode == 0, err


def announced(process: subprocess.Popen[str]) -> str:
    """The URL in the line that tells that the server is ready."""
    out: IO[str] = process.stdout  # type: ignore[assignment]
    line = out.readline()
    found = re.search(r" at (\S+)$", line)
    assert found is not None, line + (process.stderr.read() if process.stderr else "")
    return found[1]


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    """The address of a server of all the models."""
    targets = ["shop.nets:net", "words=shop.texts:tokens", "shop.texts:chat", "store/"]
    with serving(folder, *targets, "shop.nets:learned", "--port", "0", "--drain-delay", "0") as url:
        yield url


# The command itself.


@pytest.mark.parametrize("command", ["", "serve", "describe", "call", "bench", "key"])
def test_help_teaches(folder, command):
    """Each command's help has a purpose and examples, in lines that a terminal holds."""
    done = run(folder, *filter(None, [command]), "--help")
    assert done.code == 0
    assert "examples:\n  maas " in done.out
    assert max(map(len, done.out.splitlines())) <= 100


def test_no_command_shows_help(folder):
    """`maas` alone shows the help, and tells by its exit code that nothing was done."""
    done = run(folder)
    assert (done.code, done.err) == (2, "")
    assert "examples:" in done.out


def test_version(folder):
    """`maas --version` prints the version."""
    assert run(folder, "--version").out.strip() == maas.__version__


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("srve x", "did you mean 'serve'"),
        ("what", "there are: serve, describe, call, bench, key"),
        ("serve shop.texts:tokens --prt 1", "did you mean '--port'"),
        ("serve shop.texts:tokens --port eight", "0 to 65535"),
        ("serve shop.texts:tokens --port 70000", "0 to 65535"),
        ("serve shop.texts:token", "did you mean 'tokens'"),
        ("serve shop.texts:chat.replay", "did you mean 'reply'"),
        ("serve shop.texts:zzz", "it has: "),
        ("serve shop.text:tokens", "did you mean 'texts'"),
        ("serve shp.texts:tokens", "no module 'shp'; did you mean 'shop'"),
        ("serve zzzzz:net", "no module 'zzzzz'; modules are looked for in"),
        ("serve shop/texts.py", "shop.texts:net"),
        ("serve ./shop/texts.py", "such as shop.texts:net"),
        ("serve shop/texts.py:tokens", "such as shop.texts:net"),
        ("serve texts.py:tokens", "such as texts:net"),
        ("serve stroe/", "did you mean 'store'"),
        ("serve shop", "no model that maas.save() made"),
        ("serve net", "neither module:attribute"),
        ("serve a-b:net", "no module's name"),
        ("serve =shop.texts:tokens", "wants a name"),
        ("serve Bad!=shop.texts:tokens", "a model's name matches"),
        ("serve shop.texts:Chat", "is a class"),
        ("serve shop.texts:number", "cannot be served"),
        ("serve shop.texts:tokens tokens=shop.texts:wrapped", "two models are called 'tokens'"),
        ("serve shop.texts:wrapped --device cpu", "already"),
        ("serve shop.nets:net --device meta:9:9", "--device meta:9:9"),
        (
            "serve shop.texts:tokens --allow train --port 0 --jobs x.npy/kept",
            "x.npy/kept': Not a dir",
        ),
        ("serve shop.texts:tokens --collect x.npy/kept", "x.npy/kept': Not a dir"),
        ("serve shop.texts:tokens --drain-delay -1", "0 for none"),
        ("serve shop.texts:tokens --max-batch-size 0", "1 to 1000000"),
        ("serve shop.texts:server shop.texts:tokens", "served alone"),
        ("serve shop.texts:server --allow call", "its own auth and allow"),
        ("serve shop.texts:server --collect kept", "jobs and collect"),
        ("serve shop.texts:tokens --allow cal", "did you mean 'call'"),
        ("serve shop.texts:tokens --auth NOT_SET", "environment variable"),
        ("serve shop.texts:tokens --auth A --key-file B", "give one"),
        ("serve shop.texts:tokens --key-file no.toml", "there is no file 'no.toml'"),
        ("serve shop.texts:tokens --key-file x.npy", "key"),
        ("serve shop.texts:tokens --host 0.0.0.0", "--insecure"),
        ("serve shop.texts:tokens --tls-key x.npy", "--tls-cert"),
        ("describe localhost:8000/net", "did you mean 'http://localhost:8000/net'"),
        ("describe gopher://host/net", "gopher"),
        ("call http://localhost:1/net --output y.txt", "known: .npy, .safetensors, .json"),
        ("call http://localhost:1/net --output no/y.npy", "no folder"),
        ("call http://localhost:1/net --timeout soon", "seconds"),
        ("bench http://localhost:1/net --concurrency 0", "1 to 1000"),
        ("key alice/bob", "letters, digits"),
        ("key alice --allow everything", "there are: call"),
    ],
)
def test_mistakes_are_named(folder, command, words):
    """A wrong command ends with code 2, nothing on standard output, and a message that helps."""
    done = run(folder, *command.split(), A="key")
    assert (done.code, done.out) == (2, ""), done.err
    assert words in done.err
    assert "Traceback" not in done.err


def test_errors_of_a_module_are_its_own(folder):
    """A module that fails to import is an error of that module, with a traceback when asked for."""
    done = run(folder, "serve", "shop.broken:net")
    assert done.code == 1
    assert done.err.startswith("ModuleNotFoundError: No module named 'nothing_of_the_kind'")
    assert "Traceback" not in done.err
    done = run(folder, "serve", "shop.broken:net", "--traceback")
    assert "broken.py" in done.err


# serve


def test_port_in_use(folder):
    """A port that another program has is named, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = run(folder, "serve", "shop.texts:tokens", "--port", port)
    assert done.code == 2
    assert f"port {port} of 127.0.0.1 is in use" in done.err
    assert "--port" in done.err


def test_unix_socket(folder, tmp_path):
    """`--uds` serves at a path, which `call` reaches, and a second server there is refused."""
    path = str(tmp_path / "s")
    with serving(folder, "shop.texts:tokens", "--uds", path) as url:
        done = run(folder, "call", f"{url}/tokens", "-", stdin='["A b"]')
        assert done.out == '["a", "b"]\n'
        done = run(folder, "serve", "shop.texts:tokens", "--uds", path)
        assert done.code == 2
        assert "in use" in done.err


def test_key_in_a_variable(folder):
    """`--auth VARIABLE` asks callers for the key it holds, and shows it when asking."""
    with serving(folder, "shop.texts:tokens", "--port", "0", "--auth", "K", K="a") as url:
        asked = ("call", f"{url}/tokens", "-")
        assert run(folder, *asked, stdin='["A"]').code == 1
        assert "Unauthenticated" in run(folder, *asked, stdin='["A"]').err
        assert run(folder, *asked, "--auth", "K", stdin='["A"]', K="a").out == '["a"]\n'
        assert "Unauthenticated" in run(folder, *asked, "--auth", "K", stdin='["A"]', K="b").err


def test_key_file(folder, tmp_path):
    """What `maas key` prints is a key file, in which only the digest of the key stands."""
    made = run(folder, "key", "alice", "--allow", "call,describe", "--models", "tokens")
    key = made.err.strip().rpartition(" ")[2]
    assert key not in made.out
    assert tomllib.loads(made.out)["alice"] == {
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "allow": ["call", "describe"],
        "models": ["tokens"],
    }
    path = tmp_path / "keys.toml"
    path.write_text(made.out + run(folder, "key", "bob").out)
    targets = ("shop.texts:tokens", "shop.texts:chat")
    with serving(folder, *targets, "--port", "0", "--key-file", str(path)) as url:
        done = run(folder, "call", f"{url}/tokens", "-", "--auth", "K", stdin='["A"]', K=key)
        assert done.out == '["a"]\n', done.err
        done = run(folder, "call", f"{url}/chat", "--method", "refuse", "--auth", "K", K=key)
        assert done.code == 1


def test_grants(folder):
    """`--allow` says what callers may do."""
    with serving(folder, "shop.texts:tokens", "--port", "0", "--allow", "describe") as url:
        done = run(folder, "call", f"{url}/tokens", "-", stdin='["A"]')
    assert done.code == 1
    assert "grant 'call'" in done.err


def test_server_of_its_own(folder):
    """A `maas.Server` is served as it is, with its own key."""
    with serving(folder, "shop.texts:server", "--port", "0") as url:
        assert "Unauthenticated" in run(folder, "describe", f"{url}/tokens").err
        done = run(folder, "describe", f"{url}/tokens", "--auth", "K", K="open sesame")
        assert done.code == 0


# TLS


@pytest.fixture
def certified(tmp_path) -> tuple[tuple[str, ...], str]:
    """Options of a server with a certificate, and the file of the authority that gave it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    for name, blobs in {
        "chain.pem": certificate.cert_chain_pems,
        "key.pem": [certificate.private_key_pem],
        "ca.pem": [authority.cert_pem],
        "other.pem": [trustme.CA().cert_pem],
    }.items():
        (tmp_path / name).write_bytes(b"".join(blob.bytes() for blob in blobs))
    options = ("--tls-cert", str(tmp_path / "chain.pem"), "--tls-key", str(tmp_path / "key.pem"))
    return options, str(tmp_path / "ca.pem")


def test_tls(folder, certified):
    """`serve --tls-cert --tls-key` is asked by `call`, `describe` and `bench` with --ca, keys
    and all.
    """
    options, ca = certified
    guarded = ("--auth", "K", *options)
    with serving(folder, "shop.texts:tokens", "--port", "0", *guarded, K="a") as url:
        assert url.startswith("https://127.0.0.1:")
        trusting = (f"{url}/tokens", "--ca", ca, "--auth", "K")
        done = run(folder, "call", *trusting, "-", stdin='["A b"]', K="a")
        assert (done.code, done.out) == (0, '["a", "b"]\n'), done.err
        done = run(folder, "describe", *trusting, K="a")
        assert (done.code, done.out.splitlines()[1]) == (0, f"at {url}/tokens"), done.err
        done = run(folder, "bench", *trusting, "--seconds", "0.1", "--json", K="a")
        assert json.loads(done.out)["calls"] >= 1, done.err
        done = run(folder, "call", *trusting, "-", stdin='["A b"]', K="b")
        assert (done.code, done.err.partition(":")[0]) == (1, "Unauthenticated")


def test_tls_that_proves_nothing_is_refused(folder, certified):
    """Without --ca, with another's, or in clear, nothing is asked and the key is not shown."""
    options, ca = certified
    other = str(Path(ca).with_name("other.pem"))
    with serving(folder, "shop.texts:tokens", "--port", "0", *options) as url:
        for trust in ((), ("--ca", other)):
            done = run(folder, "call", f"{url}/tokens", "-", *trust, stdin='["A"]')
            assert (done.code, done.out) == (1, "")
            assert "certificate" in done.err
        clear = url.replace("https", "http")
        assert run(folder, "describe", f"{clear}/tokens").code == 1
        done = run(folder, "describe", f"{clear}/tokens", "--ca", ca)
        assert (done.code, "use https://" in done.err) == (2, True), done.err
        done = run(folder, "describe", f"{url}/tokens", "--ca", "no.pem")
        assert done.code == 2, done.err
        assert "no.pem" in done.err


def test_half_a_lock_is_none(folder, certified):
    """Off this machine, a key without TLS and TLS without a key are refused."""
    options, _ = certified
    for half in (options, ("--auth", "K")):
        done = run(folder, "serve", "shop.texts:tokens", "--host", "0.0.0.0", *half, K="a")
        assert done.code == 2
        assert "--insecure" in done.err


# describe


def test_describe(folder, url):
    """`describe` tells kind, signature, documentation, layers and versions."""
    out = run(folder, "describe", f"{url}/net").out
    assert out.startswith(f"net (torch, cpu, train mode)\nat {url}/net\n")
    assert "weight [2, 3], bias [2]" in out
    assert f"torch {torch.__version__.partition('+')[0]}" in out
    out = run(folder, "describe", f"{url}/words").out
    assert "words(text: str, *, lower: bool = True) -> list[str]\n    Split a text" in out
    assert "chat.reply(prompt: str) -> Iterator[str]" in run(folder, "describe", f"{url}/chat").out


def test_describe_as_json(folder, url):
    """`describe --json` prints all there is."""
    data = json.loads(run(folder, "describe", f"{url}/net", "--json").out)
    assert data["name"] == "net"
    assert data["details"]["layers"][0]["parameters"]["bias"] == ["float32", [2]]


def test_server_of_many(folder, url):
    """The address of a server with several models names them."""
    done = run(folder, "describe", url)
    assert done.code == 1
    assert "chat, learned, net, saved, second, words" in done.err


# call


def reference(folder: Path) -> np.ndarray:
    """The answer of the saved model to x.npy, computed here."""
    return maas.load(folder / "store" / "saved")(np.load(folder / "x.npy"))


def test_call_with_an_array(folder, url, tmp_path):
    """A .npy file is the argument, and --output writes the very array that the model gave."""
    output = str(tmp_path / "y.npy")
    done = run(folder, "call", f"{url}/saved", "x.npy", "--output", output)
    assert (done.code, done.out) == (0, ""), done.err
    np.testing.assert_array_equal(np.load(output), reference(folder))
    done = run(folder, "call", f"{url}/saved", "x.npy")
    assert done.out.startswith("float32[1, 2]\n[[")


@pytest.mark.parametrize("kind", ["npz", "npz in order", "safetensors", "json", "json in order"])
def test_call_with_a_file(folder, url, tmp_path, kind):
    """Arguments are read by name or in order from .npz, .safetensors and .json."""
    x = np.load(folder / "x.npy")
    path = tmp_path / f"x.{kind.partition(' ')[0]}"
    output = tmp_path / "y.json"
    match kind:
        case "npz":
            np.savez(path, input=x)
        case "npz in order":
            np.savez(path, x)
        case "safetensors":
            safetensors = pytest.importorskip("safetensors.numpy")
            safetensors.save_file({"input": x}, path)
        case "json":
            path.write_text(json.dumps({"input": x.tolist()}))
        case "json in order":
            path.write_text(json.dumps([x.tolist()]))
    done = run(folder, "call", f"{url}/saved", str(path), "--output", str(output))
    assert done.code == 0, done.err
    assert json.loads(output.read_text()) == reference(folder).tolist()


def test_call_writes_safetensors(folder, url, tmp_path):
    """--output to .safetensors writes the answer's arrays by name."""
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "y.safetensors"
    run(folder, "call", f"{url}/saved", "x.npy", "--output", str(path))
    np.testing.assert_array_equal(safetensors.load_file(path)["result"], reference(folder))


def test_call_with_standard_input(folder, url):
    """`-` reads a JSON call, and options of the call are arguments by name."""
    text = json.dumps({"text": "Grüße An", "lower": False})
    assert run(folder, "call", f"{url}/words", "-", stdin=text).out == '["Grüße", "An"]\n'


def test_options_may_stand_anywhere(folder, url):
    """Options between the address and the file, or before both, are understood."""
    for words in (("x.npy", "--timeout", "60"), ("--timeout", "60", "x.npy")):
        done = run(folder, "call", f"{url}/saved", *words)
        assert (done.code, done.out.partition("[")[0]) == (0, "float32"), done.err
    done = run(folder, "call", "--timeout", "60", f"{url}/words", "-", stdin='["a"]')
    assert (done.code, done.out) == (0, '["a"]\n'), done.err
    done = run(folder, "call", f"{url}/saved", "--timeot", "60", "x.npy")
    assert (done.code, "did you mean '--timeout'" in done.err) == (2, True), done.err


def test_call_streams(folder, url):
    """A method that streams prints each item, and --output writes their list."""
    asked = ("call", f"{url}/chat", "-", "--method", "reply")
    assert run(folder, *asked, stdin='["a b c"]').out == "a\nb\nc\n"


def test_call_without_a_reader(folder, url):
    """Output that nobody reads any more ends a stream quietly."""
    command = [sys.executable, "-m", "maas", "call", f"{url}/chat", "-", "--method", "reply"]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdin=-1, stdout=-1, stderr=-1, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(json.dumps(["a " * 100_000]), timeout=PATIENT)
    assert (process.returncode, err) == (1, "")


@pytest.mark.parametrize(
    ("command", "stdin", "words"),
    [
        ("words x.txt", "", "known: .npy, .npz, .safetensors, .json, - for JSON"),
        ("words x.npz", "", "there is no file 'x.npz'; did you mean 'x.npy'"),
        ("words -", "{", "standard input: the body is no JSON"),
        ("chat", "", "--method refuse or reply"),
        ("chat --method replay", "", "did you mean 'reply'"),
        ("words - --output y.npy", '["a"]', "no array; write it to a .json file"),
    ],
)
def test_mistakes_in_calls_are_named(folder, url, command, stdin, words):
    """A call that makes no sense ends with code 2 and a message that helps."""
    model, *rest = command.split()
    done = run(folder, "call", f"{url}/{model}", *rest, stdin=stdin)
    assert done.code == 2, done.err
    assert words in done.err
    assert not (folder / "y.npy").exists()


def test_errors_of_the_model(folder, url):
    """An error of the model ends with code 1 and its message; --traceback tells where it arose."""
    asked = ("call", f"{url}/chat", "--method", "refuse")
    done = run(folder, *asked)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("KeyError: 'no'\n")
    assert "Traceback" not in done.err
    assert "in refuse" in run(folder, *asked, "--traceback").err


def test_wrong_arguments(folder, url):
    """Arguments that do not fit end with code 1 and Python's own words."""
    done = run(folder, "call", f"{url}/words", "-", stdin='{"txt": "a"}')
    assert done.code == 1
    assert "Did you mean 'text'?" in done.err


def test_timeout(folder):
    """A server that stays silent for longer than --timeout ends a command with code 1."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"http://127.0.0.1:{port}/net"
        done = run(folder, "call", url, "x.npy", "--timeout", "0.2")
    assert done.code == 1
    assert done.err.startswith("DeadlineExceeded: ")


# bench


def test_bench(folder, url):
    """`bench` makes an example from the signature, counts calls, and prints their latencies."""
    done = run(folder, "bench", f"{url}/learned", "--seconds", "0.3", "--concurrency", "2")
    assert done.code == 0, done.err
    assert re.search(r"^answered +[\d,]+ in [\d.]+ s, 2 at once$", done.out, re.MULTILINE)
    assert re.search(r"^goodput +[\d,.]+ calls/s$", done.out, re.MULTILINE)
    assert re.search(r"^latency +p50 \S+ ms +p90 .* p99.9 \S+ ms", done.out, re.MULTILINE)
    assert re.search(r"^errors +none$", done.out, re.MULTILINE)
    assert done.err == ""


@pytest.mark.parametrize("command", ["saved x.npy", "words", "chat - --method reply", "net"])
def test_bench_as_json(folder, url, command):
    """`bench --json` prints figures that fit together, of any kind of method."""
    model, *rest = command.split()
    done = run(
        folder, "bench", f"{url}/{model}", *rest, "--seconds", "0.2", "--json", stdin='["a"]'
    )
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    latency = figures["latency_seconds"]
    assert figures["calls"] >= 1
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert figures["calls_per_second"] == pytest.approx(figures["calls"] / figures["seconds"])


def test_bench_of_a_failing_model(folder, url):
    """A model that fails at the first call is not measured: code 1, and its error."""
    done = run(folder, "bench", f"{url}/chat", "--method", "refuse")
    assert done.code == 1
    assert done.err.startswith("KeyError")


def test_bench_counts_errors_by_class(folder):
    """Calls that fail during the measurement are counted by their class, and are no goodput."""
    asked = iter(range(10**9))

    def moody(period: int) -> int:
        if (turn := next(asked) % period) == 1:
            raise KeyError("no")
        if turn == 2:
            raise LookupError("no")
        return turn

    with maas.serve(moody, port=0, block=False) as server:
        asks = ("bench", server.url, "-", "--seconds", "0.3", "--json")
        done = run(folder, *asks, stdin="[3]")
    figures = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert figures["errors"].keys() == {"KeyError", "LookupError"}
    assert figures["errors"]["KeyError"] == pytest.approx(figures["calls"], abs=2)


def test_bench_sweeps(folder, url):
    """`bench --sweep` measures 1, 2, 4, ... calls at once, a line each, and draws the picture."""
    done = run(folder, "bench", f"{url}/learned", "--seconds", "0.2", "--sweep", "3")
    assert done.code == 0, done.err
    rows = re.findall(r"^ +(\d+) +[\d,.]+ (?: *\S+ ms){4}  none$", done.out, re.MULTILINE)
    assert rows == ["1", "2", "3"]
    assert "calls/s" in done.out.splitlines()[-2]
    figures = run(folder, "bench", f"{url}/learned", "--seconds", "0.1", "--sweep", "2", "--json")
    assert [each["concurrency"] for each in json.loads(figures.out)["runs"]] == [1, 2]


@pytest.mark.parametrize(
    "points",
    [
        [(1.0, 1.0, "1")],
        [(0.001, 1e-9, "1"), (1e9, 1e9, "1000"), (5e8, 1.0, ".")],
        [(5.0, 2.0, "1"), (5.0, 2.0, "2"), (5.1, 2.0, ".")],
        [(100.0 * n, 0.5 * 2**n, str(2**n)) for n in range(1, 8)],
    ],
)
def test_plot_holds_its_points(points):
    """A picture is as wide as a terminal, has every mark that another does not hide, and axes."""
    lines = list(plot(points, "calls/s", "ms"))
    assert max(map(len, lines)) <= 80
    assert len({len(line) for line in lines[-2:]}) >= 1
    text = "\n".join(lines)
    assert text.isascii()
    assert points[0][2] in text
    assert lines[-1].endswith("calls/s")


def test_interrupt(folder, url):
    """Ctrl-C ends a command at once, without a traceback."""
    code = textwrap.dedent(
        f"""
        import _thread, sys, threading
        from maas.cli import benchmark, main
        began = threading.Event()
        run = benchmark._Run._work
        def work(self):
            began.set()
            run(self)
        benchmark._Run._work = work
        threading.Thread(target=lambda: (began.wait(), _thread.interrupt_main())).start()
        sys.exit(main(["bench", "{url}/learned", "--seconds", "50"]))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "")
