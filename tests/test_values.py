"""The closed set: what crosses comes back the same, bit by bit; what cannot is refused with its
path.
"""

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import threading
import types
import uuid
import zoneinfo
from typing import NamedTuple

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maas.calls import Call, Result
from maas.errors import CodecError, LimitExceeded
from maas.limits import Limits
from maas.testing.equality import difference
from maas.testing.strategies import Level, Person, Point, Score, Shade, values
from maas.values import Field, rebuild, register, registered, render
from maas.wire import decode, encode, encode_call

LIMITS = Limits()
RESULT = (None, "result", 1)


def sent(value, limits=LIMITS):
    """The bytes of a result that holds `value`."""
    return b"".join(encode(Result(value), limits))


def there_and_back(value, limits=LIMITS):
    return decode(sent(value, limits), limits).value


def here(value, limits=LIMITS):
    """What local execution makes of a value: its own containers, arrays untouched."""
    return rebuild(value, RESULT, lambda array, _path: array, limits)


# Laws.


@given(values())
def test_round_trip(value):
    """A value that crosses comes back as the same type with the same bits."""
    assert difference(value, there_and_back(value)) is None


@given(values())
def test_encoding_is_deterministic(value):
    """The same value encodes to the same bytes every time."""
    assert sent(value) == sent(value)


@given(values())
def test_second_trip(value):
    """A value that has crossed crosses again unchanged."""
    once = there_and_back(value)
    assert difference(once, there_and_back(once)) is None


@given(values())
def test_rebuild(value):
    """Local execution hands on the same value in containers of its own."""
    assert difference(value, here(value)) is None


@given(st.lists(values(), max_size=3), st.dictionaries(st.text(min_size=1), values(), max_size=3))
def test_calls_round_trip(args, kwargs):
    """A call arrives with the same arguments, at the address it was sent to."""
    kwargs = {name.lstrip("$") or "x": value for name, value in kwargs.items()}
    data = b"".join(encode_call(Call("m", "f", tuple(args), kwargs), LIMITS))
    call = decode(data, LIMITS, model="net", method="call")
    assert (call.model, call.method) == ("net", "call")
    assert difference(tuple(args), call.args) is None
    assert difference(kwargs, call.kwargs) is None


@given(values(arrays=False))
def test_containers_are_new(value):
    """No container of a rebuilt value is one of the original's."""
    copy = here(value)
    if type(value) in (list, dict, set, bytearray):
        assert copy is not value


# Borders.


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 2**32_000,
        0.0, -0.0, 5e-324, float("inf"), "", "\ud800", "\udfff\ud800", "\U0010ffff" * 5_000,
        b"", b"x" * 4_096, b"x" * 4_097, bytearray(), bytearray(4_097), 1j, complex(-0.0, 0.0),
        decimal.Decimal("NaN"), decimal.Decimal("sNaN123"), decimal.Decimal("-0"),
        decimal.Decimal("1E+999999"), decimal.Decimal("0.10"), decimal.Decimal("1" * 5_000),
        uuid.UUID(int=0), ..., slice(None), slice(1, "a", [2]), range(0), range(1, 1), range(2**70),
        [], (), {}, set(), frozenset(), [[]], ((),), collections.OrderedDict(b=1, a=2),
        {1: "a", "1": "b"}, {None: 1, (1, 2): 2, b"x": 3, 1.5: 4}, {True: "kept as bool"},
        {"$tuple": [1]}, {"$": 1}, {"$tuple": 1, "b": 2}, {"x" * 5_000: 1}, {"\ud800": 1},
        {1, "1", b"1"}, frozenset({frozenset({1}), frozenset()}),
        dt.datetime.min, dt.datetime.max.replace(fold=1),  # noqa: DTZ901 - naive
        dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=-1), "odd")),
        dt.time(23, 59, tzinfo=dt.UTC), dt.date.min, dt.timedelta.min, dt.timedelta.max,
        dt.timedelta(microseconds=-1), Point(1, (2,)), Person("a", age=3), Score([1]),
        Level.HIGH, Shade.RED | Shade.GREEN, Shade(0), np.float32(1), np.bool_(True), np.int64(-1),
        np.float64(0.1), np.complex64(1j), np.zeros((0, 3)), torch.Size([2, 3]), torch.Size([]),
    ],
    ids=lambda value: f"{type(value).__name__}",
)  # fmt: skip
def test_borders(value):
    """Values on the borders of their types survive the wire and local execution alike."""
    assert difference(value, there_and_back(value)) is None
    assert difference(value, here(value)) is None


