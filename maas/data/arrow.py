"""Tables of Arrow as columns of NumPy; all that knows pyarrow's types is here and in `files.py`.

numbers             as they are; with nulls among them float64, a null being NaN
truth values        bool; with nulls among them float64
text, categories    an array of objects, a null being None
lists of one size   an axis more
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maas.data.rows import Pair
from maas.errors import DataError, Unsupported

__all__ = ["Wanted", "arrow", "columns_of", "type_named"]


def arrow(name: str = "pyarrow") -> Any:
    """A module of pyarrow.

    Raises
    ------
    Unsupported
        It is not installed.
    """
    try:
        return _MODULES[name]()
    except ModuleNotFoundError:
        raise Unsupported(
            "CSV, Parquet, Arrow and data frames are read by pyarrow: pip install 'maas-sdk[data]'"
        ) from None


_MODULES: dict[str, Callable[[], Any]] = {
    "pyarrow": lambda: importlib.import_module("pyarrow"),
    "pyarrow.csv": lambda: importlib.import_module("pyarrow.csv"),
    "pyarrow.parquet": lambda: importlib.import_module("pyarrow.parquet"),
    "pyarrow.types": lambda: importlib.import_module("pyarrow.types"),
}


class Wanted:
    """Which columns of a table are inputs, and which the targets.

    Parameters
    ----------
    names : the table's columns.
    target : the column that is to be learned, or several, or None.
    inputs : the columns to learn from; all others by default.

    Raises
    ------
    DataError
        A column that is not there, or is there twice.
    """

    def __init__(
        self,
        names: Sequence[str],
        target: str | Sequence[str] | None,
        inputs: Sequence[str] | None,
        where: str,
    ) -> None:
        self.alone = isinstance(target, str)
        self.targets = [target] if isinstance(target, str) else [*(target or ())]
        if inputs is None:
            inputs = [name for name in names if name not in self.targets]
        self.inputs = [*inputs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{where} has the column {twice[0]!r} twice; give each its own name")
        for name in self.all:
            if name not in names:
                raise DataError(
                    f"{where} has no column {name!r}; it has {', '.join(names) or 'none'}"
                )
        if not self.inputs:
            raise DataError(f"{where} has no column but the target; there is nothing to learn from")

    @property
    def all(self) -> list[str]:
        """The columns to read."""
        return [*self.inputs, *self.targets]

    def pair(self, columns: Mapping[str, Any]) -> Pair:
        """Inputs by name, and the targets."""
        inputs = {name: columns[name] for name in self.inputs}
        if not self.targets:
            return inputs, None
        found = [_target(columns[name]) for name in self.targets]
        return inputs, found[0] if self.alone else np.stack(found, axis=1)


def _target(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Classes are int64 and amounts float32, as losses want them; names of classes stay text."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    return values.astype(np.int64) if values.dtype.kind in "biu" else values


def columns_of(table: Any, where: str, skipped: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """A table, or a record batch, as columns of its own memory.

    Raises
    ------
    DataError
        A column of a type that nothing is learned from.
    """
    return {
        name: _Column(name, values, where, skipped).array()
        for name, values in zip(table.schema.names, table.columns, strict=True)
    }


class _Column:
    def __init__(self, name: str, values: Any, where: str, skipped: int) -> None:
        self._name = name
        self._values = values
        self._where = where
        self._skipped = skipped

    def array(self) -> np.ndarray[Any, Any]:
        types, kind = arrow("pyarrow.types"), self._values.type
        if types.is_dictionary(kind):
            self._values = self._values.cast(kind.value_type)
            return self.array()
        for fits, make in self._ways(types):
            if fits(kind):
                return make()
        raise self._error(
            f"is of type {kind}, which nothing is learned from; leave it out with inputs=[...], "
            "or make numbers of it"
        )

    def _ways(
        self, types: Any
    ) -> Iterator[tuple[Callable[[Any], bool], Callable[[], np.ndarray[Any, Any]]]]:
        yield types.is_boolean, self._bool
        yield types.is_integer, self._plain
        yield types.is_floating, self._plain
        yield types.is_decimal, self._decimal
        yield types.is_string, self._text
        yield types.is_large_string, self._text
        yield types.is_null, self._null
        yield types.is_fixed_size_list, self._lists
        yield types.is_list, self._lists
        yield types.is_large_list, self._lists

    def _plain(self) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = _numpy(self._values)
        # What lies in the file's own memory cannot be written to, and goes with it.
        return found if found.flags.writeable else found.copy()

    def _bool(self) -> np.ndarray[Any, Any]:
        if self._values.null_count:
            pa = arrow()
            self._values = self._values.cast(pa.int8()).cast(pa.float64())
        return self._plain()

    def _decimal(self) -> np.ndarray[Any, Any]:
        self._values = self._values.cast(arrow().float64())
        return self._plain()

    def _null(self) -> np.ndarray[Any, Any]:
        return np.full(len(self._values), np.nan)

    def _text(self) -> np.ndarray[Any, Any]:
        made = np.empty(len(self._values), object)
        made[:] = self._values.to_pylist()
        return made

    def _lists(self) -> np.ndarray[Any, Any]:
        rows = self._values.to_pylist()
        size = len(rows[0]) if rows and rows[0] is not None else 0
        for index, row in enumerate(rows):
            if row is None or len(row) != size:
                found = "nothing" if row is None else f"{len(row)} values"
                raise self._error(
                    f"has {found} in row {self._skipped + index}, and {size} values in the first; "
                    "lists must have one size"
                )
        return np.asarray(rows, _numpy(_flat(self._values)).dtype).reshape(len(rows), size)

    def _error(self, words: str) -> DataError:
        return DataError(f"{self._where}: column {self._name!r} {words}")


def _flat(values: Any) -> Any:
    return values.combine_chunks().flatten() if hasattr(values, "chunks") else values.flatten()


def _numpy(values: Any) -> np.ndarray[Any, Any]:
    # A chunked array always copies, and does not know the word.
    whole = hasattr(values, "chunks")
    found: np.ndarray[Any, Any] = (
        values.to_numpy() if whole else values.to_numpy(zero_copy_only=False)
    )
    return found


def type_named(name: str) -> Any:
    """The type of Arrow for a column that is told to be `"float32"`, `"int64"` ... or `"text"`.

    Raises
    ------
    ValueError
        No such type.
    """
    if name not in _TYPES:
        raise ValueError(f"a column cannot be {name!r}; known types: {', '.join(_TYPES)}")
    return getattr(arrow(), _TYPES[name])()


_TYPES = {
    "text": "string",
    "bool": "bool_",
    "float32": "float32",
    "float64": "float64",
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "uint8": "uint8",
}
