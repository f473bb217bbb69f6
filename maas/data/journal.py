"""What one model was asked and which labels came later: a folder of files that only grow.

    FOLDER/<model>/<time>-<random>    frames: length, CRC-32, a message of the wire format

A frame is a request, by its id, or a label of one. Each process writes files of its own, so that
several may collect in one folder, and a frame that a crash has cut is where its file ends. Once
more is there than may be, the oldest file goes, and all that is in it.
"""

import secrets
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from maas import tensors, wire
from maas.calls import Result
from maas.data.datasets import form
from maas.data.rows import Pair, column, count, joined, mapped, sent
from maas.errors import CodecError, DataError, NotFound
from maas.limits import Limits
from maas.store.folders import flush

__all__ = ["Journal", "Labelled", "copied"]

_FRAME = struct.Struct(">II")
_LIMITS = Limits(body=2**32 - 1, header=2**26, nodes=2**22, memory=2**30, tensors=2**16)
"""Of our own files: what is in a frame came in a message, whose limits were its server's."""
_FILES = 8
"""Files that what is kept is spread over: so much of it, at most, goes at once."""
_BLOCK = 1_024
"""Requests that make one block of rows."""


@attrs.define(eq=False)
class _File:
    """One of the files, and what is known of it."""

    path: Path
    nbytes: int = 0
    rows: int = 0
    requests: dict[str, int] = attrs.field(factory=dict)
    """How many rows each request has."""


@attrs.frozen
class _Place:
    """Where a frame is, and the form of the rows in it."""

    path: Path
    offset: int
    form: Any


class Journal:
    """The journal of one model; for one thread at a time.

    Parameters
    ----------
    folder : where it is; made at the first request.
    rows, nbytes : how much of it is kept.
    """

    def __init__(self, folder: Path, *, rows: int, nbytes: int) -> None:
        self._folder = folder
        self._rows = rows
        self._nbytes = nbytes
        self._files = [_looked_at(path) for path in sorted(folder.glob("*-*"))]
        self._own: _File | None = None

    def add(self, request: str, inputs: Any, rows: int) -> bool:
        """Keeps what was asked; False where it is more than all that may be kept."""
        return self._append(["request", request, rows, sent(inputs)], request, rows)

    def label(self, request: str, targets: Any) -> None:
        """Keeps what the answer should have been; the last label of a request counts.

        Raises
        ------
        NotFound
            The request is not here.
        DataError
            It has another number of rows.
        """
        known = next((each for each in self._files if request in each.requests), None)
        if known is None:
            raise NotFound(
                f"no request {request!r:.40} is kept here: it is too old, or was left out"
            )
        rows, given = known.requests[request], count(targets, "the label")
        if given != rows:
            raise DataError(f"the request has {rows} rows, and its label {given}")
        if (
            self._append(["label", request, 0, sent(copied(targets))], None, 0)
            and self._own is not None
        ):
            # Who labels is told that it is kept; requests may be lost with the machine's power.
            flush(self._own.path)
            flush(self._folder)

    def labelled(self) -> "Labelled":
        """The requests that have a label, as rows to train on.

        Raises
        ------
        DataError
            There are none.
        """
        requests: dict[str, _Place] = {}
        labels: dict[str, _Place] = {}
        forms: Counter[Any] = Counter()
        for each in self._files:
            for offset, (kind, request, _, value) in _frames(each.path):
                into = requests if kind == "request" else labels
                into[request] = _Place(each.path, offset, form(_unpacked(value)))
        pairs = [(place, labels[name]) for name, place in requests.items() if name in labels]
        if not pairs:
            raise DataError(f"nothing that was asked of {self._folder.name} has a label yet")
        for inputs, targets in pairs:
            forms[inputs.form, targets.form] += 1
        # One caller's odd rows must not spoil the others'.
        usual, _ = forms.most_common(1)[0]
        kept = [pair for pair in pairs if (pair[0].form, pair[1].form) == usual]
        return Labelled(kept, len(pairs) - len(kept))

    # Files.

    def _append(self, message: list[Any], request: str | None, rows: int) -> bool:
        payload = b"".join(wire.encode(Result(message), _LIMITS))
        frame = _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
        if len(frame) > self._nbytes or rows > self._rows:
            return False
        self._make_room(len(frame), rows)
        file = self._current()
        try:
            with file.path.open("ab", buffering=0) as opened:
                rest = memoryview(frame)
                while rest:
                    rest = rest[opened.write(rest) :]
        except OSError:
            # What was cut ends this file; the next frame goes into another one.
            self._own = None
            raise
        file.nbytes += len(frame)
        file.rows += rows
        if request is not None:
            file.requests[request] = rows
        return True

    def _make_room(self, nbytes: int, rows: int) -> None:
        while self._files and (
            sum(each.nbytes for each in self._files) + nbytes > self._nbytes
            or sum(each.rows for each in self._files) + rows > self._rows
        ):
            gone = self._files.pop(0)
            gone.path.unlink(missing_ok=True)
            if gone is self._own:
                self._own = None

    def _current(self) -> _File:
        own = self._own
        if own is None or max(own.nbytes / self._nbytes, own.rows / self._rows) >= 1 / _FILES:
            self._folder.mkdir(parents=True, exist_ok=True)
            own = _File(self._folder / f"{time.time_ns():020}-{secrets.token_hex(4)}")
            self._files.append(own)
            self._own = own
        return own


