"""`Data`: whatever users give to train on, as rows in batches that have a position."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from maas.data.arrow import Wanted
from maas.data.datasets import NAME
from maas.data.files import MEMORY, Reading, frame, read
from maas.data.mapped import Mapped, for_models, matrix
from maas.data.orders import Order, permutation
from maas.data.rows import Pair, column, columns, is_array, stacked
from maas.data.sources import Arrays, Loader, Named, Samples, Source, Stream, sampled
from maas.errors import DataError, Unsupported

__all__ = ["Data"]


class Data:
    """Rows of inputs, with targets if there are any, in batches that have a position.

    Made by `Data.of`. Arrays keep their kind: batches of torch tensors are torch tensors, all else
    is NumPy.

    Attributes
    ----------
    rows : how many there are; None where only reading tells.
    repeatable : whether the same order gives the same batches again, so that a run can resume.
    own_batches : whether batches come as the user's own loader makes them, whatever is asked.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.rows = source.rows
        self.repeatable = source.repeatable
        self.own_batches = source.own_batches

    @classmethod
    def of(
        cls,
        value: Any,
        *,
        target: str | Sequence[str] | None = None,
        inputs: Sequence[str] | None = None,
        types: Mapping[str, str] | None = None,
        memory: int = MEMORY,
    ) -> Self:
        """What is given, as data.

        Parameters
        ----------
        value : one of

            - a tuple `(inputs, targets)` of arrays, tensors or lists; inputs may be a dict or
              tuple of them;
            - an array or tensor, or a list of rows: inputs alone;
            - a dict of columns, one of which may be the target;
            - the path of a .npy, .npz, .csv, .parquet, .arrow or .feather file, or a data frame
              of pandas, polars or pyarrow: where all inputs are numbers, they become one float32
              matrix; else they are a dict of columns, for a preprocessing;
            - a torch dataset, or anything with a length that gives a sample for a position;
            - a `DataLoader`, a list of batches `(inputs, targets)`, or a function that gives an
              iterator of batches anew for each epoch: batches as they come;
            - an iterator of batches, which can be read once;
            - a `Dataset`, or its name `"sha256:..."`: rows at a server, for a job there;
            - a `Data`, which is given back.
        target : the column that is to be learned, or several.
        inputs : the columns to learn from; all others by default.
        types : types of columns of a CSV file that should not be guessed: `"text"`, `"bool"`,
            `"float32"`, `"int64"`, ...
        memory : bytes; a file of more is read as a stream, in blocks.

        Raises
        ------
        DataError
            Rows that do not fit each other, no rows at all, or a file that cannot be read; the
            message names file, row and column.
        Unsupported
            A table, and pyarrow is not installed.
        TypeError
            Nothing that data can be made of.
        """
        if isinstance(value, Data):
            return value if isinstance(value, cls) else cls(value._source)
        reading = Reading(target=target, inputs=inputs, types=types or {}, memory=memory)
        return cls(_source_of(value, reading))

    def __len__(self) -> int:
        if self.rows is None:
            raise TypeError("how many rows there are is known only once they were read; see .rows")
        return self.rows

    def batches(
        self, batch_size: int, *, order: Order | None = None, start: int = 0
    ) -> Iterator[Pair]:
        """The batches of one epoch as `(inputs, targets)`; targets are None if there are none.

        Parameters
        ----------
        batch_size : rows in each; the last one may have fewer.
        order : None for the order of the data, or `(seed, epoch)` for a permutation that only
            these decide: `torch.randperm(rows, generator=g)` with `g.manual_seed(seed + epoch)`. A
            stream is shuffled in blocks that fit in memory.
        start : the batch to begin with; what follows is what would have followed it.

        Raises
        ------
        ValueError
            A size below 1, or a position below 0.
        Unsupported
            A start within what the user's own loader shuffles.
        """
        if batch_size < 1 or start < 0:
            raise ValueError(
                f"a batch has at least one row and a position is at least 0, got "
                f"batch_size={batch_size} and start={start}"
            )
        return self._source.batches(batch_size, order, start)

    def steps(self, batch_size: int) -> int | None:
        """How many batches an epoch has; None where only reading tells."""
        own = self._source
        if isinstance(own, Loader):
            return own.steps
        return None if self.rows is None else math.ceil(self.rows / batch_size)

    def split(self, fraction: float, *, seed: int = 0) -> tuple[Self, Self]:
        """The data without some of its rows, and those: to validate on what was not learned.

        Parameters
        ----------
        fraction : part of the rows that go to the second, rounded up.
        seed : decides which they are.

        Raises
        ------
        ValueError
            A fraction that leaves one of the two without rows.
        Unsupported
            Rows that are not all here, or come in batches of their own.
        """
        source = self._source
        if self.rows is None or not isinstance(source, Arrays | Samples | Mapped):
            raise Unsupported(
                "only rows that are all here can be split; give training and validation data as two"
            )
        rows = len(self)
        apart = math.ceil(rows * fraction)
        if not 0 < apart < rows:
            raise ValueError(f"fraction={fraction} of {rows} rows leaves one part without any")
        order = permutation(rows, seed, 0)
        kind = type(self)
        return kind(source.picked(np.sort(order[apart:]))), kind(
            source.picked(np.sort(order[:apart]))
        )

    @property
    def name(self) -> str | None:
        """The name of a dataset at a server; None where the rows are here."""
        return self._source.name if isinstance(self._source, Named) else None

    @property
    def table(self) -> Self:
        """The columns of a table apart, with their names, where numbers were put in a matrix."""
        source = self._source
        if isinstance(source, Mapped) and source.function is matrix:
            return type(self)(source.inner)
        return self

    def transformed(self, inputs: "Steps | None" = None, targets: "Steps | None" = None) -> Self:
        """The same rows through a preprocessing that was fitted, as models take them.

        Parameters
        ----------
        inputs, targets : steps of `maas.data`; what comes out as float64 becomes float32.
        """
        through = [None if steps is None else _through(steps) for steps in (inputs, targets)]
        source = self._source if inputs is None else self.table._source
        return type(self)(Mapped(source, *through))

    def __repr__(self) -> str:
        rows = "rows unknown" if self.rows is None else f"{self.rows} rows"
        return f"<maas.data.Data {type(self._source).__name__.lower()}, {rows}>"


