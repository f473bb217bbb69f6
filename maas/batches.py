"""Putting single arguments together to one call, and its answer apart again."""

import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from maas import tensors
from maas.errors import SignatureError
from maas.executors.base import Job
from maas.records import frozen

__all__ = ["Group", "Mapped", "batched", "split"]

S = TypeVar("S")


@frozen
class Group:
    """One call's argument; `size` arguments made it, None for one that was not put together."""

    argument: Any
    size: int | None


def batched(xs: Iterable[Any], size: int | None) -> Iterator[Group]:
    """The calls that `xs` make, each of `size` arguments but the last."""
    if size is None:
        for x in xs:
            yield Group(x, None)
        return
    source = iter(xs)
    while items := list(itertools.islice(source, size)):
        yield Group(_together(items), len(items))


def _together(items: list[Any]) -> Any:
    adapter = tensors.adapter_for(type(items[0]))
    if adapter is None or any(type(item) is not type(items[0]) for item in items):
        return items
    return adapter.stack(items)


def split(answer: Any, size: int) -> Sequence[Any]:
    """The answer's `size` rows; a tuple or dict of arrays gives tuples or dicts of rows.

    Raises
    ------
    SignatureError
        An answer that does not have one row an argument.
    """
    if type(answer) is dict:
        columns = [split(column, size) for column in answer.values()]
        return [dict(zip(answer, row, strict=True)) for row in zip(*columns, strict=True)]
    if type(answer) is tuple:
        return list(zip(*(split(column, size) for column in answer), strict=True))
    found = tensors.facts(answer)
    rows = (
        len(answer)
        if type(answer) is list
        else None
        if found is None or not found[1]
        else found[1][0]
    )
    if rows != size:
        raise SignatureError(
            f"a batch of {size} wants an answer of {size} rows, got {type(answer).__name__} "
            f"{'' if found is None else list(found[1])}; map without batch_size="
        )
    return list(answer)


class Mapped(Iterator[S], AsyncIterator[S]):
    """Answers in the order of their arguments, a bounded number of calls ahead."""

    def __init__(
        self,
        submit: Callable[[Any], Job[Any]],
        xs: Iterable[Any],
        batch_size: int | None,
        in_flight: int,
    ) -> None:
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise ValueError(f"batch_size wants a positive int or None, got {batch_size!r}")
        if type(in_flight) is not int or in_flight < 1:
            raise ValueError(f"in_flight wants a positive int, got {in_flight!r}")
        self._submit = submit
        self._groups = batched(xs, batch_size)
        self._in_flight = in_flight
        self._jobs: deque[tuple[Job[Any], int | None]] = deque()
        self._answers: deque[S] = deque()

    def _fill(self) -> bool:
        """Sends calls until enough are on their way; False when all have been answered."""
        while len(self._jobs) < self._in_flight:
            group = next(self._groups, None)
            if group is None:
                break
            self._jobs.append((self._submit(group.argument), group.size))
        return bool(self._jobs)

    def _take(self, answer: Any, size: int | None) -> None:
        self._answers.extend([answer] if size is None else split(answer, size))

    def __next__(self) -> S:
        while not self._answers:
            if not self._fill():
                raise StopIteration
            job, size = self._jobs.popleft()
            self._take(job.result(), size)
        return self._answers.popleft()

    async def __anext__(self) -> S:
        while not self._answers:
            if not self._fill():
                raise StopAsyncIteration
            job, size = self._jobs.popleft()
            self._take(await job, size)
        return self._answers.popleft()

    def close(self) -> None:
        """Gives up the calls that are on their way."""
        self._groups = iter(())
        while self._jobs:
            self._jobs.popleft()[0].cancel()
