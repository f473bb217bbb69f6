"""Categories as numbers: `OneHotEncoder`, `OrdinalEncoder`, and `LabelEncoder` for targets."""

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import attrs
import numpy as np
from attrs import validators

from maas.data.rows import column
from maas.data.tables import Passes, Table, is_missing, is_nan, side_by_side
from maas.data.transformers import Transformer
from maas.errors import CodecError, DataError

__all__ = ["LabelEncoder", "OneHotEncoder", "OrdinalEncoder"]

Codes = np.ndarray[Any, np.dtype[np.int64]]

UNKNOWN = -1


def _categories(column: np.ndarray[Any, Any], told: str) -> np.ndarray[Any, Any]:
    """The different values, sorted; what is missing comes last, None before NaN."""
    missing = is_missing(column)
    values = column[~missing]
    if column.dtype.kind != "O":
        found = np.unique(values)
        return np.append(found, np.nan) if missing.any() else found
    different = {*values}
    try:
        listed = sorted(different)
    except TypeError:
        kinds = sorted({type(each).__name__ for each in different})
        raise DataError(f"{told} mixes {' and '.join(kinds)}; make one kind of them") from None
    gone = {each is None for each in column[missing]}
    listed += [None] * (True in gone) + [float("nan")] * (False in gone)
    made = np.empty(len(listed), object)
    made[:] = listed
    return made


def _merged(left: np.ndarray[Any, Any] | None, right: np.ndarray[Any, Any], told: str) -> Any:
    return right if left is None else _categories(np.concatenate([left, right]), told)


def _codes(column: np.ndarray[Any, Any], categories: np.ndarray[Any, Any]) -> Codes:
    """The position of each value among the categories, or `UNKNOWN`."""
    places: dict[Any, int] = {}
    nan = UNKNOWN
    for place, each in enumerate(categories.tolist()):
        if is_nan(each):
            nan = place
        else:
            places[each] = place
    found = (nan if is_nan(each) else places.get(each, UNKNOWN) for each in column.tolist())
    return np.fromiter(found, np.int64, len(column))


@attrs.define(slots=False, eq=False, kw_only=True)
class _Encoder(Transformer):
    categories: Any = "auto"
    handle_unknown: str = "error"

    LEARNED: ClassVar[tuple[str, ...]] = ("categories_",)
    HANDLING: ClassVar[tuple[str, ...]] = ()

    def __attrs_post_init__(self) -> None:
        if self.handle_unknown not in self.HANDLING:
            raise ValueError(
                f"handle_unknown is one of {', '.join(self.HANDLING)}, "
                f"got {self.handle_unknown!r:.40}"
            )
        if self.categories != "auto" and not isinstance(self.categories, list):
            raise ValueError("categories is 'auto', or a list of the values for each column")

    def _learn(self, passes: Passes) -> None:
        found: list[Any] = [None] * (self.n_features_in_ or 0)
        for table in passes():
            for index, values in enumerate(table.columns):
                told = table.told(index)
                found[index] = _merged(found[index], _categories(values, told), told)
        if self.categories == "auto":
            self.categories_ = found
            return
        if len(self.categories) != len(found):
            raise DataError(
                f"categories are given for {len(self.categories)} columns, "
                f"and there are {len(found)}"
            )
        self.categories_ = [
            np.asarray(column(list(each), "categories")) for each in self.categories
        ]
        for table in passes():
            for index in range(len(found)):
                self._column_codes(table, index, "error")

    def _column_codes(self, table: Table, index: int, handling: str) -> Codes:
        codes = _codes(table.columns[index], self.categories_[index])
        if handling == "error" and (codes == UNKNOWN).any():
            row = int(np.argmax(codes == UNKNOWN))
            known = ", ".join(map(repr, self.categories_[index].tolist()))
            value = table.columns[index][row]
            raise DataError(
                f"{table.told(index)}, row {row}: {value!r:.60} was not learned; "
                f"known: {known:.200}. Give it to fit, or say handle_unknown={self.HANDLING[-1]!r}"
            )
        return codes

    def _check_learned(self) -> None:
        found = self.categories_
        if (
            type(found) is not list
            or len(found) != self.n_features_in_
            or not all(isinstance(each, np.ndarray) and each.ndim == 1 for each in found)
        ):
            raise CodecError(f"{type(self).__name__}: categories_ is not one list a column")


