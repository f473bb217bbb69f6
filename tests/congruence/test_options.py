"""How a call is made: time, retries, keys, cancellation; the same in every place."""

import asyncio
import concurrent.futures
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import maas
from maas.testing import difference

PATIENCE = 20.0


class Gate:
    """Holds its callers until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.ended = threading.Semaphore(0)
        self.calls: list[Any] = []

    def __call__(self, value: Any) -> Any:
        self.calls.append(value)
        self.entered.release()
        self.opened.wait(PATIENCE)
        self.ended.release()
        return value

    @maas.method
    async def wait(self) -> None:
        self.entered.release()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            self.ended.release()

    @maas.method
    def stalls(self) -> Iterator[int]:
        yield 1
        self.entered.release()
        self.opened.wait(PATIENCE)
        yield 2


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.opened.set()


def entered(gate: Gate) -> None:
    assert gate.entered.acquire(timeout=PATIENCE)


# Deadlines.


@pytest.mark.parametrize("way", ["now", "submit", "async"])
def test_a_deadline_releases_the_caller(maas_connect, gate, way):
    """A caller is released at its deadline with DeadlineExceeded, which is a TimeoutError."""
    model = maas_connect(gate).with_options(timeout=0.2)
    with pytest.raises(TimeoutError, match="did not answer in time") as caught:
        _ = {
            "now": lambda: model(1),
            "submit": lambda: model.submit(1).result(PATIENCE),
            "async": model.wait,
        }[way]()
    assert type(caught.value) is maas.DeadlineExceeded
    entered(gate)


def test_the_same_words_everywhere(maas_connect, gate):
    """The message of a missed deadline is the same in every place."""
    with pytest.raises(maas.DeadlineExceeded) as here:
        maas.Model(gate).with_options(timeout=0.1)(1)
    gate.opened.set()
    gate.opened.clear()
    with pytest.raises(maas.DeadlineExceeded) as there:
        maas_connect(gate).with_options(timeout=0.1)(1)
    assert str(there.value) == str(here.value)


def test_late_work_is_discarded(maas_connect, gate):
    """A model goes on after its caller left, and the next caller gets its own answer."""
    model = maas_connect(gate)
    with pytest.raises(maas.DeadlineExceeded):
        model.with_options(timeout=0.2)(1)
    entered(gate)
    second = model.submit(2)
    gate.opened.set()
    assert second.result(PATIENCE) == 2
    assert gate.ended.acquire(timeout=PATIENCE)


def test_a_late_call_is_never_begun(maas_connect, gate):
    """A call that waits behind another one until its deadline does not run at all."""
    model = maas_connect(gate)
    first = model.submit(1)
    entered(gate)
    with pytest.raises(maas.DeadlineExceeded):
        model.with_options(timeout=0.2)(2)
    # A server counts from when it has the call: as long again, and the call is late there too.
    with pytest.raises(TimeoutError):
        first.result(0.2)
    third = model.submit(3)
    gate.opened.set()
    assert (first.result(PATIENCE), third.result(PATIENCE)) == (1, 3)
    assert gate.calls == [1, 3]


def test_a_stream_that_stalls(maas_connect, gate):
    """The deadline of a stream is for the whole of it."""
    stream = maas_connect(gate).stalls.with_options(timeout=0.5).stream()
    assert next(stream) == 1
    with pytest.raises(maas.DeadlineExceeded):
        next(stream)
    entered(gate)


def test_a_long_timeout_changes_nothing(maas_connect):
    """A call that ends in time gives what it gives without a timeout, draws included."""
    net = torch.nn.Dropout(0.5)
    model = maas_connect(net).train()
    torch.manual_seed(1)
    bare = net(torch.ones(16))
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert difference(bare, model.with_options(timeout=60)(torch.ones(16))) is None
    assert torch.equal(torch.get_rng_state(), state)


# Cancellation.


def test_a_running_call_is_cancelled(maas_connect, gate):
    """`cancel` succeeds while the model runs; what that still gives is discarded."""
    job = maas_connect(gate).submit(1)
    entered(gate)
    assert job.cancel()
    assert job.cancelled()
    assert job.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        job.result(PATIENCE)
    assert concurrent.futures.wait([job], timeout=PATIENCE).done == {job}


def test_a_running_coroutine_hears_of_it(maas_connect, gate):
    """Cancelling a job of a coroutine function ends the coroutine where it runs."""
    job = maas_connect(gate).wait.submit()
    entered(gate)
    assert job.cancel()
    assert gate.ended.acquire(timeout=PATIENCE)


def test_a_done_job_is_not_cancelled(maas_connect, gate):
    """`cancel` of a job that has ended is False and changes nothing."""
    gate.opened.set()
    job = maas_connect(gate).submit(1)
    assert job.result(PATIENCE) == 1
    assert not job.cancel()
    assert job.result() == 1


@pytest.mark.maas(places=["wire", "asgi", "unix", "http"])
def test_a_waiting_call_whose_caller_left_is_not_begun(maas_connect, gate):
    """A server does not begin a call that its client has given up."""
    model = maas_connect(gate)
    first = model.submit(1)
    entered(gate)
    second = model.wait.submit()
    entered(gate)
    given_up = model.submit(2)
    # The coroutine's end, seen at the model, follows the other's cancellation on the same loop.
    assert given_up.cancel()
    assert second.cancel()
    assert gate.ended.acquire(timeout=PATIENCE)
    gate.opened.set()
    assert first.result(PATIENCE) == 1
    assert model(3) == 3
    assert gate.calls in ([1, 3], [1, 2, 3])


# Retries and keys.


class Tries:
    def __init__(self) -> None:
        self.calls = 0

    @maas.method(pure=True)
    def pure(self, fail: int) -> int:
        self.calls += 1
        if self.calls <= fail:
            raise maas.Overloaded("come back at once", retry_after=0.0)
        return self.calls

    @maas.method
    def impure(self) -> int:
        self.calls += 1
        return self.calls


def test_retries_want_a_pure_method_or_a_key(maas_connect):
    """`retries` where a call may run once only is refused before anything runs, in every place."""
    tries = Tries()
    model = maas_connect(tries)
    with pytest.raises(maas.Unsupported, match="pure=True"):
        model.impure.with_options(retries=1)()
    with pytest.raises(maas.Unsupported, match="pure=True"):
        model.impure.with_options(retries=1).submit()
    assert tries.calls == 0
    assert model.pure.with_options(retries=1)(0) == 1
    assert model.impure.with_options(retries=1, key="k")() == 2


def test_a_module_may_be_retried_in_eval_mode_only(maas_connect):
    """A torch module is pure in eval mode and not in train mode."""
    model = maas_connect(torch.nn.Dropout(0.5)).with_options(retries=1)
    assert model.eval()(torch.ones(2)).tolist() == [1.0, 1.0]
    with pytest.raises(maas.Unsupported, match="eval mode"):
        model.train()(torch.ones(2))


@pytest.mark.maas(places=["wire", "asgi", "unix", "http"])
def test_one_key_is_one_call(maas_connect):
    """A call that is sent twice with one key is run once, and with another call refused."""
    tries = Tries()
    model = maas_connect(tries).with_options(key="order-7")
    assert (model.impure(), model.impure()) == (1, 1)
    assert tries.calls == 1
    assert model.with_options(key="order-8").impure() == 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": 0}, ValueError),
        ({"timeout": -1.0}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"retries": -1}, ValueError),
        ({"retries": True}, ValueError),
        ({"seed": -1}, ValueError),
        ({"seed": 2**64}, ValueError),
        ({"priority": 1.5}, ValueError),
        ({"key": ""}, ValueError),
        ({"nothing": 1}, TypeError),
    ],
    ids=str,
)
def test_options_are_checked_at_once(maas_connect, options, error):
    """An option that does not exist or makes no sense is refused where it is written."""
    with pytest.raises(error, match=next(iter(options))):
        maas_connect(Tries()).with_options(**options)


def test_options_belong_to_the_handle(maas_connect, gate):
    """`with_options` gives another handle, and leaves the one it is asked of as it is."""
    gate.opened.set()
    model = maas_connect(gate)
    fast = model.with_options(timeout=50, priority=2)
    assert fast is not model
    assert (model(1), fast(2)) == (1, 2)


# Threads and processes.


def busy(n: int, kind: str) -> Any:
    if kind == "fail":
        raise ValueError(n)
    return {"n": n, "x": torch.full((n % 7, 3), float(n))}


def test_eight_threads(maas_connect):
    """Eight threads that share a handle each get their own answers and errors."""
    model = maas_connect(busy)
    start = threading.Barrier(8)

    def work(seed: int) -> int:
        start.wait()
        for n in range(seed * 100, seed * 100 + 25):
            way = n % 3
            if way == 0:
                assert model(n, "ok")["n"] == n
            elif way == 1:
                value = model.submit(n, "ok").result(PATIENCE)
                assert difference(value, busy(n, "ok")) is None
            else:
                with pytest.raises(ValueError) as caught:
                    model(n, "fail")
                assert caught.value.args == (n,)
        return seed

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(work, range(8))) == list(range(8))


class Total:
    """Loses an addition if two overlap."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, by: int) -> int:
        before = self.total
        # Not to wait for anything: it gives other threads their chance to get in between.
        time.sleep(0.0005)
        self.total = before + by
        return self.total


def test_calls_that_change_an_object_never_overlap(maas_connect):
    """Calls from many threads to one object are made one after the other."""
    total = Total()
    model = maas_connect(total)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        seen = sorted(pool.map(lambda _n: model(1), range(64)))
    assert seen == list(range(1, 65))


FORK = """
import os, signal, sys
import maas
from maas.testing.places import Connector

def echo(x):
    return x

connector = Connector({place!r})
model = connector(echo)
assert model(1) == 1
assert model.submit(2).result(20) == 2

child = os.fork()
if child == 0:
    signal.alarm(20)  # a hang ends here, and is told
    try:
        model.submit(3).result(10)
    except maas.errors.ForkError as error:
        assert "fork" in str(error)
        os._exit(7)
    except BaseException as error:
        print(type(error), error, flush=True)
        os._exit(8)
    os._exit(9)
_pid, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert model(4) == model.submit(4).result(20) == 4
connector.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_is_told(maas_connect, tmp_path):
    """A model used before a fork raises ForkError in the child and goes on in the parent."""
    if maas_connect.place == "workers":
        pytest.skip("a worker cannot import what a script defines")
    script = tmp_path / "forks.py"
    script.write_text(FORK.format(place=maas_connect.place))
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(script)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
