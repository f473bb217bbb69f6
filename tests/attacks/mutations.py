"""A mutation fuzzer for the wire: `python tests/attacks/mutations.py --frames 10000000 --seed 1`.

It mutates well-formed messages of every kind and decodes them. Only a CodecError
or a value may come out, no frame may take a second, and the process may not grow.
What is accepted must encode again. `test_mutations.py` runs it in a process of its own, so that a
crash is a finding; the same seed gives the same frames.
"""

import argparse
import datetime as dt
import decimal
import faulthandler
import random
import resource
import struct
import sys
import time
import uuid
from collections import OrderedDict

import numpy as np
import torch

from maas.calls import Autocast, Call, Context, Info, Result
from maas.errors import CodecError, NotReady
from maas.limits import Limits
from maas.testing.strategies import Level, Person, Point, Score, Shade
from maas.wire import Description, End, Failure, Item, decode, encode, encode_call

LIMITS = Limits(memory=2**20, header=2**16, body=2**20, nodes=10_000)
GROWTH = 256 * 2**20
STALL = 30
SLOW = 1.0

VALUES = [
    None, [True, 1, -1, 2**63, 2**70, 1.5, "text", b"bytes", "\ud800"],
    {"a": {"b": [1, {"c": None}]}},
    (1, (2, ())), {1, 2, 3}, frozenset({"a", b"b"}), {1: 2, None: 3, (1, 2): 4}, {"$tuple": 1},
    OrderedDict(a=1, b=2),
    [1j, decimal.Decimal("1.5"), uuid.UUID(int=7), ..., slice(1, None, 2), range(1, 9, 2)],
    [dt.datetime(2024, 1, 2, 3, 4, 5, 6, dt.UTC), bytearray(b"abc"),
     dt.time(1, 2, tzinfo=dt.timezone(dt.timedelta(hours=1), "x")),
     dt.date(2024, 1, 2), dt.timedelta(1, 2, 3)],
    [np.float32(1.5), np.bool_(True), np.int64(3)],
    [np.arange(6.0).reshape(2, 3), np.zeros((0, 3), "i4")],
    [torch.arange(6).reshape(2, 3), torch.tensor(True),
     torch.ones(2, dtype=torch.bfloat16, requires_grad=True)],
    torch.ones(1, 2, 3, 4).contiguous(memory_format=torch.channels_last), torch.Size([1, 2]),
    [Point(1, 2), Person("a", 1), Score([1]), Level.HIGH, Shade.RED | Shade.GREEN], "x" * 5_000,
    b"y" * 5_000, bytearray(5_000),
]  # fmt: skip


def failures():
    """Exceptions of every make."""
    error = ValueError("bad", [1, 2])
    error.add_note("note")
    error.__cause__ = OSError(2, "none", "file")
    error.__context__ = ExceptionGroup("g", [KeyError("a"), NotReady("soon", 1.5)])
    return [error, UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")]


def corpus():
    """Well-formed messages of every kind."""
    context = Context(
        grad=False, training=True, autocast=(Autocast("cpu", "bfloat16", True),), seed=3,
        rng=b"state", deadline=1e9, key="key", priority=2, trace="00-trace-01",
    )  # fmt: skip
    made = [encode(Item(value), LIMITS) for value in VALUES]
    made += [encode(Failure(error), LIMITS) for error in failures()]
    made += [encode(Item([error]), LIMITS) for error in failures()]
    made += [
        encode_call(
            Call("m", "f", (VALUES[1], VALUES[12]), {"x": VALUES[13]}, context=context), LIMITS
        ),
        encode(Result(VALUES[2], Info(device="cpu"), b"rng"), LIMITS),
        encode(End(), LIMITS),
        encode(Description({"models": [{"name": "net", "methods": ["call"]}]}), LIMITS),
    ]
    return [b"".join(parts) for parts in made]


TAGS = [
    b"$tuple", b"$set", b"$map", b"$ordered", b"$frozenset", b"$tensor", b"$array", b"$scalar",
    b"$int", b"$str",
    b"$bytes", b"$bytearray", b"$complex", b"$decimal", b"$uuid", b"$slice", b"$range", b"$size",
    b"$datetime", b"$time",
    b"$date", b"$timedelta", b"$object", b"$exception", b"$ellipsis", b"$none",
]  # fmt: skip
TOKENS = [
    b"\x80", b"\x90", b"\xc0", b"\xc2", b"\xc3", b"\xa0", b"\x81", b"\x91", b"\x92", b"\x9f",
    b"\x8f", b"\x00", b"\x7f", b"\xff",
    b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xde\xff\xff", b"\xdf\x00\x01\x00\x00",
    b"\xdb\xff\xff\xff\xff",
    b"\xc4\x00", b"\xc6\x00\x00\x00\x00", b"\xc7\x00\x05", b"\xd6\xff\x00\x00\x00\x00",
    b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x01",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", b"\xa1$",
    b"\xc1",
    *(b"\x81" + bytes([0xA0 + len(tag)]) + tag for tag in TAGS),
    *(bytes([0xA0 + len(tag)]) + tag for tag in TAGS),
]  # fmt: skip


def flip(data, rng, _others):
    """One bit."""
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def put(data, rng, _others):
    """One byte."""
    data[rng.randrange(len(data))] = rng.randrange(256)


def step(data, rng, _others):
    """A byte one larger or smaller: lengths and types that lie by one."""
    at = rng.randrange(len(data))
    data[at] = (data[at] + rng.choice((-1, 1))) & 255


def token(data, rng, _others):
    """A byte replaced by something that means much to msgpack or to the format."""
    at = rng.randrange(len(data))
    data[at : at + 1] = rng.choice(TOKENS)


def insert(data, rng, _others):
    """The same, put between."""
    at = rng.randrange(len(data))
    data[at:at] = rng.choice(TOKENS)


def cut(data, rng, _others):
    """A few bytes gone."""
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 9)]


