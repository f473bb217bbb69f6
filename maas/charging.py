"""What a header will take once it is decoded, told before anything of it is.

msgpack's own guards compare lengths with the input's size, and a 20 MB array of
empty maps passes them on its way to 1,383 MB. Here every value is charged by
what CPython really takes for it, containers with the slack they grow by. The
attacks in tests/attacks hold the figures: no peak above twice what was charged.
"""

from maas.buffers import Buffer
from maas.errors import CodecError, LimitExceeded
from maas.limits import Limits

__all__ = ["charge"]

_CONTAINERS = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
_CHEAP = 2**20
# A slot of a list, which may become a set: that grows by four and holds 16 bytes a place.
_LIST, _SLOT = 128, 32
_MAP, _ENTRY = 256, 176
_SCALAR, _TEXT = 32, 80


def charge(header: Buffer, limits: Limits) -> None:
    """Refuse a header that would take more than `limits` allow, before anything is built.

    Most headers are proved small without being read: their length bounds their
    nodes, and the bytes in them that could open a container bound containers, hence
    depth and claimed slots. That costs 0.4 microseconds; the scan 0.1 a node.
    """
    size = len(header)
    allowed = min(_CHEAP, limits.memory)
    if size * _TEXT <= allowed and size <= limits.nodes:
        containers = size - len(bytes(header).translate(None, _CONTAINERS))
        # Each may lie about its length up to the header's, which is what msgpack is told to allow.
        if (
            containers <= limits.depth
            and containers * (_MAP + _SLOT * size) + size * _TEXT <= allowed
        ):
            return
    _scan(header, limits)


def _scan(header: Buffer, limits: Limits) -> None:
    position, size, nodes, memory = 0, len(header), 0, 0
    # Values still due at each open level; the header itself is one.
    due = [1]
    while due:
        if due[-1] == 0:
            due.pop()
            continue
        due[-1] -= 1
        if position >= size:
            raise CodecError("the header ends inside a value")
        step, members, cost = _node(header, position)
        position += step
        nodes += 1
        memory += cost
        if position > size or members > size - position:
            raise CodecError("the header claims more than it holds")
        if nodes > limits.nodes:
            raise LimitExceeded(f"more than Limits(nodes={limits.nodes}) values in one header")
        if memory > limits.memory:
            raise LimitExceeded(
                f"the header decodes to more than Limits(memory={limits.memory}) bytes"
            )
        if members:
            due.append(members)
            if len(due) > limits.depth + 1:
                raise LimitExceeded(f"nested deeper than Limits(depth={limits.depth})")
    if position != size:
        raise CodecError(f"{size - position} bytes follow the header's only value")


_FIXED = {0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}
_FIXED |= {0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
_SIZED = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}


def _node(header: Buffer, position: int) -> tuple[int, int, int]:
    """Length in bytes without members, number of members, and cost of the value at `position`."""
    first = header[position]
    if first < 0x80 or first >= 0xE0:
        return 1, 0, _SCALAR
    if first in _FIXED:
        return _FIXED[first], 0, _SCALAR
    if 0xA0 <= first <= 0xBF:
        length = first & 0x1F
        return 1 + length, 0, _TEXT + 4 * length
    if first in _SIZED:
        width = _SIZED[first]
        length = int.from_bytes(header[position + 1 : position + 1 + width], "big")
        # One character beyond the basic plane makes every other take four bytes too.
        return 1 + width + length, 0, _TEXT + 4 * length
    if first <= 0x8F or first in _MAPS:
        width = _MAPS.get(first, 0)
        entries = (
            int.from_bytes(header[position + 1 : position + 1 + width], "big")
            if width
            else first & 0x0F
        )
        return 1 + width, 2 * entries, _MAP + _ENTRY * entries
    if first <= 0x9F or first in _ARRAYS:
        width = _ARRAYS.get(first, 0)
        members = (
            int.from_bytes(header[position + 1 : position + 1 + width], "big")
            if width
            else first & 0x0F
        )
        return 1 + width, members, _LIST + _SLOT * members
    raise CodecError(
        f"the header holds the byte 0x{first:02x} where a value begins; ext types are not used"
    )
