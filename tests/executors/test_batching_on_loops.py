"""Batches on an event loop, which may end at any time: nobody else waits for it."""

import asyncio
import contextlib
import threading
import time

import numpy as np
import pytest

import maas
from maas.calls import CALL, Call
from maas.executors.placement import RUNS
from maas.executors.prompt import Prompt

PATIENCE = 30.0


@maas.method(pure=True)
def double(x: np.ndarray) -> np.ndarray:
    return x * 2


def row(number):
    return np.full((1, 2), float(number))


@pytest.fixture
def model():
    """A model whose batches of two are known to be short, so that a loop takes them."""
    model = maas.Model(double, batching=maas.Batching(8), example=row(0))
    prompts = []

    async def pairs():
        for _ in range(100 * RUNS):
            prompts[:] = [asked(model, number) for number in range(2)]
            await asyncio.gather(*(settled for _, settled in prompts))
            if all(prompt.on_loop for prompt, _ in prompts):
                return
        pytest.fail("the loop never took a batch")

    asyncio.run(pairs())
    yield model
    model.close()


def asked(model, number):
    """A call as a server makes it, on the loop that runs, and what will hold its answer."""
    loop = asyncio.get_running_loop()
    settled = loop.create_future()
    prompt = Prompt(settled.set_result, loop)
    assert model.executor.prompt(Call("double", CALL, (row(number),)), prompt)
    return prompt, settled


@contextlib.contextmanager
def ending_loop(begin):
    """A loop that ends, and is closed, in the very turn in which `begin` ran on it."""
    loop = asyncio.new_event_loop()

    async def begun():
        loop.stop()
        begin()

    task = loop.create_task(begun())
    loop.run_forever()
    assert task.done()
    try:
        yield
    finally:
        loop.close()


def test_a_loop_that_ends_leaves_nobody_waiting(model):
    """A thread's call that came while a loop was to take what waits is answered without it."""
    jobs = []

    def begin():
        asked(model, 1), asked(model, 2)
        assert model.executor._draining is asyncio.get_running_loop()
        jobs.append(model.submit(row(3)))

    with ending_loop(begin):
        assert jobs[0].result(PATIENCE)[0, 0] == 6
    assert model.submit(row(4)).result(PATIENCE)[0, 0] == 8


def test_a_batch_handed_to_a_loop_that_ends_is_taken_back(model):
    """A batch on its way to a loop goes through a thread once anybody else waits."""
    front, jobs = model.executor, []

    def begin():
        with front._lock:
            assert front._queue.claim(time.monotonic())
        asked(model, 1), asked(model, 2)
        front._free()
        until = time.monotonic() + PATIENCE
        while front._handed is None and time.monotonic() < until:
            threading.Event().wait(0.001)
        jobs.append(model.submit(row(3)))

    with ending_loop(begin):
        assert jobs[0].result(PATIENCE)[0, 0] == 6
    assert model.submit(row(4)).result(PATIENCE)[0, 0] == 8


def test_the_next_loop_takes_over_from_one_that_ended(model):
    """Calls on another loop are answered although one that was closed held the queue."""

    async def pair():
        settled = [asked(model, number)[1] for number in range(2)]
        return [answer.value[0, 0] for answer in await asyncio.gather(*settled)]

    with ending_loop(lambda: (asked(model, 1), asked(model, 2))):
        pass
    assert asyncio.run(asyncio.wait_for(pair(), PATIENCE)) == [0, 2]


def test_loops_and_threads_at_once(model):
    """Callers on two loops and on threads, together, each get the answer to their own call."""

    async def many(start):
        for number in range(start, start + 200, 2):
            settled = [asked(model, number)[1], asked(model, number + 1)[1]]
            answers = await asyncio.wait_for(asyncio.gather(*settled), PATIENCE)
            assert [answer.value[0, 0] for answer in answers] == [2 * number, 2 * number + 2]

    def one_by_one(start):
        for number in range(start, start + 200):
            assert model.submit(row(number)).result(PATIENCE)[0, 0] == 2 * number

    errors = []

    def kept(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    works = [lambda n=n: asyncio.run(many(1000 * n)) for n in range(2)]
    works += [lambda n=n: one_by_one(1000 * n) for n in range(2, 4)]
    threads = [threading.Thread(target=kept, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
