"""Calls that are answered on the loop that they came on, without a task; short ones run there too.

A `Prompt` is what a `Job` is to threads: the answer, later. It belongs to one loop, and is settled
on it. What runs there (`apart`) sees no loop: a model may start one, as it may on any thread, and
whatever it asks of other models is answered at once, since nobody else could.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

from maas.calls import Result
from maas.wire import Failure

__all__ = ["Alarm", "Give", "Prompt", "apart", "is_apart", "posting"]

Give = Callable[[Result | Failure], object]

_here = threading.local()


class Prompt:
    """A call's answer on its way to the loop that it came on.

    Parameters
    ----------
    give : called once with the answer, on the loop's thread, unless it is cancelled before.
    loop : that loop, which runs now.

    Attributes
    ----------
    on_cancel : the executor's own; called when nobody waits any more.
    on_loop : whether the model ran on the loop.
    runs : whether the model works on it, which it may do after its caller has left.
    """

    __slots__ = ("_give", "_loop", "_then", "_thread", "answer", "on_cancel", "on_loop", "runs")

    def __init__(self, give: Give, loop: Any) -> None:
        self._give: Give | None = give
        self._loop = loop
        self._thread = threading.get_ident()
        self.answer: Result | Failure | None = None
        self.on_cancel: Callable[[], object] | None = None
        self.on_loop = False
        self.runs = False
        self._then: list[Callable[[], object]] | None = None

    @property
    def loop(self) -> Any:
        """Where it belongs."""
        return self._loop

    def done(self) -> bool:
        """Whether it has its answer, or nobody waits for one."""
        return self._give is None

    def begin(self) -> bool:
        """For an executor: the work begins, and goes on whether or not its caller waits.

        False, and nothing begins, where nobody waits any more.
        """
        self.runs = self._give is not None
        return self.runs

    def end(self) -> None:
        """For an executor: the work has ended, or will never begin."""
        self.runs = False
        if self._then is not None:
            self._tell(self._then)

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Calls it once no work goes on any more, on whatever thread; of one that is done."""
        then = self._then = [callback]
        if not self.runs:
            self._tell(then)

    def _tell(self, then: list[Callable[[], object]]) -> None:
        with suppress(IndexError):  # both sides may come here: who takes it calls it
            then.pop()()

    def settle(self, answer: Result | Failure) -> None:
        """Gives the answer to whoever waits; ignored after the first, and after `cancel()`."""
        give, self._give = self._give, None
        if give is None:
            return
        self.answer = answer
        if threading.get_ident() != self._thread:
            _post(self._loop, give, answer)
            return
        settled = getattr(_here, "settled", None)
        if settled is None:
            give(answer)
        else:
            self.on_loop = True
            settled.append((give, answer))

    def finish(self, answer: Result | Failure) -> None:
        """For an executor: the work has ended, and this is its answer."""
        self.runs = False
        self.on_cancel = None  # which may hold the call, and so this: garbage to be searched for
        if self._then is not None:
            self._tell(self._then)
        self.settle(answer)

    def cancel(self) -> bool:
        """Gives the call up; True unless it had ended before."""
        waited, self._give = self._give is not None, None
        on_cancel = self.on_cancel
        if waited and on_cancel is not None:
            on_cancel()
        return waited


@contextmanager
def posting() -> Iterator[None]:
    """Answers that this thread gives go to their loops together, at the end.

    To wake a loop for each takes longer than the answer.
    """
    posted: dict[Any, list[tuple[Give, Result | Failure]]] = {}
    _here.posted = posted
    try:
        yield
    finally:
        _here.posted = None
        for loop, answers in posted.items():
            _send(loop, answers)


def _post(loop: Any, give: Give, answer: Result | Failure) -> None:
    posted = getattr(_here, "posted", None)
    if posted is None:
        _send(loop, [(give, answer)])
    else:
        posted.setdefault(loop, []).append((give, answer))


def _send(loop: Any, answers: list[tuple[Give, Result | Failure]]) -> None:
    try:  # noqa: SIM105 - `suppress` costs as much as the call
        loop.call_soon_threadsafe(_give_all, answers)
    except RuntimeError:  # it has closed, and its callers are gone
        pass


def _give_all(answers: list[tuple[Give, Result | Failure]]) -> None:
    for give, answer in answers:
        give(answer)


class Alarm:
    """One timer for the deadlines of all who wait: nearly all are answered long before theirs.

    Parameters
    ----------
    ring : releases those that are late, and says when to look again.
    """

    __slots__ = ("_at", "_loop", "_ring")

    def __init__(self, ring: Callable[[], float | None]) -> None:
        self._ring = ring
        self._at = math.inf
        self._loop: Any = None

    def set(self, deadline: float | None, loop: Any) -> None:
        """Somebody waits until then; called on the thread of that loop."""
        if deadline is None or (deadline >= self._at and not self._loop.is_closed()):
            return
        self._at = deadline
        self._loop = loop
        loop.call_later(max(0.0, deadline - time.monotonic()), self._rings, deadline)

    def _rings(self, deadline: float) -> None:
        if deadline != self._at:
            return  # an earlier one has been set since
        loop, self._at = self._loop, math.inf
        self.set(self._ring(), loop)


class apart:  # noqa: N801 - a context manager; `contextlib`'s is five functions more for each run
    """A model runs on the thread of a loop, and does not see it; answers are given afterwards."""

    __slots__ = ("_loop",)

    def __enter__(self) -> Self:
        asyncio: Any = sys.modules["asyncio"]
        self._loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        _here.settled = []
        return self

    def __exit__(self, *_: object) -> None:
        asyncio: Any = sys.modules["asyncio"]
        settled, _here.settled = _here.settled, None
        asyncio._set_running_loop(self._loop)
        for give, answer in settled:
            give(answer)


def is_apart() -> bool:
    """Whether this thread is a loop's, held by a model that runs on it."""
    return getattr(_here, "settled", None) is not None
