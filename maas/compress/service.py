"""Compression at a server: the service `_compress`, which needs the grant `compress`.

    _compress(name, question, rows, copy)    begins a job of that name

The job has a process of its own: the server's loop, the calls of others and torch's generator here
are none of its business, and whatever it comes to, the model that is served stays as it is. How it
goes on is asked of `_jobs`. What it makes is one more version of the model, under the job's name,
which no name means until it is published.
"""

from typing import Any

from maas.calls import Call
from maas.compress.question import Question
from maas.errors import NotFound
from maas.executors.base import Job
from maas.jobs.desk import Desk
from maas.model import Model
from maas.server.admission import rows_of
from maas.server.guard import Caller
from maas.server.services import Services, fields

__all__ = ["Compressor"]


class Compressor:
    """The compressions of one server's models."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def submit(self, caller: Caller, model: Model[..., Any], call: Call) -> Job[Any]:
        """Nothing, once the job is begun; raises `Forbidden` where the caller may not have it."""
        caller.check_grant("compress", call.model)
        name, plain, rows, copy = fields(call, str, dict, dict, str)
        jobs = self._services.made("_jobs")
        desk: Desk = jobs.desk(caller, model, call.model, copy)
        came = rows_of(call)

        def begun() -> None:
            held = jobs.rows(desk.owner, rows)
            question = Question.from_data(plain, held)
            if not _is_there(desk, name):
                self._services.charge(caller, max(0, question.rows - came))
            desk.ordered(name, "compress", plain, held)

        later: Job[Any] = jobs.later(begun)
        return later


def _is_there(desk: Desk, name: str) -> bool:
    try:
        desk.found(name)
    except NotFound:
        return False
    return True
