"""Rows as a preprocessing sees them: columns of single values, with names if there are any.

Tables are made of a dict of columns, of records (a list of dicts, as JSON has them), of a
two-dimensional array or tensor, or of a list of rows.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from maas.data.rows import column, is_array
from maas.errors import DataError

__all__ = ["Passes", "Table", "amounts", "is_missing", "is_nan", "passes_of", "side_by_side"]

Column = np.ndarray[Any, Any]


class Table:
    """Columns of one length; `names` is None where they have none."""

    def __init__(self, columns: Sequence[Column], names: Sequence[str] | None) -> None:
        self.columns = columns
        self.names = None if names is None else tuple(names)

    @classmethod
    def of(cls, values: Any) -> Self:
        """What is given, as a table.

        Raises
        ------
        DataError
            Not rows and columns.
        """
        if isinstance(values, cls):
            return values
        if isinstance(values, Mapping):
            return cls._of_columns(values)
        if isinstance(values, list) and values and isinstance(values[0], Mapping):
            return cls._of_columns(_records(values))
        found = _numpy(column(values, "the rows") if isinstance(values, list) else values)
        if found is None or found.ndim != 2:
            shape = "" if found is None else f" of shape {found.shape}"
            raise DataError(
                f"{type(values).__name__}{shape} is no table; wanted (rows, columns), a dict of "
                "columns or a list of dicts"
            )
        return cls(list(found.T), None)

    @classmethod
    def _of_columns(cls, values: Mapping[str, Any]) -> Self:
        columns = []
        for name, each in values.items():
            found = _numpy(column(each, f"column {name!r}"))
            if found is None or found.ndim != 1:
                raise DataError(f"column {name!r} must hold single values, one a row")
            columns.append(found)
        if len({len(each) for each in columns}) > 1:
            told = ", ".join(f"{name!r} {len(each)}" for name, each in zip(values, columns))  # noqa: B905
            raise DataError(f"columns have different numbers of rows: {told:.200}")
        return cls(columns, [*values])

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.columns[0]) if self.columns else 0

    def told(self, index: int) -> str:
        """How a column is spoken of."""
        return f"column {index}" if self.names is None else f"column {self.names[index]!r}"

    def chosen(self, wanted: Sequence[str | int]) -> "Table":
        """Some of the columns, by name or by number.

        Raises
        ------
        DataError
            A column that is not there.
        """
        at = [self.find(each) for each in wanted]
        names = None if self.names is None else [self.names[index] for index in at]
        return Table([self.columns[index] for index in at], names)

    def find(self, wanted: str | int) -> int:
        """The position of a column; raises as `chosen` does."""
        if isinstance(wanted, str):
            if self.names is not None and wanted in self.names:
                return self.names.index(wanted)
            here = "columns have no names" if self.names is None else ", ".join(self.names)
            raise DataError(f"there is no column {wanted!r}; there are: {here:.300}")
        if not -len(self.columns) <= wanted < len(self.columns):
            raise DataError(f"there is no column {wanted}; there are {len(self.columns)}")
        return wanted % len(self.columns)

    def numbers(self) -> np.ndarray[Any, Any]:
        """All columns as numbers, of shape (rows, columns); what is missing is NaN.

        float32 if all columns are, else float64, as in scikit-learn.

        Raises
        ------
        DataError
            A value that is no number.
        """
        columns = [amounts(each, self.told(index)) for index, each in enumerate(self.columns)]
        small = bool(columns) and all(each.dtype in _SMALL for each in columns)
        made = np.empty((self.rows, len(columns)), np.float32 if small else np.float64)
        for index, each in enumerate(columns):
            made[:, index] = each
        wrong = np.argwhere(np.isinf(made))
        if len(wrong):
            row, index = wrong[0].tolist()
            raise DataError(f"{self.told(index)}, row {row}: {made[row, index]} is no amount")
        return made


def amounts(values: Column, told: str) -> Column:
    """A column of numbers; None among objects becomes NaN.

    Raises
    ------
    DataError
        A value that is no number.
    """
    if values.dtype.kind in "biuf":
        return values
    made = np.empty(len(values))
    for row, value in enumerate(values):
        if value is None:
            made[row] = np.nan
        elif isinstance(value, int | float | np.number | np.bool_):
            made[row] = value
        else:
            raise DataError(f"{told}, row {row}: {value!r:.60} is no number")
    return made


_SMALL = {np.dtype(np.float32), np.dtype(np.float16)}

Passes = Callable[[], Iterator[Table]]
"""All rows once more, in blocks; a preprocessing may need several passes."""


def passes_of(values: Any) -> Passes:
    """Passes over what is given: a `Data`, or what a table is made of."""
    if hasattr(values, "batches"):
        return lambda: (Table.of(inputs) for inputs, _ in values.table.batches(_AT_ONCE))
    table = Table.of(values)
    return lambda: iter([table])


_AT_ONCE = 65_536


def _numpy(values: Any) -> Column | None:
    if isinstance(values, np.ndarray):
        return values
    return np.asarray(values.detach().cpu()) if is_array(values) else None


def _records(records: Sequence[Any]) -> dict[str, list[Any]]:
    names = records[0].keys()
    for row, record in enumerate(records):
        if not isinstance(record, Mapping) or record.keys() != names:
            raise DataError(
                f"row {row} has not the columns of the first, which are: {', '.join(names)}; "
                "write None for what is missing"
            )
    return {name: [record[name] for record in records] for name in names}


def is_missing(values: Column) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where a column holds NaN or None."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind != "O":
        return np.zeros(len(values), bool)
    return np.fromiter(
        (each is None or is_nan(each) for each in values.tolist()), bool, len(values)
    )


def is_nan(value: Any) -> bool:
    """Whether a value is NaN."""
    return isinstance(value, float) and math.isnan(value)


def side_by_side(parts: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Arrays of shape (rows, some columns) as one."""
    return np.concatenate(parts, axis=1) if len(parts) != 1 else parts[0]
