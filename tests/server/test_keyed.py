import asyncio
import gc
import weakref
from contextlib import suppress

import pytest

from maas.errors import Conflict, Overloaded
from maas.http import Response
from maas.server.keyed import KeyedAnswers

PATIENCE = 20.0


class Runs:
    """A call that says how often it was run, and may be held up."""

    def __init__(self, response=None, *, held=False):
        self.count = 0
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self._response = response or Response(200, (), (b"answer",))
        if not held:
            self.go_on.set()

    async def __call__(self):
        self.count += 1
        self.started.set()
        await self.go_on.wait()
        if isinstance(self._response, Exception):
            raise self._response
        return self._response


def test_the_same_call_is_run_once():
    """A second attempt gets the first one's answer."""

    async def scene():
        kept, run = KeyedAnswers(), Runs()
        answers = [await kept.answer(("a", "k"), b"call", run, PATIENCE) for _ in range(3)]
        assert answers == [Response(200, (), (b"answer",))] * 3
        assert run.count == 1

    asyncio.run(scene())


def test_the_same_call_is_run_once_at_the_same_time():
    """Attempts that come while the first one runs wait for its answer."""

    async def scene():
        kept, run = KeyedAnswers(), Runs(held=True)
        tasks = [
            asyncio.ensure_future(kept.answer(("a", "k"), b"call", run, PATIENCE))
            for _ in range(20)
        ]
        await run.started.wait()
        run.go_on.set()
        assert len(await asyncio.gather(*tasks)) == 20
        assert run.count == 1

    asyncio.run(scene())


def test_who_leaves_does_not_end_the_run():
    """After a disconnect in the middle of the run, the next attempt gets its answer."""

    async def scene():
        kept, run = KeyedAnswers(), Runs(held=True)
        first = asyncio.ensure_future(kept.answer(("a", "k"), b"call", run, PATIENCE))
        await run.started.wait()
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        second = asyncio.ensure_future(kept.answer(("a", "k"), b"call", run, PATIENCE))
        run.go_on.set()
        assert (await second).status == 200
        assert run.count == 1

    asyncio.run(scene())


def test_who_has_no_time_does_not_end_the_run():
    """An attempt whose time is over is told so; its answer waits for the next."""

    async def scene():
        kept, run = KeyedAnswers(), Runs(held=True)
        with pytest.raises(TimeoutError):
            await kept.answer(("a", "k"), b"call", run, 0.01)
        run.go_on.set()
        assert (await kept.answer(("a", "k"), b"call", run, PATIENCE)).status == 200
        assert run.count == 1

    asyncio.run(scene())


@pytest.mark.parametrize("held", [False, True], ids=["answered", "running"])
def test_another_call_is_a_conflict(held):
    """A key that meets another call is refused, whether the first has ended or not."""

    async def scene():
        kept, run, other = KeyedAnswers(), Runs(held=held), Runs()
        first = asyncio.ensure_future(kept.answer(("a", "k"), b"call", run, PATIENCE))
        await run.started.wait()
        with pytest.raises(Conflict, match="new key"):
            await kept.answer(("a", "k"), b"other", other, PATIENCE)
        run.go_on.set()
        await first
        assert other.count == 0

    asyncio.run(scene())


def test_equal_keys_of_two_callers_are_two_keys():
    """What belongs to one caller is not given to another."""

    async def scene():
        kept = KeyedAnswers()
        mine, theirs = Runs(Response(200, (), (b"mine",))), Runs(Response(200, (), (b"theirs",)))
        assert (await kept.answer(("a", "k"), b"call", mine, PATIENCE)).body == (b"mine",)
        assert (await kept.answer(("b", "k"), b"call", theirs, PATIENCE)).body == (b"theirs",)

    asyncio.run(scene())


