"""In worker processes: calls spread over a few processes that run the same model.

A worker answers as any server does, over socket pairs it is handed, so it is asked by the
executor for servers elsewhere: what crosses, what fails and what is cancelled is the same.
What is here is what to do with a call whose worker is lost. Who keeps the workers alive is
`crew.py`, and how a process comes to be is `spawning.py`.
"""

import asyncio
import concurrent.futures
import contextlib
import time
from functools import partial
from typing import Any

import attrs

from maas.backends.base import Method
from maas.calls import AMBIENT, Call, Context, Result
from maas.errors import (
    DeadlineExceeded,
    NotReady,
    SignatureError,
    TransportError,
    WorkerLost,
)
from maas.executors.awaiting import in_loop
from maas.executors.base import (
    END,
    Job,
    ModelInfo,
    Stream,
    begun,
    no_method,
    waited_for,
)
from maas.executors.crew import Asked, Crew, Launch, Worker, is_models
from maas.executors.supervision import Pace
from maas.limits import Limits
from maas.loops import Home, begin, run
from maas.signature import Signature
from maas.wire import Failure

__all__ = ["WorkerExecutor"]

_MOST_LOST = 2
"""Workers that may be lost with one call: after that the call itself is suspected."""

_MOST_REFUSED = 100
_REFUSED_PAUSE = 0.02


@attrs.define
class Tries:
    """What became of the tries of one call: workers that were lost with it, or never got it."""

    lost: int = 0
    refused: int = 0


