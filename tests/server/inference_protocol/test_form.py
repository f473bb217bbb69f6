"""What of a request's head and parameters becomes the context of its call."""

import asyncio
import time

import pytest

import maas
from maas.server.front import Head
from maas.server.handler import Handler
from maas.server.inference_protocol.form import InferenceForm


def same(x=None):
    return x


def call_of(parameters, *headers):
    """The call that a request makes, and the time it was made at."""
    handler = Handler({"same": maas.Model(same, name="same")})
    asyncio.run(handler.meet("same"))
    head = Head(
        "POST", "/v2/models/same/infer", "", (("host", "a"), *headers), secure=False, loopback=True
    )
    admission = handler.admit(head)
    before = time.monotonic()
    form = InferenceForm(handler, admission.route)
    form.served = handler.catalogue.find("same")
    body = b'{"inputs": [], "parameters": {' + parameters + b"}}"
    return form.read(bytearray(body)), before


@pytest.mark.parametrize(
    ("level", "priority"), [(0, 0), (1, 100), (2, 99), (100, 1), (101, 1), (2**64 - 1, 1)]
)
def test_priority(level, priority):
    """The protocol's 1 is the soonest, its 0 no wish; ours is larger for sooner."""
    call, _ = call_of(b'"priority": %d' % level)
    assert call.context.priority == priority


def test_deadlines():
    """Microseconds and seconds make one deadline, the sooner; 0 and nothing make none."""
    assert call_of(b"")[0].context.deadline is None
    assert call_of(b'"timeout": 0')[0].context.deadline is None
    call, before = call_of(b'"timeout": 5000000', ("maas-timeout", "100"))
    assert 5 <= call.context.deadline - before < 100
    call, before = call_of(b'"timeout": 500000000', ("maas-timeout", "100"))
    assert call.context.deadline - before < 101


def test_key_and_trace():
    """The idempotency key and the trace travel with the call; gradients do not."""
    trace = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    call, _ = call_of(b"", ("idempotency-key", "k"), ("traceparent", trace))
    assert (call.context.key, call.context.trace, call.context.grad) == ("k", trace, False)
