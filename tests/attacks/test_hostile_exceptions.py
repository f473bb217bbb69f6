"""Exception data that would shadow methods, leave the loop, or unfold without end."""

import pytest

from maas.errors import CodecError
from maas.wire import Kind

PLAIN = {"names": ["ValueError"], "args": ["bad"], "attributes": {}}
HUGE = {"$int": b"\x01" + bytes(4_000)}


def failure(wire, data):
    return wire.message(wire.packed([data, None]), kind=Kind.FAILURE)


@pytest.mark.parametrize(
    "change",
    [
        {"names": None}, {"names": [1]}, {"names": "ValueError"}, {"args": None},
        {"args": {"a": 1}}, {"attributes": []},
        {"attributes": None}, {"notes": 5}, {"notes": [5]}, {"notes": "abc"}, {"notes": [HUGE]},
        {"traceback": 5}, {"traceback": HUGE},
        {"cause": 5}, {"cause": []}, {"context": True}, {"context": 5}, {"group": []}, {"group": 5},
        {"group": [5]},
        {"group": [PLAIN], "args": [HUGE]}, {"group": [PLAIN], "args": [5]},
        {"group": [PLAIN], "args": []},
        {"group": [PLAIN] * 65}, {"attributes": {"__class__": 1}}, {"attributes": {"__dict__": {}}},
        {"attributes": {"__traceback__": 1}}, {"attributes": {"__cause__": 1}},
        {"attributes": {"with_traceback": 1}},
        {"attributes": {"add_note": 1}}, {"attributes": {"args": [1]}},
        {"attributes": {"__notes__": 1}},
        {"attributes": {"a b": 1}}, {"attributes": {"": 1}}, {"attributes": {"$map": [[1, 2]]}},
        {"names": ["maas.Overloaded"], "attributes": {"retry_after": "soon"}},
        {"names": ["maas.Overloaded"], "attributes": {"retry_after": -1}},
        {"names": ["maas.Overloaded"], "attributes": {"retry_after": float("nan")}},
        {"names": ["maas.Overloaded"], "attributes": {"retry_after": float("inf")}},
        {"names": ["maas.Overloaded"], "attributes": {"retry_after": HUGE}},
        {"names": ["maas.TransportError"], "attributes": {"sent": "no"}},
        {"names": ["maas.InternalError"], "attributes": {"status": 200}},
        {"names": ["maas.InternalError"], "attributes": {"code": "fine"}},
        {"names": ["OSError"], "args": [1, "a"], "attributes": {"characters_written": "y"}},
    ],
    ids=lambda change: str(change)[:60],
)  # fmt: skip
def test_data(wire, change):
    """Exception data of the wrong types, or with attributes that are no data, is refused."""
    data = PLAIN | change
    assert isinstance(wire.refused(failure(wire, data)), CodecError)
    assert isinstance(wire.refused(wire.item({"$exception": data})), CodecError)


@pytest.mark.parametrize("chain", ["cause", "context"])
def test_long_chains(wire, chain):
    """A chain longer than any that is sent is refused."""
    data = PLAIN
    for _ in range(30):
        data = PLAIN | {chain: data}
    wire.refused(failure(wire, data))


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["SystemExit"], Exception), (["KeyboardInterrupt", "BaseException"], Exception),
        (["GeneratorExit"], Exception),
        (["os.system"], Exception), (["builtins.eval"], Exception), (["eval"], Exception),
        ([], Exception),
        (["maas.MutationWarning"], Exception), (["maas.errors"], Exception),
        (["BaseExceptionGroup"], Exception),
        (["ExceptionGroup"], Exception), (["UnicodeDecodeError", "ValueError"], ValueError),
        (["torch.save"], Exception),
        (["json.decoder.JSONDecoder"], Exception), (["maas.testing.Point", "KeyError"], KeyError),
    ],
    ids=lambda names: str(names)[:40],
)  # fmt: skip
def test_names(wire, names, wanted):
    """A name leads to an exception class of the closed table, or is passed over."""
    assert type(wire.metered(failure(wire, PLAIN | {"names": names})).error) is wanted


def test_errors_of_ours_are_whole(wire):
    """An error of ours that comes without its attributes has them still."""
    for name, attribute in [
        ("Overloaded", "retry_after"),
        ("TransportError", "sent"),
        ("StreamInterrupted", "answered"),
    ]:
        there = wire.metered(failure(wire, PLAIN | {"names": [f"maas.{name}"]})).error
        assert not getattr(there, attribute)
        assert str(there) == "bad"


def test_arguments_of_any_type(wire):
    """Arguments may be anything that crosses; showing the exception never fails for it."""
    there = wire.metered(failure(wire, PLAIN | {"args": [{"$tuple": [1]}, None, {"a": [1]}]})).error
    assert str(there) == "((1,), None, {'a': [1]})"