class WorkerExecutor:
    """Asks `count` workers, which `launch` starts."""

    def __init__(
        self,
        launch: Launch,
        name: str,
        where: str,
        *,
        count: int = 1,
        limits: Limits | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.name = name
        self.where = where
        self._home = Home()
        self._home.check(where)
        self.crew = Crew(
            launch, name, where, count=count, limits=limits or Limits(), pace=pace or Pace()
        )
        run(self.crew.open()).result()

    # Answers.

    def run(self, call: Call) -> Result:
        """The answer, waited for on this thread."""
        if self.method(call.method, call.context).streams:
            return Result(self.stream(call))
        return waited_for(self.submit(call), self.name)

    def submit(self, call: Call) -> Job[Any]:
        """The answer, later, from whichever worker is free first."""
        self._home.check(self.where)
        return begun(begin, partial(self._answered, call))

    async def _answered(self, call: Call) -> Result | Failure:
        bare = _once(call)
        tries = Tries()
        while True:
            worker = await self.crew.taken(call.context)
            executor = worker.executor
            assert executor is not None  # noqa: S101 - it takes calls
            try:
                return await executor.answered(bare)
            except TransportError as error:
                if is_models(error):
                    return Failure(error)
                broken = error
            finally:
                self.crew.give_back(worker, executor)
            await self.try_again(call, tries, worker, executor, broken)

    async def try_again(
        self, call: Call, tries: Tries, worker: Worker, executor: Asked, error: TransportError
    ) -> None:
        """Returns if the call may be given to a worker once more.

        Raises
        ------
        WorkerLost
            It may have run, and may not run again.
        TransportError
            No worker can be reached.
        """
        if not error.sent:
            # Its process is gone, which is heard any moment, or has no room for the connection.
            tries.refused += 1
            if tries.refused > _MOST_REFUSED:
                raise error
            await asyncio.sleep(_REFUSED_PAUSE)
            return
        self.crew.lost(worker, executor)
        tries.lost += 1
        if not self._repeatable(call):
            raise WorkerLost(
                f"the worker of {self.name} ended before it answered, so the call may have run; "
                "it is not repeated, as the method is not declared pure and came without a key"
            ) from None
        if tries.lost >= _MOST_LOST:
            raise WorkerLost(
                f"{tries.lost} workers of {self.name} ended while they ran this call, "
                "so it is not given to another one"
            ) from None

    def _repeatable(self, call: Call) -> bool:
        info = self.crew.info
        method = None if info is None else info.methods.get(call.method)
        if call.context.key is not None or info is None or method is None:
            return call.context.key is not None
        training = info.training if call.context.training is None else call.context.training
        return method.pure and not method.stochastic and not training

    async def holder(self, context: Context) -> Asked:
        """What asks one worker alone, on the I/O loop, for what is kept is known to no other.

        It stays with that process, and raises `Expired` once that has ended.
        """
        worker = await self.crew.taken(context)
        executor = worker.executor
        assert executor is not None  # noqa: S101 - it takes calls
        self.crew.give_back(worker, executor)
        return executor

    def stream(self, call: Call) -> Stream[Any]:
        """The items of a generator method, all from one worker."""
        self._home.check(self.where)
        if self.crew.info is not None:
            method = self.method(call.method)
            if not method.streams:
                raise SignatureError(f"{self.name} gives one value, not a stream; call it")
            method.signature.check(call.args, call.kwargs, method.label)
        return _WorkerStream(self, call)

    # What users ask.

    def describe(self, context: Context = AMBIENT) -> ModelInfo:
        """What the workers say about the model; the first one ready is waited for."""
        if self.crew.info is None or self.crew.closed:
            self._home.check(self.where)
            run(self.crew.until_ready(context)).result()
        assert self.crew.info is not None  # noqa: S101 - a worker is ready
        return self.crew.info

    def method(self, name: str, context: Context = AMBIENT) -> Method:
        """The method of that name; AttributeError where there is none."""
        methods = self.describe(context).methods
        found = methods.get(name)
        if found is None:
            raise no_method(self.name, name, methods)
        return found

    def expect(self, signature: Signature, name: str) -> None:
        """What the caller takes the model to be."""
        self.crew.expected = (signature, name)

    def ready(self, timeout: float | None) -> None:
        """Returns once a worker takes calls; says why the workers cannot start."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._home.check(self.where)
        try:
            run(self.crew.until_ready(Context(deadline=deadline))).result()
        except NotReady as error:
            reason = self.crew.workers[0].broken
            raise NotReady(
                f"{self.name} cannot be started: {reason}", retry_after=error.retry_after
            ) from None
        except DeadlineExceeded:
            raise DeadlineExceeded(f"no worker of {self.name} was ready in time") from None

    @property
    def phases(self) -> tuple[str, ...]:
        """What each worker is doing, for people."""
        return tuple(worker.life.phase.value for worker in self.crew.workers)

    def close(self) -> None:
        """Takes no new calls, and ends the processes; those that have calls, after the last."""
        if not self.crew.closed:
            run(self.crew.close()).result()


class _WorkerStream(Stream[Any]):
    """The items from one worker; from another one if that is lost before the first."""

    def __init__(self, executor: WorkerExecutor, call: Call) -> None:
        self._executor = executor
        self._call = call
        self._worker: Worker | None = None
        self._asked: Asked | None = None
        self._inner: Stream[Any] | None = None
        self._items = 0
        self._tries = Tries()
        self._ended = False
        self._reading = asyncio.Lock()

    def _pull(self) -> concurrent.futures.Future[Any]:
        return run(self._next())

    async def _next(self) -> Any:
        async with self._reading:
            while not self._ended:
                try:
                    item = await self._item()
                except TransportError as error:
                    if self._ended:  # closed by whoever reads it
                        break
                    await self._recover(error)
                except BaseException:
                    await self._close()
                    raise
                else:
                    self._items += 1
                    return item
            return END

    async def _item(self) -> Any:
        if self._inner is None:
            self._worker = await self._executor.crew.taken(self._call.context)
            self._asked = self._worker.executor
            assert self._asked is not None  # noqa: S101 - it takes calls
            # Not on this loop: where the call does not fit, the worker is asked once more.
            self._inner = await asyncio.to_thread(self._asked.stream, _once(self._call))
        item = await in_loop(self._inner._pull())
        if item is END:
            self.info = self._inner.info
            await self._close()
        return item

    async def _recover(self, error: TransportError) -> None:
        """Lets the next try find another worker, or raises."""
        worker, asked = self._worker, self._asked
        await self._close()
        if is_models(error) or worker is None or asked is None:
            raise error
        if self._items:
            self._executor.crew.lost(worker, asked)
            raise WorkerLost(
                f"the worker of {self._executor.name} ended after {self._items} items of the stream"
            )
        await self._executor.try_again(self._call, self._tries, worker, asked, error)
        self._ended = False

    async def _close(self) -> None:
        self._ended = True
        worker, asked, inner = self._worker, self._asked, self._inner
        self._worker = self._inner = self._asked = None
        if inner is not None:
            await in_loop(inner._stop())
        if worker is not None and asked is not None:
            self._executor.crew.give_back(worker, asked)

    def _stop(self) -> concurrent.futures.Future[None]:
        return run(self._close())

    def __del__(self) -> None:
        if self._worker is not None:
            with contextlib.suppress(Exception):
                self._stop()


def _once(call: Call) -> Call:
    """The call as one worker gets it: whether it is tried again is decided here alone."""
    if call.context.key is None and not call.context.retries:
        return call
    return attrs.evolve(call, context=attrs.evolve(call.context, key=None, retries=0))
