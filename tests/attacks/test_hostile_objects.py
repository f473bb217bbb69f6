"""Data for registered classes: missing and foreign fields, and constructors that object."""

import enum

import attrs
import pytest

from maas.errors import CodecError
from maas.values import register


@register(name="attacks.Account")
@attrs.frozen
class Account:
    """A class with a validator and a field that no constructor takes."""

    owner: str = attrs.field(validator=attrs.validators.instance_of(str))
    _secret: int = 0
    total: int = attrs.field(init=False, default=0)


@register(name="attacks.Mode")
class Mode(enum.Enum):
    """An enum."""

    A = 1


@register(name="attacks.Exits")
@attrs.frozen
class Exits:
    """A class whose constructor raises what the wire does not expect."""

    kind: str

    def __attrs_post_init__(self):
        raise {"value": ValueError, "memory": MemoryError, "recursion": RecursionError}[self.kind](
            "no"
        )


GOOD = {"owner": "a", "_secret": 1, "total": 2}


@pytest.mark.parametrize(
    "payload",
    [
        ["attacks.Account", {}], ["attacks.Account", GOOD | {"x": 1}],
        ["attacks.Account", GOOD | {"owner": 5}],
        ["attacks.Account", GOOD | {"__class__": 1}],
        ["attacks.Account", {"owner": "a", "secret": 1, "total": 2}],
        ["attacks.Account", [1]], ["attacks.Account", None], ["attacks.Account"],
        ["attacks.Account", GOOD, 1],
        ["Account", GOOD], [None, GOOD], [{"$tuple": []}, GOOD],
        ["attacks.Account", {"$map": [[1, 2]]}],
        ["attacks.Mode", {"name": "B"}], ["attacks.Mode", {"name": 1}],
        ["attacks.Mode", {"name": []}],
        ["attacks.Mode", {"name": "__class__"}], ["attacks.Mode", {}],
        ["maas.testing.Shade", {"value": -99}],
        ["maas.testing.Shade", {"value": "x"}], ["attacks.Exits", {"kind": "value"}],
        ["attacks.Exits", {"kind": "memory"}],
        ["attacks.Exits", {"kind": "recursion"}], ["attacks.Exits", {"kind": "x"}],
    ],
    ids=lambda payload: str(payload)[:60],
)  # fmt: skip
def test_objects(wire, payload):
    """An object that its class would not make is refused with the class's words."""
    import maas.testing.strategies  # noqa: F401 - registers Shade

    assert isinstance(wire.refused(wire.item({"$object": payload})), CodecError)


def test_a_good_one(wire):
    """The same data in order makes the object."""
    there = wire.metered(wire.item({"$object": ["attacks.Account", GOOD]})).value
    assert (there.owner, there._secret, there.total) == ("a", 1, 2)