class _Dict(dict):
    pass


class _Int(int):
    pass


class _Color(enum.Enum):
    RED = 1


class _Pair(NamedTuple):
    a: int
    b: int


@attrs.frozen
class _Unknown:
    a: int = 1


class _Zone(dt.tzinfo):
    pass


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (object(), "cannot cross"), (_Dict(), "subclass of dict"), (_Int(1), "subclass of int"),
        (_Color.RED, "register(_Color)"), (_Pair(1, 2), "subclass of tuple"),
        (_Unknown(), "register(_Unknown)"), (memoryview(b""), "cannot cross"),
        (len, "cannot cross"),
        (int, "cannot cross"), (types, "cannot cross"), (iter([]), "cannot cross"),
        (threading.Lock(), "cannot cross"), (KeyboardInterrupt(), "cannot cross"),
        (dt.datetime(2024, 1, 1, tzinfo=_Zone()), "zoneinfo"),
        (np.array([object()]), "send a list"), (np.array(["a"]), "cannot cross"),
        (np.zeros(2, ">f4"), "big-endian"), (np.datetime64("2024-01-01"), ".item()"),
        (np.zeros(1, "M8[s]"), "cannot cross"), (np.ma.zeros(2), "subclass of ndarray"),
        (np.longdouble(1), ".item()"), (np.zeros(2, [("a", "i4")]), "cannot cross"),
        (torch.zeros(2).to_sparse(), "to_dense"), (torch.zeros(2, device="meta"), "no data"),
        (torch.float32, "cannot cross"), (torch.device("cpu"), "cannot cross"),
        (torch.zeros((1,) * 65), "65 dimensions"), (torch.empty(0, 2**62), "NumPy cannot have"),
        (collections.defaultdict(list), "subclass of dict"),
        (collections.Counter(), "subclass of dict"),
        (2**40_000, "int of 5001 bytes"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)  # fmt: skip
def test_refusals_name_the_path(value, hint):
    """What cannot cross is refused where it is sent from, with the path that leads to it and a way
    out.
    """
    holder = {"a": [0, {"b": (1, value)}]}
    with pytest.raises(CodecError) as caught:
        encode_call(Call("m", "f", (1, holder)), LIMITS)
    assert 'args[1]["a"][1]["b"][1]' in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize("value", [object(), _Dict(), _Int(1), _Color.RED, len, _Unknown()])
def test_local_refusals_are_the_same(value):
    """Local execution refuses with the words of the wire, the path included."""
    with pytest.raises(CodecError) as there:
        encode(Result([{"a": value}]), LIMITS)
    with pytest.raises(CodecError) as local:
        here([{"a": value}])
    assert str(there.value) == str(local.value)


def test_a_key_that_cannot_cross():
    """A key is named by its path as a value is."""
    with pytest.raises(CodecError, match=r"result\[a object\]"):
        sent({object(): 1})


def test_paths_are_written_as_python():
    """A path reads as the expression that leads to the value, and a long one is cut in its
    middle.
    """
    path = (((None, "args", 1), 0, 2), Field("name"), 3)
    assert render(((path, "a", 4), 2**40_000, 5)) == 'args[0].name["a"][an int of 40001 bits]'
    for _ in range(50):
        path = (path, "key", 1)
    assert len(render(path)) == 80


# Limits: the same in both directions.


