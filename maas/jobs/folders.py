"""One job as a folder: what it is, how far it is, and what became of it.

    job.json        what it is; written once
    data            its rows, a sealed file
    base/           the model that it began with
    checkpoint-N    the last two of them
    events          each step
    lock            held by the process that carries it out
    cancel          there once somebody asked it to stop
    unwanted        there once nobody wants what it would make
    outcome.json    there once it has ended
    result/         the trained model, there once it is done
    log             what its processes printed

Everything that is known about a job is here, so whoever opens the folder knows it: another
server, or the same one after a restart.
"""

import base64
import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from maas import wire
from maas.errors import Cancelled, CodecError, WorkerLost
from maas.failures import presentable
from maas.jobs.checkpoints import Checkpoints
from maas.jobs.disk import replace
from maas.jobs.events import EventReader
from maas.limits import Limits
from maas.wire import Failure

__all__ = ["ENDED", "JobFolder", "Outcome", "Record"]

ENDED = frozenset({"done", "failed", "cancelled"})
"""States that a job stays in, unless it is resumed."""


@attrs.frozen(kw_only=True)
class Record:
    """What a job is.

    Attributes
    ----------
    name, owner : what it is called, and by whom.
    model : address of the model it begins with, as its place has it.
    recipe : how it is done, as the kind of work writes it: `maas.train.recipe.Recipe` for "fit".
    data : SHA-256 of its rows.
    module : import path of the model, where its layers are not all torch's own.
    threads : compute threads of torch, or of TensorFlow; another number may round otherwise.
    keras : what Keras runs on, where the model is one of its; a process has one of them.
    work : what is done: "fit", or the name of an entry point in `maas.works`.
    """

    name: str
    owner: str
    model: str
    recipe: dict[str, Any]
    data: str
    module: str | None
    threads: int
    keras: str | None = None
    work: str = "fit"


@attrs.frozen(kw_only=True)
class Outcome:
    """How a job ended.

    Attributes
    ----------
    state : "done", "failed" or "cancelled".
    message, error : what it failed by, for people and as a message of the wire format.
    stopped, best : as `maas.train.history.History` has them.
    """

    state: str
    message: str = ""
    error: str = ""
    stopped: str | None = None
    best: int | None = None

    @classmethod
    def of(cls, error: BaseException) -> "Outcome":
        """It failed by this."""
        message = b"".join(wire.encode(Failure(presentable(error)), Limits()))
        return cls(
            state="failed",
            message=f"{type(error).__name__}: {error}"[:2000],
            error=base64.b64encode(message).decode(),
        )

    @property
    def exception(self) -> Exception | None:
        """What whoever wants its result is told; None if there is one."""
        if self.state == "done":
            return None
        if self.state == "cancelled":
            return Cancelled("the job was cancelled; submit it again with resume=job")
        if not self.error:
            return WorkerLost(self.message)
        told: Any = wire.decode(bytearray(base64.b64decode(self.error)), Limits())
        return told.error if isinstance(told, Failure) else WorkerLost(self.message)


class JobFolder:
    """The folder of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = EventReader(path / "events")

    @property
    def record(self) -> Record:
        """What it is.

        Raises
        ------
        FileNotFoundError
            There is no job in this folder.
        """
        return Record(**json.loads((self.path / "job.json").read_bytes()))

    @property
    def checkpoints(self) -> Checkpoints:
        """Its checkpoints."""
        return Checkpoints(self.path)

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None for one that has not."""
        try:
            return Outcome(**json.loads((self.path / "outcome.json").read_bytes()))
        except FileNotFoundError:
            return None

    @property
    def state(self) -> str:
        """queued, running, done, failed or cancelled."""
        outcome = self.outcome
        if outcome is not None:
            return outcome.state
        with self.locked() as free:
            return "queued" if free else "running"

    @property
    def cancelling(self) -> bool:
        """Whether somebody asked it to stop."""
        return os.path.lexists(self.path / "cancel")

    def cancel(self) -> None:
        """Asks it to stop, with a checkpoint; one that no process carries out has then ended."""
        (self.path / "cancel").touch()
        with self.locked() as free:
            if free and self.outcome is None:
                self.end(Outcome(state="cancelled"))

    @property
    def unwanted(self) -> bool:
        """Whether it is to be forgotten as soon as its process has ended."""
        return os.path.lexists(self.path / "unwanted")

    def reopen(self) -> None:
        """Lets one that was cancelled, or is to be, or has failed go on."""
        if self.outcome is None:
            (self.path / "cancel").unlink(missing_ok=True)
        with self.locked() as free:
            outcome = self.outcome
            if free and outcome is not None and outcome.state != "done":
                (self.path / "cancel").unlink(missing_ok=True)
                (self.path / "outcome.json").unlink(missing_ok=True)

    def end(self, outcome: Outcome) -> None:
        """Writes down how it ended."""
        _write(self.path / "outcome.json", attrs.asdict(outcome))

    def write(self, record: Record) -> None:
        """Writes down what it is."""
        _write(self.path / "job.json", attrs.asdict(record))

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether no process carries it out, and then none can until this has ended.

        The system lets go of the lock when its process ends, however that may be.
        """
        with contextlib.ExitStack() as stack:
            try:
                file = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:  # the folder was removed
                yield False
                return
            stack.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            else:
                free = True
            yield free

    @property
    def nbytes(self) -> int:
        """Bytes of its files."""
        total = 0
        for folder, _, files in os.walk(self.path):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(Path(folder, name)).st_size
        return total


def _write(path: Path, data: dict[str, Any]) -> None:
    try:
        text = json.dumps(data, indent=2)
    except TypeError as error:
        raise CodecError(f"{path.name} cannot hold this: {error}") from error
    replace(path, [text.encode()])
