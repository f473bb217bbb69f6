"""The events of one job: a file that only grows, read by anybody while it is written.

    length CRC-32 payload    a frame: 8 bytes, then msgpack

A payload is an event, or the number of events that still count: a process that goes on from a
checkpoint says so, and then tells again what came after it. A frame that a crash has cut is cut
off by the next process; until then readers stop before it.
"""

import os
import struct
import threading
import zlib
from pathlib import Path
from typing import Any, Self

import msgpack

from maas.errors import CodecError

__all__ = ["EventReader", "EventWriter"]

_FRAME = struct.Struct(">II")
_MOST = 2**20
"""Bytes of one event: a step has some 200."""
_PIECE = 2**20


def _framed(payload: bytes) -> bytes:
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


class EventWriter:
    """Writes on after what is whole; for the one process that carries the job out.

    Parameters
    ----------
    path : the file; made if need be.
    count : events that still count: those that the checkpoint knows.
    """

    def __init__(self, path: Path, count: int) -> None:
        whole = EventReader(path) if path.exists() else None
        known = 0 if whole is None else whole.count()
        self.count = min(count, known)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if whole is not None:
            os.ftruncate(self._file, whole.end)
        if known > self.count:
            self._put(self.count)

    def append(self, event: dict[str, Any]) -> None:
        """Adds an event: plain data.

        Raises
        ------
        OSError
            The disk is full, or broken.
        """
        self._put(event)
        self.count += 1

    def _put(self, payload: Any) -> None:
        frame = _framed(msgpack.packb(payload))
        if len(frame) > _MOST:
            raise CodecError(f"an event takes {len(frame)} bytes; {_MOST} are allowed")
        rest = memoryview(frame)
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def sync(self) -> None:
        """Returns once all events are on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventReader:
    """Reads from any number on; knows where each event is, at 8 bytes an event."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._places: list[int] = []
        self.end = 0

    def count(self) -> int:
        """How many events there are now."""
        with self._lock:
            self._look()
            return len(self._places)

    def read(self, start: int, most: int) -> list[dict[str, Any]]:
        """The events from that number on that are there, at most so many."""
        with self._lock:
            self._look()
            wanted = self._places[start : start + most]
            if not wanted:
                return []
            after = start + len(wanted)
            end = self._places[after] if after < len(self._places) else self.end
            with self._path.open("rb") as file:
                file.seek(wanted[0])
                data = file.read(end - wanted[0])
            return [self._event(data, place - wanted[0]) for place in wanted]

    def _event(self, data: bytes, place: int) -> dict[str, Any]:
        length, _ = _FRAME.unpack_from(data, place)
        body = place + _FRAME.size
        found: dict[str, Any] = msgpack.unpackb(data[body : body + length])
        return found

    def _look(self) -> None:
        """Takes in what was written since the last look."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            size = 0
        if size < self.end:  # a job that was begun anew
            self._places.clear()
            self.end = 0
        if size == self.end:
            return
        with self._path.open("rb") as file:
            file.seek(self.end)
            while data := file.read(_PIECE):
                taken = self._take(data)
                self.end += taken
                file.seek(self.end)
                if not taken:
                    return

    def _take(self, data: bytes) -> int:
        """Bytes of the whole frames at the beginning."""
        place = 0
        while place + _FRAME.size <= len(data):
            length, checksum = _FRAME.unpack_from(data, place)
            payload = data[place + _FRAME.size : place + _FRAME.size + length]
            if len(payload) < length or zlib.crc32(payload) != checksum:
                break
            told = msgpack.unpackb(payload)
            if isinstance(told, int):
                del self._places[told:]
            else:
                self._places.append(self.end + place)
            place += _FRAME.size + length
        return place
