"""Jobs at a server: the service `_jobs`, whose questions are those of `desk.py`.

A job belongs to the caller who submitted it; to others it is not there. Its result is a version
of the model, `net@run-42`, which is loaded when it is first asked for.
"""

import hashlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from maas.calls import Call, Result
from maas.errors import CodecError, Forbidden, NotFound, Unsupported
from maas.executors.base import Job
from maas.executors.lanes import Lane
from maas.jobs.desk import OPERATIONS, Desk, seen
from maas.jobs.folders import JobFolder
from maas.jobs.following import Followers
from maas.jobs.keeper import Keeper
from maas.jobs.making import made
from maas.jobs.rows import packed
from maas.model import Model
from maas.server.guard import Caller
from maas.server.services import Services, fields, settle
from maas.wire import Failure

__all__ = ["JobService"]

_TRAINING = ("submit", "copy", "resume")


class JobService:
    """The jobs of one server; those that its folder holds go on at once."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._catalogue = services.catalogue
        self._lane = Lane(2, "maas-job-service")
        self._followers = Followers()
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, str, str], str] = {}
        self._keeper: Keeper | None = None
        if services.jobs is not None:
            self._keeper = Keeper(services.jobs, services.leases)
            self._keeper.open()

    def close(self) -> None:
        """Looks after them no more; what runs goes on."""
        if self._keeper is not None:
            self._keeper.close()

    def submit(self, caller: Caller, model: Model[..., Any], call: Call) -> Job[Any]:
        """The answer, later; raises `Forbidden` where the caller may not train, or publish."""
        if call.args[:1] == ("publish",):
            return self._published(caller, call)
        operation, *rest = call.args or ("",)
        # Work of other kinds is begun by services of its own, and asked about here.
        asks = type(operation) is str and operation not in _TRAINING
        if not (asks and "compress" in caller.allow):
            caller.check_grant("train", call.model)
        known = OPERATIONS.get(operation) if type(operation) is str else None
        if known is None or call.kwargs or [type(each) for each in rest] != [*known.kinds]:
            raise CodecError(f"_jobs wants one of {', '.join(OPERATIONS)}, and what belongs to it")
        copy = rest.pop() if operation in ("submit", "copy") else ""
        desk = self.desk(caller, model, call.model, copy)
        if operation == "events":
            name, start = rest
            return self._followers.follow(partial(seen, desk.keeper, desk.found(name), start))
        return self.later(lambda: self._answer(desk, operation, rest))

    def desk(self, caller: Caller, model: Model[..., Any], address: str, copy: str) -> Desk:
        """Where this caller asks about the jobs of a model.

        New ones begin with the caller's private copy of that name, unless it is "".

        Raises
        ------
        Unsupported
            No jobs are kept here.
        """
        if self._keeper is None:
            raise Unsupported(
                "this server keeps no jobs: its owner gives it a folder for them, "
                "Server(..., jobs='folder') or maas serve --jobs FOLDER"
            )
        version = self._catalogue.find(address)
        if version is None:
            raise NotFound(f"no model {address!r:.80} here")
        begun = self._begun_with(caller, model, copy)
        return Desk(self._keeper, caller.id, begun, version.name, version.address)

    def later(self, answer: Callable[[], Any]) -> Job[Any]:
        """What `answer` gives, from the thread that asks about jobs."""
        job: Job[Any] = Job()
        self._lane.put(
            partial(settle, job, lambda: Result(answer())),
            lambda error: job.settle(Failure(error)),
        )
        return job

    def _published(self, caller: Caller, call: Call) -> Job[Any]:
        """Lets a name mean the version that is asked."""
        caller.check_grant("publish", call.model)
        _, name = fields(call, str, str)
        version = self._catalogue.find(call.model)
        if version is None:
            raise NotFound(f"no model {call.model!r:.80} here")
        name = name or version.name
        if caller.models is not None and name not in caller.models:
            raise Forbidden(
                f"your key is not granted {name!r:.80}, so it may not say what it means"
            )
        job: Job[Any] = Job()

        def switched() -> Result:
            self._catalogue.alias(name, version.address)
            return Result(None)

        settle(job, switched)
        return job

    def _begun_with(self, caller: Caller, model: Model[..., Any], copy: str) -> Model[..., Any]:
        """The model itself, or the caller's private copy of that name."""
        if not copy:
            return model
        executor = self._services.made("_train").table.find(caller.id, copy).executor
        return Model.over(executor, model.name)

    def _answer(self, desk: Desk, operation: str, rest: list[Any]) -> Any:
        if operation in ("delete", "drop"):
            self._unload(desk, *rest)
        if operation == "submit":
            rest[2] = self.rows(desk.owner, rest[2])
        answer = OPERATIONS[operation].answer(desk, *rest)
        return self._address(desk, answer) if operation == "result" else answer

    def rows(self, owner: str, parts: dict[str, Any]) -> dict[str, Any]:
        """Rows as they came, or those of the datasets that are named; the job keeps a copy."""
        return {part: self._rows(owner, each) for part, each in parts.items()}

    def _rows(self, owner: str, rows: Any) -> Any:
        if type(rows) is not dict or rows.keys() != {"dataset"}:
            return rows
        return packed(self._services.made("_data").rows(owner, rows["dataset"]))

    def _address(self, desk: Desk, folder: JobFolder) -> str:
        """The address of what a job has made, which is loaded if it is not yet."""
        key = (desk.owner, desk.name, folder.record.name)
        with self._lock:
            if key not in self._loaded:
                address = self._free(*key)
                self._catalogue.add(address, made(folder, desk.model), owned=True)
                self._loaded[key] = address
            return self._loaded[key]

    def _free(self, owner: str, model: str, job: str) -> str:
        """An address for it: `net@job`, with something of its owner where that is taken."""
        address = f"{model}@{job}"
        if self._catalogue.find(address) is None:
            return address
        return f"{address[: len(model) + 57]}-{hashlib.sha256(owner.encode()).hexdigest()[:7]}"

    def _unload(self, desk: Desk, name: str) -> None:
        """What it made is a version no more; raises `ValueError` where a name means it."""
        key = (desk.owner, desk.name, name)
        with self._lock:
            if key in self._loaded:
                self._catalogue.remove(self._loaded[key])
                del self._loaded[key]
