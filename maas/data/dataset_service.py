"""Datasets at a server: the service `_data`.

    find(name)                         what is said of a dataset, or None
    names()                            all of yours
    drop(name)                         deletes one
    begin(name)                        an upload, by a name that cannot be guessed, and how many
                                       batches of it are here; "" for a name that is not known yet
    add(upload, number, inputs, targets)
    end(upload)                        puts it in its place, and says what it is called
    label(request, target)             what the answer to a request should have been
    collected()                        makes a dataset of the requests that have a label

Whoever may train may upload what to train on. A dataset belongs to who uploaded it, or made it of
what was collected, which is a grant of its own: it holds what others asked. So is to give labels.
"""

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from maas.calls import Call, Result
from maas.data.data import Data
from maas.data.datasets import Datasets, Facts, Writing
from maas.data.journal import Journal
from maas.data.rows import columns
from maas.errors import CodecError, Expired, NotFound, Unsupported
from maas.executors.base import Job
from maas.executors.lanes import Lane
from maas.model import Model
from maas.server.guard import Caller
from maas.server.leases import Bounds, Table
from maas.server.services import Services, settle
from maas.wire import Failure

__all__ = ["FOLDER", "DatasetService"]

FOLDER = ".datasets"
"""Within the folder of the jobs: no owner of jobs is called so."""

_UPLOADS = 4
_REST = 600.0
"""Uploads of one caller at once, and the seconds that one may rest."""


_REMEMBERED = 1_024
"""Names of what is being uploaded that are remembered."""


class DatasetService:
    """The datasets of one server, beside its jobs."""

    def __init__(self, services: Services) -> None:
        self._lane = Lane(1, "maas-data-service")
        self._uploads: Table[Writing] = Table(
            Bounds(
                "this upload", _UPLOADS, 1, _REST, ("uploads", "uploads", "uploads"), gives_way=True
            )
        )
        self._catalogue = services.catalogue
        self._collectors = services.collectors
        self._begun: dict[tuple[str, str], str] = {}
        self._kept: Datasets | None = None
        if services.jobs is not None:
            leases = services.leases
            self._kept = datasets_in(services.jobs, leases.datasets, leases.dataset_bytes)

    @property
    def datasets(self) -> Datasets:
        """Where they are; raises `Unsupported` where none are kept."""
        if self._kept is None:
            raise Unsupported(
                "this server keeps no datasets: its owner gives it a folder for them and for jobs, "
                "Server(..., jobs='folder') or maas serve --jobs FOLDER"
            )
        return self._kept

    def rows(self, owner: str, name: str) -> Data:
        """An owner's dataset, verified; raises as `Datasets.open` does."""
        return Data(self.datasets.open(owner, name))

    def submit(self, caller: Caller, _model: Model[..., Any], call: Call) -> Job[Any]:
        """The answer, later; raises `Forbidden` where the caller may not train."""
        operation, *rest = call.args or ("",)
        known = _OPERATIONS.get(operation) if type(operation) is str else None
        caller.check_grant("train" if known is None else known.grant, call.model)
        if known is None or call.kwargs or not known.fits(rest):
            raise CodecError(f"_data wants one of {', '.join(_OPERATIONS)}, and what belongs to it")
        if known.grant != "train":
            rest = [self._collection(call.model), *rest]
        job: Job[Any] = Job()
        self._lane.put(
            partial(settle, job, lambda: Result(known.answer(self, caller.id, *rest))),
            lambda error: job.settle(Failure(error)),
        )
        return job

    def _find(self, owner: str, name: str) -> dict[str, Any] | None:
        try:
            return _told(self.datasets.find(owner, name))
        except NotFound:
            return None

    def _names(self, owner: str) -> list[dict[str, Any]]:
        return [_told(each) for each in self.datasets.facts(owner)]

    def _drop(self, owner: str, name: str) -> None:
        self.datasets.drop(owner, name)

    def _begin(self, owner: str, name: str) -> list[Any]:
        """One that was broken off goes on: its owner has announced the same content."""
        if name:
            with contextlib.suppress(Expired):
                upload = self._begun.get((owner, name), "")
                found = self._uploads.find(owner, upload)
                # One that has ended may have been deleted since.
                if not found.ended:
                    return [upload, found.numbered]
        upload = self._uploads.add(owner, self.datasets.begin(owner, name), 0)
        if name:
            self._begun[owner, name] = upload
        while len(self._begun) > _REMEMBERED:
            del self._begun[next(iter(self._begun))]
        return [upload, 0]

    def _add(self, owner: str, upload: str, number: int, inputs: Any, targets: Any) -> None:
        self._uploads.find(owner, upload).add(number, inputs, targets)

    def _end(self, owner: str, upload: str) -> dict[str, Any]:
        try:
            return _told(self._uploads.find(owner, upload).end())
        except CodecError:
            self._uploads.drop(owner, [upload])
            raise

    def _collection(self, address: str) -> "_Collection":
        """What is kept of a model's requests; raises `Unsupported` where nothing is."""
        version = self._catalogue.find(address)
        collector = None if version is None else self._collectors.of(version.name)
        if version is None or collector is None:
            raise Unsupported(
                f"this server keeps nothing of what {address!r:.80} is asked; its owner may: "
                "Server(..., collect=maas.data.Collect('folder')) or maas serve --collect FOLDER"
            )
        return partial(collector.ask, version.name)

    def _label(self, _owner: str, collection: "_Collection", request: str, target: Any) -> None:
        targets = columns(target, "the label")
        collection(lambda journal: journal.label(request, targets))

    def _collected(self, owner: str, collection: "_Collection") -> dict[str, Any]:
        writing = self.datasets.begin(owner)

        def written(journal: Journal) -> int:
            found = journal.labelled()
            for number, block in enumerate(found.blocks(), 1):
                writing.add(number, *block)
            return found.left_out

        left_out = collection(written)
        return {**_told(writing.end()), "left_out": left_out}


_Collection = Callable[[Callable[[Journal], Any]], Any]
"""Asks a journal."""


def datasets_in(jobs: Path, most: int, nbytes: int) -> Datasets:
    """The datasets beside the jobs of a folder."""
    return Datasets(jobs / FOLDER, most=most, nbytes=nbytes)


def _told(facts: Facts) -> dict[str, Any]:
    return attrs.asdict(facts)


@attrs.frozen
class _Operation:
    kinds: tuple[type, ...]
    answer: Callable[..., Any]
    grant: str = "train"

    def fits(self, rest: list[Any]) -> bool:
        return len(rest) == len(self.kinds) and all(map(isinstance, rest, self.kinds))


_OPERATIONS: Mapping[str, _Operation] = {
    "find": _Operation((str,), DatasetService._find),
    "names": _Operation((), DatasetService._names),
    "drop": _Operation((str,), DatasetService._drop),
    "begin": _Operation((str,), DatasetService._begin),
    "add": _Operation((str, int, object, object), DatasetService._add),
    "end": _Operation((str,), DatasetService._end),
    "label": _Operation((str, object), DatasetService._label, "label"),
    "collected": _Operation((), DatasetService._collected, "collect"),
}
