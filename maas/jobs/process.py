"""The process of one job: `python -m maas.jobs.process`, told which by a line of JSON.

It is started by a keeper and does not end with it. Whatever it needs is in the folder, and
whatever it does is written there, so it can be killed at any moment and begun again: it goes on
from the last checkpoint, and the steps after that come out the same to the last bit.
"""

import contextlib
import errno
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch

from maas import entry_points
from maas.errors import Cancelled, Unsupported
from maas.jobs.events import EventWriter
from maas.jobs.folders import JobFolder, Outcome, Record
from maas.jobs.rows import given
from maas.jobs.sealed import unsealed
from maas.model import Model, connect
from maas.store import load, save
from maas.store.folders import MANIFEST
from maas.train.course import Course
from maas.train.fit import run_for
from maas.train.here import local_executor, rows_for
from maas.train.machine import keep_freed_memory
from maas.train.recipe import Recipe

__all__ = ["NO_SPACE", "carry_out", "main"]

_LOG = logging.getLogger("maas")

NO_SPACE = 28
"""How the process ends where there is no room to write down why: the number of ENOSPC."""

_EACH = 10.0
"""Seconds between checkpoints, which a crash costs at most; a last one is not written."""
_SHARE = 50
"""And so many times what the last one took, so that they cost 2 percent at most."""

_PATIENCE = 5.0
"""Seconds for those to let go of the lock who only look whether it is held."""


def main() -> None:
    """Carries the job out that standard input names."""
    order = json.loads(sys.stdin.readline())
    sys.path[:] = order["path"]
    folder = JobFolder(Path(order["folder"]))
    with _held(folder) as held:
        if held and folder.outcome is None:
            sys.exit(_ended(folder, float(order.get("each", _EACH))))


@contextlib.contextmanager
def _held(folder: JobFolder) -> Iterator[bool]:
    until = time.monotonic() + _PATIENCE
    while True:
        with folder.locked() as free:
            if free or time.monotonic() > until:
                yield free
                return
        time.sleep(0.02)


def _ended(folder: JobFolder, each: float) -> int:
    """Carries it out and writes down how it ended; 0 where that could be written."""
    try:
        outcome = carry_out(folder, each)
    except Exception as error:  # noqa: BLE001 - the job's to tell
        outcome = Outcome.of(error)
        _LOG.exception("job %s failed", folder.path.name)
    try:
        folder.end(outcome)
    except OSError as error:
        _LOG.exception("how job %s ended cannot be written", folder.path.name)
        return NO_SPACE if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) else 1
    return 0


def carry_out(folder: JobFolder, each: float) -> Outcome:
    """Does the work, until it is done or cancelled.

    Parameters
    ----------
    each : seconds between the checkpoints of training.
    """
    record = folder.record
    _settle(record)
    model = _model(folder, record)
    rows = unsealed((folder.path / "data").read_bytes())
    if record.work == "fit":
        return _trained(folder, model, rows, each)
    return _worked(folder, model, rows)


def _worked(folder: JobFolder, model: Model[..., Any], rows: dict[str, Any]) -> Outcome:
    """Does work of another kind, which begins anew after a crash: it has no checkpoints.

    Its entry point is a function `work(model, recipe, rows, tell)`, which gives a model; `tell`
    adds an event, plain data, and raises `Cancelled` where the work is to stop.
    """
    record = folder.record
    work = entry_points.load("maas.works", record.work)
    if work is None:
        raise Unsupported(f"nothing installed here does the work {record.work!r:.80}")
    with EventWriter(folder.path / "events", 0) as events:

        def tell(event: dict[str, Any]) -> None:
            events.append(event)
            if folder.cancelling:
                raise Cancelled("somebody asked it to stop")

        try:
            made = work(model, record.recipe, rows, tell)
        except Cancelled:
            return Outcome(state="cancelled")
        events.sync()
    save(made, folder.path / "result")
    return Outcome(state="done")


def _trained(
    folder: JobFolder, model: Model[..., Any], rows: dict[str, Any], each: float
) -> Outcome:
    """Trains from the last checkpoint on."""
    kind, target = _target(model)
    held = given(rows["validation"])
    run: Course = run_for(kind)(
        target,
        rows_for(model, given(rows["rows"])),
        Recipe.of(folder.record.recipe),
        validation=None if held is None else rows_for(model, held),
    )
    last = folder.checkpoints.load()
    if last is not None:
        run.restore(last.state["run"])
    with EventWriter(folder.path / "events", 0 if last is None else last.state["events"]) as events:
        pace = _Pace(each)
        for step in run:
            events.append(attrs.asdict(step))
            cancelled = folder.cancelling
            if cancelled or pace.due():
                _checkpoint(folder, run, events)
                pace.done()
            if cancelled:
                return Outcome(state="cancelled")
        events.sync()
    save(model, folder.path / "result")
    return Outcome(state="done", stopped=run.stopped, best=run.best)


def _settle(record: Record) -> None:
    """What it computes with, as it was where the job was submitted."""
    if record.keras is not None:
        os.environ["KERAS_BACKEND"] = record.keras  # fixed at the first import of keras
    if record.keras == "tensorflow":
        threading = importlib.import_module("tensorflow").config.threading
        threading.set_intra_op_parallelism_threads(record.threads)
    else:
        torch.set_num_threads(record.threads)
        keep_freed_memory()


class _Pace:
    """When the next checkpoint is due."""

    def __init__(self, each: float) -> None:
        self._each = each
        self._asked = time.monotonic()
        self._next = self._asked + each

    def due(self) -> bool:
        self._asked = time.monotonic()
        return self._asked >= self._next

    def done(self) -> None:
        now = time.monotonic()
        pause = max(self._each, _SHARE * (now - self._asked)) if self._each else 0.0
        self._next = now + pause


def _checkpoint(folder: JobFolder, run: Course, events: EventWriter) -> None:
    # First what it counts on.
    events.sync()
    state = {"run": run.state(), "events": events.count}
    folder.checkpoints.save(events.count, state)


def _model(folder: JobFolder, record: Record) -> Model[..., Any]:
    """The model as it was when the job began."""
    base = folder.path / "base"
    if record.module is None:
        return load(base)
    found = connect(f"local:{record.module}")
    if not (base / MANIFEST).is_file():
        # An import may draw its weights, and must do so only once.
        save(found, base)
    return load(base, into=_target(found)[1])


def _target(model: Model[..., Any]) -> tuple[str, Any]:
    """What the job trains, and of which kind it is."""
    executor = local_executor(model)
    if executor is None:
        raise Unsupported(
            f"{model.name} runs at {model.where}; a job trains what is in its process"
        )
    return executor.backend.kind, executor.backend.target


if __name__ == "__main__":
    main()