class Steps(Protocol):
    """What gives numbers for rows: a step of `maas.data` that was fitted."""

    def transform(self, X: Any) -> np.ndarray[Any, Any]:  # noqa: N803 - as scikit-learn has it
        """The rows as numbers."""


def _through(steps: Steps) -> Callable[[Any], Any]:
    return lambda rows: for_models(steps.transform(rows))


def _source_of(value: Any, reading: Reading) -> Source:
    name = value if isinstance(value, str) else getattr(value, "name", None)
    if isinstance(name, str) and NAME.fullmatch(name):
        return Named(name, getattr(value, "rows", None))
    if isinstance(value, str | os.PathLike):
        return read(Path(value), reading)
    return _of_rows(value, reading)


def _of_rows(value: Any, reading: Reading) -> Source:
    if hasattr(value, "__arrow_c_stream__"):
        return frame(value, reading)
    if isinstance(value, Mapping):
        return _of_columns(value, reading)
    if reading.target is not None or reading.inputs is not None:
        raise TypeError(
            f"target= and inputs= name columns of a table, and {type(value).__name__} has none"
        )
    if is_array(value):
        return Arrays(column(value, "the inputs"), None)
    made = _of_torch(value) or _of_python(value)
    if made is None:
        raise TypeError(
            f"data cannot be made of {type(value).__name__}; give (inputs, targets), a torch "
            "dataset, a DataLoader or an iterable of batches"
        )
    return made


def _of_python(value: Any) -> Source | None:
    if isinstance(value, tuple):
        return _of_pair(value)
    if isinstance(value, list):
        return _of_list(value)
    if hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        return Samples(value, stacked)
    return Loader(value) if callable(value) or hasattr(value, "__iter__") else None


def _of_pair(value: tuple[Any, ...]) -> Source:
    if len(value) != 2:
        raise DataError(
            f"a tuple of {len(value)}; wanted (inputs, targets). Several inputs go into a tuple or "
            "a dict of their own: ((a, b), targets)"
        )
    inputs, targets = value
    return Arrays(columns(inputs, "the inputs"), columns(targets, "the targets"))


def _of_list(value: list[Any]) -> Source:
    if not value:
        raise DataError("an empty list has no rows")
    batches = isinstance(value[0], tuple) and len(value[0]) == 2
    return Loader(value) if batches else Arrays(column(value, "the inputs"), None)


def _of_columns(value: Mapping[str, Any], reading: Reading) -> Source:
    columns = {name: column(each, f"column {name!r}") for name, each in value.items()}
    wanted = Wanted([*columns], reading.target, reading.inputs, "the dict of columns")
    inputs = {name: columns[name] for name in wanted.inputs}
    targets = [columns[name] for name in wanted.targets]
    return Arrays(inputs, (targets[0] if wanted.alone else targets) if targets else None)


def _of_torch(value: Any) -> Source | None:
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data is None:
        return None
    if isinstance(value, torch_data.DataLoader):
        return Loader(value)
    return _of_dataset(value, torch_data) if isinstance(value, torch_data.Dataset) else None


def _of_dataset(value: Any, torch_data: Any) -> Source:
    collate: Callable[[Sequence[Any]], Any] = torch_data.default_collate
    if isinstance(value, torch_data.IterableDataset):
        return Stream(sampled(value.__iter__, collate), None)
    if isinstance(value, torch_data.TensorDataset) and len(value.tensors) in (1, 2):
        inputs, targets = (*value.tensors, None)[:2]
        return Arrays(inputs, targets)
    return Samples(value, collate)
