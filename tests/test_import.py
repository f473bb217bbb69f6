"""Import is free: a name costs what it needs, and importing changes nothing in the process."""

import json
import os
import subprocess
import sys

import pytest

LOADED = """
import sys
{code}
print(*sorted(sys.modules))
"""

STATE = """
import atexit, builtins, json, logging, os, signal, sys, threading, warnings
import importlib, typing  # what any Python program may have loaded already

def state():
    return {
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "sys.path": list(sys.path),
        "sys.meta_path": [repr(finder) for finder in sys.meta_path],
        "sys.path_hooks": [repr(hook) for hook in sys.path_hooks],
        "hooks": [repr(hook) for hook in (sys.excepthook, sys.displayhook, sys.unraisablehook,
                                          threading.excepthook, warnings.showwarning)],
        "trace": [repr(sys.gettrace()), repr(sys.getprofile())],
        "signals": [repr(signal.getsignal(n)) for n in signal.valid_signals()],
        "warnings": [repr(line) for line in warnings.filters],
        "threads": [thread.name for thread in threading.enumerate()],
        "logging": [logging.root.level, repr(logging.root.handlers)],
        "atexit": atexit._ncallbacks(),
        "builtins": sorted(set(dir(builtins)) - {"_"}),
        "recursion": sys.getrecursionlimit(),
        "files": sorted(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else [],
    }

before = state()
import maas
after = state()
changed = [name for name in before if before[name] != after[name]]
print(json.dumps({name: [before[name], after[name]] for name in changed}))
"""


def _run(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    # Not this process's own environment: it has loaded maas, and what that set would be inherited.
    env = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout


def _modules(code: str) -> set[str]:
    return set(_run(LOADED.format(code=code)).split())


def test_importing_maas_loads_nothing_heavy():
    """`import maas` loads no torch, NumPy, HTTP, event loop or codec, and no room of ours."""
    loaded = _modules("import maas")
    heavy = {"asyncio", "attrs", "httptools", "httpx", "msgpack", "numpy", "ssl", "torch", "uvloop"}
    assert loaded & heavy == set()
    assert {name for name in loaded if name.startswith("maas.")} == set()


@pytest.mark.parametrize("name", ["Model", "connect"])
def test_a_local_model_loads_no_server_and_no_framework(name):
    """`maas.Model` and `maas.connect` come without torch, httpx and the server."""
    loaded = _modules(f"import maas; maas.{name}")
    assert loaded & {"hypothesis", "pytest", "torch", "httpx", "sklearn", "keras", "jax"} == set()
    rooms = {".".join(name.split(".")[:2]) for name in loaded if name.startswith("maas.")}
    far = {
        "server",
        "store",
        "data",
        "train",
        "compress",
        "explain",
        "security",
        "scale",
        "testing",
    }
    assert rooms & {f"maas.{room}" for room in far | {"cli"}} == set()


def test_a_plain_function_runs_without_torch():
    """A model that is a plain function is wrapped and called without torch being loaded."""
    code = "import maas\nassert maas.Model(lambda x: x + 1)(2) == 3"
    assert "torch" not in _modules(code)


def test_an_error_class_costs_only_its_file():
    """To catch `maas.Error` loads the room of errors and no other."""
    loaded = _modules("import maas; maas.Error")
    assert {name for name in loaded if name.startswith("maas.")} == {"maas.errors"}


def test_the_pytest_plugin_costs_nothing_until_it_is_used():
    """pytest loads our plugin wherever maas is installed; no framework or server comes along."""
    loaded = _modules("import maas.testing.plugin")
    assert loaded & {"hypothesis", "httpx", "torch"} == set()
    assert {name for name in loaded if name.startswith(("maas.server", "maas.model"))} == set()


def test_importing_maas_changes_nothing():
    """`import maas` leaves environment, paths, hooks, signals and threads as they were."""
    assert json.loads(_run(STATE)) == {}
