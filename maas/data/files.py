"""Files of rows: read whole where they fit in memory, else as a stream of bounded blocks.

    .npy .npz            NumPy's; an .npy file is mapped, so it may be larger than memory
    .csv .parquet        tables, by pyarrow
    .arrow .feather      Arrow's own, as a file or a stream

Nothing is unpickled, and what cannot be read is a `DataError` that names the file, and the row and
column where one is to blame.
"""

import contextlib
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import numpy as np

from maas.data.arrow import Wanted, arrow, columns_of, type_named
from maas.data.mapped import Mapped, matrix
from maas.data.rows import Pair, column
from maas.data.sources import Arrays, Source, Stream
from maas.errors import DataError

__all__ = ["MEMORY", "Reading", "frame", "read"]

MEMORY = 2**30
"""Bytes of rows that are read whole."""


@attrs.frozen(kw_only=True)
class Reading:
    """What of a file is wanted, and how; see `Data.of`."""

    target: str | Sequence[str] | None = None
    inputs: Sequence[str] | None = None
    types: Mapping[str, str] = attrs.field(factory=dict)
    memory: int = MEMORY


def read(path: Path, reading: Reading) -> Source:
    """The rows of a file.

    Raises
    ------
    FileNotFoundError
        There is none.
    DataError
        It cannot be read as what its name says it is.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path.name} is of no type that is known; known: {', '.join(_READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    return reader(path, reading)


# NumPy.


def _npy(path: Path, reading: Reading) -> Source:
    _refuse_columns(path, reading)
    try:
        found = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise _unreadable(path, error) from error
    return Arrays(column(found, path.name), None)


def _npz(path: Path, reading: Reading) -> Source:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(path, archive.infolist(), reading.memory)
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: column(arrays[name], f"{path.name}: {name}") for name in arrays.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise _unreadable(path, error) from error
    names = [*found]
    target = reading.target
    if target is None and reading.inputs is None:
        # As np.savez("file.npz", x, y) and np.savez("file.npz", x=x, y=y) name them.
        target = next((name for name in ("y", "target", "targets", "arr_1") if name in names), None)
    wanted = Wanted(names, target, reading.inputs, path.name)
    inputs = {name: found[name] for name in wanted.inputs}
    targets = [found[name] for name in wanted.targets]
    alone = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return Arrays(alone, (targets[0] if wanted.alone else targets) if targets else None)


def _check_size(path: Path, members: Sequence[zipfile.ZipInfo], memory: int) -> None:
    nbytes = sum(each.file_size for each in members)
    if nbytes > memory:
        raise DataError(
            f"{path.name} unpacks to {nbytes} bytes, and memory={memory} are allowed; "
            "save the arrays as .npy, which is mapped"
        )


def _refuse_columns(path: Path, reading: Reading) -> None:
    if reading.target is not None or reading.inputs is not None:
        raise DataError(f"{path.name} holds one array, which has no columns to choose from")


# Tables.


class _Table(Protocol):
    """A file of a table: what it says of itself, and its rows in blocks."""

    names: Sequence[str]
    rows: int | None
    nbytes: int

    def whole(self, names: Sequence[str]) -> Any: ...
    def blocks(self, names: Sequence[str], skipped: int) -> Iterator[Any]: ...


def _tabular(opened: Callable[[Path, Reading], _Table]) -> Callable[[Path, Reading], Source]:
    def reader(path: Path, reading: Reading) -> Source:
        with _told(path):
            table = opened(path, reading)
        wanted = Wanted(table.names, reading.target, reading.inputs, path.name)
        with _told(path, table.names):
            if table.nbytes <= reading.memory:
                found = columns_of(table.whole(wanted.all), path.name)
                return _finished(Arrays(*wanted.pair(found)))

        def blocks(skipped: int) -> Iterator[Pair]:
            with _told(path, table.names):
                for block in opened(path, reading).blocks(wanted.all, skipped):
                    yield wanted.pair(columns_of(block, path.name, skipped))
                    skipped += len(block)

        first = next(blocks(0), None)
        if first is None:
            raise DataError(f"{path.name} has no rows")
        return _finished(Stream(blocks, table.rows), first[0])

    return reader


def _finished(source: Source, first: Any = None) -> Source:
    """Numbers alone become one matrix; a table of more stays one, for a preprocessing."""
    columns: Mapping[str, Any] = source.inputs if isinstance(source, Arrays) else first
    numbers = all(each.dtype.kind in "biuf" and each.ndim == 1 for each in columns.values())
    return Mapped(source, matrix) if numbers else source


class _Csv:
    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        # Without types nothing fails to convert, so that the names are there to tell what does.
        self._types: dict[str, Any] = {}
        csv = arrow("pyarrow.csv")
        with csv.open_csv(path, **self._options(csv, [])) as reader:
            self.names = reader.schema.names
        strangers = sorted(reading.types.keys() - {*self.names})
        if strangers:
            raise DataError(f"{path.name} has no column {strangers[0]!r} to give a type")
        self._types = {name: type_named(kind) for name, kind in reading.types.items()}
        self.rows: int | None = None
        # Numbers as text take about as much as in memory, words about a third.
        self.nbytes = 3 * path.stat().st_size

    def _options(self, csv: Any, names: Sequence[str]) -> dict[str, Any]:
        return {
            # On one thread, since an error names its row only then.
            "read_options": csv.ReadOptions(use_threads=False, block_size=_BLOCK),
            "convert_options": csv.ConvertOptions(
                column_types=self._types,
                include_columns=names,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        }

    def whole(self, names: Sequence[str]) -> Any:
        csv = arrow("pyarrow.csv")
        return csv.read_csv(self._path, **self._options(csv, names))

    def blocks(self, names: Sequence[str], skipped: int) -> Iterator[Any]:
        csv = arrow("pyarrow.csv")
        with csv.open_csv(self._path, **self._options(csv, names)) as reader:
            yield from _after(reader, skipped)


_BLOCK = 2**20
"""Bytes of CSV at once; the types of a stream's columns are told by the first of these."""


