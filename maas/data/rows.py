"""Rows: what training data is made of, whatever holds them.

A *column* holds one value a row along its first axis: a NumPy array, a torch tensor, or a
list. A *batch* is a column, or a dict, list or tuple of columns, and batches keep the shape and
the kind of what they were taken from.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maas import tensors
from maas.errors import DataError

__all__ = [
    "Pair",
    "column",
    "columns",
    "count",
    "is_array",
    "joined",
    "mapped",
    "pair",
    "sent",
    "stacked",
    "taken",
]

Pair = tuple[Any, Any]
"""Inputs and targets; None for targets that there are not."""


def is_array(value: Any) -> bool:
    """Whether it is an array of a kind that is known here; a file that is mapped is one too."""
    return isinstance(value, np.ndarray) or tensors.facts(value) is not None


def column(values: Any, what: str) -> Any:
    """Values as a column: arrays as they are, a list as an array of what its values are.

    Python's floats become float32, which is what models compute with; text and None stay as they
    are, in an array of objects.

    Raises
    ------
    DataError
        Rows of different lengths, or values that make no column.
    """
    if is_array(values):
        if not values.shape:
            raise DataError(f"{what} is a single number; wanted a first axis of rows")
        text = isinstance(values, np.ndarray) and values.dtype.kind == "U"
        return values.astype(object) if text else values
    if len(values) and is_array(values[0]) and not isinstance(values[0], np.ndarray):
        return _stack_of(values, what)
    try:
        made = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{what}: {_ragged(values)}") from error
    if made.ndim == 0:
        raise DataError(f"{what} is {values!r:.60}, which holds no rows")
    if made.dtype.kind in "USO":
        return _objects(values, made.shape)
    return made.astype(np.float32) if made.dtype == np.float64 else made


def columns(value: Any, what: str) -> Any:
    """What users give for rows, as columns; raises as `column` does."""
    if isinstance(value, list):
        return column(value, what)
    if isinstance(value, Mapping):
        return {name: column(each, f"column {name!r}") for name, each in value.items()}
    return mapped(lambda each: column(each, what), value)


def _stack_of(arrays: Sequence[Any], what: str) -> Any:
    found: Any = tensors.adapter_for(type(arrays[0]))
    try:
        return found.stack(arrays)
    except (RuntimeError, TypeError) as error:
        raise DataError(f"{what}: {_ragged(arrays)}") from error


def _ragged(values: Sequence[Any]) -> str:
    wanted = np.shape(values[0]) if len(values) else ()
    for index, value in enumerate(values):
        try:
            found = np.shape(value)
        except ValueError:
            return f"row {index} is uneven in itself; pad it, or leave it out"
        if found != wanted:
            return f"row {index} has the shape {found}, row 0 has {wanted}; they must agree"
    return "its rows do not fit one array"


def _objects(values: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An array of the very objects: NumPy would make text of a number that stands beside text."""
    made = np.empty(shape, object)
    made[...] = values
    return made


def mapped(function: Callable[[Any], Any], rows: Any) -> Any:
    """The same dict, list or tuple with `function` of each column."""
    if isinstance(rows, dict):
        return {name: mapped(function, each) for name, each in rows.items()}
    if isinstance(rows, list | tuple):
        return type(rows)([mapped(function, each) for each in rows])
    return None if rows is None else function(rows)


def sent(rows: Any) -> Any:
    """Rows as they cross: text as lists."""
    return mapped(_crossing, rows)


def _crossing(values: Any) -> Any:
    return values.tolist() if isinstance(values, np.ndarray) and values.dtype == object else values


def _columns(rows: Any) -> list[Any]:
    found: list[Any] = []
    mapped(found.append, rows)
    return found


def count(rows: Any, what: str) -> int:
    """How many rows there are.

    Raises
    ------
    DataError
        Columns of different lengths, or none.
    """
    lengths = {len(each) for each in _columns(rows)}
    if len(lengths) != 1:
        told = ", ".join(map(str, sorted(lengths))) or "no"
        raise DataError(f"{what} have {told} rows; wanted one number of rows for all")
    return lengths.pop()


def taken(rows: Any, wanted: slice | np.ndarray[Any, np.dtype[np.int64]]) -> Any:
    """Some rows: a slice shares memory, an array of positions copies."""
    return mapped(lambda each: _taken(each, wanted), rows)


def _taken(values: Any, wanted: Any) -> Any:
    if isinstance(values, np.memmap):
        # Read-only, and gone with its file.
        return np.array(values[wanted])
    if isinstance(wanted, slice) or isinstance(values, np.ndarray):
        return values[wanted]
    # torch wants positions of its own kind, where the values are.
    torch = importlib.import_module("torch")
    return values[torch.from_numpy(wanted).to(values.device)]


def pair(batch: Any) -> Pair:
    """A batch as a loader gives it, as inputs and targets.

    Raises
    ------
    DataError
        A tuple of more than two.
    """
    if not isinstance(batch, list | tuple):
        return _rows(batch), None
    if len(batch) in (1, 2):
        return _rows(batch[0]), _rows(batch[1]) if len(batch) == 2 else None
    raise DataError(
        f"a batch is a {type(batch).__name__} of {len(batch)}; wanted (inputs, targets). "
        "Several inputs go into a tuple or a dict: ((a, b), targets)"
    )


def _rows(value: Any) -> Any:
    """Columns, where a loader gave lists of plain values."""
    if isinstance(value, dict):
        return {name: _rows(each) for name, each in value.items()}
    if isinstance(value, list | tuple) and value and not _holds_columns(value):
        return column(list(value), "a batch")
    return value


def _holds_columns(values: Sequence[Any]) -> bool:
    return is_array(values[0]) or isinstance(values[0], dict)


def stacked(samples: Sequence[Any]) -> Any:
    """Samples put together along a new first axis, each part of theirs by itself."""
    first = samples[0]
    if isinstance(first, dict):
        return {name: stacked([each[name] for each in samples]) for name in first}
    if isinstance(first, list | tuple):
        return tuple(stacked(part) for part in zip(*samples, strict=True))
    found = tensors.adapter_for(type(first))
    return column(list(samples), "the samples") if found is None else found.stack(samples)


def joined(blocks: Sequence[Any]) -> Any:
    """Blocks of rows one after the other."""
    first = blocks[0]
    if first is None:
        return None
    if isinstance(first, dict):
        return {name: joined([each[name] for each in blocks]) for name in first}
    if isinstance(first, list | tuple):
        return type(first)([joined(part) for part in zip(*blocks, strict=True)])
    found = tensors.adapter_for(type(first))
    return np.concatenate(blocks) if found is None else found.concatenate(blocks)
