"""What msgpack allows and the format does not: ext types, timestamps, other keys, duplicate
keys.
"""

import struct

import msgpack
import pytest


@pytest.mark.parametrize(
    "raw",
    [
        b"\xc7\x00\x05", b"\xc7\x00\xff", b"\xd4\x05\x00", b"\xd5\x05\x00\x00",
        b"\xd6\xff" + bytes(4),
        b"\xd7\xff" + bytes(8), b"\xd8\x01" + bytes(16), b"\xc7\x0c\xff" + bytes(12),
        b"\xc8\x00\x01\x05a",
        b"\xc9\x00\x00\x00\x01\x05a", b"\xc1",
    ],
    ids=lambda raw: raw.hex()[:8],
)  # fmt: skip
@pytest.mark.parametrize("pad", [0, 50_000])
def test_ext_types(wire, raw, pad):
    """Ext types, timestamps and the reserved byte are refused, by the proof and by the scan
    alike.
    """
    wire.refused(
        wire.message(
            b"\x92"[:0] + b"\x91\x92" + raw + b"\xc5" + struct.pack(">H", pad) + bytes(pad)
        )
    )


def pairs(*items):
    """A map with these pairs, duplicates and all."""
    return bytes([0x80 + len(items)]) + b"".join(
        msgpack.packb(part) for pair in items for part in pair
    )


@pytest.mark.parametrize(
    "raw",
    [
        pairs(("a", 1), ("a", 2)), pairs(("$tuple", []), ("$tuple", [])), pairs((1, 2)),
        pairs((None, 2)),
        pairs((b"a", 2)), pairs((1.5, 2)), pairs((True, 2)), pairs(("$tuple", [1]), ("b", 2)),
        pairs(("$", 1)),
        pairs(("$nothing", 1)), pairs(("$TUPLE", [1])), pairs(("$tuple\x00", [1])), pairs(([], 1)),
        b"\x81\x80\x01", b"\x81\xd4\x01\x01\x01",
    ],
    ids=lambda raw: raw.hex()[:16],
)  # fmt: skip
def test_maps(wire, raw):
    """Duplicate keys, keys that are no strings, unknown tags and tags beside keys are refused."""
    wire.refused(wire.message(b"\x91" + raw))


@pytest.mark.parametrize(
    "tree",
    [
        {"$map": [[1, 2], [1, 3]]}, {"$map": [[1, 2], [True, 3]]}, {"$map": [[[], 1]]},
        {"$map": [[1]]}, {"$map": [1]},
        {"$map": {"a": 1}}, {"$map": [[1, 2, 3]]}, {"$map": 1}, {"$ordered": [["a", 1], ["a", 2]]},
        {"$set": [1, 1]}, {"$set": [1, 1.0]}, {"$set": [[]]}, {"$set": [{}]}, {"$set": None},
        {"$frozenset": [{"$set": []}]},
        {"$tuple": None}, {"$tuple": {"a": 1}}, {"$tuple": b""},
    ],
    ids=str,
)  # fmt: skip
def test_containers(wire, tree):
    """Equal keys and members, members that cannot be hashed, and payloads of another shape are
    refused.
    """
    wire.refused(wire.item(tree))


@pytest.mark.parametrize(
    "raw",
    [b"\xff", b"\xc3\x28", b"\xe2\x82", b"\xf8\x88\x80\x80\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"],
)
def test_text_that_is_no_utf8(wire, raw):
    """Bytes that are no UTF-8 are no text, in a string, a key, a tag or a buffer."""
    short = bytes([0xA0 + len(raw)]) + raw
    wire.refused(wire.message(b"\x91" + short))
    wire.refused(wire.message(b"\x91\x81" + short + b"\x01"))
    wire.refused(wire.message(b"\x91\x81" + bytes([0xA1 + len(raw)]) + b"$" + raw + b"\x01"))
    wire.refused(wire.item({"$str": 0}, raw))


def test_nan_keys_and_floats(wire):
    """A float is no key of a plain map."""
    wire.refused(wire.message(b"\x91\x81\xcb" + struct.pack(">d", float("nan")) + b"\x01"))