def nested(levels, wrap):
    value = 1
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: [value], lambda value: (value,), lambda value: {"a": value},
        lambda value: {1: value}, slice, lambda value: Point(value, 1),
        lambda value: collections.OrderedDict(a=value),
    ],
    ids=["list", "tuple", "dict", "map", "slice", "object", "ordered"],
)  # fmt: skip
def test_what_leaves_arrives(wrap):
    """Under the same limits, what one side may send the other takes, up to the last level."""
    for levels in range(1, 130):
        value = nested(levels, wrap)
        try:
            data = sent(value)
        except LimitExceeded:
            with pytest.raises(LimitExceeded):
                here(value)
            break
        there = decode(data, LIMITS).value
    else:
        pytest.fail("no depth was refused")
    assert difference(nested(levels - 1, wrap), there) is None


def test_a_cycle():
    """A container that contains itself is refused by its depth."""
    loop = []
    loop.append(loop)
    for attempt in (sent, here):
        with pytest.raises(LimitExceeded, match="does it contain itself"):
            attempt(loop)


def test_a_deep_value_under_wide_limits():
    """Where limits allow more levels than the interpreter, the refusal is still ours."""
    with pytest.raises(LimitExceeded):
        sent(nested(20_000, lambda value: [value]), Limits(depth=100_000))
    with pytest.raises(LimitExceeded):
        here(nested(20_000, lambda value: [value]), Limits(depth=100_000))


@pytest.mark.parametrize(
    ("value", "limits", "word"),
    [
        ([0] * 101, Limits(nodes=100), "nodes"),
        ({str(i): 0 for i in range(60)}, Limits(nodes=100), "nodes"),
        ([(0,)] * 40, Limits(nodes=100), "nodes"),
        (["a" * 100] * 20, Limits(header=1_000), "header"),
        (["a" * 100] * 20, Limits(memory=1_000), "memory"),
        ("a" * 5_000, Limits(memory=10_000), "memory"),
        (np.zeros(1_000), Limits(body=1_000), "body"),
        ([np.zeros(1)] * 3, Limits(tensors=2), "tensors"),
        (torch.zeros(1).expand(10**6), Limits(body=10**6), "body"),
    ],
)
def test_limits_bind_the_sender(value, limits, word):
    """A value over a limit is refused where it is sent from, by the limit's name."""
    with pytest.raises(LimitExceeded, match=rf"{word}="):
        sent(value, limits)


# Registered classes.


def test_register_names():
    """A registered name belongs to one class; the same class may come again, as after a reload."""

    @register(name="tests.A")
    @attrs.frozen
    class A:
        x: int

    assert registered("tests.A").cls is A
    assert register(A, name="tests.A") is A
    with pytest.raises(ValueError, match="another name"):
        register(_Unknown, name="tests.A")


def test_register_any_class():
    """A class of any make crosses by the two functions it is registered with."""

    class Angle:
        def __init__(self, degrees):
            self.degrees = degrees

    register(
        Angle,
        name="tests.Angle",
        to_fields=lambda angle: {"degrees": angle.degrees},
        from_fields=lambda fields: Angle(fields["degrees"]),
    )
    assert there_and_back([Angle(90)])[0].degrees == 90
    with pytest.raises(TypeError, match="both"):
        register(Angle, to_fields=vars)


def test_register_refuses_what_it_cannot_build():
    """A class whose constructor wants more than its fields is refused when it is registered."""

    @dataclasses.dataclass
    class Wants:
        a: int
        b: dataclasses.InitVar[int]

    with pytest.raises(TypeError, match=r"\['b'\]"):
        register(Wants)
    with pytest.raises(TypeError, match="cannot tell the fields"):
        register(threading.Thread)


def test_validators_hold_for_strangers():
    """A registered object is built by its constructor, so that its validators see what came."""

    @register(name="tests.Positive")
    @attrs.frozen
    class Positive:
        x: int = attrs.field(validator=attrs.validators.gt(0))

    good = sent(Positive(5))
    with pytest.raises(CodecError, match="must be > 0"):
        decode(good.replace(b"\xa1x\x05", b"\xa1x\x00"), LIMITS)


def test_fields_that_cannot_be_read():
    """An object that does not tell its fields is refused with its path."""

    @register(name="tests.Broken")
    @attrs.define
    class Broken:
        late: int = attrs.field(init=False)

    for attempt in (sent, here):
        with pytest.raises(CodecError, match=r"result\[0\]: the fields of tests.Broken"):
            attempt([Broken()])
