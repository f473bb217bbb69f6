"""Steps put together: `Pipeline` one after the other, `ColumnTransformer` side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import attrs
import numpy as np

from maas.data.encoders import LabelEncoder, OneHotEncoder, OrdinalEncoder
from maas.data.imputers import SimpleImputer
from maas.data.scalers import MinMaxScaler, StandardScaler
from maas.data.tables import Passes, Table, side_by_side
from maas.data.texts import TextVectorizer
from maas.data.transformers import Transformer
from maas.errors import CodecError, DataError

__all__ = ["ColumnTransformer", "Pipeline", "of_data"]


def _parts(given: Any) -> list[list[Any]]:
    return [list(part) for part in given]


def _names(parts: Sequence[Sequence[Any]]) -> None:
    names = [part[0] for part in parts]
    if not names or not all(type(name) is str for name in names) or len({*names}) != len(names):
        raise ValueError(f"steps have names, each its own; got {names!r:.100}")


@attrs.define(slots=False, eq=False)
class Pipeline(Transformer):
    """Steps one after the other, each learning from what those before it give.

    Parameters
    ----------
    steps : pairs of a name and a step.
    """

    steps: list[list[Any]] = attrs.field(converter=_parts)

    def __attrs_post_init__(self) -> None:
        if not all(len(step) == 2 and isinstance(step[1], Transformer) for step in self.steps):
            raise ValueError("a Pipeline's steps are pairs of a name and a step of maas.data")
        _names(self.steps)

    def _learn(self, passes: Passes) -> None:
        for _, step in self.steps:
            step.fit_passes(passes)
            passes = _after(passes, step)

    def _apply(self, table: Table) -> np.ndarray[Any, Any]:
        rows: Any = table
        for _, step in self.steps:
            rows = step.transform(rows)
        made: np.ndarray[Any, Any] = rows
        return made


def _after(passes: Passes, step: Transformer) -> Passes:
    return lambda: (Table.of(step.transform(table)) for table in passes())


_DROP, _PASS = "drop", "passthrough"


@attrs.define(slots=False, eq=False)
class ColumnTransformer(Transformer):
    """Steps side by side, each for columns of its own; their results are put beside each other.

    Parameters
    ----------
    transformers : triples of a name, a step (or `"drop"`, or `"passthrough"`), and columns: a name
        or number, or several.
    remainder : what becomes of the columns that no step has, `"drop"` or `"passthrough"`.
    """

    transformers: list[list[Any]] = attrs.field(converter=_parts)
    remainder: str = attrs.field(
        default=_DROP, kw_only=True, validator=attrs.validators.in_((_DROP, _PASS))
    )

    LEARNED: ClassVar[tuple[str, ...]] = ("rest_",)

    def __attrs_post_init__(self) -> None:
        for part in self.transformers:
            if len(part) != 3 or not (
                isinstance(part[1], Transformer) or part[1] in (_DROP, _PASS)
            ):
                raise ValueError(
                    "a ColumnTransformer has triples of a name, a step of maas.data, and columns"
                )
            part[2] = _columns(part[2])
        _names(self.transformers)

    def _learn(self, passes: Passes) -> None:
        first = next(passes())
        taken = {first.find(each) for _, _, columns in self.transformers for each in columns}
        self.rest_ = [index for index in range(len(first.columns)) if index not in taken]
        for _, step, columns in self.transformers:
            if isinstance(step, Transformer):
                step.fit_passes(_of_columns(passes, columns))

    def _met(self, table: Table) -> Table:
        self.check_fitted()
        # Other columns may come beside those that are asked for.
        if table.names is not None and self.feature_names_in_ is not None:
            needed = {*self._needed()}
            chosen = [name for name in self.feature_names_in_ if name in needed]
            return table.chosen(chosen)
        return super()._met(table)

    def _needed(self) -> Iterator[str]:
        names = self.feature_names_in_ or []
        for _, step, columns in self.transformers:
            if step != _DROP:
                yield from (each if isinstance(each, str) else names[each] for each in columns)
        if self.remainder == _PASS:
            yield from (names[index] for index in self.rest_)

    def _apply(self, table: Table) -> np.ndarray[Any, Any]:
        parts = [
            step.transform(self._chosen(table, columns))
            if isinstance(step, Transformer)
            else _passed(self._chosen(table, columns))
            for _, step, columns in self.transformers
            if step != _DROP and columns
        ]
        if self.remainder == _PASS and self.rest_:
            parts.append(_passed(self._chosen(table, self.rest_)))
        if not parts:
            raise DataError("this ColumnTransformer drops every column")
        return side_by_side(parts)

    def _chosen(self, table: Table, columns: Sequence[str | int]) -> Table:
        names = self.feature_names_in_
        if table.names is None:
            columns = [
                names.index(each) if isinstance(each, str) and names else each for each in columns
            ]
        elif names is not None:
            columns = [names[each] if isinstance(each, int) else each for each in columns]
        return table.chosen(columns)

    def _check_learned(self) -> None:
        columns = self.n_features_in_ or 0
        if type(self.rest_) is not list or not all(
            type(each) is int and 0 <= each < columns for each in self.rest_
        ):
            raise CodecError("ColumnTransformer: rest_ are not columns")
        for _, step, wanted in self.transformers:
            if isinstance(step, Transformer) and step.n_features_in_ != len(wanted):
                raise CodecError("ColumnTransformer: a step learned from other columns")
            for each in wanted:
                known = (
                    range(-columns, columns) if isinstance(each, int) else self.feature_names_in_
                )
                if each not in (known or ()):
                    raise CodecError(f"ColumnTransformer: there is no column {each!r:.60}")


def _columns(given: Any) -> list[str | int]:
    listed = [given] if isinstance(given, str | int) else list(given)
    if not all(type(each) in (str, int) for each in listed):
        raise ValueError(f"columns are names or numbers, got {given!r:.100}")
    return listed


def _of_columns(passes: Passes, columns: Sequence[str | int]) -> Passes:
    return lambda: (table.chosen(columns) for table in passes())


def _passed(table: Table) -> np.ndarray[Any, Any]:
    """Columns as they are: numbers, or objects where there is text among them."""
    if all(each.dtype.kind in "biuf" for each in table.columns):
        return table.numbers()
    return np.stack([each.astype(object) for each in table.columns], axis=1)


_KINDS: dict[str, type[Transformer]] = {
    kind.__name__: kind
    for kind in (
        ColumnTransformer,
        LabelEncoder,
        MinMaxScaler,
        OneHotEncoder,
        OrdinalEncoder,
        Pipeline,
        SimpleImputer,
        StandardScaler,
        TextVectorizer,
    )
}
"""The only steps that data can name."""


def of_data(data: Any) -> Transformer:
    """The step, or composition of steps, that `to_data` told.

    Raises
    ------
    CodecError
        Data that tells none.
    """
    try:
        return _made(data, _DEEPEST)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        if isinstance(error, CodecError):
            raise
        raise CodecError(f"this preprocessing cannot be: {error!s:.200}") from error


_DEEPEST = 16


def _made(data: Any, left: int) -> Transformer:
    if type(data) is not dict or not left:
        raise CodecError(f"{data!r:.80} is no preprocessing, or one that is nested too deep")
    strangers = data.keys() - {"kind", "parameters", "columns", "learned"}
    name = data.get("kind")
    kind = _KINDS.get(name) if type(name) is str else None
    if kind is None or strangers:
        raise CodecError(f"no preprocessing is called {name!r:.60}; known: {', '.join(_KINDS)}")
    again: Callable[[Any], Any] = lambda inner: _made(inner, left - 1)  # noqa: E731
    typed: Mapping[str, Any] = data
    return kind.of_parts(typed, again)
