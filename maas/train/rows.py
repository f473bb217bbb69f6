"""The smallest source of rows: pairs of arrays in memory, and batches as they come."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch

__all__ = ["Source", "source_of"]

Batch = tuple[Any, Any]


class Source(Protocol):
    """Rows, batch by batch, in an order that needs no state."""

    def batches(
        self, batch_size: int, *, order: tuple[int, int] | None, start: int = 0
    ) -> Iterator[Batch]:
        """Pairs of inputs and targets from batch `start` on; `order` is a seed and an epoch."""


class Rows:
    """Two arrays of equally many rows."""

    def __init__(self, inputs: Any, targets: Any) -> None:
        self.inputs, self.targets = map(torch.as_tensor, (inputs, targets))
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs and {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(
        self, batch_size: int, *, order: tuple[int, int] | None, start: int = 0
    ) -> Iterator[Batch]:
        """As `Source.batches`."""
        rows = torch.arange(len(self)) if order is None else permutation(len(self), order)
        for first in range(start * batch_size, len(self), batch_size):
            taken = rows[first : first + batch_size]
            yield self.inputs[taken], self.targets[taken]

    def split(self, share: float, seed: int) -> tuple["Rows", "Rows"]:
        """The rows without a share of them, and that share."""
        rows = permutation(len(self), (seed, -1))
        held = max(1, round(share * len(self)))
        return tuple(  # type: ignore[return-value]
            Rows(self.inputs[part], self.targets[part]) for part in (rows[held:], rows[:held])
        )


def permutation(rows: int, order: tuple[int, int]) -> torch.Tensor:
    """An order of rows that a seed and an epoch decide."""
    seed, epoch = order
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(rows, generator=generator)


def source_of(data: Any) -> Any:
    """A source of what users give."""
    if hasattr(data, "batches"):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        return Rows(*data)
    raise TypeError(f"no rows can be made of {type(data).__name__}; give (inputs, targets)")
