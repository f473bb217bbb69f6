"""An exception arrives as the class that was raised, or as its nearest known ancestor."""

import asyncio
import builtins
import decimal
import json
import queue
import struct
import zlib

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given

from maas import errors
from maas.errors import CodecError, Error, InternalError, ModelExit, Overloaded
from maas.exception_classes import known_class
from maas.failures import REMOTE_TRACEBACK, presentable
from maas.limits import Limits
from maas.testing.equality import difference
from maas.testing.strategies import exceptions
from maas.values import register
from maas.wire import Failure, decode, encode

LIMITS = Limits()


def there_and_back(error, limits=LIMITS):
    return decode(b"".join(encode(Failure(error), limits)), limits).error


def raised(error):
    """The exception as it is once it has been raised and caught."""
    try:
        raise error
    except type(error) as caught:
        return caught


SPECIAL = {
    "UnicodeDecodeError": ("utf-8", b"\xff", 0, 1, "bad"),
    "UnicodeEncodeError": ("utf-8", "\ud800", 0, 1, "bad"),
    "UnicodeTranslateError": ("\ud800", 0, 1, "bad"),
    "ExceptionGroup": ("two", [ValueError("a"), KeyError("b")]),
    "SyntaxError": ("bad", ("f.py", 1, 2, "x = = 1", 1, 3)),
    "IndentationError": ("bad", ("f.py", 1, 2, "x", 1, 3)),
    "TabError": ("bad", ("f.py", 1, 2, "x", 1, 3)),
    "OSError": (2, "none", "file"),
}
BUILTINS = sorted(
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and kind.__name__ == name
)
LEAVING = {"StopIteration", "StopAsyncIteration"}


@pytest.mark.parametrize("name", BUILTINS)
def test_every_builtin(name):
    """Each builtin exception arrives as its own class, with its arguments and attributes."""
    error = getattr(builtins, name)(*SPECIAL.get(name, ("message", 2)))
    there = there_and_back(error)
    if name in LEAVING:
        assert type(there) is ModelExit
        assert difference(error, there.__cause__) is None
    else:
        assert difference(error, there) is None
        assert str(there) == str(error)


@pytest.mark.parametrize("name", [n for n in errors.__all__ if n != "MutationWarning"])
def test_every_error_of_ours(name):
    """Each maas error arrives as its own class, code and status included."""
    error = getattr(errors, name)("message")
    there = there_and_back(error)
    assert difference(error, there) is None
    assert (there.code, there.status) == (error.code, error.status)


