import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch

import maas
from maas.testing import ExecutorConformance

PATIENCE = 20.0


class TestLocal(ExecutorConformance):
    @pytest.fixture
    def executor_for(self):
        return lambda target: maas.Model(target).executor


def test_a_plain_call_runs_on_the_callers_thread():
    """Without a deadline nothing hops to another thread."""
    assert maas.Model(threading.get_ident)() == threading.get_ident()


def test_calls_that_may_overlap_do():
    """A pure function that is submitted twice runs twice at once."""
    both = threading.Barrier(2)
    model = maas.Model(lambda: both.wait(PATIENCE))
    jobs = [model.submit(), model.submit()]
    assert sorted(job.result(PATIENCE) for job in jobs) == [0, 1]


def test_a_waiting_call_that_is_cancelled_is_never_begun():
    """A job cancelled before its turn does not run."""
    entered, opened = threading.Event(), threading.Event()
    ran = []

    class Slow:
        def __call__(self, n: int) -> None:
            ran.append(n)
            entered.set()
            opened.wait(PATIENCE)

    model = maas.Model(Slow())
    first = model.submit(1)
    assert entered.wait(PATIENCE)
    second, third = model.submit(2), model.submit(3)
    assert second.cancel()
    opened.set()
    first.result(PATIENCE)
    third.result(PATIENCE)
    assert ran == [1, 3]


def test_a_late_job_is_settled_while_the_model_still_runs():
    """A deadline settles the job itself, so every waiter hears of it."""
    opened = threading.Event()
    model = maas.Model(lambda: opened.wait(PATIENCE)).with_options(timeout=0.1)
    job = model.submit()
    assert isinstance(job.exception(PATIENCE), maas.DeadlineExceeded)
    opened.set()


def test_a_result_does_not_hold_the_arguments():
    """Once a call has ended nothing keeps its arguments alive, not even its error."""

    class Big:
        pass

    maas.register(Big, to_fields=lambda _big: {}, from_fields=lambda _fields: Big())

    def fails(_value):
        raise ValueError("no")

    big = Big()
    told = weakref.ref(big)
    with pytest.raises(ValueError):
        maas.Model(fails)(big)
    del big
    gc.collect()
    assert told() is None


def test_an_abandoned_stream_ends_its_generator():
    """A stream that is dropped closes the generator behind it."""
    ended = threading.Event()

    def count() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            ended.set()

    stream = maas.Model(count).stream()
    next(stream)
    del stream
    gc.collect()
    assert ended.wait(PATIENCE)


def test_an_example_teaches_the_signature_and_leaves_no_trace():
    """The example's call runs in eval mode under a forked generator."""
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5)).train()
    statistics = net.state_dict()["0.running_mean"].clone()
    state = torch.get_rng_state()
    model = maas.Model(net, example=torch.ones(4, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(net.state_dict()["0.running_mean"], statistics)
    assert net.training
    assert "float32[batch, 3]" in str(model.executor.method("__call__").signature)
    with pytest.raises(maas.SignatureError, match=r"float32\[batch, 3\]"):
        model(torch.ones(4, 2))


def test_an_example_that_does_not_fit_is_refused():
    """A model whose example fails is not made."""
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        maas.Model(torch.nn.Linear(2, 2), example=torch.ones(1, 3))


def test_signature_and_example_complete_each_other():
    """A given signature is kept, and the example fills in what it leaves open."""
    signature = maas.Signature.from_callable(lambda a, b: None)
    model = maas.Model(lambda a, b: a, signature=signature, example=(1, torch.zeros(2, 3)))
    assert str(model.executor.method("__call__").signature) == (
        "(a: int, b: float32[batch, 3]) -> int"
    )


INTERRUPTED = """
import signal, sys, threading
import maas

def slow():
    signal.raise_signal(signal.SIGINT)

# A shell's background job ignores the signal, and its children with it.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    maas.Model(slow)()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_on_the_main_thread_is_the_persons():
    """KeyboardInterrupt during a call on the main thread is raised as it is."""
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.stdout, run.returncode) == ("interrupted\n", 0), run.stderr


def test_a_keyboard_interrupt_elsewhere_is_a_model_exit():
    """The same raised by a model on a compute thread ends nobody."""

    def leaves():
        raise KeyboardInterrupt

    with pytest.raises(maas.ModelExit, match="KeyboardInterrupt"):
        maas.Model(leaves).submit().result(PATIENCE)


def test_a_closed_model_keeps_the_target():
    """Closing ends the threads; the target itself stays as it was, and can be wrapped anew."""
    net = torch.nn.Linear(2, 2)
    with maas.Model(net) as model:
        model(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="wrap it anew"):
        model(torch.ones(1, 2))
    assert maas.Model(net)(torch.ones(1, 2)).shape == (1, 2)
