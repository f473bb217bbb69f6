"""Messages written from those before: byte for byte what the wire format has for them."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maas
from maas import wire
from maas.calls import AMBIENT, NO_GRAD, Autocast, Call, Context, Info, Result
from maas.likeness import SECONDS
from maas.limits import Limits
from maas.testing import tensors, values
from maas.writers import AnswerWriter, CallWriter

LIMITS = Limits()
ROW = torch.arange(6.0).reshape(2, 3)

CONTEXTS = [
    AMBIENT,
    NO_GRAD,
    Context(training=True, priority=3),
    Context(key="k"),
    Context(trace="t"),
    Context(seed=1),
    Context(rng=bytes(16)),
    Context(autocast=(Autocast("cpu", "bfloat16", enabled=True),)),
]


def call(*args, context=NO_GRAD, **kwargs):
    return Call("net", "__call__", args, kwargs, context)


@given(st.lists(st.one_of(tensors(), values()), max_size=2), st.sampled_from(CONTEXTS))
def test_a_call_is_written_as_ever(args, context):
    """Written once, then from memory or anew: the same bytes as without one."""
    writer = CallWriter(LIMITS)
    wanted = b"".join(wire.encode_call(call(*args, context=context), LIMITS))
    for _ in range(3):
        assert b"".join(writer.write(call(*args, context=context))) == wanted


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
    st.sampled_from([(None, None), (bytes(19), None), (None, "graph")]),
)
def test_an_answer_is_written_as_ever(value, info, kept):
    """Written once, then from memory or anew: the same bytes as without one."""
    writer = AnswerWriter(LIMITS)
    answer = Result(value, info, *kept)
    wanted = b"".join(wire.encode(answer, LIMITS))
    for _ in range(3):
        assert b"".join(writer.write(answer)) == wanted


@pytest.mark.parametrize("seconds", [100.0, -1.0, 1e9 - 10])
def test_what_is_left_of_a_deadline_is_written_each_time(seconds):
    """Of two calls that differ in their deadlines, the messages differ in these seconds alone."""
    writer = CallWriter(LIMITS)
    found = []
    for more in (0.0, 5.0, 0.0):
        context = Context(deadline=time.monotonic() + seconds + more)
        message = wire.decode(b"".join(writer.write(call(ROW, context=context))), LIMITS)
        assert message.context.deadline == pytest.approx(context.deadline, abs=1.0)
        found.append(b"".join(writer.write(call(ROW, context=context))))
    at = found[0].index(b"deadline") + 9
    assert len({one[:at] + one[at + SECONDS.size :] for one in found}) == 1


def test_a_deadline_beyond_all_bounds_is_refused_each_time():
    """A known likeness opens no way around the bounds of the format."""
    writer = CallWriter(LIMITS)
    writer.write(call(ROW, context=Context(deadline=time.monotonic() + 1.0)))
    with pytest.raises(maas.CodecError, match="deadline"):
        writer.write(call(ROW, context=Context(deadline=time.monotonic() + 2e9)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ROW, ROW.double()),
        (ROW, ROW.reshape(3, 2)),
        (ROW, ROW.numpy()),
        (ROW, ROW.clone().requires_grad_()),
        (ROW, ROW.T),
        (ROW.to(torch.complex64), ROW.to(torch.complex64).conj()),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)),
        (ROW.numpy(), np.asfortranarray(ROW.numpy())),
        (ROW.numpy().astype("<i4"), ROW.numpy().astype("<u4")),
    ],
)
def test_what_differs_in_more_than_contents_is_written_for_itself(first, second):
    """Dtype, shape, kind, graph, layout and conjugation are those of the array that is sent."""
    calls, answers = CallWriter(LIMITS), AnswerWriter(LIMITS)
    for value in (first, second, first, second):
        wanted = b"".join(wire.encode_call(call(value), LIMITS))
        assert b"".join(calls.write(call(value))) == wanted
        result = Result(value, Info())
        assert b"".join(answers.write(result)) == b"".join(wire.encode(result, LIMITS))


def test_a_large_array_is_not_copied():
    """From 64 KiB on the contents are sent from the array's own memory."""
    large = torch.zeros(2**16)
    writer = CallWriter(LIMITS)
    for _ in range(2):
        _, contents = writer.write(call(large))
        assert np.shares_memory(np.frombuffer(contents, np.uint8), large.numpy())