def truncate(data, rng, _others):
    """The end gone."""
    del data[rng.randrange(len(data)) :]


def repeat(data, rng, _others):
    """A piece twice or many times."""
    at = rng.randrange(len(data))
    piece = data[at : at + rng.randrange(1, 40)]
    data[at:at] = piece * rng.choice((1, 1, 2, 50))


def splice(data, rng, others):
    """A piece of another message."""
    other = rng.choice(others)
    start = rng.randrange(len(other))
    at = rng.randrange(len(data))
    data[at : at + rng.randrange(1, 60)] = other[start : start + rng.randrange(1, 60)]


MUTATIONS = (flip, put, step, token, insert, cut, truncate, repeat, splice)


def mutated(seeds, rng):
    """One mutated frame. Most have a prefix that tells the truth, or nothing behind it were
    reached.
    """
    whole = rng.choice(seeds)
    header = int.from_bytes(whole[8:12], "big")
    head = bytearray(whole[21 : 21 + header])
    tail = bytearray(whole[21 + header :])
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        part = tail if tail and rng.random() < 0.15 else head
        if part:
            rng.choice(MUTATIONS)(part, rng, seeds)
    if len(head) == header or rng.random() < 0.3:
        frame = bytearray(whole[:21]) + head + tail
    else:
        # A header of another length moves the buffers: padded again, so that they are met at all.
        bins = tail.lstrip(b"\xc0")
        frame = (
            bytearray(whole[:21])
            + head
            + (b"\xc0" * (-(21 + len(head) + 5) % 64) + bins if bins else b"")
        )
    frame[8:12] = struct.pack(">I", len(head))
    frame[13:21] = struct.pack(">Q", len(frame))
    if rng.random() < 0.05:
        flip(frame, rng, seeds)
    return bytes(frame)


def attack(frames, seed, report=100_000):
    """Decode that many mutated frames; returns how many were values. Raises at the first
    finding.
    """
    rng = random.Random(seed)
    seeds = corpus()
    # The first of each kind imports and caches; growth counts from there.
    for frame in seeds:
        decode(frame, LIMITS)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = 0
    for number in range(frames):
        if number % 1_000 == 0:
            faulthandler.dump_traceback_later(STALL, exit=True)
        if report and number and number % report == 0:
            print(f"{number} frames, {accepted} accepted", flush=True)
        frame = mutated(seeds, rng)
        started = time.perf_counter()
        try:
            found = decode(frame, LIMITS)
        except CodecError as error:
            assert len(str(error)) < 2_000, frame.hex()  # noqa: PT017 - it may or may not be raised
        except BaseException:
            print(f"seed {seed}, frame {number}: {frame.hex()}", flush=True)
            raise
        else:
            accepted += 1
            again(found, frame)
        assert time.perf_counter() - started < SLOW, f"slow: {frame.hex()}"
    faulthandler.cancel_dump_traceback_later()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown) * 1024
    assert grown < GROWTH, f"grew by {grown} bytes"
    return accepted


def again(found, frame):
    """What was accepted must encode again, or be refused as anyone's value would be."""
    try:
        parts = encode_call(found, LIMITS) if isinstance(found, Call) else encode(found, LIMITS)
        decode(b"".join(parts), LIMITS)
    except CodecError:
        pass
    except BaseException:
        print(f"does not encode again: {frame.hex()}", flush=True)
        raise


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.perf_counter()
    total = attack(options.frames, options.seed)
    seconds = time.perf_counter() - begun
    print(
        f"{options.frames} frames of seed {options.seed}, {total} accepted, {seconds:.0f} s",
        flush=True,
    )
    sys.exit(0)
