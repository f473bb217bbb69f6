"""Estimates at a server: the service `_estimate(recipe, rows)`, granted with `train`.

Rows are one batch, `{"inputs": ..., "targets": ...}`, or a dataset that is here,
`{"dataset": name}`, of which the steps are told as well.
"""

from functools import partial
from typing import Any

import attrs

from maas.calls import Call, Result
from maas.data import Data
from maas.data.rows import columns
from maas.data.sources import Arrays
from maas.errors import CodecError
from maas.executors.base import Job
from maas.executors.lanes import Lane
from maas.model import Model
from maas.server.guard import Caller
from maas.server.services import Services, fields, settle
from maas.train.estimate import Estimate, estimate, of_batch
from maas.train.here import rows_for
from maas.train.recipe import Recipe
from maas.wire import Failure

__all__ = ["Estimator"]


class Estimator:
    """The estimates of one server."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lane = Lane(1, "maas-estimates")

    def submit(self, caller: Caller, model: Model[..., Any], call: Call) -> Job[Any]:
        """The answer, later; raises `Forbidden` where the caller may not train."""
        caller.check_grant("train", call.model)
        recipe, rows = fields(call, dict, dict)
        job: Job[Any] = Job()
        self._lane.put(
            partial(
                settle, job, lambda: Result(attrs.asdict(self._made(caller, model, recipe, rows)))
            ),
            lambda error: job.settle(Failure(error)),
        )
        return job

    def _made(
        self, caller: Caller, model: Model[..., Any], recipe: dict[str, Any], rows: dict[str, Any]
    ) -> Estimate:
        if rows.keys() == {"dataset"}:
            data = self._services.made("_data").rows(caller.id, rows["dataset"])
            return estimate(model, data, **recipe)
        if rows.keys() != {"inputs", "targets"}:
            raise CodecError("_estimate wants a recipe, and inputs and targets or a dataset")
        inputs, targets = (columns(rows[part], f"the {part}") for part in ("inputs", "targets"))
        data = rows_for(model, Data(Arrays(inputs, targets)))
        return of_batch(model, next(iter(data.batches(max(1, data.rows or 1)))), Recipe.of(recipe))