class _Parquet:
    def __init__(self, path: Path, _reading: Reading) -> None:
        # Without a buffer a whole column of a row group is read at once.
        self._file = arrow("pyarrow.parquet").ParquetFile(path, buffer_size=_BLOCK)
        facts = self._file.metadata
        self.names = self._file.schema_arrow.names
        self.rows = facts.num_rows
        self._groups = [facts.row_group(index) for index in range(facts.num_row_groups)]
        self.nbytes = sum(group.total_byte_size for group in self._groups)

    def whole(self, names: Sequence[str]) -> Any:
        return self._file.read(names)

    def blocks(self, names: Sequence[str], skipped: int) -> Iterator[Any]:
        groups = [*range(len(self._groups))]
        # Whole groups are not even opened.
        while groups and skipped >= self._groups[groups[0]].num_rows:
            skipped -= self._groups[groups.pop(0)].num_rows
        read = self._file.iter_batches(batch_size=_ROWS, row_groups=groups, columns=names)
        yield from _after(read, skipped)


_ROWS = 4_096
"""Rows of Parquet that are decoded at once."""


class _Arrow:
    def __init__(self, path: Path, _reading: Reading) -> None:
        pa = arrow()
        self._memory = pa.memory_map(str(path))
        try:
            self._reader = pa.ipc.open_file(self._memory)
        except pa.ArrowInvalid:
            self._memory.seek(0)
            self._reader = pa.ipc.open_stream(self._memory)
        self.names = self._reader.schema.names
        self.rows: int | None = None
        self.nbytes = path.stat().st_size

    def whole(self, names: Sequence[str]) -> Any:
        return self._reader.read_all().select(names)

    def blocks(self, names: Sequence[str], skipped: int) -> Iterator[Any]:
        count = getattr(self._reader, "num_record_batches", None)
        batches = iter(self._reader) if count is None else map(self._reader.get_batch, range(count))
        yield from _after((batch.select(names) for batch in batches), skipped)


def _after(batches: Iterator[Any], skipped: int) -> Iterator[Any]:
    for batch in batches:
        if skipped >= len(batch):
            skipped -= len(batch)
        else:
            yield batch.slice(skipped)
            skipped = 0


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path.name} cannot be read as {path.suffix}: {error!s:.200}")


@contextlib.contextmanager
def _told(path: Path, names: Sequence[str] = ()) -> Iterator[None]:
    """Says in our words, with the name of the column, what pyarrow raises."""
    try:
        yield
    except arrow().ArrowException as error:
        found = _PLACE.fullmatch(str(error).removeprefix("CSV parse error: "))
        if found is None or found["row"] is None:
            raise _unreadable(path, error) from error
        at = f"{path.name}, row {found['row']}"
        if found["column"] is not None and int(found["column"]) < len(names):
            at += f", column {names[int(found['column'])]!r}"
        raise DataError(f"{at}: {found['words']:.200}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        # Thrift and compressed pages that are damaged.
        raise _unreadable(path, error) from error


_PLACE = re.compile(
    r"(?:In CSV column #(?P<column>\d+): )?(?:Row #(?P<row>\d+): )?(?P<words>.*)", re.DOTALL
)


_READERS: dict[str, Callable[[Path, Reading], Source]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _tabular(_Csv),
    ".parquet": _tabular(_Parquet),
    ".arrow": _tabular(_Arrow),
    ".feather": _tabular(_Arrow),
}


# Data frames.


def frame(value: Any, reading: Reading) -> Source:
    """The rows of what speaks Arrow's C stream: pandas, polars, DuckDB, pyarrow itself.

    Raises
    ------
    DataError
        A column of a type that nothing is learned from.
    """
    what = f"the {type(value).__name__}"
    table = arrow().RecordBatchReader.from_stream(value).read_all()
    wanted = Wanted(table.schema.names, reading.target, reading.inputs, what)
    return _finished(Arrays(*wanted.pair(columns_of(table.select(wanted.all), what))))
