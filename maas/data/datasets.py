"""Datasets in a folder, each by the hash of its content; atomic to write, verified when read.

    FOLDER/<owner>/<sha256>/manifest.json    rows and columns; the name is the hash of these bytes
    FOLDER/<owner>/<sha256>/0, 1, ...        a file a column, whose hash is in the manifest

A column of numbers is its elements, little-endian, one row after the other; one of text is, for
each row, four bytes of length and UTF-8, or a length of 2^32 - 1 for None. So the name is one of
the content: NumPy or torch, contiguous or not, in whatever batches it came makes no difference.
Nothing in it is code, and no text of anybody becomes a path.
"""

import contextlib
import hashlib
import json
import re
import secrets
import shutil
import struct
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from maas import tensors
from maas.data.rows import Pair, count, is_array
from maas.data.rows import column as as_column
from maas.data.sources import Arrays
from maas.errors import CodecError, Conflict, DataError, LimitExceeded, NotFound
from maas.store.folders import flush

__all__ = ["NAME", "Datasets", "Facts", "Writing", "fingerprint", "form"]

NAME = re.compile(r"sha256:[0-9a-f]{64}")

_MANIFEST = "manifest.json"
_LONGEST = 2**20
"""Bytes of a manifest: some 8,000 columns."""
_LEFT = 3600.0
"""Seconds after which what was not ended is what a crash has left."""
_TEXT = "text"
_NONE = 2**32 - 1


@attrs.frozen
class Facts:
    """What is said of a dataset.

    Attributes
    ----------
    name : `"sha256:"` and the hash of its content.
    rows : how many rows it has.
    nbytes : what it takes.
    """

    name: str
    rows: int
    nbytes: int


# Rows to bytes.

_Path = tuple[str | int, ...]


def _columns(rows: Any, path: _Path) -> Iterator[tuple[_Path, Any]]:
    if isinstance(rows, Mapping):
        for name, each in rows.items():
            if type(name) is not str:
                raise DataError(f"a column is called {name!r:.60}; wanted text")
            yield from _columns(each, (*path, name))
    elif isinstance(rows, list | tuple) and rows and (is_array(rows[0]) or _nested(rows[0])):
        for index, each in enumerate(rows):
            yield from _columns(each, (*path, index))
    elif rows is not None:
        yield path, as_column(rows, _told(path)) if isinstance(rows, list) else rows


def form(rows: Any) -> Hashable:
    """What is equal in rows that fit one dataset: the columns, with their dtypes and shapes."""
    found = (
        (path, *(tensors.facts(values) or ("", ()))) for path, values in _columns(rows, ("rows",))
    )
    return tuple((path, dtype, shape[1:]) for path, dtype, shape in found)


def _nested(value: Any) -> bool:
    return isinstance(value, dict | list | tuple)


@attrs.define
class _Column:
    """One column on its way into a file: its form, and the hash of what came so far."""

    path: _Path
    dtype: str
    shape: list[int]
    hash: Any = attrs.field(factory=hashlib.sha256)
    nbytes: int = 0

    def encoded(self, values: Any, rows: int) -> list[Any]:
        """The bytes of more rows; raises `DataError` where they are of another form."""
        dtype, shape, parts = _encoded(self.path, values)
        if (dtype, shape) != (self.dtype, self.shape):
            raise DataError(
                f"{_told(self.path)}: from row {rows} on rows are {dtype}{shape}, "
                f"and {self.dtype}{self.shape} before"
            )
        return parts

    def to_data(self) -> dict[str, Any]:
        return {
            "path": list(self.path),
            "dtype": self.dtype,
            "shape": self.shape,
            "bytes": self.nbytes,
            "sha256": self.hash.hexdigest(),
        }


def _told(path: _Path) -> str:
    return ".".join(map(str, path))


