"""What every executor keeps to, as tests to inherit: a place of one's own passes them or is none.

    class TestMine(ExecutorConformance):
        @pytest.fixture
        def executor_for(self):
            return MyExecutor

`executor_for(target)` gives an executor that runs `target` (a function, a torch module or an
object); the targets are those below. Nothing here looks behind the seam.
"""

# ruff: noqa: S101 - asserts are what tests are made of

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from maas.calls import CALL
from maas.errors import (
    CodecError,
    DeadlineExceeded,
    ModelExit,
    SignatureError,
    Unsupported,
)
from maas.executors.base import Executor, Job, Stream
from maas.model import Model
from maas.signature import Signature
from maas.testing.arguments import Arguments
from maas.testing.congruence import assert_congruent

__all__ = ["ExecutorConformance"]

_PATIENCE = 30.0
"""Seconds after which something that is waited for is taken never to come."""


# Targets.


def _echo(value: Any) -> Any:
    return value


def _add(a: int, b: int = 2, *, times: int = 1) -> int:
    return (a + b) * times


def _raise(kind: str) -> None:
    errors: dict[str, BaseException] = {
        "value": ValueError("wrong", 3),
        "key": KeyError(("a", 1)),
        "file": FileNotFoundError(2, "No such file", "a.txt"),
        "group": ExceptionGroup("two", [ValueError(1), TypeError(2)]),
        "exit": SystemExit(3),
    }
    error = errors[kind]
    error.add_note("a note")
    raise error from RuntimeError("the cause")


def _opaque() -> Any:
    return {"a": [1, object()]}


async def _later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def _count(n: int, fail: bool = False) -> Iterator[int]:  # noqa: FBT002 - as a user may write it
    yield from range(n)
    if fail:
        raise ValueError("at the end")


async def _count_slowly(n: int) -> AsyncIterator[int]:
    for i in range(n):
        await asyncio.sleep(0)
        yield i


