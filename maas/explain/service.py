"""Explanations at a server: the service `_explain(question)`, which needs the grant `explain`.

What an explanation costs is known before it runs: rows of the model, charged against the caller's
quota like the rows of calls. A few wait at a time, shared among callers as the calls to a model
are; one whose caller has left ends at its next run of the model.
"""

from functools import partial
from typing import Any

from maas.calls import Call, Result
from maas.errors import CodecError
from maas.executors.base import Job
from maas.executors.lanes import Lane
from maas.explain.asking import answered
from maas.explain.explanation import Question
from maas.model import Model
from maas.server.admission import Slots, rows_of
from maas.server.guard import Caller
from maas.server.services import Services, fields, settle
from maas.wire import Failure

__all__ = ["Explainer"]

_WAITING = 64
"""Explanations in hand at one server; each may hold a thread for seconds."""
_THREADS = 1


class Explainer:
    """The explanations of one server's models."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._slots = Slots(_WAITING, "the explanations of this server", shared=True)
        self._lane = Lane(_THREADS, "maas-explain")

    def submit(self, caller: Caller, model: Model[..., Any], call: Call) -> Job[Any]:
        """The explanation, later; raises `Forbidden` where the caller may not have any."""
        caller.check_grant("explain", call.model)
        (data,) = fields(call, dict)
        question = _question(data)
        self._slots.enter(caller.id)
        job: Job[Any] = Job()
        job.begins_later()
        job.when_ended(lambda: self._slots.leave(caller.id))
        self._lane.put(
            partial(self._work, job, caller, model, question, call),
            partial(_dropped, job),
        )
        return job

    def _work(
        self,
        job: Job[Any],
        caller: Caller,
        model: Model[..., Any],
        question: Question,
        call: Call,
    ) -> None:
        job.begin()
        try:
            settle(job, lambda: self._answered(job, caller, model, question, call))
        finally:
            job.end()

    def _answered(
        self,
        job: Job[Any],
        caller: Caller,
        model: Model[..., Any],
        question: Question,
        call: Call,
    ) -> Result:
        # What came with the message was charged as the rows of any call are.
        came = rows_of(call)

        def charge(rows: int) -> None:
            self._services.charge(caller, max(0, rows - came))

        return Result(
            answered(model.executor, question, call.context, charge=charge, given_up=job.done)
        )


def _dropped(job: Job[Any], error: Exception) -> None:
    job.settle(Failure(error))
    job.end()


def _question(data: dict[str, Any]) -> Question:
    kinds = {
        "args": tuple,
        "kwargs": dict,
        "target": object,
        "method": str,
        "at": str | None,
        "baseline": object,
        "options": dict,
        "seed": int,
        "shuffled": int | None,
    }
    if data.keys() != kinds.keys() or not all(
        isinstance(data[name], kind) for name, kind in kinds.items()
    ):
        raise CodecError(f"a question for an explanation has the fields {', '.join(kinds)}")
    if not 0 <= data["seed"] < 2**63 or not all(type(name) is str for name in data["options"]):
        raise CodecError("a question for an explanation has a seed from 0 and options by name")
    return Question(**data)
