"""Programs in processes of their own: started, waited for, and ended with all that they started."""

import collections
import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.peers.environments import ROOT, Missing

__all__ = ["PATIENCE", "Asking", "asking", "serving"]

PATIENCE = float(os.environ.get("MAAS_PEERS_PATIENCE", "90"))
"""Seconds until a program listens, answers or is ready to ask; more on a machine that is busy."""
_GRACE = 10.0
_MARK = "BENCHMARKS_PEERS"
"""A variable of the environment, by which also those are found that left their parents."""


@contextlib.contextmanager
def serving(command: Sequence[str | Path], *arguments: str) -> Iterator[tuple[str, int]]:
    """A server, which is told its port before its other arguments, and where it listens.

    Raises
    ------
    Missing
        It ended before it listened, or did not listen within PATIENCE.
    """
    port = _free_port()
    with _running([*command, str(port), *arguments], subprocess.DEVNULL) as running:
        until = time.monotonic() + PATIENCE
        while not _listens(port):
            if time.monotonic() > until or running.process.poll() is not None:
                raise Missing(f"it does not start: {running.last_words()}")
            time.sleep(0.1)
        yield ("127.0.0.1", port)


@attrs.frozen
class Asking:
    """A program that asks a server, as `asking.py` has them."""

    _running: "_Running"

    def ask(self, how: str, seconds: float) -> dict[str, Any]:
        """What it tells after asking for so many seconds, from `threads` or one `loop`.

        Raises
        ------
        Missing
            It ended, or told nothing for PATIENCE more than that.
        """
        process = self._running.process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{how} {seconds}\n".encode())
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], seconds + PATIENCE)
        line = process.stdout.readline() if ready else b""
        if not line:
            raise Missing(f"the client did not tell: {self._running.last_words()}")
        told: dict[str, Any] = json.loads(line)
        return told


@contextlib.contextmanager
def asking(command: Sequence[str | Path]) -> Iterator[Asking]:
    """A program that asks."""
    with _running(command, subprocess.PIPE) as running:
        yield Asking(running)


@attrs.frozen
class _Running:
    process: "subprocess.Popen[bytes]"
    said: "collections.deque[bytes]"

    def last_words(self) -> str:
        """The last line on its standard error."""
        last = [line.strip() for line in self.said if line.strip()][-1:] or [b"it said nothing"]
        return f"{last[0].decode(errors='replace'):.160}"


@contextlib.contextmanager
def _running(command: Sequence[str | Path], talk: int) -> Iterator[_Running]:
    mark = secrets.token_hex(8)
    home = Path(command[0]).parent
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ
        | {
            "PATH": f"{home}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            _MARK: mark,
        },
        stdin=talk,
        stdout=talk,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    said: collections.deque[bytes] = collections.deque(maxlen=50)
    listening = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
    listening.start()
    try:
        yield _Running(process, said)
    finally:
        _end(process, mark)
        listening.join(_GRACE)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    for number in _marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait(_GRACE)


def _marked(mark: str) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes():
                yield int(folder.name)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
