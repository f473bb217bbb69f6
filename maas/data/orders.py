"""The order of rows in an epoch: a permutation that a seed and a number decide, and no state.

It is the one of torch's `DistributedSampler`: `torch.randperm(rows, generator=g)` with
`g.manual_seed(seed + epoch)`. Without torch loaded the same permutation is made here, so that a
run means the same rows wherever it goes on.
"""

import sys
from typing import Any

import numpy as np

__all__ = ["Order", "permutation"]

Order = tuple[int, int]
"""Seed and epoch."""

_MOST = 2**32 // 20
"""Rows from which torch draws 64 bits for each, for the remainder of 32 would be uneven."""


def permutation(rows: int, seed: int, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The rows in the order of that epoch, int64 of shape (rows,).

    Raises
    ------
    ValueError
        A seed or an epoch below 0.
    """
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed and epoch are counted from 0, got {seed} and {epoch}")
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "randperm"):
        generator = torch.Generator().manual_seed(seed + epoch)
        found: np.ndarray[Any, np.dtype[np.int64]] = torch.randperm(
            rows, generator=generator
        ).numpy()
        return found
    return _as_torch_does(rows, seed + epoch)


def _as_torch_does(rows: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Fisher and Yates's shuffle over the words of MT19937, as in `randperm_cpu` of ATen."""
    if rows >= _MOST:
        raise ValueError(f"{rows} rows are ordered by torch alone; import it first")
    twister = np.random.MT19937()
    twister._legacy_seeding(seed & 0xFFFFFFFF)
    left = np.arange(rows, 1, -1, dtype=np.uint64)
    steps = np.asarray(twister.random_raw(len(left)), np.uint64) % left
    order = list(range(rows))
    for index, step in enumerate(steps.tolist()):
        order[index], order[index + step] = order[index + step], order[index]
    return np.asarray(order, np.int64)
