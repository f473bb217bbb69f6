"""Checkpoints: after any crash, the newest one that was saved or the one that was being saved.

The long form, which prints its figures:

    .venv/bin/python -m pytest -m long -s tests/jobs/test_checkpoints.py
"""

import errno
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from maas.jobs.checkpoints import Checkpoints
from maas.jobs.disk import DISK
from maas.testing.equality import difference

SPEC = importlib.util.spec_from_file_location("crashes", Path(__file__).with_name("crashes.py"))
crashes = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(crashes)

SAVES = 6


def state(number):
    """What a job would save: more than a page, so that a part of it can be lost."""
    generator = torch.Generator().manual_seed(number)
    return {"weights": torch.randn(1500, generator=generator), "step": number, "lr": 0.1}


def crashed(folder, look, *, states, disk=crashes.RecordingDisk):
    """Saves some checkpoints, and looks at what each crash may leave; `look(saved, files)`."""
    saved = [0]
    real = folder / "real"
    real.mkdir()
    recording = disk(states=states, look=lambda files: look(saved[0], files))
    checkpoints = Checkpoints(real, _Both(recording))
    for number in range(1, SAVES + 1):
        checkpoints.save(number, state(number))
        saved[0] = number


class _Both:
    """The recording disk, and the real one, whose names the checkpoints read."""

    def __init__(self, recording):
        self.recording = recording

    def __getattr__(self, name):
        def both(*args):
            getattr(DISK, name)(*args)
            getattr(self.recording, name)(*args)

        return both


@pytest.mark.parametrize("states", [8, pytest.param(200, marks=pytest.mark.long)])
def test_every_crash_leaves_the_newest_or_the_one_before(tmp_path, states):
    """After a crash the last one saved, or the one being saved, is loaded to the last bit."""
    folder = tmp_path / "found"
    folder.mkdir()
    found, strange = Counter(), []

    def look(saved, files):
        with crashes.laid_out(folder, files):
            loaded = Checkpoints(folder).load()
        number = 0 if loaded is None else loaded.number
        found[number - saved] += 1
        exact = loaded is None or difference(loaded.state, state(number)) is None
        if number - saved not in (0, 1) or not exact:
            strange.append((saved, number, {name: len(data) for name, data in files.items()}))

    crashed(tmp_path, look, states=states)
    print(f"{found.total()} states: {found[0]} gave the last one saved, {found[1]} the next")
    assert strange == []
    assert found[0]
    assert found[1]
    assert found.total() >= (10_000 if states > 100 else 400)


class _Careless(crashes.RecordingDisk):
    """One that is not synchronised before a file takes its name."""

    def sync(self, path):
        self._crash()


def test_a_careless_order_is_found_out(tmp_path):
    """Were the file not synchronised before its renaming, some crash would lose a saved one."""
    folder = tmp_path / "found"
    folder.mkdir()
    lost = []

    def look(saved, files):
        with crashes.laid_out(folder, files):
            loaded = Checkpoints(folder).load()
        if saved and (loaded is None or loaded.number < saved):
            lost.append(saved)

    crashed(tmp_path, look, states=8, disk=_Careless)
    assert lost


def test_two_are_kept(tmp_path):
    """The newest and the one before it are there, and nothing else."""
    checkpoints = Checkpoints(tmp_path)
    for number in (3, 7, 12, 20):
        checkpoints.save(number, state(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-000000000012",
        "checkpoint-000000000020",
    ]
    assert checkpoints.load().number == checkpoints.newest == 20


def test_a_damaged_newest_gives_the_one_before(tmp_path):
    """A checkpoint of which any byte is another is passed by."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    path = tmp_path / "checkpoint-000000000002"
    whole = path.read_bytes()
    for at in (0, 15, 16, 40, 63, 64, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert checkpoints.load().number == 1, at


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from maas.jobs.checkpoints import Checkpoints
folder, limited = Path(sys.argv[1]), sys.argv[2] == "limited"
checkpoints = Checkpoints(folder)
checkpoints.save(1, {"weights": torch.ones(1000)})
if limited:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save(2, {"weights": torch.ones(10_000_000)})
except OSError as error:
    print(error.errno, checkpoints.load().number, sorted(path.name for path in folder.iterdir()))
"""


def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path):
    """Where the system takes no more bytes, saving raises and the checkpoint before is intact."""
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), "limited"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert run.stdout == f"{errno.EFBIG} 1 ['checkpoint-000000000001']\n"


def test_a_full_disk_leaves_the_old_one(small_disk):
    """On a disk without room, saving raises and the checkpoint before is intact."""
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(small_disk), "full"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert run.stdout == f"{errno.ENOSPC} 1 ['checkpoint-000000000001']\n"
