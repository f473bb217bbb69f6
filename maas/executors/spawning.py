"""Worker processes: fresh interpreters that find their model themselves.

    connect("workers:package.module:name", count=4, devices=["cuda:0", "cuda:1"])

No model and no code travels to a worker: it imports its target, or opens a model folder, and
is told which as text. So there is nothing to pickle, and no `if __name__ == "__main__"` to write.
It inherits one socket and nothing else.
"""

import base64
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from maas import wire
from maas.calls import CALL, Call
from maas.executors.base import NAME
from maas.executors.crew import Process
from maas.executors.supervision import Pace
from maas.executors.workers import WorkerExecutor
from maas.limits import Limits

__all__ = ["connect_workers", "worker_name", "worker_target"]


class _Spawned:
    """A fresh interpreter that runs `maas.worker`."""

    def __init__(self, order: bytes, environment: dict[str, str]) -> None:
        self.control, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and our module
                    [sys.executable, "-m", "maas.worker", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    # Its own group: Ctrl-C is for the server, which then dismisses its workers.
                    process_group=0,
                )
            self.control.sendall(len(order).to_bytes(8) + order)
        except BaseException:
            self.control.close()
            raise

    @property
    def pid(self) -> int:
        """Its number in this system."""
        return self._process.pid

    def kill(self) -> None:
        """Ends it now."""
        self._process.kill()

    def wait(self) -> None:
        """Returns once it has ended."""
        self._process.wait()


def worker_target(target: Any) -> str:
    """How a worker finds the target: its import path, or its folder.

    Raises
    ------
    TypeError
        It is an object of this process, which a worker cannot find.
    """
    if isinstance(target, str | os.PathLike):
        return os.fspath(target)
    module, name = getattr(target, "__module__", ""), getattr(target, "__qualname__", "")
    if module != "__main__" and getattr(sys.modules.get(module), name, None) is target:
        return f"{module}:{name}"
    raise TypeError(
        "a worker imports its target itself: give an import path, 'package.module:name', "
        f"or a model folder made by maas.save(); got {target!r:.80}"
    )


def worker_name(target: str) -> str:
    """What a model is called by default: the last part of its import path, or its folder."""
    last = Path(target).name if Path(target).is_dir() else target.rpartition(":")[2]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last.rpartition(".")[2]).lower()
    return re.sub(r"[^a-z0-9_-]+", "-", snake).strip("-_")[:64] or "model"


def connect_workers(
    url: str,
    *,
    count: int = 1,
    devices: Sequence[str] = (),
    example: Any = None,
    name: str | None = None,
    limits: Limits | None = None,
    pace: Pace | None = None,
) -> WorkerExecutor:
    """The executor for `workers:module:attribute`, or `workers:` and a model folder.

    Parameters
    ----------
    count : how many workers.
    devices : torch devices, dealt out to the workers in turn.
    example : one argument, or a tuple of them, that each worker answers before it is ready.
    name : what to call the model; by the target's own name by default.
    limits : what one message may hold, both ways.
    pace : how long starts, pauses and drains may take.

    Raises
    ------
    TypeError, ValueError
        No target that a worker could find by itself.
    """
    if type(count) is not int or not 1 <= count <= 1024:
        raise ValueError(f"count wants an int from 1 to 1024, got {count!r}")
    target = _checked_target(url.removeprefix("workers:"))
    name = worker_name(target) if name is None else name
    if NAME.fullmatch(name) is None:
        raise ValueError(f"a model's name matches {NAME.pattern}, got {name!r}; give name=...")
    limits = limits or Limits()
    environment = _environment(count)

    def launch(number: int) -> Process:
        order = {
            "target": target,
            "name": name,
            "device": devices[number % len(devices)] if devices else None,
            "path": [part or os.getcwd() for part in sys.path],  # noqa: PTH109 - text, as sys.path is
            "limits": attrs.asdict(limits),
            "example": _written(example, limits),
        }
        return _Spawned(json.dumps(order).encode(), environment)

    return WorkerExecutor(launch, name, url, count=count, limits=limits, pace=pace)


def _checked_target(target: str) -> str:
    if target and Path(target).is_dir():
        return str(Path(target).resolve())
    if re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", target) is None:
        raise ValueError(
            f"{target!r} is neither module:attribute nor a model folder; "
            "a worker imports its target itself, so it needs to be told where that is"
        )
    return target


def _written(example: Any, limits: Limits) -> str | None:
    if example is None:
        return None
    args = example if type(example) is tuple else (example,)
    message = b"".join(wire.encode_call(Call("", CALL, args), limits))
    return base64.b64encode(message).decode()


def _environment(count: int) -> dict[str, str]:
    """The environment of a worker: as many threads as are left for each."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cpus // count))} | os.environ
