"""A second environment, in which torch is not installed: it calls, streams, fails and serves.

The environment is made by `pip install .` without extras, and every program in it is a process
of its own. What it calls is served from here, where torch is.
"""

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import maas

ROOT = Path(__file__).parents[1]
PATIENT = 60.0

CORE = {"attrs", "httptools", "httpx", "maas-sdk", "msgpack", "numpy", "uvloop"}
"""What is installed, apart from what httpx needs."""


def known() -> dict[str, str]:
    """The variables that pip and a proxy-free program need, and no path of this environment."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def ran(python: Path, *arguments: str, patience: float = PATIENT, **options):
    return subprocess.run(
        [str(python), *arguments],
        capture_output=True, text=True, timeout=patience, check=False, env=known(), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def python(tmp_path_factory, lacking) -> Path:
    """The interpreter of a fresh environment with this checkout, without extras."""
    place = tmp_path_factory.mktemp("bare") / "venv"
    here = Path(sys.executable)
    made = ran(here, "-m", "venv", "--without-pip", str(place))
    assert made.returncode == 0, made.stdout + made.stderr
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = ("-m", "pip", "--python", str(python), "--quiet", "--retries", "1")
    done = ran(here, *pip, "install", str(ROOT), patience=280, cwd=place)
    if done.returncode:
        probe = ran(here, *pip, "download", "--no-deps", "attrs", patience=120, cwd=place)
        assert probe.returncode, f"pip install . failed:\n{done.stderr}"
        lacking("index", f"no package index is reachable ({probe.stderr.strip().splitlines()[-1]})")
    return python


@pytest.fixture(scope="module")
def run(python, tmp_path_factory) -> Callable[..., str]:
    """Runs a program in that environment, in an empty folder; gives what it prints."""
    folder = tmp_path_factory.mktemp("work")

    def run(program: str, *arguments: str) -> str:
        code = textwrap.dedent(program)
        done = ran(python, "-W", "error", "-c", code, *arguments, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, *, as_type: str = "float32") -> dict[str, torch.Tensor]:
        y = self.layer(x)
        return {"y": y.to(getattr(torch, as_type)), "shape": torch.tensor(y.shape)}


class Words:
    @maas.method
    def spell(self, text: str) -> Iterator[str]:
        yield from text
        if text == "bad":
            raise LookupError("no more", len(text))

    @maas.method
    async def count(self, upto: int) -> AsyncIterator[int]:
        for n in range(upto):
            yield n

    @maas.method(pure=True)
    def exhausted(self) -> None:
        raise torch.OutOfMemoryError("too large")


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def url(net) -> Iterator[str]:
    server = maas.serve({"net": net, "words": Words()}, port=0, block=False)
    with server:
        yield server.url


def test_the_core_is_small(run):
    """`pip install .` brings six packages and what httpx needs: no torch, no other framework."""
    out = run("""
        import importlib.metadata, importlib.util, json
        names = sorted(each.name.lower() for each in importlib.metadata.distributions())
        print(json.dumps([names, importlib.util.find_spec("torch") is None]))
    """)
    names, absent = json.loads(out)
    assert absent
    brought = {"anyio", "certifi", "h11", "httpcore", "idna", "typing_extensions"}
    assert set(names) - brought == CORE


def test_numpy_goes_in_and_comes_out(run, url, net):
    """A torch module is called with NumPy arrays, and its answer is the module's, bit for bit."""
    out = run(
        """
        import json, sys, maas, numpy as np
        x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
        with maas.connect(sys.argv[1] + "/net") as model:
            answers = [model(x), model.submit(x).result(30), next(model.map([x]))]
            print(model.info.kind, model.training)
        for found in answers:
            assert type(found["y"]) is np.ndarray and found["y"].flags.writeable
            print(found["y"].dtype, found["y"].shape, found["y"].tobytes().hex(),
                  found["shape"].dtype, found["shape"].tolist())
        assert "torch" not in sys.modules
        """,
        url,
    )
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    wanted = maas.Model(net)(x)["y"]
    first, *answers = out.splitlines()
    assert first == "torch False"
    line = f"float32 (4, 2) {wanted.tobytes().hex()} int64 [4, 2]"
    assert answers == [line] * 3


def test_a_dtype_that_numpy_lacks_is_carried_raw(run, url, net):
    """bfloat16 arrives as a `RawTensor`: dtype, shape and the very bytes, which may be sent on."""
    out = run(
        """
        import sys, maas, numpy as np
        x = np.ones((1, 3), np.float32)
        raw = maas.connect(sys.argv[1] + "/net")(x, as_type="bfloat16")["y"]
        assert type(raw) is maas.RawTensor
        print(raw.dtype, raw.shape, bytes(raw.data).hex())
        """,
        url,
    )
    wanted = net(torch.ones(1, 3), as_type="bfloat16")["y"].detach()
    assert out.split(maxsplit=1) == [
        "bfloat16",
        f"(1, 2) {wanted.view(torch.uint8).numpy().tobytes().hex()}\n",
    ]


def test_streams_arrive(run, url):
    """Items of generators come one by one, in a loop and in an async loop, to their own end."""
    out = run(
        """
        import asyncio, sys, maas
        words = maas.connect(sys.argv[1] + "/words")
        print(list(words.spell.stream("abc")))

        async def counted():
            print([n async for n in words.count.stream(4)])

        asyncio.run(counted())
        got = []
        try:
            for letter in words.spell.stream("bad"):
                got.append(letter)
        except LookupError as error:
            print(got, type(error).__name__, error.args)
        words.close()
        """,
        url,
    )
    assert out.splitlines() == [
        "['a', 'b', 'c']",
        "[0, 1, 2, 3]",
        "['b', 'a', 'd'] LookupError ('no more', 3)",
    ]


