"""Descriptors that do not fit their bytes: products that wrap, dimensions that are no lengths."""

import struct

import numpy as np
import pytest
import torch

from maas.limits import Limits

DATA = bytes(24)


@pytest.mark.parametrize("tag", ["$tensor", "$array"])
@pytest.mark.parametrize(
    "shape",
    [
        [5], [7], [2, 4], [2**32, 2**32], [2**62, 4], [2**63], [2**64 - 1], [0], [0, 2**62],
        [2**62, 0],
        [-6], [-2, -3], [6, -1], [-1], [6.0], [True, 6], [2, True], [float("nan")], [float("inf")],
        ["6"], [None], [[6]], [b"6"], 6, None, "6", {"a": 6}, {"$tuple": [6]}, {"$size": [6]},
        [6] + [1] * 64,
        [2**63] * 64, [{"$int": b"\x01" + bytes(4_000)}], [{"$int": b"\x01" + bytes(4_000)}] * 60,
        [],
    ],
    ids=lambda shape: str(shape)[:30],
)  # fmt: skip
def test_shapes(wire, tag, shape):
    """A shape that does not give exactly the bytes that came is refused."""
    wire.refused(wire.item({tag: [0, "float32", shape]}, DATA))


@pytest.mark.parametrize("tag", ["$tensor", "$array"])
def test_empty_shapes(wire, tag):
    """No bytes fit a shape with a zero, unless its other dimensions are beyond any memory."""
    assert wire.metered(wire.item({tag: [0, "float32", [0, 2**50]]}, b"")).value.shape == (0, 2**50)
    wire.refused(wire.item({tag: [0, "float32", [0, 2**60]]}, b""))
    wire.refused(wire.item({tag: [0, "float32", [2**60, 2**60, 0]]}, b""))


@pytest.mark.parametrize("tag", ["$tensor", "$array"])
@pytest.mark.parametrize(
    "dtype",
    ["float33", "object", "O", "|O", "<f4", "V4", "U1", "datetime64", "M8[s]", "void", "",
     "float32,float32", "quint8", "float", "torch.float32", "__class__", 4, None, ["float32"],
     {"a": 1}, b"float32", "float32\x00"],
    ids=str,
)  # fmt: skip
def test_dtypes(wire, tag, dtype):
    """A dtype off the list is refused, whatever numpy or torch would make of it."""
    wire.refused(wire.item({tag: [0, dtype, [6]]}, DATA))


@pytest.mark.parametrize(
    "flags",
    [
        ["grad", "grad"],
        ["channels_last", "grad"],
        ["x"],
        "grad",
        {"grad": True},
        [1],
        [],
        None,
        [["grad"]],
        0,
        "",
    ],
    ids=str,
)
def test_flags(wire, flags):
    """Flags come in one order, each once, or not at all."""
    wire.refused(wire.item({"$tensor": [0, "float32", [1, 1, 2, 3], flags]}, DATA))


@pytest.mark.parametrize(
    "payload",
    [
        [0, "float32", [6], ["channels_last"]], [0, "int32", [6], ["grad"]],
        [0, "float32", [6], ["grad"], 1],
        [0, "float32"], [], 0, None, "x", [1, "float32", [6]], [-1, "float32", [6]],
        [0.0, "float32", [6]],
        [False, "float32", [6]], [None, "float32", [6]], [2**70, "float32", [6]],
    ],
    ids=str,
)  # fmt: skip
def test_descriptors(wire, payload):
    """A descriptor with the wrong fields, or an index that is none, is refused."""
    payload = (
        [{"$int": (2**70).to_bytes(9, "big")} if part == 2**70 else part for part in payload]
        if isinstance(payload, list)
        else payload
    )
    wire.refused(wire.item({"$tensor": payload}, DATA))


def test_numpy_arrays_have_no_flags(wire):
    """Flags belong to torch tensors."""
    wire.refused(wire.item({"$array": [0, "float32", [6], ["grad"]]}, DATA))


def test_each_buffer_is_used_once(wire):
    """Two values over one buffer would be two names for one memory; a buffer of nobody is a
    smuggled one.
    """
    one = {"$tensor": [0, "float32", [6]]}
    wire.refused(wire.item([one, one], DATA), match="used before")
    wire.refused(wire.item([one, {"$bytes": 0}], DATA), match="used before")
    wire.refused(wire.item(one, DATA, DATA), match="nothing refers to")
    wire.refused(wire.item(1, DATA), match="nothing refers to")
    wire.refused(wire.item([one, {"$tensor": [1, "float32", [6]]}], DATA), match="not there")


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "float64", "complex64", "float8_e4m3fn"]
)
def test_payloads_are_kept(wire, dtype):
    """NaN payloads, infinities, subnormals and signalling NaNs arrive bit by bit."""
    words = [0x7FC00001, 0x7F800001, 0xFF800000, 0x80000000, 0x00000001, 0xFFFFFFFF]
    raw = b"".join(struct.pack("<I", word) for word in words)
    size = len(raw) // getattr(torch, dtype).itemsize
    there = wire.metered(wire.item({"$tensor": [0, dtype, [size]]}, raw)).value
    assert there.view(torch.uint8).numpy().tobytes() == raw


@pytest.mark.parametrize("value", [2, 255])
@pytest.mark.parametrize("tag", ["$tensor", "$array"])
def test_booleans(wire, tag, value):
    """A bool array that holds other bytes than 0 and 1 is refused, and the check takes no
    memory.
    """
    raw = bytes(4_000_000) + bytes([value])
    wire.refused(wire.item({tag: [0, "bool", [len(raw)]]}, raw), match="bool")
    wire.refused(wire.item({"$scalar": ["bool", bytes([value])]}))


def test_large_buffers_are_copied_once(wire):
    """Read-only bytes are copied once to be writable, and nothing more."""
    raw = np.arange(10**6, dtype="f4").tobytes()
    for tag, dtype in [("$tensor", "float32"), ("$array", "float32")]:
        assert (
            wire.metered(wire.item({tag: [0, dtype, [10**6]]}, raw), Limits(memory=2**16)).value[5]
            == 5
        )
    assert wire.metered(wire.item({"$bytes": 0}, raw), Limits(memory=2**16)).value == raw


@pytest.mark.parametrize(
    "padding", [b"", b"\xc0", b"\xc0" * 63, b"\xc0" * 64, b"\x00" * 37, b"\xc0" * 10**5]
)
def test_misaligned_buffers(wire, padding):
    """A buffer that does not begin at a multiple of 64 bytes is refused."""
    header = wire.packed([{"$bytes": 0}])
    data = wire.message(header, padding + b"\xc6\x00\x00\x00\x01x")
    assert (21 + len(header) + len(padding) + 5) % 64
    wire.refused(data)


def test_too_many_buffers(wire):
    """Buffers are counted as they are found."""
    data = wire.item([{"$bytes": n} for n in range(50)], *[b"x"] * 50)
    assert len(wire.metered(data).value) == 50
    wire.refused(data, Limits(tensors=49))
