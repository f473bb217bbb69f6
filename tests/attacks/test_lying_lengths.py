"""Containers and strings that claim more than they hold, which a decoder allocates ahead of
reading.
"""

import struct

import pytest

from maas.errors import CodecError
from maas.limits import Limits

CLAIMS = [2, 100, 65_535, 2**20, 2**31, 2**32 - 1]


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize(
    "first", [0xDD, 0xDF, 0xDB, 0xC6, 0xC9], ids=["array", "map", "str", "bin", "ext"]
)
def test_a_lie(wire, first, claim):
    """A length beyond what is left is refused."""
    wire.refused(wire.message(b"\x91" + bytes([first]) + struct.pack(">I", claim)))


@pytest.mark.parametrize("limits", [Limits(), Limits(nodes=10**6, depth=10**5, memory=2**20)])
@pytest.mark.parametrize("size", [100, 1_000, 65_000])
@pytest.mark.parametrize("first", [0xDC, 0xDE])
def test_nested_lies(wire, first, size, limits):
    """Each level may claim all that is left: 65 KB of it once took 80 MB."""
    header = b"\x91" + b"".join(
        bytes([first]) + struct.pack(">H", min(65_535, size - 3 * level))
        for level in range(size // 3)
    )
    wire.refused(wire.message(header), limits)


@pytest.mark.parametrize("levels", [10, 60, 120])
def test_nested_lies_within_the_depth(wire, levels):
    """Lies that fit what is left are charged one by one."""
    filler = b"\xc0" * 60_000
    header = b"\x91" + (b"\xdd" + struct.pack(">I", 60_000)) * levels + filler
    wire.refused(wire.message(header), Limits(nodes=10**7))


def lying(wire, header=None, total=None, start=b"\xa4maas\x01\x04\xce"):
    body = wire.packed([1])
    declared = len(body) if header is None else header
    whole = 21 + len(body) if total is None else total
    return start + struct.pack(">I", declared) + b"\xcf" + struct.pack(">Q", whole) + body


@pytest.mark.parametrize(
    "lie",
    [{"header": 3}, {"header": 2**32 - 1}, {"header": 0}, {"header": 1}, {"total": 0},
     {"total": 22},
     {"total": 2**64 - 1}, {"total": 2**31}, {"start": b"\xa4maas\x02\x04\xce"},
     {"start": b"\xa4maas\x01\x00\xce"}, {"start": b"\xa4maas\x01\x07\xce"},
     {"start": b"\xa4maas\x01\x04\xcd"}, {"start": b"\xa4mass\x01\x04\xce"}],
    ids=str,
)  # fmt: skip
def test_a_lying_prefix(wire, lie):
    """A prefix that contradicts the message is refused."""
    assert wire.metered(lying(wire)).value == 1
    wire.refused(lying(wire, **lie))


def test_a_buffer_that_lies(wire):
    """A bin that is longer than the message, or a split one without its last part, is refused."""
    good = wire.item({"$bytes": 0}, b"12345")
    assert wire.metered(good).value == b"12345"
    start = good.index(b"\xc6\x00\x00\x00\x05")
    for length in (4, 6, 2**31, 2**32 - 64, 2**32 - 1):
        bad = good[: start + 1] + struct.pack(">I", length) + good[start + 5 :]
        assert isinstance(wire.refused(bad), CodecError)
