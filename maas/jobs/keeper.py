"""The keeper of a folder of jobs: takes them in, has each carried out, and finds them again.

    FOLDER/<owner>/<model>.<name>/    one job; see `folders.py`

Where jobs are is decided here: an owner is a hash, and names have a fixed form, so nobody's text
becomes a path. One thread looks after the processes while there are jobs that have not ended. A
process that ends without a word (it was killed, or the machine went down) is started again, and
goes on from its last checkpoint.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from maas.buffers import Buffer
from maas.errors import Conflict, LimitExceeded, NotFound
from maas.executors.base import NAME
from maas.jobs.disk import DISK, replace
from maas.jobs.folders import JobFolder, Outcome, Record
from maas.jobs.process import NO_SPACE
from maas.limits import Leases

__all__ = ["Keeper", "Order"]

_LOG = logging.getLogger("maas")

_LOOK = 0.05
"""Seconds between two looks at the processes."""
_TRIES = 3
"""Processes in a row that end without a word and without a checkpoint, before a job has failed."""

_LEFT = 3600.0
"""Seconds after which a folder that was never filled is one that a crash has left."""


@attrs.frozen(kw_only=True)
class Order:
    """A job to be taken in.

    Attributes
    ----------
    record : what it is.
    data : its rows, as the parts of a sealed file.
    weights : bytes of the model's weights and buffers, as far as they are known here.
    save : writes the model that it begins with into a folder; None where its process knows it.
    """

    record: Record
    data: list[Buffer]
    weights: int
    save: Callable[[Path], None] | None


@attrs.define
class _Watched:
    """A job that has not ended, and the process that was started for it."""

    folder: JobFolder
    process: "subprocess.Popen[bytes] | None" = None
    newest: int = -1
    lost: int = 0


class Keeper:
    """Keeps the jobs in a folder, which is made if need be.

    Parameters
    ----------
    folder : where they are.
    leases : how many one owner may keep, of how many bytes, and how many run at once.
    each : seconds between the checkpoints of a job.
    """

    def __init__(self, folder: Path, leases: Leases | None = None, *, each: float = 10.0) -> None:
        self.folder = folder.absolute()
        self._leases = leases or Leases()
        self._each = each
        self._lock = threading.Lock()
        self._watched: dict[Path, _Watched] = {}
        self._given_up: dict[Path, Outcome] = {}
        self._readers: weakref.WeakValueDictionary[Path, JobFolder] = weakref.WeakValueDictionary()
        self._stirred = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.folder.mkdir(parents=True, exist_ok=True)

    def open(self) -> None:
        """Goes on with all jobs that have not ended."""
        for left in self.folder.glob("*/.*.tmp"):
            if time.time() - left.stat().st_mtime > _LEFT:
                shutil.rmtree(left, ignore_errors=True)
        for record in sorted(self.folder.glob("*/[!.]*/job.json"), key=_written):
            self._watch(self._reader(record.parent))

    def close(self) -> None:
        """Starts no more processes; those that run go on."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._stirred.set()
        if thread is not None:
            thread.join()

    # Jobs.

    def submit(self, order: Order) -> JobFolder:
        """The job of that name; it is taken in, if it is not here.

        Raises
        ------
        ValueError
            A name that no job can have.
        Conflict
            A job of that name was given other rows or another recipe.
        LimitExceeded
            More jobs, or bytes of them, than one owner may have.
        """
        path = self._place(order.record)
        if not path.exists():
            self._check_room(order)
            with self._built(path) as new:
                self._fill(new, order)
        found = self._reader(path)
        _check_same(found.record, order.record)
        self._watch(found)
        return found

    def keep(self, order: Order) -> JobFolder:
        """A job that is done when it is taken in: its result is the model as it was saved.

        Raises
        ------
        ValueError, LimitExceeded
            As `submit`.
        Conflict
            There is a job of that name.
        """
        path = self._place(order.record)
        if path.exists():
            raise Conflict(f"there is a job or a copy called {order.record.name!r} already")
        self._check_room(order)
        with self._built(path) as new:
            assert order.save is not None  # noqa: S101 - as `copy_of` makes them
            order.save(new / "result")
            made = JobFolder(new)
            made.end(Outcome(state="done"))
            made.write(order.record)
        return self._reader(path)

    def find(self, owner: str, model: str, name: str) -> JobFolder:
        """The job of that name.

        Raises
        ------
        NotFound
            This owner has none of that name, for that model.
        """
        path = self._owned(owner) / f"{model}.{name}"
        if NAME.fullmatch(name) is None or not (path / "job.json").is_file():
            here = ", ".join(self.names(owner, model)) or "none"
            raise NotFound(f"no job {name!r:.80} of {model!r}; there are: {here}")
        return self._reader(path)

    def names(self, owner: str, model: str) -> list[str]:
        """The names of an owner's jobs of one model, in the order of their submission."""
        found = sorted(self._owned(owner).glob(f"{model}.*/job.json"), key=_written)
        return [path.parent.name.partition(".")[2] for path in found]

    def outcome(self, folder: JobFolder) -> Outcome | None:
        """How a job ended, were it only that it was given up here."""
        return folder.outcome or self._given_up.get(folder.path)

    def state(self, folder: JobFolder) -> str:
        """As the folder has it, or "failed" where it was given up here."""
        given_up = folder.outcome is None and folder.path in self._given_up
        return "failed" if given_up else folder.state

    def resume(self, folder: JobFolder) -> None:
        """Lets a job that was cancelled or has failed go on from its last checkpoint."""
        folder.reopen()
        self._given_up.pop(folder.path, None)
        self._watch(folder)

    def delete(self, folder: JobFolder) -> None:
        """Forgets a job that has ended, its checkpoints and its result.

        Raises
        ------
        Conflict
            It has not ended.
        """
        if self.outcome(folder) is None:
            raise Conflict(
                f"job {folder.record.name!r} has not ended; cancel it, and wait for that"
            )
        gone = folder.path.with_name(f".{secrets.token_hex(8)}.tmp")
        with contextlib.suppress(FileNotFoundError):
            folder.path.rename(gone)
        self._given_up.pop(folder.path, None)
        shutil.rmtree(gone, ignore_errors=True)

    def drop(self, folder: JobFolder) -> None:
        """Ends a job whatever it does, and forgets it: nothing of it stays."""
        with contextlib.suppress(FileNotFoundError):  # another was first
            (folder.path / "unwanted").touch()
            folder.cancel()
        if self.outcome(folder) is not None:
            self.delete(folder)

    def _reader(self, path: Path) -> JobFolder:
        """One object a job, since it remembers where its events are."""
        with self._lock:
            found = self._readers.get(path)
            if found is None:
                found = self._readers[path] = JobFolder(path)
            return found

    # Taking one in.

    def _owned(self, owner: str) -> Path:
        return self.folder / hashlib.sha256(owner.encode()).hexdigest()[:32]

    def _place(self, record: Record) -> Path:
        if NAME.fullmatch(record.name) is None:
            raise ValueError(f"a job's name matches {NAME.pattern}, got {record.name!r:.80}")
        return self._owned(record.owner) / f"{record.model.partition('@')[0]}.{record.name}"

    def _check_room(self, order: Order) -> None:
        """Refuses what may come to take more than there is.

        Those are its rows, and ten times the weights: a base, a result, and two checkpoints
        with an optimizer's state and the best weights in them.
        """
        kept = [JobFolder(path) for path in self._owned(order.record.owner).glob("[!.]*")]
        if len(kept) >= self._leases.jobs:
            raise LimitExceeded(
                f"you have {len(kept)} jobs here, and Leases(jobs={self._leases.jobs}) are "
                "allowed; job.delete() forgets one that has ended"
            )
        wanted = sum(len(memoryview(part).cast("B")) for part in order.data) + 10 * order.weights
        taken = sum(each.nbytes for each in kept)
        if taken + wanted > self._leases.job_bytes:
            raise LimitExceeded(
                f"this job may take {wanted} bytes, beside {taken} of your others; "
                f"Leases(job_bytes={self._leases.job_bytes}) are allowed"
            )

    @contextlib.contextmanager
    def _built(self, path: Path) -> Iterator[Path]:
        """A new folder to fill, which is then the job's, unless another was first."""
        path.parent.mkdir(exist_ok=True)
        new = path.parent / f".{secrets.token_hex(8)}.tmp"
        new.mkdir()
        try:
            yield new
            try:
                new.rename(path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            DISK.sync_folder(path.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _fill(self, new: Path, order: Order) -> None:
        replace(new / "data", order.data)
        if order.save is not None:
            order.save(new / "base")
        JobFolder(new).write(order.record)

    # Processes.

    def _watch(self, folder: JobFolder) -> None:
        if self.outcome(folder) is not None:
            return
        with self._lock:
            self._watched.setdefault(folder.path, _Watched(folder))
            if self._thread is None and not self._closed:
                # It ends by itself, and must not keep a program from ending.
                self._thread = threading.Thread(target=self._tend, name="maas-jobs", daemon=True)
                self._thread.start()
        self._stirred.set()

    def _tend(self) -> None:
        while True:
            self._stirred.clear()
            with self._lock:
                watched = list(self._watched.values())
            free = self._leases.jobs_running
            waiting = []
            for each in watched:
                try:
                    state = self._looked(each)
                except OSError:
                    # Of one job; the others are looked after, and it is looked at again.
                    _LOG.exception("job %s cannot be looked at", each.folder.path.name)
                    continue
                free -= state == "running"
                if state == "queued":
                    waiting.append(each)
            for each in waiting[: max(0, free)]:
                self._start(each)
            with self._lock:
                if self._closed or not self._watched:
                    self._thread = None
                    return
            self._stirred.wait(_LOOK)

    def _looked(self, each: _Watched) -> str:
        """What became of it: "running", "queued", or "ended", and then it is watched no more."""
        if each.process is not None:
            code = each.process.poll()
            if code is None:
                if each.folder.unwanted:
                    each.process.kill()
                return "running"
            each.process = None
            # One that was done is deleted, maybe, before its process has left.
            if each.folder.path.is_dir() and each.folder.outcome is None:
                self._lost(each, code)
        if each.folder.unwanted:
            self.drop(each.folder)
        if not each.folder.path.is_dir() or self.outcome(each.folder) is not None:
            with self._lock:
                self._watched.pop(each.folder.path, None)
            return "ended"
        return each.folder.state

    def _lost(self, each: _Watched, code: int) -> None:
        """Its process ended without a word."""
        newest = each.folder.checkpoints.newest
        each.lost = 1 if newest > each.newest else each.lost + 1
        each.newest = newest
        if code == NO_SPACE:
            why = "there is no room on the disk; make some, and resume it"
        elif each.lost >= _TRIES:
            why = (
                f"its process ended {each.lost} times without a checkpoint between, at last by "
                f"{code}; its log tells more"
            )
        else:
            return
        outcome = Outcome(state="failed", message=why)
        self._given_up[each.folder.path] = outcome
        with contextlib.suppress(OSError):
            each.folder.end(outcome)

    def _start(self, each: _Watched) -> None:
        order = {"folder": str(each.folder.path), "each": self._each}
        order["path"] = [part or os.getcwd() for part in sys.path]  # noqa: PTH109 - text, as sys.path is
        try:
            with (each.folder.path / "log").open("ab") as log:
                each.process = subprocess.Popen(
                    [sys.executable, "-m", "maas.jobs.process"],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    # A session of its own: what ends this process is none of its business.
                    start_new_session=True,
                )
        except OSError as error:
            each.lost = _TRIES
            outcome = Outcome(state="failed", message=f"its process cannot be started: {error}")
            self._given_up[each.folder.path] = outcome
            return
        # It may outlive this keeper, and is waited for all the same.
        threading.Thread(target=self._await, args=(each.process,), daemon=True).start()
        assert each.process.stdin is not None  # noqa: S101 - for the type checker: it is a pipe
        with contextlib.suppress(BrokenPipeError), each.process.stdin as pipe:
            pipe.write(json.dumps(order).encode() + b"\n")

    def _await(self, process: "subprocess.Popen[bytes]") -> None:
        process.wait()
        self._stirred.set()


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns


def _check_same(here: Record, given: Record) -> None:
    if here.data != given.data:
        raise Conflict(f"job {here.name!r} was given other rows; choose another name")
    if here.recipe != given.recipe:
        names = sorted(
            name
            for name in here.recipe.keys() | given.recipe.keys()
            if here.recipe.get(name) != given.recipe.get(name)
        )
        told = ", ".join(
            f"{name}={here.recipe.get(name, 'its default')!r} there and "
            f"{given.recipe.get(name, 'its default')!r} here"
            for name in names
        )
        raise Conflict(f"job {here.name!r} has {told:.300}; choose another name")
