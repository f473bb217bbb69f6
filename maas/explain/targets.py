"""Which number of a model's output is explained."""

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["checked_target", "selected"]


def checked_target(told: Any, shape: Sequence[int]) -> Any:
    """The target as Captum takes it, for an output of this shape, [rows, ...].

    Parameters
    ----------
    told : an index for all rows, or a sequence of indices, one a row. The index is an int where a
        row of the output has one dimension, else a tuple of ints; None where it is one number.

    Raises
    ------
    ValueError
        It names none of the output's numbers.
    """
    rows, row = shape[0], tuple(shape[1:])
    if told is None:
        if all(length == 1 for length in row):
            return _plain((0,) * len(row))
        raise ValueError(f"target= wants to be told: a row of the output has {_numbers(row)}")
    told = told.tolist() if hasattr(told, "tolist") else told
    if isinstance(told, int | tuple):
        return _plain(_checked(told, row))
    if isinstance(told, list):
        if len(told) != rows:
            raise ValueError(f"target= has {len(told)} indices for {rows} rows")
        return [_plain(_checked(tuple(x) if isinstance(x, list) else x, row)) for x in told]
    raise ValueError(f"target= wants an index or one for each row, got {told!r:.60}")


def _numbers(row: Sequence[int]) -> str:
    if len(row) == 1:
        return f"{row[0]} numbers, 0 to {row[0] - 1}"
    return f"numbers at {len(row)} indices, each below {list(row)}"


def _checked(told: Any, row: tuple[int, ...]) -> tuple[int, ...]:
    index = told if isinstance(told, tuple) else (told,)
    whole = all(type(each) is int for each in index)
    if not whole or len(index) != len(row):
        raise ValueError(f"target={told!r:.60}: a row of the output has {_numbers(row)}")
    if not all(0 <= each < length for each, length in zip(index, row, strict=True)):
        raise ValueError(f"target={told!r:.60} is out of range: there are {_numbers(row)}")
    return index


def _plain(index: tuple[int, ...]) -> Any:
    return None if not index else index[0] if len(index) == 1 else index


def selected(output: torch.Tensor, target: Any) -> torch.Tensor:
    """The numbers that a checked target names, [rows]."""
    if target is None:
        return output.flatten()
    every = target if isinstance(target, list) else [target] * output.shape[0]
    indices = torch.tensor([each if isinstance(each, tuple) else (each,) for each in every])
    rows = torch.arange(output.shape[0])
    return output[(rows, *indices.unbind(1))]
