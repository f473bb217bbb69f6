"""Model folders on disk: written whole or not at all, read without following a link.

A folder is built beside its place, flushed, and moved there by one rename; a
folder that is there already is swapped with it in one step where the system
can. What is opened is opened once: both files come from one folder even when another
takes its place meanwhile, and what was hashed is what is read.
"""

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from maas.errors import CodecError
from maas.store.manifest import MAX_BYTES, Manifest

__all__ = ["MANIFEST", "WEIGHTS", "Opened", "building", "flush", "opened"]

MANIFEST = "model.json"
WEIGHTS = "weights.safetensors"


# Reading.


@attrs.frozen
class Opened:
    """An open model folder: its manifest's bytes and its tensor file.

    `weights` is a path to the open file itself, which neither a rename nor a link can
    lead elsewhere.
    """

    manifest: bytes
    file: int
    size: int

    @property
    def weights(self) -> str:
        """A name for the open tensor file."""
        return f"/dev/fd/{self.file}"


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Opened]:
    """The files of a model folder, open.

    Raises
    ------
    FileNotFoundError
        No folder, or a file missing in it.
    CodecError
        One of its files is a link, a folder, a pipe or a device.
    """
    with contextlib.ExitStack() as stack:
        manifest, (weights, size) = _both(stack, folder)
        yield Opened(_read(manifest, MAX_BYTES + 1), weights, size)


def _both(stack: contextlib.ExitStack, folder: Path) -> tuple[int, tuple[int, int]]:
    for _attempt in range(_ATTEMPTS):
        inside = _inside(stack, folder)
        try:
            return _file(stack, inside, MANIFEST)[0], _file(stack, inside, WEIGHTS)
        except FileNotFoundError:
            if os.path.sameopenfile(inside, _inside(stack, folder)):
                raise
    raise CodecError(f"{folder} was replaced {_ATTEMPTS} times while it was being opened")


_ATTEMPTS = 16
"""A folder that was just replaced is deleted, and the new one is in its place."""


def _inside(stack: contextlib.ExitStack, folder: Path) -> int:
    try:
        return _held(stack, os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except NotADirectoryError:
        raise CodecError(
            f"{folder} is no folder; maas.load wants the folder that maas.save made"
        ) from None


def _held(stack: contextlib.ExitStack, file: int) -> int:
    stack.callback(os.close, file)
    return file


def _file(stack: contextlib.ExitStack, inside: int, name: str) -> tuple[int, int]:
    # O_NONBLOCK: to open a pipe would wait for a writer for ever.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = _held(stack, os.open(name, flags, dir_fd=inside))
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT, f"a model folder holds {MANIFEST} and {WEIGHTS}; missing", name
        ) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EMLINK):
            raise CodecError(
                f"{name} is not a plain file of the model folder; links are not followed"
            ) from None
        raise
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise CodecError(f"{name} is not a plain file")
    return file, status.st_size


def _read(file: int, most: int) -> bytes:
    with open(file, "rb", closefd=False) as stream:
        return stream.read(most)


# Writing.


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which is `folder` if all goes well and gone if not.

    Raises
    ------
    FileExistsError
        Something is there already that is no model folder, or holds more than a model.
    """
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.parent / f".{folder.name}.{secrets.token_hex(8)}.tmp"
    new.mkdir()
    try:
        yield new
        for path in (new / WEIGHTS, new / MANIFEST, new):
            flush(path)
        _put(new, folder)
        flush(folder.parent)
    finally:
        # Nothing if it was moved; what was there before if the two were swapped.
        shutil.rmtree(new, ignore_errors=True)


def flush(path: Path) -> None:
    """Returns once the file's contents, or the folder's names, are on the disk."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _check_replaceable(folder: Path) -> None:
    if folder.is_symlink():
        raise FileExistsError(
            errno.EEXIST, "a link is not replaced; save to the folder it leads to", str(folder)
        )
    if not folder.exists():
        return
    found = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else [folder.name]
    if not found:
        return
    strangers = [name for name in found if name not in (MANIFEST, WEIGHTS)]
    if strangers or not _is_model(folder):
        raise FileExistsError(
            errno.EEXIST,
            f"there is something else than a model ({', '.join(strangers or found)[:80]}); "
            "save to another folder",
            str(folder),
        )


def _is_model(folder: Path) -> bool:
    try:
        with opened(folder) as files:
            Manifest.from_json(files.manifest)
    except (OSError, CodecError):
        return False
    return True


def _put(new: Path, folder: Path) -> None:
    try:
        new.rename(folder)  # where nothing is, or an empty folder
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _check_replaceable(folder)
        if not _swap(new, folder):
            _step_by_step(new, folder)


_EXCHANGE = {"linux": ("renameat2", 2), "darwin": ("renameatx_np", 2)}
_HERE = {"linux": -100, "darwin": -2}
"""AT_FDCWD, and RENAME_EXCHANGE or RENAME_SWAP: Python has no name for them."""


def _swap(new: Path, folder: Path) -> bool:
    """Exchanges two folders in one step; False where system or file system cannot."""
    if sys.platform not in _EXCHANGE:
        return False
    name, flag = _EXCHANGE[sys.platform]
    function = getattr(ctypes.CDLL(None), name, None)
    if function is None:
        return False
    here = _HERE[sys.platform]
    return bool(
        function(here, os.fsencode(new.absolute()), here, os.fsencode(folder.absolute()), flag) == 0
    )


def _step_by_step(new: Path, folder: Path) -> None:
    """For a moment nothing is there: a reader is told so, and never sees half a model."""
    aside = new.with_suffix(".old")
    folder.rename(aside)
    try:
        new.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