class _Gate:
    """Holds its callers until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.calls = 0
        self.closed = threading.Event()

    def __call__(self, value: Any) -> Any:
        self.calls += 1
        self.entered.release()
        self.opened.wait(_PATIENCE)
        return value

    def count(self) -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            self.calls += 1
            self.closed.set()


_VALUES: list[Any] = [
    None, True, 1, 1.0, -0.0, float("nan"), 2**64, -(2**63) - 1, 1j, "\ud800", b"\x00",
    bytearray(b"x"), (1, [2, {3}]), frozenset({(1,)}), {"b": 1, "a": 2, 3: None}, {"$tuple": [1]},
    slice(1, None), range(3), ..., [ValueError("a value", 1)],
]  # fmt: skip


class ExecutorConformance:
    """Tests that any `Executor` passes; a subclass gives the fixture `executor_for`."""

    @pytest.fixture
    def executor_for(self) -> Callable[[Any], Executor]:
        """`executor_for(target)`: an executor that runs `target`."""
        raise NotImplementedError("give a fixture executor_for(target) -> Executor")

    @pytest.fixture
    def model_for(self, executor_for: Callable[[Any], Executor]) -> Iterator[Any]:
        """`model_for(target)`: a Model over an executor that is closed after the test."""
        made: list[Executor] = []

        def model_for(target: Any) -> Model[..., Any]:
            made.append(executor_for(target))
            return Model.over(made[-1], "model")

        yield model_for
        for executor in made:
            executor.close()

    @pytest.mark.parametrize("value", _VALUES, ids=repr)
    @pytest.mark.parametrize("way", ["now", "submit", "await"])
    def test_values_cross(self, model_for: Any, value: Any, way: str) -> None:
        """Every value comes back as it went, however it is asked for."""
        assert_congruent(_echo, model_for(_echo), Arguments((value,)), way=way)

    @pytest.mark.parametrize("kind", ["value", "key", "file", "group", "exit"])
    @pytest.mark.parametrize("way", ["now", "submit", "await"])
    def test_errors_cross(self, model_for: Any, kind: str, way: str) -> None:
        """What a model raises is raised, with its class, arguments, notes and cause."""
        assert_congruent(_raise, model_for(_raise), Arguments((kind,)), way=way)

    def test_leaving_is_no_way_out(self, model_for: Any) -> None:
        """A model that raises SystemExit ends nobody."""
        model = model_for(_raise)
        for _ in range(2):
            with pytest.raises(ModelExit):
                model("exit")

    @pytest.mark.parametrize(
        "call",
        [
            Arguments((1,)),
            Arguments((1, 2), {"times": 3}),
            Arguments((), {"b": 1, "a": 5}),
            Arguments(),
            Arguments((1, 2, 3)),
            Arguments((1,), {"a": 1}),
            Arguments((1,), {"c": 1}),
        ],
        ids=str,
    )
    def test_arguments_meet_parameters(self, model_for: Any, call: Arguments) -> None:
        """Arguments are bound, and refused, as Python binds them."""
        assert_congruent(_add, model_for(_add), call)

    def test_wrong_types_are_refused(self, model_for: Any) -> None:
        """A type that the signature does not allow never reaches the model."""
        with pytest.raises(SignatureError, match="'a' wants int, got str"):
            model_for(_add)("1")

    def test_what_cannot_cross_is_refused(self, model_for: Any) -> None:
        """Values outside the closed set are refused with their path, both ways."""
        with pytest.raises(CodecError, match=r"args\[0\]\[1\]"):
            model_for(_echo)([1, object()])
        with pytest.raises(CodecError, match=r'result\["a"\]\[1\]'):
            model_for(_opaque)()

    def test_nobody_shares_containers(self, model_for: Any) -> None:
        """A caller's list is not the model's list, nor the other way round."""
        given = [[1]]
        assert model_for(_echo)(given)[0] is not given[0]

    def test_coroutine_functions(self, model_for: Any) -> None:
        """An async function is asked as any other."""
        for way in ("now", "submit", "await"):
            assert_congruent(_later, model_for(_later), Arguments(((1,),)), way=way)

    def test_a_model_describes_itself(self, model_for: Any) -> None:
        """`describe` tells kind, place and methods; `method` finds them, and no others."""
        executor = model_for(_add)._executor
        info = executor.describe()
        assert info.kind == "function"
        assert info.where == executor.where
        assert info.methods[CALL].signature == Signature.from_callable(_add)
        assert executor.method(CALL) == info.methods[CALL]
        with pytest.raises(AttributeError, match="no method 'nothing'"):
            executor.method("nothing")

    def test_an_expectation_is_checked(self, model_for: Any) -> None:
        """`expect` raises at the first use at the latest where the model is another one."""
        model = model_for(_add)
        model._executor.expect(Signature.from_callable(_add), "_add")
        assert model(1) == 3
        with pytest.raises(SignatureError, match="is not like _echo"):
            _expected(model_for(_add), _echo)(1)

    def test_it_becomes_ready(self, model_for: Any) -> None:
        """`ready` returns for a model that takes calls."""
        model_for(_echo)._executor.ready(_PATIENCE)

    # Later.

    def test_jobs(self, model_for: Any) -> None:
        """`submit` gives a Job that ends, and tells where it ran."""
        model = model_for(_echo)
        jobs = [model.submit(n) for n in range(20)]
        assert all(isinstance(job, Job) for job in jobs)
        assert [job.result(_PATIENCE) for job in jobs] == list(range(20))
        assert jobs[0].info.where == model._executor.where

    def test_a_cancelled_job_is_over_at_once(self, model_for: Any) -> None:
        """`cancel` succeeds while the model runs, and what that still gives is discarded."""
        gate = _Gate()
        job = model_for(gate).submit(1)
        assert gate.entered.acquire(timeout=_PATIENCE)
        assert job.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            job.result(_PATIENCE)
        gate.opened.set()
        assert job.cancelled()

    def test_a_job_that_waits_is_cancelled(self, model_for: Any) -> None:
        """A call cancelled while another holds an exclusive model holds up nobody behind it."""
        gate = _Gate()
        model = model_for(gate)
        first = model.submit(1)
        assert gate.entered.acquire(timeout=_PATIENCE)
        second, third = model.submit(2), model.submit(3)
        assert second.cancel()
        gate.opened.set()
        assert (first.result(_PATIENCE), third.result(_PATIENCE)) == (1, 3)
        assert second.cancelled()

    @pytest.mark.parametrize("way", ["now", "submit"])
    def test_a_deadline_releases_the_caller(self, model_for: Any, way: str) -> None:
        """A caller with a timeout is released by it while the model still runs."""
        gate = _Gate()
        model = model_for(gate).with_options(timeout=0.3)
        try:
            with pytest.raises(DeadlineExceeded):
                _ = model(1) if way == "now" else model.submit(1).result(_PATIENCE)
        finally:
            gate.opened.set()

    # Streams.

    @pytest.mark.parametrize("way", ["now", "stream", "async for"])
    def test_streams(self, model_for: Any, way: str) -> None:
        """Items come in order, then the end or the error, for `for` and for `async for`."""
        assert isinstance(model_for(_count).stream(1), Stream)
        for call in (Arguments((3,)), Arguments((2, True)), Arguments((0,))):
            assert_congruent(_count, model_for(_count), call, way=way)
        assert_congruent(_count_slowly, model_for(_count_slowly), Arguments((3,)), way=way)

    def test_a_stream_that_is_left_closes_its_generator(self, model_for: Any) -> None:
        """Closing a stream ends the generator where it runs, once."""
        gate = _Gate()
        stream = model_for(gate.count).stream()
        assert next(stream) == 0
        stream.close()
        stream.close()
        assert gate.closed.wait(_PATIENCE)
        assert gate.calls == 1
        assert list(stream) == []

    def test_streams_and_values_are_not_mixed_up(self, model_for: Any) -> None:
        """What streams is not submitted, and what does not stream is not streamed."""
        with pytest.raises(Unsupported):
            model_for(_count).submit(1).result(_PATIENCE)
        with pytest.raises(SignatureError):
            list(model_for(_echo).stream(1))

    # torch.

    def test_the_callers_torch_state_holds(self, model_for: Any) -> None:
        """Grad mode, autocast, train mode and random state at a module are its caller's."""
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
        call = Arguments((torch.ones(2, 4),))
        for training in (False, True):
            model = model_for(net).train(training)
            with torch.no_grad():
                assert_congruent(net, model, call)
            with torch.autocast("cpu"):
                assert_congruent(net, model, call, way="submit")

    def test_a_seed_is_a_fork(self, model_for: Any) -> None:
        """A seeded call draws the same every time, and nothing from its caller."""
        torch = pytest.importorskip("torch")
        model = model_for(torch.nn.Dropout(0.5)).train().with_options(seed=3)
        before = torch.get_rng_state()
        assert torch.equal(model(torch.ones(64)), model(torch.ones(64)))
        assert torch.equal(torch.get_rng_state(), before)

    # The end.

    def test_a_closed_executor_takes_no_calls(self, executor_for: Any) -> None:
        """After `close` calls raise instead of waiting, and closing again does nothing."""
        model: Model[..., Any] = Model.over(executor_for(_echo), "model")
        assert model(1) == 1
        model.close()
        model.close()
        with pytest.raises(RuntimeError, match="closed"):
            model(1)
        with pytest.raises(RuntimeError, match="closed"):
            model.submit(1).result(_PATIENCE)
        with pytest.raises(RuntimeError, match="closed"):
            model.ready(_PATIENCE)

    def test_closing_leaves_nobody_waiting(self, executor_for: Any) -> None:
        """Calls that `close` finds on their way end: with their answer, or with an error."""
        gate = _Gate()
        model: Model[..., Any] = Model.over(executor_for(gate), "model")
        jobs = [model.submit(number) for number in range(20)]
        assert gate.entered.acquire(timeout=_PATIENCE)
        model.close()
        gate.opened.set()
        for number, job in enumerate(jobs):
            assert job.exception(_PATIENCE) is not None or job.result() == number


def _expected(model: Model[..., Any], like: Callable[..., Any]) -> Model[..., Any]:
    model._executor.expect(Signature.from_callable(like), like.__name__)
    return model
