"""Rows that pass through a function of each row: a matrix of columns, a preprocessing."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from maas.data.orders import Order
from maas.data.rows import Pair
from maas.data.sources import Arrays, Samples, Source
from maas.errors import Unsupported

__all__ = ["Mapped", "for_models", "matrix"]


class Mapped:
    """Another source's rows, with a function applied to the inputs, and one to the targets.

    Each treats every row by itself. What is all here is mapped once; else each batch is.
    """

    def __init__(
        self,
        inner: Source,
        inputs: Callable[[Any], Any] | None,
        targets: Callable[[Any], Any] | None = None,
    ) -> None:
        self.inner = inner
        self.function = inputs
        self._targets = targets
        self.rows = inner.rows
        self.repeatable = inner.repeatable
        self.own_batches = inner.own_batches

    @functools.cached_property
    def whole(self) -> Source | None:
        """All rows, mapped; None where they are not all here."""
        inner = self.inner.whole if isinstance(self.inner, Mapped) else self.inner
        if not isinstance(inner, Arrays):
            return None
        return Arrays(*self._mapped((inner.inputs, inner.targets)))

    def batches(self, batch_size: int, order: Order | None, start: int) -> Iterator[Pair]:
        """The other's batches, mapped."""
        if self.whole is not None:
            return self.whole.batches(batch_size, order, start)
        return map(self._mapped, self.inner.batches(batch_size, order, start))

    def picked(self, wanted: Any) -> "Mapped":
        """Some of the rows."""
        if not isinstance(self.inner, Arrays | Samples | Mapped):
            raise Unsupported("only rows that are all here can be picked")
        return Mapped(self.inner.picked(wanted), self.function, self._targets)

    def _mapped(self, batch: Pair) -> Pair:
        inputs, targets = batch
        if self._targets is not None and targets is not None:
            targets = self._targets(targets)
        return inputs if self.function is None else self.function(inputs), targets


def for_models(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 for float64, which models do not compute with; all else as it is."""
    return values.astype(np.float32) if values.dtype == np.float64 else values


def matrix(columns: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Columns of numbers side by side, float32 of shape (rows, columns): what models take."""
    return np.stack([np.asarray(each, np.float32) for each in columns.values()], axis=1)
