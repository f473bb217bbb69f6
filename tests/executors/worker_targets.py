"""What the workers of the tests import; what needs torch is in `worker_modules.py`."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import maas


def touch(*path: str) -> None:
    Path(*path).touch()


@maas.method(pure=True)
def echo(value: Any) -> Any:
    return value


def fails(text: str) -> None:
    raise ValueError(text, 7) from KeyError("cause")


def said_lost() -> None:
    raise maas.TransportError("the model's own", sent=True)


@maas.method(pure=True)
def pid(_x: int = 0) -> int:
    return os.getpid()


def environment() -> dict[str, Any]:
    return {
        "main": getattr(sys.modules["__main__"], "__file__", ""),
        "descriptors": sorted(int(path.name) for path in Path("/proc/self/fd").iterdir()),
        "group": os.getpgid(0),
    }


@maas.method(pure=True)
def dies(_x: int = 0) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return time.sleep(60) or 0


def dies_once(path: str) -> str:
    """Dies the first time that it is called anywhere."""
    Path(path).open("x").close()
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


@maas.method(pure=True)
def dies_first(path: str) -> int:
    """Dies the first time that it is called anywhere, and answers the second."""
    try:
        Path(path).open("x").close()
    except FileExistsError:
        return os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


class Agent:
    """Counts its calls, in each worker anew, and holds them while a file is there."""

    def __init__(self) -> None:
        self.calls = 0

    @maas.method
    def count(self) -> int:
        self.calls += 1
        return self.calls

    @maas.method(pure=True)
    def wait(self, folder: str) -> int:
        """Makes the file `started`, and waits for `go`."""
        Path(folder, f"started-{os.getpid()}-{threading.get_ident()}").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.005)
        return os.getpid()

    @maas.method
    async def forever(self, folder: str) -> None:
        touch(folder, "started")
        try:
            await asyncio.Event().wait()
        finally:
            touch(folder, "ended")

    @maas.method(pure=True)
    def items(self, n: int) -> Iterator[int]:
        yield from range(n)

    @maas.method(pure=True)
    def items_until_death(self, n: int) -> Iterator[int]:
        yield from range(n)
        os.kill(os.getpid(), signal.SIGKILL)

    @maas.method(pure=True)
    def items_at_second_try(self, path: str) -> Iterator[int]:
        yield dies_first(path)
        yield 1

    @maas.method
    def endless(self, folder: str) -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            Path(folder, "ended").touch()


agent = Agent()


def example_of(x: np.ndarray) -> float:
    """Remembers in a file that it was called."""
    with Path(os.environ["EXAMPLES"]).open("a") as file:
        file.write(f"{os.getpid()} {x.sum()}\n")
    if x.sum() < 0:
        raise ValueError("a bad example")
    return float(x.sum())
