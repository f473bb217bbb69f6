"""What a preprocessing step is: it learns from training data, and what it learned is data.

Names are those of scikit-learn: `fit`, `transform`, parameters, and the attributes with an
underscore at the end that `fit` sets. So are the results; the tests compare them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import attrs
import numpy as np

from maas.data.tables import Passes, Table, passes_of
from maas.errors import CodecError, DataError

__all__ = ["Transformer", "array_data", "array_of"]


@attrs.define(slots=False, eq=False, kw_only=True)
class Transformer:
    """One step of preprocessing: parameters that are given, and what `fit` learned."""

    LEARNED: ClassVar[tuple[str, ...]] = ()

    n_features_in_: int | None = attrs.field(default=None, init=False, repr=False)
    feature_names_in_: list[str] | None = attrs.field(default=None, init=False, repr=False)

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002, N803 - as scikit-learn has it
        """Learns from rows: a table, or a `Data`, whose targets are not looked at.

        Raises
        ------
        DataError
            Rows that nothing can be learned from; the message names the column.
        """
        return self.fit_passes(passes_of(X))

    def fit_passes(self, passes: Passes) -> Self:
        """`fit` of rows that pass by as often as it takes."""
        first = next(passes(), None)
        if first is None or not first.rows:
            raise DataError("there are no rows to learn from")
        self.n_features_in_ = len(first.columns)
        self.feature_names_in_ = None if first.names is None else list(first.names)
        self._learn(passes)
        return self

    def transform(self, X: Any) -> np.ndarray[Any, Any]:  # noqa: N803 - as above
        """The rows as numbers of shape (rows, features).

        Raises
        ------
        DataError
            Nothing was learned yet, or the rows are not such as those that were learned from.
        """
        return self._apply(self._met(Table.of(X)))

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray[Any, Any]:  # noqa: N803 - as above
        """`fit`, and `transform` of the same rows."""
        return self.fit(X, y).transform(X)

    def _learn(self, passes: Passes) -> None:
        raise NotImplementedError

    def _apply(self, table: Table) -> np.ndarray[Any, Any]:
        raise NotImplementedError

    def _met(self, table: Table) -> Table:
        self.check_fitted()
        if table.names is not None and self.feature_names_in_ is not None:
            return table.chosen(self.feature_names_in_)
        if len(table.columns) != self.n_features_in_:
            raise DataError(
                f"{len(table.columns)} columns came, and {self.n_features_in_} were learned from"
            )
        return table

    def check_fitted(self) -> None:
        """Raises `DataError` where nothing was learned yet."""
        if self.n_features_in_ is None:
            raise DataError(f"this {type(self).__name__} has learned nothing yet; call fit first")

    # As data.

    def to_data(self) -> dict[str, Any]:
        """All of it as plain data: dicts, lists, text and numbers; JSON can hold it."""
        parameters = {name: _plain(getattr(self, name)) for name in self._parameters()}
        data: dict[str, Any] = {"kind": type(self).__name__, "parameters": parameters}
        if self.n_features_in_ is not None:
            data["columns"] = self.feature_names_in_ or self.n_features_in_
            data["learned"] = {name: _plain(getattr(self, name)) for name in self.LEARNED}
        return data

    @classmethod
    def of_parts(cls, data: Mapping[str, Any], again: Callable[[Any], Any]) -> Self:
        """From what `to_data` gave, strictly; `again` makes the steps that it holds.

        Raises
        ------
        CodecError
            Data that is no such step.
        """
        parameters = _dict(data, "parameters", cls._parameters())
        made = cls(**{name: _value(each, again) for name, each in parameters.items()})
        if "learned" in data:
            made._set_columns(data.get("columns"))
            for name, each in _dict(data, "learned", cls.LEARNED).items():
                setattr(made, name, _value(each, again))
            made._check_learned()
        return made

    @classmethod
    def _parameters(cls) -> list[str]:
        return [field.name for field in attrs.fields(cls) if field.init]

    def _set_columns(self, columns: Any) -> None:
        if type(columns) is list and columns and all(type(name) is str for name in columns):
            self.feature_names_in_, self.n_features_in_ = columns, len(columns)
        elif type(columns) is int and columns > 0:
            self.n_features_in_ = columns
        else:
            raise CodecError(f"a preprocessing cannot have the columns {columns!r:.60}")

    def _check_learned(self) -> None:
        """Refuses what `fit` would not have learned."""

    def _check_vectors(self, *names: str) -> None:
        for name in names:
            found = getattr(self, name)
            if found is None and name in self.OPTIONAL:
                continue
            if not _is_vector(found, self.n_features_in_):
                raise CodecError(f"{type(self).__name__}: {name} is not one number a column")

    OPTIONAL: ClassVar[frozenset[str]] = frozenset()


def _is_vector(found: Any, length: int | None) -> bool:
    return isinstance(found, np.ndarray) and found.shape == (length,) and found.dtype.kind == "f"


def _dict(data: Mapping[str, Any], part: str, names: Sequence[str]) -> dict[str, Any]:
    found = data.get(part)
    if type(found) is not dict or found.keys() != {*names}:
        raise CodecError(
            f"{data.get('kind')!r:.40} wants {part} {sorted(names)}, got {found!r:.200}"
        )
    return found


# Values: JSON has no NaN and no arrays.

_ARRAY = "$array"
_FLOAT = "$float"
_DTYPES = {"float32", "float64", "int64", "bool", "object"}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return array_data(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    if isinstance(value, Transformer):
        return value.to_data()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def array_data(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A one-dimensional array as plain data."""
    name = values.dtype.name if values.dtype.name in _DTYPES else "object"
    return {_ARRAY: name, "values": [_plain(each) for each in values.tolist()]}


def _value(data: Any, again: Callable[[Any], Any]) -> Any:
    if type(data) is list:
        return [_value(each, again) for each in data]
    if type(data) is not dict:
        return data
    if data.keys() == {_FLOAT}:
        return _float(data[_FLOAT])
    if _ARRAY in data:
        return array_of(data)
    return again(data)


def _float(text: Any) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise CodecError(f"{text!r:.40} is no number that JSON lacks")
    return float(text)


def array_of(data: Any) -> np.ndarray[Any, Any]:
    """The array that `array_data` told, strictly.

    Raises
    ------
    CodecError
        It did not tell one.
    """
    if (
        type(data) is not dict
        or data.keys() != {_ARRAY, "values"}
        or type(data["values"]) is not list
    ):
        raise CodecError(f"{data!r:.80} is no array")
    name = data[_ARRAY]
    values = [
        _float(each[_FLOAT]) if type(each) is dict and each.keys() == {_FLOAT} else each
        for each in data["values"]
    ]
    kinds = _KINDS.get(name) if type(name) is str else None
    if kinds is None or any(type(each) not in kinds for each in values):
        raise CodecError(f"an array of {name!r:.40} does not hold such values")
    made = np.empty(len(values), name)
    made[:] = values
    return made


_KINDS: dict[str, tuple[type, ...]] = {
    "float32": (float,),
    "float64": (float,),
    "int64": (int,),
    "bool": (bool,),
    "object": (str, bool, int, float, type(None)),
}
