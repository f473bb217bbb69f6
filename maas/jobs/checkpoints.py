"""The checkpoints of one job: the newest and the one before it, each whole or not there.

A checkpoint is one sealed file under a number of its own. It is written beside its place,
synchronised, renamed, and the folder synchronised; only then the last but one is removed. So at
each moment one whole checkpoint is safely on the disk, and whatever a crash leaves of the
next is told by its checksum and passed by.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from maas.errors import CodecError
from maas.jobs.disk import DISK, Disk, replace
from maas.jobs.sealed import sealed, unsealed

__all__ = ["Checkpoint", "Checkpoints"]

_FILE = re.compile(r"checkpoint-(\d{12})")
_KEPT = 2


@attrs.frozen
class Checkpoint:
    """What was saved, and its number: the steps that had been taken."""

    number: int
    state: Any


class Checkpoints:
    """Those in one folder, which one process writes."""

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self._folder = folder
        self._disk = disk

    def save(self, number: int, state: Any) -> None:
        """Returns once this checkpoint would survive a power cut.

        Raises
        ------
        OSError
            It could not be written; those before it stand.
        CodecError
            The state holds what no checkpoint can.
        """
        replace(self._path(number), sealed(state), self._disk)
        for old in self._numbers()[_KEPT:]:
            self._disk.remove(self._path(old))

    def load(self) -> Checkpoint | None:
        """The newest that is whole; None where there is none."""
        return next(self._whole(), None)

    @property
    def newest(self) -> int:
        """The highest number that is there, whole or not; 0 where there is none."""
        return max(self._numbers(), default=0)

    def _whole(self) -> Iterator[Checkpoint]:
        for number in self._numbers():
            try:
                yield Checkpoint(number, unsealed(self._path(number).read_bytes()))
            except CodecError:
                continue

    def _path(self, number: int) -> Path:
        return self._folder / f"checkpoint-{number:012d}"

    def _numbers(self) -> list[int]:
        """The newest first."""
        found = map(_FILE.fullmatch, (each.name for each in self._folder.iterdir()))
        return sorted((int(match[1]) for match in found if match), reverse=True)
