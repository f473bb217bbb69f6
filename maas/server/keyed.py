"""Answers kept under idempotency keys: a call that is sent twice is run once.

The same key with the same call gives the same answer, also while the first is still
running; with another call it is a `Conflict`. Keys belong to a caller and a method: a
stranger's equal key is another key. What is kept is bounded in bytes and in time, and so is
what runs: a caller who leaves does not stop its run, so leaving must not make room for more.
An answer that says "not now" is not kept, for the call was not run.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import attrs

from maas.errors import Conflict, NotReady, Overloaded, TransportError
from maas.http import Response
from maas.server.replies import size

__all__ = ["KeyedAnswers"]

_NOT_NOW = frozenset({Overloaded.status, NotReady.status, TransportError.status})
_RECORD = 2048  # bytes of a record itself: key, digest, task and reply, measured at 1.6 KB


@attrs.define
class _Kept:
    digest: bytes
    answer: asyncio.Task[Response]
    since: float
    size: int = 0


class KeyedAnswers:
    """Runs each keyed call once, and keeps its answer for `seconds`, up to `max_bytes` in all."""

    def __init__(
        self, *, seconds: float = 600.0, max_bytes: int = 64 * 2**20, max_running: int = 1024
    ) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._max_running = max_running
        self._bytes = 0
        self._running = 0
        self._kept: OrderedDict[tuple[str, ...], _Kept] = OrderedDict()

    async def answer(
        self,
        key: tuple[str, ...],
        digest: bytes,
        run: Callable[[], Awaitable[Response]],
        timeout: float | None,
    ) -> Response:
        """The answer of the one run of this call.

        A caller who leaves, or whose `timeout` passes, does not stop the run: its answer waits for
        the next try.

        Raises
        ------
        Conflict
            The key was used with another call, or for a stream, which is given only once.
        Overloaded
            As many keyed calls run as may.
        TimeoutError
            No answer within `timeout` seconds.
        """
        self._forget()
        kept = self._kept.get(key)
        if kept is None:
            return await self._waited_for(self._begin(key, digest, run), timeout)
        if kept.digest != digest:
            raise Conflict(
                "this idempotency key was used with another call; a new call needs a new key"
            )
        response = await self._waited_for(kept, timeout)
        if not isinstance(response.body, Sequence):
            raise Conflict("the stream of this idempotency key was given out; use a new key")
        return response

    def _begin(
        self, key: tuple[str, ...], digest: bytes, run: Callable[[], Awaitable[Response]]
    ) -> _Kept:
        if self._running >= self._max_running:
            raise Overloaded(
                f"{self._running} calls with idempotency keys run; no more may", retry_after=1.0
            )
        self._running += 1
        kept = _Kept(digest, asyncio.ensure_future(run()), time.monotonic())
        kept.answer.add_done_callback(lambda _task: self._weigh(key, kept))
        self._kept[key] = kept
        return kept

    async def _waited_for(self, kept: _Kept, timeout: float | None) -> Response:
        return await asyncio.wait_for(asyncio.shield(kept.answer), timeout)

    def _weigh(self, key: tuple[str, ...], kept: _Kept) -> None:
        self._running -= 1
        answer = kept.answer
        if answer.cancelled() or answer.exception() or answer.result().status in _NOT_NOW:
            del self._kept[key]
            return
        body = answer.result().body
        kept.size = _RECORD + (size(body) if isinstance(body, Sequence) else 0)
        self._bytes += kept.size

    def _forget(self) -> None:
        oldest = time.monotonic() - self._seconds
        for key, kept in list(self._kept.items()):
            if kept.since > oldest and self._bytes <= self._max_bytes:
                break  # the rest is younger
            if kept.answer.done():
                self._bytes -= kept.size
                del self._kept[key]
