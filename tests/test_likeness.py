"""Messages that are recognised: as if they were read, and never taken for another."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maas
from maas import wire
from maas.calls import AMBIENT, NO_GRAD, Call, Context, Info, Result
from maas.likeness import AnswerReader, Reader
from maas.limits import Limits
from maas.testing import tensors, values
from maas.testing.equality import difference

LIMITS = Limits()
ROW = torch.arange(6.0).reshape(2, 3)


def message(*args, context=NO_GRAD, **kwargs) -> bytearray:
    call = Call("net", "__call__", args, kwargs, context)
    return bytearray(b"".join(wire.encode_call(call, LIMITS)))


def read(reader: Reader, data: bytearray, method: str = "__call__") -> Call:
    call = reader.read(data, model="net", method=method)
    assert isinstance(call, Call)
    return call


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (message(ROW), message(ROW + 1)),
        (message(ROW, 2, mask=ROW.numpy()), message(ROW - 1, 2, mask=ROW.numpy() * 2)),
        (
            message(ROW, context=Context(deadline=time.monotonic() + 100.0)),
            message(ROW + 1, context=Context(deadline=time.monotonic() + 200.0)),
        ),
    ],
)
def test_what_differs_in_contents_alone_is_recognised(first, second):
    """Equal headers have one likeness, and each call its own arrays and its own deadline."""
    reader = Reader(LIMITS)
    calls = [read(reader, first), read(reader, second), read(reader, bytearray(second))]
    assert calls[0].likeness is calls[1].likeness is calls[2].likeness is not None
    for call, data in zip(calls[1:], (second, second), strict=True):
        plain = wire.decode(bytearray(data), LIMITS, model="net", method="__call__")
        assert isinstance(plain, Call)
        assert not difference([call.args, dict(call.kwargs)], [plain.args, dict(plain.kwargs)])
        assert call.context.grad is plain.context.grad
        if plain.context.deadline is not None:
            assert call.context.deadline == pytest.approx(plain.context.deadline, abs=1.0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (message(ROW), message(ROW.double())),
        (message(ROW), message(ROW.reshape(3, 2))),
        (message(ROW), message(ROW.numpy())),
        (message(ROW, 1), message(ROW, 2)),
        (message(ROW, 1), message(ROW, True)),
        (message(ROW, 1), message(ROW, 1.0)),
        (message(ROW, flag=1), message(ROW, mode=1)),
        (message(ROW), message(ROW, context=AMBIENT)),
        (message(ROW), message(ROW, context=Context(grad=False, training=False))),
        (message(ROW), message(ROW, context=Context(grad=False, deadline=time.monotonic() + 9))),
    ],
)
def test_what_differs_otherwise_is_another_kind(first, second):
    """Any difference but contents and deadline gives another likeness."""
    reader = Reader(LIMITS)
    assert read(reader, first).likeness is not read(reader, second).likeness
    assert read(reader, bytearray(first)).likeness is not read(reader, bytearray(second)).likeness


@pytest.mark.parametrize(
    "data",
    [
        message([ROW]),
        message(torch.tensor([True, False])),
        message(ROW.clone().requires_grad_()),
        message(ROW, context=Context(key="k")),
        message(ROW, context=Context(trace="t")),
        message(ROW, context=Context(seed=1)),
        message(ROW, "x" * 2000),
    ],
)
def test_what_may_not_be_taken_as_read_has_no_likeness(data):
    """Containers, bools, gradients, keys and traces are read each time."""
    reader = Reader(LIMITS)
    assert [read(reader, bytearray(data)).likeness for _ in range(2)] == [None, None]


def test_another_method_is_another_kind():
    """The address belongs to the likeness."""
    reader = Reader(LIMITS)
    assert read(reader, message(ROW)).likeness is not read(reader, message(ROW), "other").likeness


def test_bytes_that_look_like_a_deadline_are_none():
    """An argument that ends in the bytes of a deadline is told apart from the next one."""
    reader = Reader(LIMITS)
    marker = b"\xa8deadline\xcb"
    for number in range(100):
        told = marker + bytes([number] * 6)
        assert read(reader, message(told, context=AMBIENT)).args == (told,)


def test_arrays_are_over_the_message_and_writable():
    """What is recognised costs no copy, as what is read."""
    reader = Reader(LIMITS)
    read(reader, message(ROW))
    data = message(ROW)
    (tensor,) = read(reader, data).args
    tensor.fill_(7.0)
    assert np.frombuffer(data[-24:], np.float32).tolist() == [7.0] * 6


@st.composite
def spoilt(draw, known) -> bytearray:
    """A message of which one to three bytes are others, or the last is missing as well."""
    broken = bytearray(known)
    for _ in range(draw(st.integers(1, 3))):
        broken[draw(st.integers(0, len(known) - 1))] = draw(st.integers(0, 255))
    return broken[: draw(st.sampled_from([len(broken), len(broken) - 1]))]


@given(st.data())
def test_a_message_with_another_byte_is_read_as_ever(data):
    """Whatever byte of a known message is another, the answer or the error is that of `decode`."""
    known = message(ROW, 3, context=Context(grad=False, deadline=time.monotonic() + 100.0))
    reader = Reader(LIMITS)
    read(reader, bytearray(known))
    broken = data.draw(spoilt(known))

    def outcome(decoded):
        try:
            call = decoded()
        except maas.Error as error:
            return type(error)
        deadline = call.context.deadline
        left = None if deadline is None else round(deadline - time.monotonic(), -1)
        contents = [each.tolist() if hasattr(each, "tolist") else each for each in call.args]
        return repr((contents, dict(call.kwargs), call.context.grad, left))

    one, other = bytearray(broken), bytearray(broken)
    assert outcome(lambda: read(reader, one)) == outcome(
        lambda: wire.decode(other, LIMITS, model="net", method="__call__")
    )


FACTS = Info(queue_seconds=0.5, compute_seconds=0.25)


def answer(value, info=FACTS, rng=None) -> bytearray:
    return bytearray(b"".join(wire.encode(Result(value, info, rng), LIMITS)))


@given(
    st.one_of(tensors(), values()),
    st.builds(
        Info,
        device=st.sampled_from([None, "cpu"]),
        batch_size=st.integers(1, 200),
        queue_seconds=st.floats(0, 9),
        compute_seconds=st.floats(0, 9),
        note=st.sampled_from(["", "alone"]),
    ),
    st.sampled_from([None, bytes(19)]),
)
def test_an_answer_that_comes_again_is_what_came(value, info, rng):
    """Read once, then recognised or read anew: the value, its facts and its state are the same."""
    reader = AnswerReader(LIMITS)
    data = answer(value, info, rng)
    wanted = wire.decode(bytearray(data), LIMITS)
    for _ in range(2):
        found = reader.read(bytearray(data))
        assert type(found) is Result
        assert not difference(found.value, wanted.value)
        assert (found.info, found.rng) == (wanted.info, wanted.rng)


def test_only_the_contents_of_an_answer_and_its_seconds_may_differ():
    """Of an answer that is recognised, the array and both times are those that came with it."""
    reader = AnswerReader(LIMITS)
    reader.read(answer(ROW))
    assert len(reader._known) == 1
    found = reader.read(answer(ROW * 2, Info(queue_seconds=1.5, compute_seconds=3.0)))
    assert len(reader._known) == 1
    assert torch.equal(found.value, ROW * 2)
    assert (found.info.queue_seconds, found.info.compute_seconds) == (1.5, 3.0)


@given(st.data())
def test_an_answer_with_another_byte_is_read_as_ever(data):
    """Whatever byte of a known answer is another, the result or the error is that of `decode`."""
    known = answer(ROW)
    reader = AnswerReader(LIMITS)
    reader.read(bytearray(known))
    broken = data.draw(spoilt(known))

    def outcome(decoded):
        try:
            found = decoded()
        except maas.Error as error:
            return type(error)
        return repr(found)

    one, other = bytearray(broken), bytearray(broken)
    assert outcome(lambda: reader.read(one)) == outcome(lambda: wire.decode(other, LIMITS))
