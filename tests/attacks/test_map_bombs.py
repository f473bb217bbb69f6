"""A small message that decodes to a large one: 20 MB of empty maps once took 1,383 MB and 7 s."""

import struct

import pytest

from maas.errors import LimitExceeded
from maas.limits import Limits

WIDE = Limits(header=64 * 2**20, nodes=10**9, memory=16 * 2**20)
MANY = 10**6


@pytest.mark.parametrize(
    "element",
    [b"\x80", b"\x90", b"\xc0", b"\xa0", b"\xc4\x00", b"\x00", b"\xcb" + b"\x01" * 8,
     b"\x81\xa1a\xc0",
     b"\x81\xa6$tuple\x90", b"\x81\xa4$set\x90", b"\x81\xa4$map\x90", b"\x81\xa9$ellipsis\xc0"],
    ids=["maps", "lists", "nil", "empty strings", "empty bytes", "zeros", "floats", "small maps",
         "tuples", "sets", "typed maps", "ellipses"],
)  # fmt: skip
def test_a_million(wire, element):
    """A million of the smallest values are refused by their number, and by their memory alone."""
    header = b"\x91\xdd" + struct.pack(">I", MANY) + element * MANY
    data = wire.message(header)
    assert isinstance(wire.refused(data, Limits(header=64 * 2**20)), LimitExceeded)
    assert isinstance(wire.refused(data, WIDE), LimitExceeded)


def test_twenty_megabytes_of_maps(wire):
    """The map bomb that began it is refused before one map is built."""
    header = b"\x91\xdd" + struct.pack(">I", 20_000_000) + b"\x80" * 20_000_000
    assert isinstance(wire.refused(wire.message(header), WIDE), LimitExceeded)
    assert isinstance(wire.refused(wire.message(header)), LimitExceeded)


@pytest.mark.parametrize("key", ["$set", "$frozenset", "$tuple", None])
@pytest.mark.parametrize("size", [1_000, 10_000, 43_000, 60_000, 100_000])
def test_what_is_accepted_stays_within_its_charge(wire, key, size):
    """What is let through takes no more than twice the memory that the limits name."""
    members = b"".join(b"\xcf" + struct.pack(">Q", 2**63 + n) for n in range(size))
    array = b"\xdd" + struct.pack(">I", size) + members
    tagged = array if key is None else b"\x81" + wire.packed(key) + array
    for memory in (2**20, 4 * 2**20, 16 * 2**20):
        wire.metered(
            wire.message(b"\x91" + tagged), Limits(memory=memory, nodes=10**6, header=2**22)
        )


@pytest.mark.parametrize(
    "text", ["a", "\xe9", "\u4e2d", "\U0001f600", "\ud800", "\U0001f600" + "a" * 50_000]
)
def test_text_is_charged_by_its_widest_character(wire, text):
    """One wide character makes a whole string four times as large, in the header and in a
    buffer.
    """
    raw = (text * (100_000 // len(text))).encode("utf-8", "surrogatepass")
    for memory in (2**17, 2**20):
        limits = Limits(memory=memory)
        wire.metered(wire.message(b"\x91\xdb" + struct.pack(">I", len(raw)) + raw), limits)
        wire.metered(wire.item([{"$str": 0}, {"$str": 1}], raw, raw), limits)
    long = b"a" * 5_000_000
    assert isinstance(
        wire.refused(wire.item({"$str": 0}, long), Limits(memory=2**20)), LimitExceeded
    )
