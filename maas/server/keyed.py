"""Answers kept under idempotency keys: a call that is sent twice is run once.

The same key with the same call gives the same answer, also while the first is still
running; with another call it is a `Conflict`. Keys belong to a caller and a method: a
stranger's equal key is another key. What is kept is bounded in bytes and in time.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import attrs

from maas.errors import Conflict
from maas.http import Response

__all__ = ["KeyedAnswers"]


@attrs.define
class _Kept:
    digest: bytes
    answer: asyncio.Task[Response]
    since: float
    size: int = 0


class KeyedAnswers:
    """Runs each keyed call once, and keeps its answer for `seconds`, up to `max_bytes` in all."""

    def __init__(self, *, seconds: float = 600.0, max_bytes: int = 64 * 2**20) -> None:
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._bytes = 0
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
            The key was used with another call.
        TimeoutError
            No answer within `timeout` seconds.
        """
        self._forget()
        kept = self._kept.get(key)
        if kept is None:
            kept = _Kept(digest, asyncio.ensure_future(run()), time.monotonic())
            kept.answer.add_done_callback(lambda _task: self._weigh(key))
            self._kept[key] = kept
        elif kept.digest != digest:
            raise Conflict(
                "this idempotency key was used with another call; a new call needs a new key"
            )
        return await asyncio.wait_for(asyncio.shield(kept.answer), timeout)

    def _weigh(self, key: tuple[str, ...]) -> None:
        kept = self._kept.get(key)
        if kept is None or kept.answer.cancelled() or kept.answer.exception() is not None:
            self._kept.pop(key, None)
            return
        body = kept.answer.result().body
        kept.size = sum(map(len, body)) if isinstance(body, list | tuple) else 0
        self._bytes += kept.size

    def _forget(self) -> None:
        oldest = time.monotonic() - self._seconds
        for key, kept in list(self._kept.items()):
            if not kept.answer.done() or (kept.since > oldest and self._bytes <= self._max_bytes):
                continue
            self._bytes -= kept.size
            del self._kept[key]
