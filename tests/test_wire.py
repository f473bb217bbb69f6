"""Messages to bytes and back: every kind, its context and facts, the prefix, splitting."""

import math
import time
from itertools import pairwise

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maas import wire
from maas.calls import Autocast, Call, Context, Info, Result
from maas.errors import CodecError, LimitExceeded
from maas.limits import Limits
from maas.testing.equality import difference
from maas.testing.strategies import values
from maas.wire import (
    PREFIX,
    Description,
    End,
    Failure,
    Item,
    Kind,
    decode,
    encode,
    encode_call,
    read_prefix,
)

LIMITS = Limits()


def joined(message, limits=LIMITS):
    return b"".join(encode(message, limits))


CALL = Call("m", "f", (1, torch.ones(2)), {"a": np.ones(3)})


@pytest.mark.parametrize(
    "message",
    [
        Result({"a": 1}, Info(device="cuda:0", batch_size=3, queue_seconds=0.5), b"rng"),
        Failure(ValueError("bad"), b"rng"), Item([1, (2,)]), Item(None),
        End(Info(compute_seconds=math.inf), None), Description({"models": [{"name": "net"}]}),
    ],
    ids=lambda message: type(message).__name__,
)  # fmt: skip
def test_every_kind(message):
    """Each kind of message comes back equal, facts and random state included."""
    assert difference(message, decode(joined(message), LIMITS)) is None


@given(st.lists(values(), max_size=3))
def test_streams(items):
    """Messages one after the other are told apart by their prefixes alone."""
    data = b"".join(joined(Item(item)) for item in items) + joined(End())
    found = []
    while data:
        total = read_prefix(data[:PREFIX], LIMITS).total
        found.append(decode(data[:total], LIMITS))
        data = data[total:]
    assert difference([*map(Item, items), End()], found) is None


def test_context():
    """Everything a context holds arrives; the deadline as the time that is left."""
    context = Context(
        grad=False, training=True, autocast=(Autocast("cpu", "bfloat16", True),), seed=2**64 - 1,
        rng=bytes(torch.get_rng_state().numpy()), deadline=time.monotonic() + 100, key="k",
        priority=-3, trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )  # fmt: skip
    data = b"".join(encode_call(Call("m", "f", context=context), LIMITS))
    there = decode(data, LIMITS).context
    assert abs(there.deadline - context.deadline) < 50
    for name in ("grad", "training", "autocast", "seed", "rng", "key", "priority", "trace"):
        assert getattr(there, name) == getattr(context, name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": 2**64}, {"seed": "1"}, {"priority": 2**70}, {"key": "x" * 257}, {"key": "a\nb"},
        {"trace": "\x1b[31m"}, {"rng": b"x" * 8_193}, {"deadline": math.inf}, {"grad": "no"},
        {"autocast": (Autocast("a", "b", True),) * 9},
    ],
    ids=str,
)  # fmt: skip
def test_contexts_that_cannot_cross(wrong):
    """A context out of bounds is refused by its sender, with the name of the field."""
    with pytest.raises(CodecError, match=next(iter(wrong))):
        encode_call(Call("m", "f", context=Context(**wrong)), LIMITS)


def test_names_of_arguments():
    """An argument whose name belongs to the wire is refused."""
    with pytest.raises(CodecError, match="belong to the wire"):
        encode_call(Call("m", "f", (), {"$tuple": [1]}), LIMITS)


def test_any_msgpack_library_reads_it():
    """A message is a stream of plain msgpack objects: the prefix, the header, nils and bins."""
    data = b"".join(encode_call(CALL, LIMITS))
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    magic, version, kind, header, total, fields, *rest = unpacker
    assert (magic, version, kind, total) == ("maas", 1, Kind.CALL, len(data))
    assert fields == [
        [1, {"$tensor": [0, "float32", [2]]}], {"a": {"$array": [1, "float64", [3]]}}, {},
    ]  # fmt: skip
    assert [part for part in rest if part is not None] == [
        torch.ones(2).numpy().tobytes(),
        np.ones(3).tobytes(),
    ]
    assert header == len(msgpack.packb(fields))


def test_the_prefix_tells_enough():
    """The first 21 bytes tell kind and lengths; too long a message is refused by them alone."""
    data = joined(Item(np.ones(1_000)))
    assert PREFIX == 21
    prefix = read_prefix(data[:PREFIX], LIMITS)
    assert (prefix.kind, prefix.total) == (Kind.ITEM, len(data))
    for limits in (Limits(body=1_000), Limits(header=5)):
        with pytest.raises(LimitExceeded):
            read_prefix(data[:PREFIX], limits)


def test_a_split_buffer(monkeypatch):
    """A buffer longer than the longest bin goes in parts, and arrives in one piece."""
    monkeypatch.setattr(wire, "BIN_MAX", 128)
    for size in (0, 127, 128, 129, 256, 300):
        sent = [bytearray(range(256)) * 2, np.arange(size, dtype=np.uint8), b"end" * 2_000]
        there = decode(joined(Result(sent), Limits(tensors=100)), LIMITS).value
        assert difference(sent, there) is None


def test_messages_are_read_where_they_lie():
    """Bytes, bytearrays and memoryviews of a message decode alike."""
    data = joined(Result([np.ones(3), "a"]))
    results = [decode(kind(data), LIMITS).value for kind in (bytes, bytearray, memoryview)]
    for one, other in pairwise(results):
        assert difference(one, other) is None
    assert all(result[0].flags.writeable for result in results)


def test_a_threaded_first_use():
    """The first torch tensor may be met by many threads at once."""
    import subprocess
    import sys

    code = (
        "import sys, threading; from concurrent.futures import ThreadPoolExecutor\n"
        "from maas.wire import decode; from maas.limits import Limits\n"
        "data = sys.stdin.buffer.read(); gate = threading.Barrier(8)\n"
        "def f(_): gate.wait(); return type(decode(data, Limits()).value).__name__\n"
        "print(set(ThreadPoolExecutor(8).map(f, range(8))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=joined(Result(torch.ones(2))),
        capture_output=True,
        check=False,
        timeout=100,
    )
    assert (done.stdout, done.stderr) == (b"{'Tensor'}\n", b"")
