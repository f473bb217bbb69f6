"""What is wrong with data, told before it is trained on: `check`."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np

from maas.data.data import Data
from maas.data.rows import is_array, mapped
from maas.data.tables import is_missing
from maas.errors import DataError

__all__ = ["Finding", "Report", "check"]

_AT_ONCE = 4_096
_MOST_SHARED = 2**20
"""Rows whose digests are kept to find those that validation data repeats: 16 MiB of them."""


@attrs.frozen
class Finding:
    """One thing that was found.

    Attributes
    ----------
    problem : whether training would fail, or learn nothing that is true.
    where : `"inputs"`, `"targets"`, or a column of the inputs.
    what : what it is, and in which row it was first seen.
    remedy : what to do.
    """

    problem: bool
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{'problem' if self.problem else 'note':8} {self.where}: {self.what}; {self.remedy}"


@attrs.frozen
class Report:
    """What was found in some rows; `print(report)` tells it, a line each.

    Attributes
    ----------
    rows : how many rows were looked at.
    findings : problems first.
    """

    rows: int
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What must be seen to before training."""
        return tuple(each for each in self.findings if each.problem)

    def require(self) -> None:
        """Returns where there is no problem.

        Raises
        ------
        DataError
            There are; the message tells each of them.
        """
        if self.problems:
            told = "\n".join(map(str, self.problems))
            raise DataError(f"this data cannot be trained on:\n{told}")

    def __str__(self) -> str:
        first = f"{self.rows} rows, {len(self.problems)} problems"
        return "\n".join([first, *map(str, self.findings)])


def check(
    data: Any, *, classes: int | None = None, validation: Any = None, rows: int | None = None
) -> Report:
    """Looks at data as a model would get it, batch by batch.

    Parameters
    ----------
    data : what `Data.of` takes.
    classes : how many classes the model tells apart, where the targets are classes.
    validation : data of which no row should be among the others.
    rows : look at no more rows than these.

    Returns
    -------
    Report
        Problems: no rows, inputs that are no numbers, missing or infinite values, targets beyond
        the classes, missing targets, batches that do not fit each other. Notes: columns that
        never vary, float64, targets of one class, rows that validation repeats.
    """
    source = Data.of(data)
    seen = _Seen(classes, compared=validation is not None)
    try:
        for inputs, targets in source.batches(_AT_ONCE):
            seen.add(inputs, targets)
            if rows is not None and seen.rows >= rows:
                break
        if validation is not None:
            seen.compare(Data.of(validation))
    except DataError as error:
        seen.problem("batches", str(error), "see to that first")
    return seen.report()


