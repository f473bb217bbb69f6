"""Trials of a search for a model that runs elsewhere: each is a job where the model is.

What is proposed, compared and remembered stands in `search.py`, and is the same here and there.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from maas.errors import NotFound
from maas.model import Model
from maas.train.history import Epoch, Step

__all__ = ["JobRun", "JobTrainer"]


class JobRun:
    """The run of one job, as `maas.train.loop.Run` tells of one here."""

    def __init__(self, job: Any) -> None:
        self.job = job
        self.epochs: list[Epoch] = []
        self.stopped: str | None = None
        self.best: int | None = None

    def __iter__(self) -> Iterator[Step]:
        last: Step | None = None
        for step in self.job.events():
            if last is not None:
                yield self._taken(last)
            last = step
        # Before the last step is told: whoever is told it may ask why the run ended.
        told = self.job.told()
        if told["state"] != "done":
            self.job.result()  # raises what it failed by
        self.stopped, self.best = told["stopped"], told["best"]
        if last is not None:
            yield self._taken(last)

    def _taken(self, step: Step) -> Step:
        if step.metrics:
            self.epochs.append(Epoch.ended_by(step))
        return step


@attrs.define(kw_only=True)
class JobTrainer:
    """Trains copies by jobs, and keeps that of the best trial.

    Attributes
    ----------
    token : of the search, by which a later session finds its jobs.
    """

    asked: Model[..., Any]
    data: Any
    validation: Any
    fixed: Mapping[str, Any]
    variants: Mapping[str, Any] = attrs.field(factory=lambda: {"": None})
    token: str = ""
    _kept: tuple[int, JobRun] | None = None

    @property
    def _prefix(self) -> str:
        return f"search-{self.token}-"

    def check(self, options: Mapping[str, Any], variant: str) -> None:
        """Nothing is known of the module before a job is there."""

    def run(self, options: Mapping[str, Any], _variant: str, number: int) -> JobRun:
        """Of that trial's job, which is there already if it was the best of an earlier session."""
        options = {**self.fixed, **options}
        validation = options.pop("validation", self.validation)
        name = f"{self._prefix}{number}"
        return JobRun(self.asked.fit.submit(self.data, validation=validation, name=name, **options))

    def keep(self, number: int, run: JobRun) -> None:
        """This trial is the best so far; the jobs of all others go."""
        self._kept = number, run
        for job in self.asked.jobs():
            if job.name.startswith(self._prefix) and job.name != run.job.name:
                self.drop(JobRun(job))

    def drop(self, run: JobRun) -> None:
        """Forgets a job, which is stopped if it goes on."""
        with contextlib.suppress(NotFound):
            run.job.cancel()
            run.job.wait()
            run.job.delete()

    def model(self, trial: Any) -> Model[..., Any]:
        """The trial's model, trained: a version at its server."""
        if self._kept is None or self._kept[0] != trial.number:
            run = self.run(trial.options, "", trial.number)
            for _ in run:
                pass
            self.keep(trial.number, run)
        made: Model[..., Any] = self._kept[1].job.result()  # type: ignore[index]
        return made
