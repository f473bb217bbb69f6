"""Where rows come from: each source gives an epoch's batches from any position on.

A source has

    rows          how many there are, or None where only reading tells
    repeatable    whether the same order gives the same batches again, so that a run can resume
    own_batches   whether batches come as the user's loader makes them, whatever size is asked
    batches(batch_size, order, start)

`order` is None, or seed and epoch (`orders.py`); `start` counts batches.
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from maas.data.orders import Order, permutation
from maas.data.rows import Pair, count, joined, pair, taken
from maas.errors import DataError, Unsupported

__all__ = [
    "BUFFER",
    "Arrays",
    "Loader",
    "Named",
    "Samples",
    "Source",
    "Stream",
    "regrouped",
    "sampled",
]

BUFFER = 10_000
"""Rows that a stream holds at once, and shuffles among themselves."""


class Source(Protocol):
    """What gives batches of (inputs, targets)."""

    rows: int | None
    repeatable: bool
    own_batches: bool

    def batches(self, batch_size: int, order: Order | None, start: int) -> Iterator[Pair]:
        """The batches of one epoch, from batch `start` on."""


class Arrays:
    """Rows that are all here: columns of inputs, and of targets or None."""

    repeatable = True
    own_batches = False

    def __init__(self, inputs: Any, targets: Any) -> None:
        self.inputs = inputs
        self.targets = targets
        self.rows: int | None = count(inputs, "the inputs")
        if targets is not None and count(targets, "the targets") != self.rows:
            raise DataError(
                f"there are {self.rows} rows of inputs and {count(targets, 'the targets')} of "
                "targets; wanted one target for each row of inputs"
            )

    def batches(self, batch_size: int, order: Order | None, start: int) -> Iterator[Pair]:
        """Slices, or rows picked in the order of that epoch."""
        rows = self.rows or 0
        picked = None if order is None else permutation(rows, *order)
        for at in range(start * batch_size, rows, batch_size):
            wanted: Any = slice(at, at + batch_size)
            if picked is not None:
                wanted = picked[wanted]
            yield taken(self.inputs, wanted), taken(self.targets, wanted)

    def picked(self, wanted: slice | np.ndarray[Any, np.dtype[np.int64]]) -> "Arrays":
        """Some of the rows."""
        return Arrays(taken(self.inputs, wanted), taken(self.targets, wanted))


class Samples:
    """What has a length and gives a sample for each position: a map-style torch dataset.

    `collate` makes a batch of a list of samples.
    """

    repeatable = True
    own_batches = False

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self._dataset = dataset
        self._collate = collate
        self.rows: int | None = len(dataset)

    def batches(self, batch_size: int, order: Order | None, start: int) -> Iterator[Pair]:
        """As torch's DataLoader gives them, for a sampler with that order."""
        rows = self.rows or 0
        picked = range(rows) if order is None else permutation(rows, *order).tolist()
        for at in range(start * batch_size, rows, batch_size):
            yield pair(self._collate(_fetched(self._dataset, picked[at : at + batch_size])))

    def picked(self, wanted: slice | np.ndarray[Any, np.dtype[np.int64]]) -> "Samples":
        """Some of the samples."""
        positions = np.arange(self.rows or 0)[wanted].tolist()
        return Samples(_Part(self._dataset, positions), self._collate)


class _Part:
    def __init__(self, dataset: Any, positions: Sequence[int]) -> None:
        self._dataset = dataset
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._positions[index]]


def _fetched(dataset: Any, positions: Sequence[int]) -> list[Any]:
    many = getattr(dataset, "__getitems__", None)
    if many is not None:
        return list(many(list(positions)))
    return [dataset[position] for position in positions]


class Named:
    """Rows that are at a server, by their name there: a job reads them, and nobody here can."""

    repeatable = True
    own_batches = False

    def __init__(self, name: str, rows: int | None) -> None:
        self.name = name
        self.rows = rows

    def batches(self, _batch_size: int, _order: Order | None, _start: int) -> Iterator[Pair]:
        """None: they are not here."""
        raise Unsupported(
            f"{self.name} is at a server; train there, with model.fit or model.fit.submit of a "
            "model that you are connected to"
        )