@pytest.mark.parametrize("status", [429, 502, 503])
def test_not_now_is_not_kept(status):
    """An answer that says the call was not run is forgotten, so that a retry can run it."""

    async def scene():
        kept, busy, run = KeyedAnswers(), Runs(Response(status)), Runs()
        assert (await kept.answer(("a", "k"), b"call", busy, PATIENCE)).status == status
        assert (await kept.answer(("a", "k"), b"call", run, PATIENCE)).status == 200

    asyncio.run(scene())


@pytest.mark.parametrize("status", [422, 500])
def test_failures_of_the_model_are_kept(status):
    """A call that was run and failed is not run again under its key."""

    async def scene():
        kept, run = KeyedAnswers(), Runs(Response(status))
        for _ in range(2):
            assert (await kept.answer(("a", "k"), b"call", run, PATIENCE)).status == status
        assert run.count == 1

    asyncio.run(scene())


def test_run_that_breaks_is_not_kept():
    """A run that raised has no answer to keep; the next attempt runs anew."""

    async def scene():
        kept, broken, run = KeyedAnswers(), Runs(RuntimeError("fault")), Runs()
        with pytest.raises(RuntimeError, match="fault"):
            await kept.answer(("a", "k"), b"call", broken, PATIENCE)
        assert (await kept.answer(("a", "k"), b"call", run, PATIENCE)).status == 200

    asyncio.run(scene())


def test_stream_is_given_once():
    """Items that were given to one attempt cannot be given to another, and are not run twice."""

    async def items():
        yield (b"item",)

    async def scene():
        kept, run = KeyedAnswers(), Runs(Response(200, (), items()))
        first = await kept.answer(("a", "k"), b"call", run, PATIENCE)
        assert [frame async for frame in first.body] == [(b"item",)]
        with pytest.raises(Conflict, match="stream"):
            await kept.answer(("a", "k"), b"call", run, PATIENCE)
        assert run.count == 1

    asyncio.run(scene())


def test_answers_are_forgotten_in_time():
    """An answer older than its time is let go, and its call may run again."""

    async def scene():
        kept, run = KeyedAnswers(seconds=0.0), Runs()
        for _ in range(3):
            await kept.answer(("a", "k"), b"call", run, PATIENCE)
        assert run.count == 3
        assert len(kept._kept) == 1

    asyncio.run(scene())


class Body(bytearray):
    """Bytes that can be watched."""


def test_answers_are_bounded_in_bytes():
    """The oldest answers go when all together are too large."""

    async def scene():
        kept = KeyedAnswers(max_bytes=10_000)
        bodies = []
        for number in range(50):
            body = Body(4_000)
            bodies.append(weakref.ref(body))
            await kept.answer((str(number),), b"call", Runs(Response(200, (), (body,))), PATIENCE)
            del body
        gc.collect()
        assert 1 <= sum(body() is not None for body in bodies) <= 4
        assert bodies[-1]() is not None

    asyncio.run(scene())


def test_empty_answers_are_bounded_too():
    """A million keys whose answers are empty do not grow the store without end."""

    async def scene():
        kept, run = KeyedAnswers(max_bytes=200_000), Runs(Response(200))
        for number in range(2_000):
            await kept.answer((str(number),), b"call", run, PATIENCE)
        assert run.count == 2_000
        assert len(kept._kept) <= 101

    asyncio.run(scene())


def test_runs_are_bounded():
    """Leaving does not make room: as many keyed calls run as may, and the next is refused."""

    async def scene():
        kept, run = KeyedAnswers(max_running=3), Runs(held=True)
        tasks = [
            asyncio.ensure_future(kept.answer((str(number),), b"call", run, PATIENCE))
            for number in range(3)
        ]
        await run.started.wait()
        tasks[0].cancel()
        with suppress(asyncio.CancelledError):
            await tasks[0]
        with pytest.raises(Overloaded) as caught:
            await kept.answer(("next",), b"call", run, PATIENCE)
        assert caught.value.retry_after
        run.go_on.set()
        await asyncio.gather(*tasks[1:])
        assert (await kept.answer(("next",), b"call", run, PATIENCE)).status == 200

    asyncio.run(scene())
