"""Containers in containers, to overflow a stack: nested decoding crashes at 190-odd levels."""

import pytest

from maas.errors import LimitExceeded
from maas.limits import Limits

WIDE = Limits(depth=10**6, nodes=10**8, header=2**26, memory=2**32)
LEVELS = {
    "list": b"\x91", "map": b"\x81\xa1a", "tuple": b"\x81\xa6$tuple\x91",
    "set": b"\x81\xa4$set\x91",
    "map of pairs": b"\x81\xa4$map\x91\x92\xc0", "slice": b"\x81\xa6$slice\x93\xc0\xc0",
    "exception": b"\x81\xaa$exception\x83\xa5names\x90\xaaattributes\x80\xa4args\x91",
    "cause": b"\x84\xa5names\x90\xaaattributes\x80\xa4args\x90\xa5cause",
}  # fmt: skip


@pytest.mark.parametrize("levels", [127, 128, 129, 200, 1_000, 100_000])
@pytest.mark.parametrize("opening", LEVELS.values(), ids=LEVELS)
def test_depth(wire, opening, levels):
    """Any depth beyond the limit is refused; no depth ends the process."""
    data = wire.message(b"\x91" + opening * levels + b"\xc0")
    found = wire.metered(data)
    assert isinstance(found, LimitExceeded) or levels == 127


@pytest.mark.parametrize("levels", [200, 20_000, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("opening", LEVELS.values(), ids=LEVELS)
def test_depth_where_limits_allow_it(wire, opening, levels):
    """Limits that allow any depth still end in a value or a CodecError."""
    wire.metered(wire.message(b"\x91" + opening * levels + b"\xc0"), WIDE)
