# ruff: noqa: E501 - a message a line
"""Makes the golden messages of protocol version 1: `python tests/golden/make.py`.

A file that exists is never rewritten: what was once sent must decode for ever.
Add a line for a new form; to change an old one is to break somebody's client.
"""

import datetime as dt
import decimal
import struct
import uuid
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from maas.calls import Autocast, Call, Context, Info, Result
from maas.errors import Overloaded
from maas.limits import Limits
from maas.testing.strategies import Level, Person, Point
from maas.wire import Description, End, Failure, Item, encode, encode_call

HERE = Path(__file__).parent / "v1"
LIMITS = Limits()


def _nan(payload: int) -> float:
    (value,) = struct.unpack(">d", (0x7FF0 << 48 | payload).to_bytes(8, "big"))
    return value


def _leased():
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    return Result({"y": leaf, "n": torch.tensor([1, 2])}, Info(), None, "a-graph", (leaf,))


def _failure() -> Exception:
    error = ValueError("bad input", 3)
    error.add_note("a note")
    error.__cause__ = error.__context__ = KeyError("cause")
    error.__suppress_context__ = True
    return error


def _channels_last() -> torch.Tensor:
    return (
        torch.arange(24, dtype=torch.float32)
        .reshape(1, 2, 3, 4)
        .contiguous(memory_format=torch.channels_last)
    )


MESSAGES = {
    "call-one-tensor": Call("net", "call", (torch.tensor([[1.0, 2.0], [3.0, 4.0]]),), owned=True),
    "call-keywords": Call("net", "encode", ("hello",), {"lower": True}, owned=True),
    "call-context": Call("net", "call", (1,), owned=True, context=Context(
        grad=False, training=True, autocast=(Autocast("cpu", "bfloat16", True),), seed=7,
        rng=b"\x01\x02",
        key="3f2a", priority=-1, trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
    "result-one-tensor": Result(torch.tensor([0.5, -0.0]), Info(where="here", device="cpu", batch_size=2, queue_seconds=0.25, compute_seconds=0.5)),
    "result-rng": Result(None, rng=b"\x00\xff"),
    "item": Item("token"),
    "end": End(Info()),
    "result-leased": _leased(),
    "failure": Failure(_failure()),
    "failure-overloaded": Failure(Overloaded("busy", 1.5)),
    "failure-group": Failure(ExceptionGroup("two", [ValueError(1), OSError(2, "none", "file")])),
    "description": Description({"protocol": [1, 1], "models": [{"name": "net"}]}),
    "scalars": Item([None, True, False, 0, -1, 2**63, 2**64 - 1, -(2**63), 1.5, -0.0, float("inf"), _nan(2**51 + 1), "", "\u20ac", "\U0001f600", b"", b"\x00\xff"]),
    "big-ints": Item([2**64, -(2**63) - 1, 2**200]),
    "surrogates": Item("\ud800"),
    "long-text-and-bytes": Item(["a" * 4_097, b"b" * 4_097]),
    "containers": Item([[], (), (1, (2,)), {"a": {"b": None}}, OrderedDict([("z", 1), ("a", 2)])]),
    "sets": Item([set(), {1}, frozenset({"a"})]),
    "maps": Item([{1: "a", None: 2}, {"$tuple": [1]}, {(1, 2): [3]}]),
    "python-scalars": Item([1 + 2j, decimal.Decimal("-0.10"), uuid.UUID(int=1), ..., slice(1, None, 2), range(3, 9, 2), bytearray(b"ab")]),
    "dates": Item([
        dt.datetime(2024, 2, 29, 12, 30, 15, 123_456), dt.datetime(2024, 1, 1, tzinfo=dt.UTC),  # noqa: DTZ001
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2), "X")), dt.time(1, 2, 3, 4, fold=1), dt.date(2024, 2, 29), dt.timedelta(-1, 2, 3)]),
    "numpy-scalars": Item([np.float32(1.5), np.int64(-1), np.bool_(True), np.complex64(1j)]),
    "arrays": Item([np.arange(6, dtype="i4").reshape(2, 3), np.zeros((0, 3)), np.array(1.5), np.array([True, False])]),
    "tensors": Item([torch.tensor(True), torch.arange(3, dtype=torch.int64), torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
                     torch.tensor([1.0, 2.0], requires_grad=True), torch.zeros(2, 0), torch.Size([2, 3])]),
    "channels-last": Item(_channels_last()),
    "float8": Item(torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn)),
    "objects": Item([Point(1, 2), Person("Ada", 36), Level.HIGH]),
    "exception-value": Item([StopIteration(3)]),
}  # fmt: skip


def encoded(message: object) -> bytes:
    """The message as version 1 writes it."""
    parts = encode_call(message, LIMITS) if isinstance(message, Call) else encode(message, LIMITS)
    return b"".join(parts)


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name, message in MESSAGES.items():
        path = HERE / f"{name}.msgpack"
        if not path.exists():
            path.write_bytes(encoded(message))
            print(path.name)
