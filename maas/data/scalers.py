"""Numbers brought to one scale: `StandardScaler` and `MinMaxScaler`."""

from typing import Any, ClassVar

import attrs
import numpy as np

from maas.data.tables import Passes, Table
from maas.data.transformers import Transformer
from maas.errors import CodecError, DataError

__all__ = ["MinMaxScaler", "StandardScaler"]

Vector = np.ndarray[Any, np.dtype[np.float64]]


@attrs.define(slots=False, eq=False, kw_only=True)
class StandardScaler(Transformer):
    """Each column less its mean, over its standard deviation: `(x - mean) / std`.

    NaN is left out of both, and stays. A column that does not vary is divided by 1.

    Parameters
    ----------
    with_mean : take the mean off.
    with_std : divide by the standard deviation (of the whole population, divided by n).
    """

    with_mean: bool = True
    with_std: bool = True

    LEARNED: ClassVar[tuple[str, ...]] = ("mean_", "var_", "scale_")
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"scale_"})

    def _learn(self, passes: Passes) -> None:
        moments = _Moments(self.n_features_in_ or 0)
        for table in passes():
            moments.add(table.numbers())
        self.mean_, self.var_ = moments.mean, moments.variance
        self.scale_ = _scale(self.mean_, self.var_, moments.count) if self.with_std else None

    def _apply(self, table: Table) -> np.ndarray[Any, Any]:
        numbers = table.numbers()
        if self.with_mean:
            numbers -= self.mean_
        if self.scale_ is not None:
            numbers /= self.scale_
        return numbers

    def _check_learned(self) -> None:
        self._check_vectors(*self.LEARNED)
        if (self.scale_ is None) is self.with_std:
            raise CodecError("StandardScaler: scale_ does not go with with_std")


class _Moments:
    """Mean and variance of columns, block by block.

    T. Chan, G. Golub, R. LeVeque, Algorithms for computing the sample variance, 1983, with the
    correction of its equation 1.7, as scikit-learn computes them.
    """

    def __init__(self, columns: int) -> None:
        self.count: Vector = np.zeros(columns)
        self.mean: Vector = np.zeros(columns)
        self._squares: Vector = np.zeros(columns)

    def add(self, numbers: np.ndarray[Any, Any]) -> None:
        block = numbers.astype(np.float64)
        count = (~np.isnan(block)).sum(axis=0).astype(np.float64)
        known = np.maximum(count, 1)
        mean = np.nansum(block, axis=0) / known
        block -= mean
        squares = np.nansum(block**2, axis=0) - np.nansum(block, axis=0) ** 2 / known
        both = self.count + count
        known = np.maximum(both, 1)
        apart = mean - self.mean
        self._squares += squares + apart**2 * self.count * count / known
        self.mean = (self.mean * self.count + mean * count) / known
        self.count = both

    @property
    def variance(self) -> Vector:
        if not self.count.all():
            raise DataError(
                f"column {int(np.argmin(self.count))} has no value at all; leave it out"
            )
        return self._squares / self.count


def _scale(mean: Vector, variance: Vector, count: Vector) -> Vector:
    """The standard deviation, or 1 where what is there is nothing but rounding."""
    epsilon = np.finfo(np.float64).eps
    constant = variance <= count * epsilon * variance + (count * mean * epsilon) ** 2
    return np.where(constant, 1.0, np.sqrt(variance))


@attrs.define(slots=False, eq=False, kw_only=True)
class MinMaxScaler(Transformer):
    """Each column moved and stretched from its own range to one for all.

    Parameters
    ----------
    feature_range : the least and the largest training value become these.
    clip : rows that lie beyond are brought to the border.
    """

    feature_range: Any = attrs.field(default=(0, 1), converter=tuple)
    clip: bool = False

    LEARNED: ClassVar[tuple[str, ...]] = ("data_min_", "data_max_")

    def __attrs_post_init__(self) -> None:
        low_high = self.feature_range
        numbers = all(isinstance(each, int | float) for each in low_high)
        if len(low_high) != 2 or not numbers or not low_high[0] < low_high[1]:
            raise ValueError(f"feature_range is (least, largest), got {low_high!r:.60}")

    def _learn(self, passes: Passes) -> None:
        columns = self.n_features_in_ or 0
        low, high = np.full(columns, np.inf), np.full(columns, -np.inf)
        for table in passes():
            numbers = table.numbers().astype(np.float64)
            # Not nanmin, which warns of a column without values.
            low = np.fmin(low, np.fmin.reduce(numbers, axis=0))
            high = np.fmax(high, np.fmax.reduce(numbers, axis=0))
        if (low > high).any():
            raise DataError(
                f"column {int(np.argmax(low > high))} has no value at all; leave it out"
            )
        self.data_min_, self.data_max_ = low, high

    @property
    def scale_(self) -> Vector:
        """What each column is multiplied by."""
        width = self.data_max_ - self.data_min_
        still = width < 10 * np.finfo(np.float64).eps
        low, high = self.feature_range
        found: Vector = (high - low) / np.where(still, 1.0, width)
        return found

    @property
    def min_(self) -> Vector:
        """What is added then."""
        found: Vector = self.feature_range[0] - self.data_min_ * self.scale_
        return found

    def _apply(self, table: Table) -> np.ndarray[Any, Any]:
        numbers = table.numbers()
        numbers *= self.scale_
        numbers += self.min_
        return np.clip(numbers, *self.feature_range, out=numbers) if self.clip else numbers

    def _check_learned(self) -> None:
        self._check_vectors(*self.LEARNED)
