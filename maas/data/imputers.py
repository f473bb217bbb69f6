"""What is missing, replaced: `SimpleImputer`."""

import collections
from typing import Any, ClassVar

import attrs
import numpy as np

from maas.data.tables import Passes, Table, amounts, is_missing
from maas.data.transformers import Transformer
from maas.errors import CodecError, DataError

__all__ = ["SimpleImputer"]

_STRATEGIES = ("mean", "median", "most_frequent", "constant")


@attrs.define(slots=False, eq=False, kw_only=True)
class SimpleImputer(Transformer):
    """NaN and None, each replaced by what is usual in its column.

    Parameters
    ----------
    strategy : `"mean"` or `"median"` of the column, its `"most_frequent"` value (the least of
        several), or `"constant"`.
    fill_value : the constant; 0, or `"missing_value"` for text, by default.
    add_indicator : a column more for each that missed values in training: 1 where it did.
    """

    strategy: str = attrs.field(default="mean", validator=attrs.validators.in_(_STRATEGIES))
    fill_value: str | float | None = attrs.field(
        default=None, validator=attrs.validators.instance_of((str, int, float, type(None)))
    )
    add_indicator: bool = False

    LEARNED: ClassVar[tuple[str, ...]] = ("statistics_", "indicated_")

    def _learn(self, passes: Passes) -> None:
        seen: list[list[np.ndarray[Any, Any]]] = [[] for _ in range(self.n_features_in_ or 0)]
        missed = np.zeros(len(seen), bool)
        told: Table | None = None
        for table in passes():
            told = table
            for index, values in enumerate(table.columns):
                missing = is_missing(values)
                missed[index] |= missing.any()
                seen[index].append(values[~missing])
        names = [told.told(index) if told else "" for index in range(len(seen))]
        found = [
            self._statistic(np.concatenate(parts), name)
            for parts, name in zip(seen, names, strict=True)
        ]
        self.statistics_ = np.empty(len(found), object)
        self.statistics_[:] = found
        self.indicated_ = np.flatnonzero(missed)

    def _statistic(self, values: np.ndarray[Any, Any], told: str) -> Any:
        if self.strategy == "constant":
            text = values.dtype.kind == "O" and any(isinstance(each, str) for each in values)
            usual: Any = "missing_value" if text else 0
            return usual if self.fill_value is None else self.fill_value
        if not len(values):
            raise DataError(f"{told} has no value at all; leave it out, or say strategy='constant'")
        if self.strategy == "most_frequent":
            counted = collections.Counter(values.tolist())
            most = max(counted.values())
            return min(each for each, times in counted.items() if times == most)
        numbers = amounts(values, told).astype(np.float64)
        return float(np.mean(numbers) if self.strategy == "mean" else np.median(numbers))

    def _apply(self, table: Table) -> np.ndarray[Any, Any]:
        filled, gone = [], []
        for values, usual in zip(table.columns, self.statistics_, strict=True):
            missing = is_missing(values)
            if missing.any():
                # Into an array of objects, if text goes among numbers.
                kind = object if isinstance(usual, str) else values.dtype
                values = values.astype(kind)  # noqa: PLW2901 - the user's own stays as it is
                values[missing] = usual
            filled.append(values)
            gone.append(missing)
        whole = Table(filled, table.names)
        text = any(isinstance(each, str) for each in self.statistics_)
        made = (
            np.stack([each.astype(object) for each in filled], axis=1) if text else whole.numbers()
        )
        if not self.add_indicator:
            return made
        marks = np.stack(gone, axis=1)[:, self.indicated_]
        return np.concatenate([made, marks.astype(made.dtype)], axis=1)

    def _check_learned(self) -> None:
        columns = self.n_features_in_ or 0
        if _listed(self.statistics_, columns, "O") is None:
            raise CodecError("SimpleImputer: statistics_ is not one value a column")
        indicated = _listed(self.indicated_, None, "i")
        if indicated is None or not all(0 <= each < columns for each in indicated):
            raise CodecError("SimpleImputer: indicated_ are not columns")


def _listed(found: Any, length: int | None, kind: str) -> list[Any] | None:
    """What an array of that length and kind holds; None where it is none, or something misses."""
    if not isinstance(found, np.ndarray) or found.dtype.kind != kind:
        return None
    listed: list[Any] = found.tolist()
    fits = length in (None, len(listed)) and None not in listed
    return listed if fits else None