def _encoded(path: _Path, values: Any) -> tuple[str, list[int], list[Any]]:
    if isinstance(values, np.ndarray):
        if values.dtype.kind == "O":
            return _TEXT, [], _text(path, values)
        values = np.asarray(values)
    found: Any = tensors.adapter_for(type(values))
    if found is None:
        raise DataError(f"{_told(path)} is {tensors.dtype_name(values)}, which needs torch there")
    values = values.detach().cpu() if hasattr(values, "detach") else values
    try:
        said = found.describe(found.contiguous(values))
    except CodecError as error:
        raise DataError(f"{_told(path)}: {error}") from error
    # Not the order in which memory holds them: the hash is of what they are.
    plain = (
        values.contiguous() if hasattr(values, "is_contiguous") else np.ascontiguousarray(values)
    )
    return said.dtype, [*said.shape[1:]], [found.contents(plain, ())]


def _text(path: _Path, values: Any) -> list[bytes]:
    parts = []
    for row, each in enumerate(values):
        if each is None:
            parts.append(struct.pack("<I", _NONE))
        elif isinstance(each, str):
            raw = each.encode("utf-8", "surrogatepass")
            parts += [struct.pack("<I", len(raw)), raw]
        else:
            raise DataError(f"{_told(path)}, row {row}: {each!r:.60} is neither number nor text")
    return [b"".join(parts)]


