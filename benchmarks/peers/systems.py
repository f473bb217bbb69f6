"""What is measured beside each other, and how each is started and asked."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
import torch
from torch import Tensor

import maas
from benchmarks.bare_batcher import bare_batcher
from benchmarks.big_model import fixed
from benchmarks.callers import Callers, posted
from benchmarks.peers.environments import ROOT, Missing, environment
from maas.calls import CALL, Call, Context, Result
from maas.http import MSGPACK
from maas.limits import Limits
from maas.wire import decode, encode_call

__all__ = ["FLOOR", "OURS", "PEERS", "Asked", "System"]

_HERE = Path(__file__).parent
_PATIENCE = 90.0
_KEY = "0123456789abcdef0123456789abcdef"


@attrs.frozen
class Asked:
    """A system that runs: where it is, the same requests for all, and how to read an answer."""

    place: tuple[str, int]
    requests: Sequence[bytes]
    answer: Callable[[bytes], float]


@attrs.frozen
class System:
    """Something to measure; `started` runs it and says how it is asked.

    Attributes
    ----------
    peer : the name it is compared under; its configurations share it.
    """

    name: str
    peer: str
    started: Callable[[Sequence[Tensor]], "contextlib.AbstractContextManager[Asked]"]


# Our own.


def _ours(port: str) -> None:
    """One configuration: messages checked, a key, limits, deadlines, metrics and batching on."""
    net = fixed()
    model = maas.Model(net, batching=maas.Batching(64), example=torch.randn(1, 1000))
    maas.serve({"big": model}, port=int(port), auth=_KEY)


def _bare(port: str) -> None:
    bare_batcher(print, int(port))


@contextlib.contextmanager
def _asked_ours(rows: Sequence[Tensor]) -> Iterator[Asked]:
    with _running([sys.executable, "-m", "benchmarks.peers.systems", "ours"]) as place:
        headers = [
            "user-agent: maas",
            "accept-encoding: identity",
            f"accept: {MSGPACK}",
            f"authorization: Bearer {_KEY}",
            f"content-type: {MSGPACK}",
        ]
        until = time.monotonic() + 3600
        requests = [
            posted("/big", _host(place), headers, _message(row, until + number / 1000))
            for number, row in enumerate(rows)
        ]
        yield _answering(Asked(place, requests, _of_message))


def _message(row: Tensor, deadline: float) -> bytes:
    call = Call("big", CALL, (row,), context=Context(grad=False, deadline=deadline))
    return b"".join(encode_call(call, Limits()))


def _of_message(body: bytes) -> float:
    message = decode(bytearray(body), Limits())
    assert isinstance(message, Result), message
    return float(message.value.item())


@contextlib.contextmanager
def _asked_bare(rows: Sequence[Tensor]) -> Iterator[Asked]:
    with _running([sys.executable, "-m", "benchmarks.peers.systems", "bare"]) as place:
        yield _answering(Asked(place, _raw("/", place, rows), _of_raw))


# Peers.


def _peer(
    name: str, script: str, requirements: tuple[str, ...], *arguments: str
) -> Callable[[Sequence[Tensor]], "contextlib.AbstractContextManager[Asked]"]:
    """A peer that takes raw numbers."""

    @contextlib.contextmanager
    def started(rows: Sequence[Tensor]) -> Iterator[Asked]:
        python = environment(name, requirements)
        with _running([str(python), str(_HERE / script)], *arguments) as place:
            yield _answering(Asked(place, _raw("/inference", place, rows), _of_raw))

    return started


_FASTAPI = ("fastapi", "uvicorn[standard]")
OURS = System("maas", "maas", _asked_ours)
FLOOR = System("bare uvloop protocol, drain batcher", "floor", _asked_bare)
PEERS = (
    System("mosec, no batching", "mosec", _peer("mosec", "mosec_server.py", ("mosec",), "1", "0")),
    System("mosec, batch 8", "mosec", _peer("mosec", "mosec_server.py", ("mosec",), "8", "1")),
    System("mosec, batch 32", "mosec", _peer("mosec", "mosec_server.py", ("mosec",), "32", "1")),
    System(
        "LitServe, batch 64",
        "LitServe",
        _peer("litserve", "litserve_server.py", ("litserve", "pyzmq"), "64"),
    ),
    System("FastAPI by hand", "FastAPI", _peer("fastapi", "fastapi_server.py", _FASTAPI)),
)


# Running one.


@contextlib.contextmanager
def _running(command: Sequence[str], *arguments: str) -> Iterator[tuple[str, int]]:
    number = _free_port()
    process = subprocess.Popen(
        [*command, str(number), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    said: list[bytes] = []
    assert process.stderr is not None
    listening = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
    listening.start()
    try:
        _wait_for(process, number, said)
        yield ("127.0.0.1", number)
    finally:
        _end(process)
        listening.join(10)
        process.stderr.close()


def _wait_for(process: "subprocess.Popen[bytes]", port: int, said: Sequence[bytes]) -> None:
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.1)
    last = said[-1].decode(errors="replace").strip() if said else "it said nothing"
    raise Missing(f"it does not start: {last:.120}")


def _answering(asked: Asked) -> Asked:
    """The system, once it answers: some listen before they do."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            with Callers(asked.place, 1) as callers:
                callers.ask(asked.requests[:1], 0.0)
        except (OSError, RuntimeError) as error:
            if time.monotonic() > until:
                raise Missing(f"it does not answer: {error!s:.200}") from None
            time.sleep(0.2)
        else:
            return asked


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends it with all that it started."""
    for signal in (15, 9):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _host(place: tuple[str, int]) -> str:
    return f"{place[0]}:{place[1]}"


def _raw(target: str, place: tuple[str, int], rows: Sequence[Tensor]) -> list[bytes]:
    headers = ["content-type: application/octet-stream"]
    return [posted(target, _host(place), headers, row.numpy().tobytes()) for row in rows]


def _of_raw(body: bytes) -> float:
    return float(np.frombuffer(body, np.float32)[0])


if __name__ == "__main__":
    {"ours": _ours, "bare": _bare}[sys.argv[1]](sys.argv[2])
