"""A message cut at every byte, or with bytes too many, is no message."""

import struct

import numpy as np
import pytest

from maas.calls import Call, Context, Info, Result
from maas.limits import Limits
from maas.wire import Description, End, Failure, Item, encode, encode_call

LIMITS = Limits()
MESSAGES = {
    "call": encode_call(
        Call("m", "f", (np.ones(3), {"a": (1, b"x" * 300)}), context=Context(key="k")), LIMITS
    ),
    "result": encode(Result({"a": [1, 2.5]}, Info(), b"rng"), LIMITS),
    "failure": encode(Failure(ValueError("bad")), LIMITS),
    "item": encode(Item(np.arange(20)), LIMITS),
    "end": encode(End(), LIMITS),
    "description": encode(Description({"a": 1}), LIMITS),
}  # fmt: skip


def patched(data, total):
    """The same with a prefix that tells the truth about the whole length."""
    return data[:13] + struct.pack(">Q", total) + data[21:]


@pytest.mark.parametrize("parts", MESSAGES.values(), ids=MESSAGES)
def test_truncation(wire, parts):
    """A message cut at any byte is refused, whether or not the prefix owns up to it."""
    data = b"".join(parts)
    for size in range(len(data)):
        wire.refused(data[:size])
        if size > 21:
            wire.refused(patched(data[:size], size))


@pytest.mark.parametrize("parts", MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize(
    "tail", [b"\xc0", b"\x00", b"\xc6\0\0\0\0", b"\xc4\x00", b"\xc0" * 64, b"\xc0" * 10**6]
)
def test_trailing_bytes(wire, parts, tail):
    """Bytes after the message are refused, padding and stray buffers included."""
    data = b"".join(parts) + tail
    wire.refused(data)
    wire.refused(patched(data, len(data)))


@pytest.mark.parametrize("extra", [b"\xc0", b"\x90", b"\x00\x00"])
def test_two_values_in_a_header(wire, extra):
    """A header is one array and nothing after it."""
    wire.refused(wire.message(wire.packed([1]) + extra))


@pytest.mark.parametrize(
    "header",
    [b"", b"\xc0", b"\x80", b"\x01", b"\x90", b"\x92\x01\x02", b"\x81\xa6$tuple\x91\x01", b"\xa1a"],
)
def test_headers_of_another_shape(wire, header):
    """A header that is no array of the right number of fields is refused."""
    wire.refused(wire.message(header))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (1, [[], {}]), (1, [{}, {}, {}]), (1, [[], [], {}]), (1, [[], {}, []]), (1, [None, {}, {}]),
        (1, [{"$tuple": []}, {}, {}]), (1, [[], {"$map": [[1, 2]]}, {}]),
        (1, [[], {"$ordered": []}, {}]),
        (1, [[], {}, {"unknown": 1}]), (1, [[], {}, {"$map": [[1, 2]]}]),
        (1, [[], {}, {"grad": 1}]),
        (1, [[], {}, {"seed": {"$int": b"\x01" + bytes(4_000)}}]),
        (1, [[], {}, {"grad": {"$int": b"\x01" + bytes(4_000)}}]),
        (1, [[], {}, {"deadline": {"$int": b"\x01" + bytes(4_000)}}]),
        (1, [[], {}, {"deadline": float("nan")}]),
        (1, [[], {}, {"autocast": [1]}]), (1, [[], {}, {"autocast": [["cpu", "x", 1]]}]),
        (1, [[], {}, {"key": "\x00"}]), (1, [[], {}, {"trace": "a\r\nb"}]),
        (2, [1, [], None]), (2, [1, ["here", None, 1, 0.0, 0], None]),
        (2, [1, ["here", None, 1, 0.0, 0.0], "rng"]),
        (2, [1, [1, None, 1, 0.0, 0.0], None]), (3, [{}, None]), (3, [[], None]), (5, [[], None]),
        (6, [[]]), (6, [None]),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_fields_of_another_type(wire, kind, fields):
    """Fields of the wrong type are refused, in every kind of message."""
    wire.refused(wire.message(wire.packed(fields), kind=kind))