@pytest.mark.parametrize(
    "error",
    [
        asyncio.InvalidStateError("a"), asyncio.QueueFull(), queue.Empty(), queue.Full(),
        decimal.InvalidOperation("a"), decimal.DivisionByZero(), struct.error("a"), zlib.error("a"),
        json.JSONDecodeError("bad", "{", 1), np.linalg.LinAlgError("singular"),
        np.exceptions.AxisError(3, 2, "x"), torch.OutOfMemoryError("oom"),
        torch.linalg.LinAlgError("singular"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_errors_of_libraries(error):
    """Exceptions that numerical code raises arrive as their own class."""
    there = there_and_back(error)
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert difference(error, there) is None


@given(exceptions())
def test_round_trip(error):
    """Arguments, attributes, notes, groups and the whole chain of causes come back."""
    there = there_and_back(error)
    assert difference(presentable(error), there) is None


def test_the_remote_traceback():
    """The traceback of where the model runs comes as the last note."""
    error = raised(ValueError("bad"))
    error.add_note("mine")
    mine, traceback = there_and_back(error).__notes__
    assert mine == "mine"
    assert traceback.startswith(REMOTE_TRACEBACK)
    assert "raise error" in traceback
    assert "ValueError: bad" in traceback


def test_attributes():
    """What `retry_after`, `filename` and the like say arrives."""
    assert there_and_back(Overloaded("busy", 1.5)).retry_after == 1.5
    there = there_and_back(raised(FileNotFoundError(2, "none", "a", None, "b")))
    assert (there.errno, there.strerror, there.filename, there.filename2) == (2, "none", "a", "b")
    assert there_and_back(ImportError("no", name="x", path="y")).path == "y"


class _Base(ValueError):
    pass


class _Unregistered(_Base):
    def __init__(self, x):
        super().__init__(x)
        self.code = x


def test_an_unregistered_class():
    """An unregistered class arrives as its nearest known ancestor, arguments and attributes
    kept.
    """
    there = there_and_back(_Unregistered(3))
    assert type(there) is ValueError
    assert there.args == (3,)
    assert there.code == 3


def test_a_registered_class():
    """A registered exception arrives as itself, even where its constructor wants keywords."""

    @register(name="tests.Keyword")
    class Keyword(Exception):
        def __init__(self, *, x):
            super().__init__(f"x is {x}")
            self.x = x

    @register(name="tests.Attrs")
    @attrs.define(auto_exc=True)
    class Attrs(Exception):
        x: int

    @register(name="tests.Group")
    class Group(ExceptionGroup):
        pass

    there = there_and_back(Keyword(x=5))
    assert (type(there), there.x, there.args) == (Keyword, 5, ("x is 5",))
    assert there_and_back(Attrs(4)).x == 4
    assert type(there_and_back(Group("a", [ValueError()]))) is Group


@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
def test_what_means_leave(kind):
    """A model that tries to end the process raises ModelExit at its caller, and at most that."""
    there = there_and_back(raised(kind(3)))
    assert type(there) is ModelExit
    assert kind.__name__ in str(there)
    assert there.__cause__ is None
    assert kind.__name__ in there.__notes__[-1]


def test_a_leaving_cause():
    """A cause that means "leave" arrives as a ModelExit too."""
    error = ValueError("a")
    error.__cause__ = KeyboardInterrupt()
    there = there_and_back(error)
    assert type(there.__cause__) is ModelExit


def test_arguments_that_cannot_cross():
    """An argument that cannot cross arrives as its repr, even where that is broken."""

    class Shy:
        def __repr__(self):
            raise RuntimeError

    there = there_and_back(ValueError(len, [1, {2: len}], Shy(), "kept"))
    assert there.args[0] == "<built-in function len>"
    assert there.args[2] == "<Shy>"
    assert there.args[3] == "kept"


def test_arrays_in_arguments():
    """Arrays that lie beside something that cannot cross leave no buffer behind."""
    there = there_and_back(ValueError([np.ones(3), len], np.ones(2)))
    assert type(there.args[0]) is str
    assert there.args[1].tolist() == [1, 1]


def test_a_chain_of_causes_is_linear():
    """A chain in which each cause is the context as well, as `raise from` leaves it, stays a
    chain.
    """

    def chained(n):
        try:
            if n:
                chained(n - 1)
            raise KeyError(n)
        except Exception as error:
            raise ValueError(n) from error

    with pytest.raises(ValueError) as caught:
        chained(10)
    assert b"".join(encode(Failure(caught.value), LIMITS)).count(b"names") == 12
    there = there_and_back(caught.value)
    assert there.__context__ is there.__cause__
    assert difference(caught.value.__cause__, there_and_back(caught.value).__cause__) is None


def test_a_circle_of_causes():
    """A circular or very long chain is cut, not followed."""
    first, second = ValueError(1), ValueError(2)
    first.__cause__, second.__cause__ = second, first
    assert there_and_back(first).__cause__.args == (2,)
    group = ExceptionGroup("many", [ValueError(n) for n in range(1_000)])
    assert len(there_and_back(group).exceptions) < 100


def test_a_failure_always_encodes():
    """A failure too large to send whole arrives with its class and message."""
    error = ValueError("bad " + "x" * 2_000, "y" * 20_000)
    for _ in range(100):
        error.add_note("n" * 100_000)
    small = Limits(header=30_000, body=60_000)
    there = there_and_back(error, small)
    assert type(there) is ValueError
    assert "bad" in str(there)


def test_exceptions_as_values():
    """As a value an exception is data: nothing is raised, so StopIteration stays itself."""
    error = ExceptionGroup("g", [StopIteration(3), InternalError("x")])
    assert difference(error, there_and_back(ValueError(error)).args[0]) is None


def test_no_name_leads_to_an_import():
    """Names outside the closed table are unknown, however real the module."""
    for name in (
        "os.system",
        "subprocess.CalledProcessError",
        "maas.errors.Error",
        "SystemExit",
        "eval",
        "",
        ".",
    ):
        assert known_class(name) is None
    assert known_class("maas.Error") is Error


@pytest.mark.parametrize("name", ["with_traceback", "add_note", "__class__", "args", "a b", "$x"])
def test_attributes_that_are_no_data(name):
    """An attribute that would shadow a method is not sent, and one that comes is refused."""
    error = ValueError("a")
    vars(error)[name] = 5
    vars(error)["fine"] = 6
    data = b"".join(encode(Failure(error), LIMITS))
    assert decode(data, LIMITS).error.fine == 6
    hostile = data.replace(b"\xa4fine", bytes([0xA0 + len(name)]) + name.encode())
    hostile = (
        hostile[:9]
        + (len(hostile) - 21).to_bytes(4, "big")
        + b"\xcf"
        + len(hostile).to_bytes(8, "big")
        + hostile[21:]
    )
    with pytest.raises(CodecError):
        decode(hostile, LIMITS)
