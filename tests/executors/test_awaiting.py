"""Futures of other threads, awaited on a loop: what they give, and who is cancelled with whom."""

import asyncio
import concurrent.futures
import threading

import pytest

from maas.executors.awaiting import in_loop


def settled(outcome) -> concurrent.futures.Future:
    future = concurrent.futures.Future()
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


def test_each_of_many_gets_its_own():
    """A thousand futures settled by four threads give each waiter what its own was given."""

    async def main() -> list[int]:
        futures = [concurrent.futures.Future() for _ in range(1000)]

        def settle(start: int) -> None:
            for number in range(start, 1000, 4):
                futures[number].set_result(number)

        waiting = [in_loop(future) for future in futures]
        threads = [threading.Thread(target=settle, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        found = await asyncio.gather(*waiting)
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])
        return found

    assert asyncio.run(main()) == list(range(1000))


def test_an_error_is_raised_where_it_is_awaited():
    """The future's own exception is raised, and StopIteration as a coroutine would raise it."""

    async def awaited(error: Exception) -> None:
        await in_loop(settled(error))

    with pytest.raises(KeyError, match="lost"):
        asyncio.run(awaited(KeyError("lost")))
    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        asyncio.run(awaited(StopIteration(7)))
    assert type(caught.value.__cause__) is StopIteration


def test_whoever_stops_waiting_cancels_the_future():
    """A task that is cancelled cancels what it awaits."""

    async def main() -> bool:
        future: concurrent.futures.Future = concurrent.futures.Future()

        async def wait() -> None:
            await in_loop(future)

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return future.cancelled()

    assert asyncio.run(main())


def test_a_cancelled_future_cancels_who_awaits():
    """A future that is cancelled elsewhere ends the wait by CancelledError."""

    async def main() -> None:
        future: concurrent.futures.Future = concurrent.futures.Future()
        waiting = in_loop(future)
        future.cancel()
        await waiting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_a_loop_that_has_closed_loses_nobody_else_a_word():
    """To settle a future that a closed loop awaited harms neither the thread nor the next loop."""
    future: concurrent.futures.Future = concurrent.futures.Future()

    async def leave() -> None:
        in_loop(future)

    async def stay() -> int:
        return await in_loop(settled(3))

    asyncio.run(leave())
    future.set_result(1)
    assert asyncio.run(stay()) == 3
