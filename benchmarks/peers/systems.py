"""What is measured beside each other: ours, the floor, and what a peer's configuration comes to."""

import base64
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import attrs
import numpy as np
import torch
from torch import Tensor

import maas
from benchmarks.bare_batcher import bare_batcher
from benchmarks.big_model import fixed
from benchmarks.callers import Callers, posted
from benchmarks.peers.environments import Missing
from benchmarks.peers.processes import PATIENCE, serving
from maas.calls import CALL, Call, Context, Result
from maas.http import MSGPACK
from maas.limits import Limits
from maas.wire import decode, encode_call

__all__ = [
    "BASE64_FIELD",
    "BASE64_TENSOR",
    "FLOOR",
    "KEY",
    "OPEN_INFERENCE",
    "OURS",
    "RAW",
    "Asked",
    "Speech",
    "System",
    "answering",
]

KEY = "0123456789abcdef0123456789abcdef"


@attrs.frozen
class Asked:
    """A system that runs: where it is, the same requests for all, and how to read an answer."""

    place: tuple[str, int]
    requests: Sequence[bytes]
    answer: Callable[[bytes], float]


@attrs.frozen
class Speech:
    """How a system is asked for the answer to a row, and where the answer is in its reply."""

    headers: Sequence[str]
    body: Callable[[Tensor], bytes]
    answer: Callable[[bytes], float]

    def requests(self, target: str, place: tuple[str, int], rows: Sequence[Tensor]) -> list[bytes]:
        """The rows, each as a whole request."""
        host = f"{place[0]}:{place[1]}"
        return [posted(target, host, self.headers, self.body(row)) for row in rows]


@attrs.frozen
class System:
    """Something to measure; `started` runs it and says how it is asked."""

    name: str
    started: Callable[[Sequence[Tensor]], "contextlib.AbstractContextManager[Asked]"]


def answering(speech: Speech, target: str, place: tuple[str, int], rows: Sequence[Tensor]) -> Asked:
    """The system, once it answers: some listen before they do.

    Raises
    ------
    Missing
        It gave no good answer within PATIENCE.
    """
    asked = Asked(place, speech.requests(target, place, rows), speech.answer)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            with Callers(asked.place, 1) as callers:
                callers.ask(asked.requests[:1], 0.0)
        except (OSError, RuntimeError) as error:
            if time.monotonic() > until:
                raise Missing(f"it does not answer: {error!s:.160}") from None
            time.sleep(0.2)
        else:
            return asked


# Speeches.


def _of_raw(body: bytes) -> float:
    return float(np.frombuffer(body[-4:], np.float32)[0])


def _binary_tensor(row: Tensor) -> bytes:
    return _OPEN_INFERENCE_HEAD + row.numpy().tobytes()


_OPEN_INFERENCE_HEAD = json.dumps(
    {
        "inputs": [
            {
                "name": "input",
                "shape": [1, 1000],
                "datatype": "FP32",
                "parameters": {"binary_data_size": 4000},
            }
        ],
        "id": "1",
        "parameters": {"binary_data_output": True},
    }
).encode()

RAW = Speech(["content-type: application/octet-stream"], lambda row: row.numpy().tobytes(), _of_raw)
OPEN_INFERENCE = Speech(
    [
        "content-type: application/octet-stream",
        f"inference-header-content-length: {len(_OPEN_INFERENCE_HEAD)}",
    ],
    _binary_tensor,
    _of_raw,
)
"""The Open Inference Protocol with its binary extension; the one output ends the reply."""


def _base64(row: Tensor) -> str:
    return base64.b64encode(row.numpy().tobytes()).decode()


def _base64_tensor(row: Tensor) -> bytes:
    given = {"name": "input", "shape": [1, 1], "datatype": "BYTES", "data": [_base64(row)]}
    return json.dumps({"inputs": [given | {"parameters": {"content_type": "base64"}}]}).encode()


BASE64_TENSOR = Speech(
    ["content-type: application/json"],
    _base64_tensor,
    lambda body: float(json.loads(body)["outputs"][0]["data"][0]),
)
"""The Open Inference Protocol in JSON alone, the row's bytes as one element."""
BASE64_FIELD = Speech(
    ["content-type: application/json"],
    lambda row: json.dumps({"rows": [_base64(row)]}).encode(),
    lambda body: float(json.loads(body)[0]),
)
"""A field `rows` of strings in base64, and a list of numbers for it."""


def _message(row: Tensor) -> bytes:
    # A deadline of its own each: as an ordinary client sends, no two requests are alike.
    deadline = time.monotonic() + 3600
    call = Call("big", CALL, (row,), context=Context(grad=False, deadline=deadline))
    return b"".join(encode_call(call, Limits()))


def _of_message(body: bytes) -> float:
    message = decode(bytearray(body), Limits())
    assert isinstance(message, Result), message
    return float(message.value.item())


_MESSAGES = Speech(
    [
        "user-agent: maas",
        "accept-encoding: identity",
        f"accept: {MSGPACK}",
        f"authorization: Bearer {KEY}",
        f"content-type: {MSGPACK}",
    ],
    _message,
    _of_message,
)


# Ours and the floor.


def _ours(port: str) -> None:
    """One configuration: messages checked, a key, limits, deadlines, metrics and batching on."""
    net = fixed()
    model = maas.Model(net, batching=maas.Batching(64), example=torch.randn(1, 1000))
    maas.serve({"big": model}, port=int(port), auth=KEY)


def _bare(port: str) -> None:
    bare_batcher(print, int(port))


@contextlib.contextmanager
def _asked_ours(rows: Sequence[Tensor]) -> Iterator[Asked]:
    with serving([sys.executable, "-m", "benchmarks.peers.systems", "ours"]) as place:
        yield answering(_MESSAGES, "/big", place, rows)


@contextlib.contextmanager
def _asked_bare(rows: Sequence[Tensor]) -> Iterator[Asked]:
    with serving([sys.executable, "-m", "benchmarks.peers.systems", "bare"]) as place:
        yield answering(RAW, "/", place, rows)


OURS = System("maas", _asked_ours)
FLOOR = System("bare uvloop protocol, drain batcher", _asked_bare)


if __name__ == "__main__":
    {"ours": _ours, "bare": _bare}[sys.argv[1]](sys.argv[2])
