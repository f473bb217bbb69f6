"""The place "workers": a test's target in a worker process of its own, if it can be found there.

No code travels to a worker, so what a test makes in its body is in none. A target is found by an
import path (functions, and whatever a module has under a name), and a torch module whose layers
are known as a folder. For the rest the test is skipped, and says so.
"""

import contextlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from maas.errors import Unsupported
from maas.executors.spawning import worker_target
from maas.model import Model, connect
from maas.store import load, save

__all__ = ["opened_in_worker"]

_PATIENCE = 120.0
"""Seconds for a worker to import its target, on a machine that is busy with other tests."""


def opened_in_worker(
    target: Any, options: Mapping[str, Any], stack: contextlib.ExitStack
) -> Model[..., Any]:
    """A Model of `target` in a worker process, which ends when the stack is closed.

    The test is skipped where a worker cannot find the target, or cannot be told the options.
    """
    beyond = sorted(set(options) - {"name", "device"})
    if beyond:
        pytest.skip(f"a worker's model is made there, and is not told {', '.join(beyond)}=")
    own = target if isinstance(target, Model) else Model(target)
    # Of what has weights no import path is asked: they may be drawn anew there.
    where = _found(target) if own.info.kind in ("function", "object") else _stored(target, stack)
    if where is None:
        pytest.skip(f"a worker finds no {type(target).__name__} that a test has made")
    name = options.get("name") or own.name
    devices = [options["device"]] if options.get("device") else []
    model = stack.enter_context(connect(f"workers:{where}", name=name, devices=devices))
    model.ready(_PATIENCE)
    return model


def _found(target: Any) -> str | None:
    """The target's import path, if it has one."""
    with contextlib.suppress(TypeError):
        return worker_target(target)
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is target and module.__name__ != "__main__":
                return f"{module.__name__}:{name}"
    return None


def _stored(target: Any, stack: contextlib.ExitStack) -> str | None:
    """A folder that a worker can open by itself, if there can be one."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="maas-")), "model")
    try:
        save(target, folder)
        load(folder).close()
    except (TypeError, ValueError, Unsupported):
        return None
    return str(folder)