class Labelled:
    """Requests with their labels, read as they are asked for.

    Attributes
    ----------
    left_out : requests that have a label and are of another form than most.
    """

    def __init__(self, pairs: list[tuple[_Place, _Place]], left_out: int) -> None:
        self._pairs = pairs
        self.left_out = left_out

    def blocks(self) -> Iterator[Pair]:
        """The rows, in the order of the requests."""
        for first in range(0, len(self._pairs), _BLOCK):
            block = self._pairs[first : first + _BLOCK]
            yield joined([_read(a) for a, _ in block]), joined([_read(b) for _, b in block])


# Rows as they are kept.


def copied(rows: Any) -> Any:
    """Columns that share no memory with others; NumPy's, where it has the dtype."""
    return mapped(_copied_column, rows)


def _copied_column(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return np.array(values)
    found: Any = tensors.adapter_for(type(values))
    values = found.contiguous(values.detach().cpu() if hasattr(values, "detach") else values)
    numpy_has_it = tensors.dtype_name(values) in _NUMPY
    return np.array(values.numpy()) if numpy_has_it else found.copy(values)


_NUMPY = frozenset({"bool", "complex64", "complex128", "float16", "float32", "float64"}).union(
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
)


def _unpacked(rows: Any) -> Any:
    """Columns, of what `sent` made of them."""
    if isinstance(rows, dict):
        return {name: _unpacked(each) for name, each in rows.items()}
    if isinstance(rows, tuple):
        return tuple(map(_unpacked, rows))
    return column(rows, "text") if isinstance(rows, list) else rows


# Frames.


def _looked_at(path: Path) -> _File:
    found = _File(path)
    for offset, (kind, request, rows, _) in _frames(path):
        found.nbytes = offset
        if kind == "request":
            found.rows += rows
            found.requests[request] = rows
    found.nbytes = path.stat().st_size
    return found


def _frames(path: Path) -> Iterator[tuple[int, list[Any]]]:
    """Each frame that is whole, with its place."""
    try:
        with path.open("rb") as file:
            while (message := _next(file)) is not None:
                offset, told = message
                yield offset, told
    except FileNotFoundError:
        # Another process that collects here has made room.
        return


def _next(file: Any) -> tuple[int, list[Any]] | None:
    offset = file.tell()
    head = file.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    length, checksum = _FRAME.unpack(head)
    payload = bytearray(file.read(length))
    if len(payload) < length or zlib.crc32(payload) != checksum:
        return None
    message = wire.decode(payload, _LIMITS)
    if not isinstance(message, Result):
        raise CodecError(f"a frame at {offset} is no request and no label")
    told: list[Any] = message.value
    return offset, told


def _read(place: _Place) -> Any:
    with place.path.open("rb") as file:
        file.seek(place.offset)
        found = _next(file)
    if found is None:
        raise CodecError("what was collected has changed while it was read")
    return _unpacked(found[1][3])
