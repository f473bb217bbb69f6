"""A disk that remembers what it was asked, and the states that a crash may leave it in.

Nothing that was not synchronised is sure: a name may be there without the bytes, the bytes
without the name, a file in part, as zeros or with one sector of something else, and names may
have changed in any order.
"""

import contextlib
import random
from pathlib import Path

import attrs

SECTOR = 512


@attrs.define
class File:
    """Bytes under any number of names."""

    data: bytes
    sure: bool = False


@attrs.define
class RecordingDisk:
    """In memory; `crashes` gives what may be found after each operation."""

    names: dict = attrs.field(factory=dict)
    sure_names: dict = attrs.field(factory=dict)
    changes: list = attrs.field(factory=list)
    dice: random.Random = attrs.field(factory=lambda: random.Random(5))
    states: int = 1
    # Told after each operation what may be found: name to bytes.
    look: object = None

    def write(self, path, parts):
        whole = b"".join(map(bytes, parts))
        # Half of it first, as a crash may come in between.
        for data in (b"", whole[: len(whole) // 2], whole):
            found = self.names.get(path.name)
            if found is None or found.sure:
                found = self.names[path.name] = File(b"")
                self.changes.append((path.name, found))
            found.data = data
            self._crash()

    def sync(self, path):
        self._crash()
        self.names[path.name].sure = True
        self._crash()

    def rename(self, old, new):
        moved = self.names.pop(old.name)
        self.names[new.name] = moved
        # Two changes: a crash may leave both names, or neither.
        self.changes += [(new.name, moved), (old.name, None)]
        self._crash()

    def sync_folder(self, _folder):
        self._crash()
        self.sure_names = dict(self.names)
        self.changes.clear()
        self._crash()

    def remove(self, path):
        if self.names.pop(path.name, None) is not None:
            self.changes.append((path.name, None))
        self._crash()

    def _crash(self):
        for _ in range(self.states):
            self.look(self._left())

    def _left(self):
        kept = [change for change in self.changes if self.dice.random() < 0.6]
        self.dice.shuffle(kept)
        names = dict(self.sure_names)
        for name, file in kept:
            if file is None:
                names.pop(name, None)
            else:
                names[name] = file
        return {name: self._bytes(file) for name, file in names.items()}

    def _bytes(self, file):
        data = file.data
        if file.sure:
            return data
        page = 4096
        cut = self.dice.choice([0, 1, len(data) // 2, len(data) - 1, len(data) - page, len(data)])
        how = self.dice.randrange(4)
        if how == 0:
            return data[: max(0, cut)]
        if how == 1:
            return bytes(len(data))
        if how == 2 and data:
            at = self.dice.randrange(0, len(data), SECTOR)
            sector = self.dice.randbytes(min(SECTOR, len(data) - at))
            return data[:at] + sector + data[at + SECTOR :]
        return data


@contextlib.contextmanager
def laid_out(folder: Path, files):
    """A folder on the real disk that holds these files."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            path.unlink()
