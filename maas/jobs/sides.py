"""Where a model's jobs are: in this process's own keeper, or at the server that has the model."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from maas.calls import Context, Result
from maas.data import upload
from maas.errors import Unsupported
from maas.executors.base import finish
from maas.executors.remote import RemoteExecutor
from maas.jobs.desk import OPERATIONS, Desk
from maas.jobs.folders import JobFolder
from maas.jobs.following import LOOK, NOTHING
from maas.jobs.handles import Side
from maas.jobs.keeper import Keeper
from maas.jobs.making import made
from maas.jobs.rows import given, size
from maas.model import Model
from maas.train.keras_session import KerasSession
from maas.train.session import Session
from maas.wire import Failure

__all__ = ["FOLDER", "JOBS", "Here", "There", "side_of"]

JOBS = "_jobs"
FOLDER = Path("maas-jobs")
"""Where the jobs of models in this process are, under the working folder."""

_RETRIES = 6
"""Of a question, about 8 seconds: a server that is started again is met."""

_MESSAGE = 32 * 2**20
"""Bytes of rows that go to a server in the message that submits a job."""

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

    def rows(self, packed: dict[str, Any] | None) -> dict[str, Any] | None:
        """As `Side.rows`."""
        return packed

    def submit(self, *args: Any) -> None:
        """As `Side.submit`."""
        self._desk.submitted(*args)

    def copy(self, name: str) -> None:
        """As `Side.copy`."""
        self._desk.copied(name)

    def publish(self, name: str) -> None:
        """As `Side.publish`."""
        raise Unsupported(
            f"{self._model.name} is not at a server, so {name or 'no name'!r:.80} cannot mean it; "
            "server.load(...) and server.alias(...) are for whoever owns one"
        )

    def ask(self, operation: str, *args: Any, deadline: float | None = None) -> Any:
        """As `Side.ask`."""
        while (answer := OPERATIONS[operation].answer(self._desk, *args)) is None:
            if operation != "events":
                break
            if deadline is not None and time.monotonic() >= deadline:
                return NOTHING
            time.sleep(LOOK)
        return answer

    def made(self, name: str) -> Model[..., Any]:
        """As `Side.made`: a model of its own, in this process."""
        folder: JobFolder = self.ask("result", name)
        return made(folder, self._model)

    def forgetting(self, name: str) -> Callable[[], None]:
        """As `Side.forgetting`."""
        return partial(self.ask, "delete", name)


class There:
    """The jobs of a model at a server."""

    def __init__(self, executor: RemoteExecutor, session: Session | None) -> None:
        self.where = executor.where
        self._executor = executor
        self._session = session

    def rows(self, packed: dict[str, Any] | None) -> dict[str, Any] | None:
        """As `Side.rows`; they are a dataset there, which stays for the next job."""
        if packed is None or packed.keys() == {"dataset"}:
            return packed
        origin = self._executor.origin
        most = min(_MESSAGE, origin.describe().limits.get("body", _MESSAGE) // 2)
        if size(packed) <= most:
            return packed
        return {"dataset": upload(Model.over(origin, origin.name), given(packed)).name}

    def submit(self, *args: Any) -> None:
        """As `Side.submit`; it begins with the handle's private copy, if that differs."""
        finish(self._put(self._executor, "submit", *args, self._own()))

    def order(self, service: str, *question: Any) -> None:
        """Has another service begin a job, likewise."""
        context = Context(retries=_RETRIES)
        finish(self._executor.put(service, (*question, self._own()), context, repeatable=True))

    def copy(self, name: str) -> None:
        """As `Side.copy`."""
        finish(self._put(self._executor, "copy", name, self._own(), repeatable=False))

    def publish(self, name: str) -> None:
        """As `Side.publish`."""
        if self._own():
            raise Unsupported(
                "this handle has a private copy, which is no version of the model: "
                "model.copy(name).publish() makes it one"
            )
        finish(self._put(self._executor, "publish", name))

    def _own(self) -> str:
        """The name of the handle's private copy; "" where there is none that differs."""
        return "" if self._session is None else self._session.settled()

    def ask(self, operation: str, *args: Any, deadline: float | None = None) -> Any:
        """As `Side.ask`; each question may be asked twice."""
        # Of the origin, so that one result does not keep the one before it.
        return finish(self._put(self._executor.origin, operation, *args, deadline=deadline)).value

    def _put(
        self,
        executor: RemoteExecutor,
        *question: Any,
        deadline: float | None = None,
        repeatable: bool = True,
    ) -> Result | Failure:
        context = Context(deadline=deadline, retries=_RETRIES)
        return executor.put(JOBS, question, context, repeatable=repeatable)

    def made(self, name: str) -> Model[..., Any]:
        """As `Side.made`: the version at the server."""
        executor = self._executor.origin.beside(self.ask("result", name))
        return Model.over(executor, executor.name)

    def forgetting(self, name: str) -> Callable[[], None]:
        """As `Side.forgetting`."""
        return partial(self._executor.origin.tell, JOBS, ("delete", name))


def side_of(model: Model[..., Any]) -> Side:
    """Where the jobs of this model are."""
    executor = model.executor
    if isinstance(executor, KerasSession):
        raise Unsupported(
            f"this handle of {model.name} trains a private copy by its trainable_variables; "
            "connect anew for a job"
        )
    session = executor if isinstance(executor, Session) else None
    executor = executor if session is None else session.inner
    if isinstance(executor, RemoteExecutor):
        return There(executor, session)
    return Here(model)
