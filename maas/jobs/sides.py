"""Where a model's jobs are: in this process's own keeper, or at the server that has the model."""

import contextlib
import time
from pathlib import Path
from typing import Any

from maas.calls import Context
from maas.executors.base import finish
from maas.executors.remote import RemoteExecutor
from maas.jobs.desk import OPERATIONS, Desk
from maas.jobs.following import LOOK
from maas.jobs.folders import JobFolder
from maas.jobs.handles import Side
from maas.jobs.keeper import Keeper
from maas.jobs.making import made
from maas.model import Model
from maas.train.session import Session

__all__ = ["FOLDER", "JOBS", "Here", "There", "side_of"]

JOBS = "_jobs"
FOLDER = Path("maas-jobs")
"""Where the jobs of models in this process are, under the working folder."""

_RETRIES = 6
"""Of a question, about 8 seconds: a server that is started again is met."""

_keepers: dict[Path, Keeper] = {}


class Here:
    """The jobs of a model in this process."""

    where = "here"

    def __init__(self, model: Model[..., Any]) -> None:
        path = FOLDER.absolute()
        if path not in _keepers:
            _keepers[path] = Keeper(path)
            _keepers[path].open()
        self._model = model
        self._desk = Desk(_keepers[path], "here", model, model.name, model.name)

    def ask(self, operation: str, *args: Any, deadline: float | None = None) -> Any:
        """As `Side.ask`."""
        while True:
            answer = OPERATIONS[operation].answer(self._desk, *args)
            late = deadline is not None and time.monotonic() >= deadline
            if answer is not None or operation != "events" or late:
                return answer or {"events": [], "state": ""}
            time.sleep(LOOK)

    def made(self, name: str) -> Model[..., Any]:
        """As `Side.made`: a model of its own, in this process."""
        folder: JobFolder = self.ask("result", name)
        return made(folder, self._model)


    def forget(self, name: str) -> None:
        """As `Side.forget`."""
        with contextlib.suppress(Exception):
            self.ask("delete", name)


class There:
    """The jobs of a model at a server."""

    def __init__(self, executor: RemoteExecutor) -> None:
        self.executor = executor
        self.where = executor.where

    def ask(self, operation: str, *args: Any, deadline: float | None = None) -> Any:
        """As `Side.ask`; each question may be asked twice."""
        context = Context(deadline=deadline, retries=_RETRIES)
        answer = self.executor.put(JOBS, (operation, *args), context, repeatable=True)
        return finish(answer).value

    def made(self, name: str) -> Model[..., Any]:
        """As `Side.made`: the version at the server."""
        return Model.over(self.executor.beside(self.ask("result", name)), self.executor.name)


    def forget(self, name: str) -> None:
        """As `Side.forget`."""
        self.executor.tell(JOBS, ("delete", name))


def side_of(model: Model[..., Any]) -> Side:
    """Where the jobs of this model are."""
    executor = model.executor
    if isinstance(executor, Session):
        executor = executor.inner
    if isinstance(executor, RemoteExecutor):
        return There(executor)
    return Here(model)
