"""Putting single arguments together to one call, and its answer apart again."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from maas import tensors
from maas.errors import SignatureError

__all__ = ["Group", "batched", "split"]


@attrs.frozen
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
