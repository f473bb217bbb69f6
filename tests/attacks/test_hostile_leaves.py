"""Payloads of tags that are out of range, of the wrong type, or too costly."""

import time

import pytest


@pytest.mark.parametrize(
    "tree",
    [
        {"$int": b""}, {"$int": b"\x01"}, {"$int": b"\x01" + bytes(8)[:7]}, {"$int": 5},
        {"$int": b"\x01" + bytes(5_000)},
        {"$complex": b""}, {"$complex": bytes(15)}, {"$complex": [1, 2]}, {"$decimal": "x"},
        {"$decimal": 1},
        {"$decimal": ""}, {"$uuid": bytes(15)}, {"$uuid": "a"}, {"$slice": [1, 2]},
        {"$slice": None}, {"$slice": 5},
        {"$range": [1, 2, 0]}, {"$range": [1, 2]}, {"$range": [1, 2, 1.0]},
        {"$range": [1, 2, True]},
        {"$bytes": b"x"}, {"$str": "x"}, {"$str": -1}, {"$bytes": True}, {"$bytearray": "x"},
        {"$bytearray": 0},
        {"$scalar": ["float32", bytes(3)]}, {"$scalar": ["object", bytes(8)]},
        {"$scalar": ["float4_e2m1fn_x2", b"1"]},
        {"$scalar": 1}, {"$size": [1.5]}, {"$size": [2**63]}, {"$size": None}, {"$size": [True]},
        {"$datetime": [2024, 13, 1, 0, 0, 0, 0, 0, None]},
        {"$datetime": [0, 1, 1, 0, 0, 0, 0, 0, None]},
        {"$datetime": [2024, 1, 1, 0, 0, 0, 0, 2, None]}, {"$datetime": []}, {"$datetime": None},
        {"$datetime": [2024, 1, 1, 0, 0, 0, 0, 0, "No/Zone"]},
        {"$datetime": [2024, 1, 1, 0, 0, 0, 0, 0, 86_400 * 10**6]},
        {"$datetime": [2024, 1, 1, 0, 0, 0, 0, 0, [1, 2]]},
        {"$datetime": [2024.0, 1, 1, 0, 0, 0, 0, 0, None]},
        {"$time": [24, 0, 0, 0, 0, None]}, {"$time": [1]}, {"$date": [2024, 2, 30]},
        {"$date": "2024-01-01"},
        {"$timedelta": [10**10, 0, 0]}, {"$timedelta": [0, 0]},
        {"$timedelta": [2**63, 2**63, 2**63]},
        {"$object": ["nobody", {}]}, {"$object": ["builtins.eval", {}]},
        {"$object": ["os.system", {"a": 1}]}, {"$object": []},
    ],
    ids=lambda tree: str(tree)[:50],
)  # fmt: skip
def test_payloads(wire, tree):
    """A payload that is no value of its tag is refused."""
    wire.refused(wire.item(tree))


@pytest.mark.parametrize(
    "zone", ["../../etc/passwd", "/etc/passwd", "Europe", "Europe/../Europe/Berlin", "a\x00b",
             "posixrules\n", "",
             ".", "x" * 5_000, "tzdata.zi", "leapseconds", "..", "Europe/Berlin/", "\ud800"],
)  # fmt: skip
def test_zones_that_are_paths(wire, zone):
    """A zone's name leads to a zone or nowhere."""
    wire.refused(wire.item({"$datetime": [2024, 1, 1, 0, 0, 0, 0, 0, zone]}))


def big(value):
    return {"$int": value.to_bytes(16, "big", signed=True)}


COLLIDING = {
    "ints": lambda n: big((n + 8) * (2**61 - 1) * 2**3),
    "uuids": lambda n: {"$uuid": (n * (2**61 - 1)).to_bytes(16, "big")},
    "decimals": lambda n: {"$decimal": str(n * (2**61 - 1))},
}


@pytest.mark.parametrize("kind", COLLIDING.values(), ids=COLLIDING)
@pytest.mark.parametrize("tag", ["$set", "$frozenset", "$map", "$ordered"])
def test_keys_of_one_hash(wire, kind, tag):
    """Keys chosen to share a hash are refused before they are compared with each other, pair by
    pair.
    """
    keys = [kind(n) for n in range(5_000)]
    members = keys if "set" in tag else [[key, None] for key in keys]
    started = time.process_time()
    wire.refused(wire.item({tag: members}), match="of one hash")
    # Pair by pair it is 12 million comparisons. No measure of speed: 100 times what it takes.
    assert time.process_time() - started < 20


def test_few_keys_of_one_hash(wire):
    """-1 and -2 share a hash in Python, and are no attack."""
    assert wire.metered(wire.item({"$set": [-1, -2]})).value == {-1, -2}


def test_messages_of_errors_stay_short(wire):
    """An error shows a little of what came, never all of it, and never the text of a huge int."""
    huge = {"$int": b"\x01" + bytes(4_000)}
    for tree in (
        {"$decimal": huge},
        {"$uuid": ["x" * 4_000] * 1_000},
        {"$tuple": "x" * 60_000},
        {"$" + "x" * 60_000: 1},
    ):
        assert len(str(wire.refused(wire.item(tree)))) < 1_000