class _Rows:
    """The columns of rows that pass by, hashed; with a folder, written as well."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.rows = 0
        self.columns: list[_Column] = []

    def add(self, inputs: Any, targets: Any, check: Callable[[int], None] | None = None) -> None:
        found = [*_columns(inputs, ("inputs",)), *_columns(targets, ("targets",))]
        more = count([values for _, values in found], "the columns of a batch")
        if not self.columns:
            self.columns = [_Column(path, *_encoded(path, values)[:2]) for path, values in found]
        if [path for path, _ in found] != [column.path for column in self.columns]:
            raise DataError(
                f"from row {self.rows} on there are other columns: "
                f"{', '.join(_told(path) for path, _ in found):.200}"
            )
        ready = [
            each.encoded(values, self.rows)
            for each, (_, values) in zip(self.columns, found, strict=True)
        ]
        if check is not None:
            check(sum(len(part) for parts in ready for part in parts))
        for index, (column, parts) in enumerate(zip(self.columns, ready, strict=True)):
            self._append(index, column, parts)
        self.rows += more

    def _append(self, index: int, column: _Column, parts: Sequence[Any]) -> None:
        for part in parts:
            column.hash.update(part)
            column.nbytes += len(part)
        if self._folder is not None:
            with (self._folder / str(index)).open("ab", buffering=0) as file:
                for part in parts:
                    rest = memoryview(part).cast("B")
                    while rest:
                        rest = rest[file.write(rest) :]

    def manifest(self) -> bytes:
        if not self.rows:
            raise DataError("a dataset has at least one row")
        data = {
            "format": "maas-dataset",
            "version": 1,
            "rows": self.rows,
            "columns": [column.to_data() for column in self.columns],
        }
        # The same content is the same bytes.
        return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self.columns)


def _named(manifest: bytes) -> str:
    return "sha256:" + hashlib.sha256(manifest).hexdigest()


def fingerprint(batches: Iterator[Pair]) -> Facts:
    """What the dataset of these batches is called, and how large it is.

    Raises
    ------
    DataError
        No rows, or batches that do not fit each other.
    """
    rows = _Rows(None)
    for inputs, targets in batches:
        rows.add(inputs, targets)
    return Facts(_named(rows.manifest()), rows.rows, rows.nbytes)


# A folder.


class Datasets:
    """The datasets in a folder, each with an owner; to others it is not there.

    Parameters
    ----------
    folder : made if need be.
    most : datasets that one owner may have.
    nbytes : bytes that they may take together, what is being uploaded included.
    """

    def __init__(self, folder: Path, *, most: int, nbytes: int) -> None:
        self._folder = folder
        self._most = most
        self._nbytes = nbytes
        for left in folder.glob("*/.*.tmp"):
            # Of a process that ended: another one that writes here does so now.
            if time.time() - left.stat().st_mtime > _LEFT:
                shutil.rmtree(left, ignore_errors=True)

    def _owned(self, owner: str) -> Path:
        return self._folder / hashlib.sha256(owner.encode()).hexdigest()[:32]

    def _place(self, owner: str, name: str) -> Path:
        if NAME.fullmatch(name) is None:
            raise NotFound(f"{name!r:.80} is no dataset's name: sha256: and 64 hexadecimal digits")
        return self._owned(owner) / name.removeprefix("sha256:")

    def begin(self, owner: str, promised: str = "") -> "Writing":
        """A dataset to be written, which is gone again if nobody ends it.

        Parameters
        ----------
        promised : the name that it is going to have, where that is known.
        """
        kept = len(list(self._owned(owner).glob(f"[!.]*/{_MANIFEST}")))
        if kept >= self._most:
            raise LimitExceeded(
                f"you have {kept} datasets here, and Leases(datasets={self._most}) are allowed; "
                "delete one that is no longer needed"
            )
        folder = self._owned(owner) / f".{secrets.token_hex(8)}.tmp"
        folder.mkdir(parents=True)
        return Writing(self, owner, folder, promised)

    def check_room(self, owner: str, more: int) -> None:
        """Refuses what does not fit what an owner may have; raises `LimitExceeded`."""
        kept = (path for path in self._owned(owner).glob("*/*") if path.is_file())
        taken = sum(path.stat().st_size for path in kept)
        if taken + more > self._nbytes:
            raise LimitExceeded(
                f"{more} bytes more, beside {taken} bytes that you have here; this server allows "
                f"Leases(dataset_bytes={self._nbytes}). Delete a dataset that is no longer needed"
            )

    def facts(self, owner: str) -> list[Facts]:
        """The owner's datasets."""
        found = sorted(self._owned(owner).glob(f"[!.]*/{_MANIFEST}"))
        return [self.find(owner, f"sha256:{path.parent.name}") for path in found]

    def find(self, owner: str, name: str) -> Facts:
        """What is said of a dataset.

        Raises
        ------
        NotFound
            This owner has none of that name.
        """
        data = self._manifest(owner, name)
        return Facts(name, data["rows"], sum(column["bytes"] for column in data["columns"]))

    def drop(self, owner: str, name: str) -> None:
        """Deletes a dataset; nothing where there is none."""
        place = self._place(owner, name)
        gone = place.with_name(f".{secrets.token_hex(8)}.tmp")
        # Under another name first: half a dataset is never there.
        with contextlib.suppress(FileNotFoundError):
            place.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def open(self, owner: str, name: str) -> Arrays:
        """All rows of a dataset; columns of numbers are mapped and not read.

        Raises
        ------
        NotFound
            This owner has none of that name.
        CodecError
            Its files are not what they were when it was written.
        """
        data = self._manifest(owner, name)
        place = self._place(owner, name)
        tree: dict[str, Any] = {}
        for index, column in enumerate(data["columns"]):
            values = _read(place / str(index), column, data["rows"], name)
            _plant(tree, column["path"], values)
        return Arrays(_grown(tree["inputs"]), _grown(tree.get("targets")))

    def _manifest(self, owner: str, name: str) -> dict[str, Any]:
        place = self._place(owner, name)
        try:
            with (place / _MANIFEST).open("rb") as file:
                raw = file.read(_LONGEST + 1)
        except FileNotFoundError:
            raise NotFound(f"there is no dataset {name} of yours here; upload it first") from None
        if _named(raw) != name:
            raise CodecError(f"{name} is damaged: its manifest is not what its name says")
        # By its hash it is what was written here.
        found: dict[str, Any] = json.loads(raw)
        return found


