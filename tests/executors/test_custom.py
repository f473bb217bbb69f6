"""An executor of one's own: twenty lines, and the shipped conformance for all the rest."""

import gc
import threading
from typing import Any

import attrs
import httpx
import pytest

import maas
from maas.calls import AMBIENT, Call, Context, Result
from maas.executors.base import Executor, ModelInfo
from maas.testing import ExecutorConformance
from maas.wire import Failure


class Counting:
    """Counts the calls on their way to another executor."""

    def __init__(self, inner: Executor) -> None:
        self.where = f"counted {inner.where}"
        self.name = inner.name
        self.calls = 0
        self._inner = inner
        # What is not changed is passed on as it is.
        self.method = inner.method
        self.expect = inner.expect
        self.ready = inner.ready
        self.close = inner.close

    def describe(self, context: Context = AMBIENT) -> ModelInfo:
        return attrs.evolve(self._inner.describe(context), where=self.where)

    def run(self, call: Call) -> Result:
        self.calls += 1
        return self._inner.run(call)

    def submit(self, call: Call) -> maas.Job[Any]:
        self.calls += 1
        inner = self._inner.submit(call)
        job: maas.Job[Any] = maas.Job(on_cancel=inner.cancel)
        inner.add_done_callback(lambda _done: self._pass_on(inner.answer, job))
        return job

    def _pass_on(self, answer: Any, job: maas.Job[Any]) -> None:
        if isinstance(answer, Result):
            answer = attrs.evolve(answer, info=attrs.evolve(answer.info, where=self.where))
        if answer is not None:
            job.settle(answer)

    def stream(self, call: Call) -> maas.Stream[Any]:
        self.calls += 1
        return self._inner.stream(call)


class TestCounting(ExecutorConformance):
    @pytest.fixture
    def executor_for(self):
        return lambda target: Counting(maas.Model(target).executor)


def test_it_can_be_held_served_and_connected_to():
    """A Model over an executor of one's own is served like any other."""
    counting = Counting(maas.Model(abs).executor)
    model: maas.Model = maas.Model.over(counting, "absolute")
    with maas.connect(maas.Server(model)) as remote:
        assert [model(-1), remote(-2)] == [1, 2]
    assert counting.calls == 2


class Slow(Counting):
    """Refuses each call, and takes its time for that."""

    def submit(self, call: Call) -> maas.Job[Any]:
        threading.Event().wait(0.1)
        job: maas.Job[Any] = maas.Job()
        job.settle(Failure(maas.Overloaded("not now")))
        return job


def test_a_refusal_that_comes_too_late_is_logged_by_nobody(caplog):
    """A job that has failed when the deadline has passed leaves no future that complains."""
    model: maas.Model = maas.Model.over(Slow(maas.Model(abs).executor), "absolute")
    with maas.serve({"absolute": model}, port=0, block=False) as running:
        body = {"json": [-1], "headers": {"maas-timeout": "0.05"}}
        codes = {httpx.post(f"{running.url}/absolute", **body).status_code for _ in range(3)}
        gc.collect()
    assert codes <= {429, 504}
    assert caplog.records == []
