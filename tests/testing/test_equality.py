"""`difference` sees every difference that a codec could make, and no other."""

import collections
import datetime as dt
import decimal
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given

from maas.failures import REMOTE_TRACEBACK
from maas.tensors import RawTensor
from maas.testing.equality import difference
from maas.testing.strategies import Level, Person, Point, Score, values

MOMENT = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
NAN = float("nan")
OTHER_NAN = struct.unpack(">d", b"\x7f\xf8\0\0\0\0\0\1")[0]
GRAD = torch.ones(2, requires_grad=True)


def error(*args, cause=None, notes=(), **attributes):
    made = ValueError(*args)
    made.__cause__ = cause
    vars(made).update(attributes)
    for note in notes:
        made.add_note(note)
    return made


@pytest.mark.parametrize(
    ("left", "right", "where"),
    [
        (1, True, "int is not bool"), (1, 1.0, "int is not float"), (0.0, -0.0, "-0.0"),
        (NAN, OTHER_NAN, "NaN"),
        ("a", b"a", "str"), (b"a", bytearray(b"a"), "bytes"), ([1], (1,), "list is not tuple"),
        ([1, 2], [1], "2 items"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "keys()[0]"), ({1: "a"}, {True: "a"}, "keys()[0]"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "value['a'][1]"),
        ({}, collections.OrderedDict(), "dict"), ({1}, {True}, "missing"),
        ({1}, {1, 2}, "1 members"), ({(1, 0.0)}, {(1, -0.0)}, "missing"),
        (range(0), range(1, 1), "value"), (slice(1), slice(1.0), "[1]"),
        (1j, complex(-0.0, 1), "real"),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00"), "1.00"), (Level.LOW, 1, "Level"),
        (Level.LOW, Level.HIGH, "HIGH"),
        (Point(1, 2), (1, 2), "Point"), (Point(1, 2), Point(1, 3), "[1]"),
        (Person("a"), Person("b"), ".name"), (Score(1), Score(1.0), ".value"),
        (dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, fold=1), "fold"),  # noqa: DTZ001
        (MOMENT, MOMENT.replace(tzinfo=dt.timezone(dt.timedelta(0), "X")), "tzinfo"),
        (np.float32(1), np.float64(1), "float32"), (np.float32(0), np.float32(-0.0), "-0.0"),
        (np.ones(2), torch.ones(2), "ndarray is not"),
        (np.ones(2), np.ones(2, "f4"), "dtype float64 is not float32"),
        (np.ones(2), np.ones((2, 1)), "shape [2] is not [2, 1]"),
        (torch.tensor([[0.0, 1]]), torch.tensor([[-0.0, 1]]), "[0, 0]: bytes 00000000 are not"),
        (torch.tensor(1), torch.tensor(2), "value[]"),
        (GRAD, GRAD.detach(), "requires_grad True is not False"),
        (RawTensor("int8", (1,), b"a"), RawTensor("int8", (1,), b"b"), "bytes 61"),
        (ValueError(1), KeyError(1), "ValueError is not KeyError"),
        (ValueError(1), ValueError(True), ".args[0]"),
        (error(1), error(1, code=2), "__dict__"), (error(1), error(1, notes=["a"]), "__notes__"),
        (error(cause=KeyError(1)), error(cause=KeyError(2)), "__cause__.args[0]"),
        (error(cause=KeyError()), error(), "__cause__"),
        (ExceptionGroup("a", [error(1)]), ExceptionGroup("a", [error(2)]), ".args[1][0].args"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_differences(left, right, where):
    """What Python's == takes for equal, or shows alike, is told apart, and where."""
    assert where in (difference(left, right) or "nothing")
    assert difference(right, left) is not None
    assert difference(left, left) is None


def test_what_is_not_compared():
    """Layout, Parameter and the remote traceback belong to the place, not to the value."""
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    assert difference(tensor, tensor.transpose(0, 2).contiguous().transpose(0, 2)) is None
    assert difference(torch.nn.Parameter(tensor), tensor.clone().requires_grad_()) is None
    assert difference(np.asfortranarray(tensor.numpy()), tensor.numpy()) is None
    assert difference(error(notes=[REMOTE_TRACEBACK + "x"]), error()) is None
    assert difference([NAN], [NAN]) is None


@given(values())
def test_a_value_equals_itself(value):
    """Every value that crosses is the same as itself."""
    assert difference(value, value) is None


def test_a_container_of_itself():
    """A value that contains itself gives an answer."""
    loop = []
    loop.append(loop)
    other = []
    other.append(other)
    assert "150 levels" in difference(loop, other)


def test_the_door_is_light():
    """Importing maas.testing loads neither torch nor hypothesis, and its names come when they are
    used.
    """
    code = (
        "import sys, maas.testing as t\n"
        "assert not {'torch', 'hypothesis', 'numpy'} & set(sys.modules)\n"
        "t.difference\n"
        "assert 'hypothesis' not in sys.modules\n"
        "print(t.values, t.tensors)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
