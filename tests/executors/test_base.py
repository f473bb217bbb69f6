import asyncio
import concurrent.futures
import threading

import pytest

import maas
from maas.calls import Info, Result
from maas.executors.base import Job, ModelInfo, executor_for, finish
from maas.wire import Failure

PATIENCE = 20.0


def test_a_job_is_a_future():
    """A settled job answers as `concurrent.futures.Future` does, and tells its facts."""
    job: Job[int] = Job()
    assert (job.done(), job.info) == (False, None)
    job.settle(Result(3, Info(batch_size=2)))
    assert (job.result(), job.exception(), job.info) == (3, None, Info(batch_size=2))
    assert concurrent.futures.wait([job]).done == {job}


def test_a_job_can_be_awaited_from_any_loop():
    """One job is awaited by two loops, one after the other, and by none."""
    job: Job[int] = Job()
    job.settle(Result(3))

    async def awaited():
        return await job

    assert asyncio.run(awaited()) == asyncio.run(awaited()) == job.result() == 3


def test_a_failed_job_raises():
    """The error of a failed job is raised to whoever asks, in any way."""
    job: Job[int] = Job()
    job.settle(Failure(KeyError("x")))
    with pytest.raises(KeyError):
        job.result()
    assert job.info is None


def test_only_the_first_of_answer_and_cancel_counts():
    """A race between an answer and a cancellation has one winner, who is told so."""
    for _ in range(200):
        job: Job[int] = Job()
        start = threading.Barrier(2)

        def settles(job=job, start=start):
            start.wait()
            job.settle(Result(1))

        thread = threading.Thread(target=settles)
        thread.start()
        start.wait()
        cancelled = job.cancel()
        thread.join()
        assert job.cancelled() is cancelled
        assert job.done()


def test_a_cancelled_job_wakes_who_waits():
    """`wait`, `result` and `await` all end when a job is cancelled."""
    asked = []
    job: Job[int] = Job(on_cancel=lambda: asked.append(1))
    waiting = concurrent.futures.ThreadPoolExecutor(1).submit(concurrent.futures.wait, [job])
    assert job.cancel()
    assert job.cancel()
    assert waiting.result(PATIENCE).done == {job}
    assert asked == [1]


def test_finish_leaves_no_cycle():
    """An error that is raised again does not hold on to the frame that raised it."""
    failure = Failure(ValueError("x"))
    with pytest.raises(ValueError) as caught:
        finish(failure)
    frames = []
    trace = caught.value.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    assert all("answer" not in frame.f_locals for frame in frames)


def test_a_description_survives_the_wire():
    """`ModelInfo.to_data` and `from_data` are inverse, but for the place, which the asker knows."""
    info = maas.Model(executor_for, name="made").info
    again = ModelInfo.from_data(info.to_data(), "there")
    assert again.methods == info.methods
    assert (again.name, again.where) == ("made", "there")


@pytest.mark.parametrize("field", ["methods", "kind", "limits", "training"])
def test_a_description_that_is_none_is_refused(field):
    """A stranger's description with a field missing, added or of the wrong type is a CodecError."""
    good = maas.Model(abs).info.to_data()
    for bad in (
        {name: value for name, value in good.items() if name != field},
        {**good, field: 7},
        {**good, "more": 1},
        None,
    ):
        with pytest.raises(maas.CodecError, match="a model"):
            ModelInfo.from_data(bad, "there")


def test_an_unknown_scheme_lists_those_that_are_known():
    """An address nobody can open says which can be."""
    with pytest.raises(ValueError, match="http, http\\+unix, https, local"):
        maas.connect("gopher://host/net")