@attrs.define(eq=False)
class _Values:
    """What is remembered of one array over all batches."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    missing: int = 0
    infinite: int = 0
    first: int | None = None
    low: Any = None
    high: Any = None


class _Seen:
    def __init__(self, classes: int | None, *, compared: bool) -> None:
        self.rows = 0
        self._classes = classes
        self._compared = compared
        self._found: dict[tuple[bool, str, str], Finding] = {}
        self._values: dict[str, _Values] = {}
        self._targets: set[Any] = set()
        self._has_targets = False
        self._digests: set[bytes] = set()

    def problem(self, where: str, what: str, remedy: str, *, kind: str = "") -> None:
        self._tell(Finding(True, where, what, remedy), kind)

    def note(self, where: str, what: str, remedy: str) -> None:
        self._tell(Finding(False, where, what, remedy), "")

    def _tell(self, finding: Finding, kind: str) -> None:
        self._found.setdefault((finding.problem, finding.where, kind or finding.what), finding)

    def add(self, inputs: Any, targets: Any) -> None:
        count = 0
        for where, values in _named(inputs, "inputs"):
            count = len(values)
            self._look(where, values)
        if targets is not None:
            self._has_targets = True
            for where, values in _named(targets, "targets"):
                self._look(where, values)
                self._look_at_classes(where, values)
        if self._compared and self.rows < _MOST_SHARED:
            self._digests.update(_digests(inputs))
        self.rows += count

    def _look(self, where: str, values: np.ndarray[Any, Any]) -> None:
        if values.dtype.kind not in "biuf":
            self._look_at_text(where, values)
            return
        known = self._values.setdefault(where, _Values(values.dtype, values.shape[1:]))
        if values.shape[1:] != known.shape:
            self.problem(
                where,
                f"rows of shape {values.shape[1:]} follow rows of shape {known.shape}, "
                f"from row {self.rows}",
                "give all rows one shape",
                kind="shape",
            )
            return
        if not len(values):
            return
        wrong = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if wrong.any():
            known.missing += int(np.isnan(values).any(axis=tuple(range(1, values.ndim))).sum())
            known.infinite += int(np.isinf(values).any(axis=tuple(range(1, values.ndim))).sum())
            known.first = self.rows + int(np.argmax(wrong)) if known.first is None else known.first
        low, high = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)
        known.low = low if known.low is None else np.fmin(known.low, low)
        known.high = high if known.high is None else np.fmax(known.high, high)

    def _look_at_text(self, where: str, values: np.ndarray[Any, Any]) -> None:
        missing = is_missing(values) if values.ndim == 1 else np.zeros(len(values), bool)
        if missing.any():
            self.problem(
                where,
                f"a value is missing in row {self.rows + int(np.argmax(missing))}",
                "fill it with a SimpleImputer, or leave the row out",
                kind="missing",
            )
        remedy = (
            "fit a LabelEncoder to the targets"
            if where == "targets"
            else "fit an encoder to it: OneHotEncoder, OrdinalEncoder or TextVectorizer"
        )
        numbers = _number_like(values[~missing].ravel())
        if numbers is not None:
            row, text = numbers
            remedy = (
                f"most values are numbers, but row {self.rows + row} is {text!r:.40}; see to it"
            )
        self.problem(where, "is text, which no model computes with", remedy, kind="text")

    def _look_at_classes(self, where: str, values: np.ndarray[Any, Any]) -> None:
        if values.dtype.kind not in "iub" or values.ndim != 1:
            if self._classes is not None and values.dtype.kind == "f":
                self.problem(
                    where,
                    f"classes are {values.dtype}",
                    "give them as int64, as cross entropy wants them",
                    kind="dtype",
                )
            return
        if len(self._targets) < _FEW:
            self._targets.update(np.unique(values).tolist())
        if self._classes is None:
            return
        beyond = (values.astype(np.int64) < 0) | (values.astype(np.int64) >= self._classes)
        if beyond.any():
            row = int(np.argmax(beyond))
            self.problem(
                where,
                f"row {self.rows + row} is of class {values[row]}, and there are {self._classes}: "
                f"0 to {self._classes - 1}",
                "count classes from 0 (LabelEncoder), or give the model as many outputs",
                kind="range",
            )

    def compare(self, validation: Data) -> None:
        repeated = total = 0
        for inputs, _ in validation.batches(_AT_ONCE):
            digests = list(_digests(inputs))
            repeated += sum(each in self._digests for each in digests)
            total += len(digests)
        if repeated:
            self.note(
                "validation",
                f"{repeated} of {total} rows are among the training rows",
                "what is measured on them is not what the model does with new rows",
            )

    def report(self) -> Report:
        if not self.rows:
            self.problem("inputs", "there are no rows", "look at where the data comes from")
        for where, known in self._values.items():
            self._conclude(where, known)
        if self._has_targets and self.rows > 1 and len(self._targets) == 1:
            self.note(
                "targets", f"are all {next(iter(self._targets))}", "there is nothing to learn"
            )
        found = sorted(self._found.values(), key=lambda finding: not finding.problem)
        return Report(self.rows, tuple(found))

    def _conclude(self, where: str, known: _Values) -> None:
        for count, what in ((known.missing, "missing"), (known.infinite, "infinite")):
            if count:
                self.problem(
                    where,
                    f"a value is {what} in {count} of {self.rows} rows, first in row {known.first}",
                    "fill it with a SimpleImputer, or leave the row out",
                )
        if known.dtype == np.float64:
            self.note(where, "are float64", "models compute with float32 unless they were made so")
        if where == "targets" or known.low is None or self.rows < 2:
            return
        still = np.flatnonzero(np.ravel(known.low == known.high))
        if len(still):
            what = "never varies"
            if known.shape:
                count = np.size(known.low)
                what = f"{len(still)} of {count} features never vary, the first is {still[0]}"
            self.note(where, what, "leave out what teaches nothing")


_FEW = 1_000


def _named(rows: Any, where: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    if isinstance(rows, Mapping):
        for name, each in rows.items():
            yield from _named(each, f"column {name!r}")
    elif isinstance(rows, list | tuple):
        for index, each in enumerate(rows):
            yield from _named(each, f"{where}[{index}]")
    else:
        yield where, _plain(rows)


def _plain(values: Any) -> np.ndarray[Any, Any]:
    if isinstance(values, np.ndarray) or not is_array(values):
        return np.asarray(values)
    values = values.detach().cpu()
    # NumPy has no bfloat16; float32 holds it exactly.
    return np.asarray(values.float() if "bfloat16" in str(values.dtype) else values)


def _number_like(values: np.ndarray[Any, Any]) -> tuple[int, Any] | None:
    """The first value that is no number, where most of them are numbers written as text."""
    odd = [(index, each) for index, each in enumerate(values.tolist()) if not _is_number(each)]
    return odd[0] if odd and len(odd) * 2 < len(values) else None


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _digests(inputs: Any) -> Iterator[bytes]:
    """16 bytes for each row, equal where all its values are."""
    columns: list[Any] = []
    mapped(lambda each: columns.append(_plain(each)), inputs)
    for row in zip(*columns, strict=True):
        digest = hashlib.blake2b(digest_size=16)
        for value in row:
            raw = (
                value.tobytes()
                if isinstance(value, np.ndarray | np.generic)
                else repr(value).encode()
            )
            digest.update(raw)
        yield digest.digest()