def test_errors_keep_their_class(run, url, net):
    """A model's error is the same class with the same words; one of torch's own is the nearest
    ancestor that is known.
    """
    out = run(
        """
        import sys, maas, numpy as np
        model = maas.connect(sys.argv[1] + "/net")
        words = maas.connect(sys.argv[1] + "/words")
        for call in (lambda: model(np.ones((1, 7), np.float32)),
                     lambda: model(np.ones((1, 3)), as_type=5),
                     lambda: words.exhausted(),
                     lambda: words.nothing(),
                     lambda: maas.connect(sys.argv[1] + "/nobody")()):
            try:
                call()
            except Exception as error:
                print(type(error).__name__, "|", str(error).splitlines()[0])
        """,
        url,
    )
    with pytest.raises(RuntimeError) as caught:
        net(torch.ones(1, 7))
    lines = [line.split(" | ") for line in out.splitlines()]
    assert lines[0] == ["RuntimeError", str(caught.value)]
    assert [name for name, _ in lines] == [
        "RuntimeError", "SignatureError", "RuntimeError", "AttributeError", "NotFound",
    ]  # fmt: skip
    assert lines[2][1] == "too large"


def test_functions_and_objects_run_there(run):
    """Wrapping a function or an object needs no torch; what cannot be wrapped says why."""
    out = run("""
        import maas, numpy as np

        @maas.Model
        def scaled(x: np.ndarray, *, by: float = 2.0) -> np.ndarray:
            return x * by

        class Counter:
            total = 0

            @maas.method
            def add(self, n: int) -> int:
                self.total += n
                return self.total

        counter = maas.Model(Counter())
        print(scaled(np.arange(3)), counter.add(2), counter.add(3), maas.connect(scaled).where)
        with maas.connect(maas.Server(scaled)) as wired:
            print(wired(np.arange(3.0), by=0.5))
        try:
            maas.Model(object())
        except TypeError as error:
            print("is not callable" in str(error))
    """)
    assert out == "[0. 2. 4.] 2 5 here\n[0.  0.5 1. ]\nTrue\n"


def test_a_model_folder_says_what_it_needs(run, tmp_path):
    """A saved torch module asks for torch by the name to install, with no step half done."""
    maas.save(maas.Model(torch.nn.Sequential(torch.nn.Linear(3, 2))), tmp_path / "net")
    out = run(
        """
        import sys, maas
        try:
            maas.load(sys.argv[1])
        except ImportError as error:
            print(error)
        """,
        str(tmp_path / "net"),
    )
    assert "pip install 'maas-sdk[torch]'" in out


SERVED = """
from collections.abc import Iterator
import numpy as np

def scaled(x: np.ndarray, *, by: float = 2.0) -> np.ndarray:
    if by == 0:
        raise ZeroDivisionError("by is zero", by)
    return x * by

def spell(text: str) -> Iterator[str]:
    yield from text
"""


def test_a_function_is_served_there(python, tmp_path):
    """`maas serve` there answers a program here, torch tensors and all, and ends at SIGTERM."""
    (tmp_path / "shop.py").write_text(SERVED)
    process = subprocess.Popen(
        [python, "-W", "error", "-m", "maas", "serve", "shop:scaled", "shop:spell", "--port", "0"],
        cwd=tmp_path, env=known(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split(" at ")[-1].strip()
        scaled, spell = maas.connect(f"{url}/scaled"), maas.connect(f"{url}/spell")
        np.testing.assert_array_equal(scaled(np.arange(3.0)), [0, 2, 4])
        assert scaled(torch.arange(3.0), by=0.5).tolist() == [0, 0.5, 1]
        assert "torch" not in scaled.info.versions
        with pytest.raises(ZeroDivisionError, match="by is zero"):
            scaled(np.arange(3.0), by=0.0)
        assert list(spell.stream("ab")) == ["a", "b"]

        async def awaited():
            return (await scaled.submit(np.ones(1)), [each async for each in spell.stream("cd")])

        ones, letters = asyncio.run(awaited())
        assert (ones.tolist(), letters) == ([2], ["c", "d"])
        scaled.close()
        spell.close()
    finally:
        process.terminate()
        _, err = process.communicate(timeout=PATIENT)
    assert (process.returncode, err) == (0, "")


def test_the_command_asks_from_there(python, url, net, tmp_path):
    """`maas describe` and `maas call` need no extra."""
    np.save(tmp_path / "x.npy", np.ones((1, 3), np.float32))
    done = ran(python, "-W", "error", "-m", "maas", "describe", f"{url}/net", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "net(x: tensor, *, as_type: str = 'float32')" in done.stdout
    done = ran(
        python, "-m", "maas", "call", f"{url}/net", "x.npy", "--output", "y.json", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    wanted = maas.Model(net)(np.ones((1, 3), np.float32))["y"].tolist()
    assert json.loads((tmp_path / "y.json").read_text())["y"] == wanted
    asked = ("call", f"{url}/words", "-", "--method", "spell")
    done = ran(python, "-m", "maas", *asked, input='["ab"]', cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "a\nb\n"), done.stderr
