"""What every attack on the wire needs: messages made by hand, and a meter for what they cost."""

import struct
import tracemalloc
from types import SimpleNamespace

import msgpack
import pytest

from maas.errors import CodecError
from maas.limits import Limits
from maas.wire import PREFIX, Kind, decode

SLACK = 2**20


def packed(value):
    """A header's bytes, by msgpack alone."""
    return msgpack.packb(value, strict_types=True, unicode_errors="surrogatepass")


def message(header, buffers=b"", kind=Kind.ITEM, *, total=None):
    """A message whose prefix is right, around whatever header and buffers are given."""
    total = PREFIX + len(header) + len(buffers) if total is None else total
    prefix = struct.pack(">5sBBBIBQ", b"\xa4maas", 1, kind, 0xCE, len(header), 0xCF, total)
    return prefix + header + buffers


def aligned(header, *buffers):
    """An item whose buffers lie as the format wants them."""
    tail = b""
    for buffer in buffers:
        position = PREFIX + len(header) + len(tail)
        tail += b"\xc0" * (-(position + 5) % 64) + b"\xc6" + struct.pack(">I", len(buffer)) + buffer
    return message(header, tail)


def item(value, *buffers):
    """An item that holds this tree, and buffers."""
    return aligned(packed([value]), *buffers)


def metered(data, limits=Limits()):  # noqa: B008 - frozen
    """What decoding gives, or the CodecError it raises; never more memory than twice the limits."""
    tracemalloc.start()
    try:
        found = decode(data, limits)
    except CodecError as error:
        # A traceback holds the frames, and they what was half built; the peak has seen it.
        found = error.with_traceback(None)
    finally:
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    buffers = max(0, len(data) - PREFIX - int.from_bytes(data[8:12], "big"))
    allowed = 2 * (limits.memory + buffers) + SLACK
    assert peak <= allowed, f"{peak} bytes at the peak, {allowed} allowed"
    return found


def refused(data, limits=Limits(), match=""):  # noqa: B008 - frozen
    """The CodecError that decoding must raise, within its memory."""
    found = metered(data, limits)
    assert isinstance(found, CodecError), f"accepted: {found!r:.200}"
    assert match in str(found), str(found)
    return found


@pytest.fixture
def wire():
    """The attacker's tools."""
    return SimpleNamespace(
        packed=packed, message=message, aligned=aligned, item=item, metered=metered, refused=refused
    )