class Loader:
    """Batches that the user makes: a DataLoader, a list of batches, a function that begins anew.

    They are passed on as they come: their order and size are the loader's.
    """

    own_batches = True

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._spent = False
        self.rows: int | None = _rows_of(loader)
        self.repeatable = not isinstance(loader, Iterator) and not _shuffles(loader)

    def batches(self, _batch_size: int, _order: Order | None, start: int) -> Iterator[Pair]:
        """As they come."""
        if start and not self.repeatable:
            raise Unsupported(
                f"a {type(self._loader).__name__} that is read once, or orders its rows by itself, "
                "cannot go on in the middle; give arrays or the dataset, and the order is made here"
            )
        return map(pair, itertools.islice(self._begun(), start, None))

    @property
    def steps(self) -> int | None:
        """How many batches there are, where the loader knows."""
        try:
            return len(self._loader)
        except TypeError:
            return None

    def _begun(self) -> Iterator[Any]:
        if isinstance(self._loader, Iterator):
            if self._spent:
                raise DataError(
                    "this iterator was read already, and cannot be read again; give a list, a "
                    "DataLoader, or the function that makes it"
                )
            self._spent = True
        return iter(self._loader() if callable(self._loader) else self._loader)


def _rows_of(loader: Any) -> int | None:
    if isinstance(loader, list):
        return sum(count(pair(batch)[0], "the inputs") for batch in loader)
    dataset = getattr(loader, "dataset", None)
    if dataset is None or not hasattr(dataset, "__len__") or getattr(loader, "drop_last", False):
        return None
    sampler: Any = getattr(loader, "sampler", None)
    return len(sampler if hasattr(sampler, "__len__") else dataset)


def _shuffles(loader: Any) -> bool:
    utilities = sys.modules.get("torch.utils.data")
    if utilities is None or not isinstance(loader, utilities.DataLoader):
        return False
    return not isinstance(loader.sampler, utilities.SequentialSampler)


class Stream:
    """Rows that pass by in blocks, because they do not fit in memory or have no end.

    `blocks(skipped)` begins to read, and may leave out so many rows at the beginning. A shuffled
    stream is shuffled in blocks of `buffer` rows: a row never moves out of its block, so sort
    nothing in the file by what is to be learned.
    """

    own_batches = False
    repeatable = True

    def __init__(
        self, blocks: Callable[[int], Iterable[Pair]], rows: int | None, buffer: int = BUFFER
    ) -> None:
        self._blocks = blocks
        self._buffer = buffer
        self.rows = rows

    def batches(self, batch_size: int, order: Order | None, start: int) -> Iterator[Pair]:
        """Batches across the borders of blocks."""
        at = start * batch_size
        if order is None:
            return regrouped(self._blocks(at), batch_size)
        # What was drawn from the blocks before is not looked at again.
        whole = at // self._buffer
        blocks = regrouped(self._blocks(whole * self._buffer), self._buffer)
        shuffled = _shuffled(blocks, order, whole)
        return regrouped(_without(shuffled, at - whole * self._buffer), batch_size)


def _shuffled(blocks: Iterable[Pair], order: Order, first: int) -> Iterator[Pair]:
    """Each block in an order of its own, which its number decides with seed and epoch."""
    seed, epoch = order
    for number, block in enumerate(blocks, first):
        rows = count(block[0], "a block")
        # Far from what the next epochs of this block get, and without a sum that repeats.
        picked = permutation(rows, seed + epoch, number * _APART)
        yield taken(block[0], picked), taken(block[1], picked)


_APART = 1_000_003
"""A prime beyond any number of epochs: block and epoch never add up to the same seed twice."""


def _without(blocks: Iterable[Pair], rows: int) -> Iterator[Pair]:
    for inputs, targets in blocks:
        here = count(inputs, "a block")
        if rows >= here:
            rows -= here
        elif rows:
            yield taken(inputs, slice(rows, None)), taken(targets, slice(rows, None))
            rows = 0
        else:
            yield inputs, targets


def regrouped(blocks: Iterable[Pair], size: int) -> Iterator[Pair]:
    """The same rows in blocks of `size`; the last may be smaller."""
    held: list[Pair] = []
    rows = 0
    for inputs, targets in blocks:
        at, here = 0, count(inputs, "a block")
        while at < here:
            part = slice(at, at + size - rows)
            held.append((taken(inputs, part), taken(targets, part)))
            rows += min(here, at + size - rows) - at
            at = part.stop
            if rows == size:
                yield _joined(held)
                held, rows = [], 0
    if held:
        yield _joined(held)


def _joined(blocks: Sequence[Pair]) -> Pair:
    if len(blocks) == 1:
        return blocks[0]
    inputs, targets = zip(*blocks, strict=True)
    return joined(inputs), joined(targets)


def sampled(
    samples: Callable[[], Iterable[Any]], collate: Callable[[list[Any]], Any]
) -> Callable[[int], Iterator[Pair]]:
    """Blocks of what gives one sample after the other."""

    def blocks(skipped: int) -> Iterator[Pair]:
        rest = itertools.islice(iter(samples()), skipped, None)
        while some := list(itertools.islice(rest, _AT_ONCE)):
            yield pair(collate(some))

    return blocks


_AT_ONCE = 256
