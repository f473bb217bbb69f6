"""What a checkpoint asks of a file system, in five operations.

They are few so that a test can record them and play a crash at every point: what was not
synchronised may be on the disk or not, in part, and in any order.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from maas.buffers import Buffer
from maas.store.folders import flush

__all__ = ["DISK", "Disk", "replace"]


class Disk(Protocol):
    """Five operations; each raises `OSError`."""

    def write(self, path: Path, parts: Sequence[Buffer]) -> None:
        """A new file of these bytes, in place of one that was there."""

    def sync(self, path: Path) -> None:
        """Returns once the file's contents are on the disk."""

    def rename(self, old: Path, new: Path) -> None:
        """Gives a file another name, in place of a file that had it."""

    def sync_folder(self, folder: Path) -> None:
        """Returns once the names in the folder are on the disk."""

    def remove(self, path: Path) -> None:
        """Removes a file; nothing where there is none."""


class _System:
    def write(self, path: Path, parts: Sequence[Buffer]) -> None:
        with path.open("wb", buffering=0) as file:
            for part in parts:
                rest = memoryview(part).cast("B")
                while rest:
                    rest = rest[file.write(rest) :]

    def sync(self, path: Path) -> None:
        flush(path)

    def rename(self, old: Path, new: Path) -> None:
        old.replace(new)

    def sync_folder(self, folder: Path) -> None:
        flush(folder)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


DISK: Disk = _System()
"""The file system of this machine."""


def replace(path: Path, parts: Sequence[Buffer], disk: Disk = DISK) -> None:
    """Writes a file that is, after any crash, the old one or the new one, whole.

    Written beside its place, synchronised, renamed, and the folder synchronised: a rename alone
    may reach the disk before the bytes do (Pillai et al., "All File Systems Are Not Created
    Equal", OSDI 2014).

    Raises
    ------
    OSError
        It could not be written; the old one stands.
    """
    new = path.with_name(f"{path.name}.tmp")
    try:
        disk.write(new, parts)
        disk.sync(new)
        disk.rename(new, path)
    except OSError:
        disk.remove(new)
        raise
    disk.sync_folder(path.parent)