class Writing:
    """A dataset on its way into a folder.

    Attributes
    ----------
    numbered : batches that are there.
    """

    def __init__(self, datasets: Datasets, owner: str, folder: Path, promised: str) -> None:
        self._promised = promised
        self._datasets = datasets
        self._owner = owner
        self._folder = folder
        self._rows = _Rows(folder)
        self.numbered = 0
        self._facts: Facts | None = None
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    @property
    def ended(self) -> bool:
        """Whether the dataset was put in its place."""
        return self._facts is not None

    def add(self, number: int, inputs: Any, targets: Any) -> None:
        """More rows; a batch that comes again is known by its number.

        Raises
        ------
        LimitExceeded
            They do not fit what the owner may have.
        Conflict
            A batch before this one is missing.
        DataError
            They do not fit the rows before them.
        """
        if number <= self.numbered:
            return
        if number != self.numbered + 1:
            raise Conflict(f"batch {number} came where {self.numbered + 1} is next")
        self._rows.add(inputs, targets, lambda more: self._datasets.check_room(self._owner, more))
        self.numbered = number

    def end(self) -> Facts:
        """Puts the dataset in its place, all of it at once.

        Raises
        ------
        DataError
            It has no rows.
        LimitExceeded
            It has more columns than a manifest holds.
        CodecError
            It is not what was announced.
        """
        if self._facts is not None:
            return self._facts
        manifest = self._rows.manifest()
        if len(manifest) > _LONGEST:
            raise LimitExceeded(f"the manifest takes {len(manifest)} bytes, of {_LONGEST}")
        (self._folder / _MANIFEST).write_bytes(manifest)
        for path in (*self._folder.iterdir(), self._folder):
            flush(path)
        name = _named(manifest)
        if self._promised not in ("", name):
            raise CodecError(
                f"what arrived is {name}, and {self._promised} was announced; did the data change "
                "while they were read? Upload them again"
            )
        place = self._datasets._place(self._owner, name)
        try:
            self._folder.rename(place)
        except OSError:
            # Where it is already, it is the same one.
            if not (place / _MANIFEST).is_file():
                raise
        flush(place.parent)
        self._facts = self._datasets.find(self._owner, name)
        return self._facts


# Bytes to rows.


def _read(path: Path, column: Mapping[str, Any], rows: int, name: str) -> Any:
    dtype, shape = column["dtype"], tuple(column["shape"])
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != column["sha256"]:
        raise CodecError(
            f"{name} is damaged: {_told(column['path'])} is not what it was; upload it again"
        )
    if dtype == _TEXT:
        return _texts(path.read_bytes(), rows)
    numpy_has_it = tensors.adapter("numpy").knows(dtype)  # type: ignore[union-attr]
    if not numpy_has_it or not column["bytes"]:
        data = memoryview(bytearray(path.read_bytes()))
        return tensors.restore("$tensor", dtype, (rows, *shape), (), data)
    return np.memmap(path, np.dtype(dtype), "r", shape=(rows, *shape))


def _texts(raw: bytes, rows: int) -> np.ndarray[Any, Any]:
    made = np.empty(rows, object)
    at = 0
    for row in range(rows):
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4
        if size != _NONE:
            made[row] = raw[at : at + size].decode("utf-8", "surrogatepass")
            at += size
    return made


def _plant(tree: dict[Any, Any], path: Sequence[Any], values: Any) -> None:
    for step in path[:-1]:
        tree = tree.setdefault(step, {})
    tree[path[-1]] = values


def _grown(tree: Any) -> Any:
    """Dicts whose keys are 0, 1, ... are tuples."""
    if not isinstance(tree, dict):
        return tree
    grown = {key: _grown(each) for key, each in tree.items()}
    if all(type(key) is int for key in grown):
        return tuple(grown[index] for index in range(len(grown)))
    return grown