@attrs.define(slots=False, eq=False, kw_only=True)
class OneHotEncoder(_Encoder):
    """Each category as a column of its own, which is 1 where a row has it and else 0.

    Parameters
    ----------
    categories : `"auto"` for those that are there, sorted; or a list of them for each column.
    drop : leave out the column of each first category (`"first"`), or that of columns with two
        (`"if_binary"`).
    handle_unknown : what was not learned is refused (`"error"`), or is 0 everywhere (`"ignore"`).
    """

    drop: str | None = None

    HANDLING: ClassVar[tuple[str, ...]] = ("error", "ignore")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.drop not in (None, "first", "if_binary"):
            raise ValueError(f"drop is None, 'first' or 'if_binary', got {self.drop!r:.40}")

    def _apply(self, table: Table) -> np.ndarray[Any, Any]:
        parts = []
        for index, categories in enumerate(self.categories_):
            codes = self._column_codes(table, index, self.handle_unknown)
            made = (codes[:, None] == np.arange(len(categories))).astype(np.float64)
            dropped = self.drop == "first" or (self.drop == "if_binary" and len(categories) == 2)
            parts.append(made[:, 1:] if dropped else made)
        return side_by_side(parts)


@attrs.define(slots=False, eq=False, kw_only=True)
class OrdinalEncoder(_Encoder):
    """Each category as its place in the order: 0, 1, 2, ...

    Parameters
    ----------
    categories : `"auto"` for those that are there, sorted; or a list of them for each column, in
        the order that means something.
    handle_unknown : what was not learned is refused (`"error"`), or becomes `unknown_value`
        (`"use_encoded_value"`).
    unknown_value : a number that is no category's place, or NaN.
    encoded_missing_value : what NaN becomes; None is a category of its own.
    """

    unknown_value: float | None = attrs.field(
        default=None, validator=validators.optional(validators.instance_of((int, float)))
    )
    encoded_missing_value: float = attrs.field(
        default=float("nan"), validator=validators.instance_of((int, float))
    )

    HANDLING: ClassVar[tuple[str, ...]] = ("error", "use_encoded_value")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if (self.handle_unknown == "error") is not (self.unknown_value is None):
            raise ValueError(
                "unknown_value goes with handle_unknown='use_encoded_value', and it with that"
            )

    def _apply(self, table: Table) -> np.ndarray[Any, Any]:
        made = np.empty((table.rows, len(self.categories_)))
        for index, categories in enumerate(self.categories_):
            codes = self._column_codes(table, index, self.handle_unknown)
            made[:, index] = np.where(codes == UNKNOWN, self.unknown_value or 0.0, codes)
            if len(categories) and is_nan(categories[-1]):
                made[codes == len(categories) - 1, index] = self.encoded_missing_value
        return made


@attrs.define(slots=False, eq=False, kw_only=True)
class LabelEncoder(Transformer):
    """Names of classes as the numbers that a loss wants: 0, 1, 2, ... in sorted order.

    It is for targets: `fit` and `transform` take one class a row, or a `Data` for its targets.
    """

    LEARNED: ClassVar[tuple[str, ...]] = ("classes_",)

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002, N803 - as every step has it
        """Learns the classes that are there.

        Raises
        ------
        DataError
            Targets of several kinds, or a row without one.
        """
        found: Any = None
        for values in _targets(X):
            found = _merged(found, _categories(values, "the targets"), "the targets")
        if found is None or not len(found) or is_missing(found).any():
            raise DataError("a class is missing among the targets; leave those rows out")
        self.classes_, self.n_features_in_ = found, 1
        return self

    def transform(self, X: Any) -> Codes:  # noqa: N803 - as above
        """The number of each class, int64.

        Raises
        ------
        DataError
            A class that was not learned.
        """
        self.check_fitted()
        values = _classes(X)
        codes = _codes(values, self.classes_)
        if (codes == UNKNOWN).any():
            row = int(np.argmax(codes == UNKNOWN))
            known = ", ".join(map(repr, self.classes_.tolist()))
            raise DataError(f"row {row}: {values[row]!r:.60} is no class; known: {known:.200}")
        return codes

    def inverse_transform(self, y: Any) -> np.ndarray[Any, Any]:
        """The class of each number."""
        self.check_fitted()
        codes = _classes(y)
        if len(codes) and not 0 <= min(codes) <= max(codes) < len(self.classes_):
            raise DataError(f"a class has a number from 0 to {len(self.classes_) - 1}")
        found: np.ndarray[Any, Any] = self.classes_[codes]
        return found

    def _check_learned(self) -> None:
        if not isinstance(self.classes_, np.ndarray) or not self.classes_.size:
            raise CodecError("LabelEncoder: classes_ is no list of classes")


def _classes(y: Any) -> np.ndarray[Any, Any]:
    found = column(y, "the targets") if isinstance(y, list) else y
    found = found if isinstance(found, np.ndarray) else np.asarray(found)
    if found.ndim != 1:
        raise DataError(f"classes are one a row, got the shape {found.shape}")
    return found


def _targets(y: Any) -> Iterator[np.ndarray[Any, Any]]:
    if hasattr(y, "batches"):
        return (_classes(targets) for _, targets in y.batches(65_536))
    return iter([_classes(y)])
