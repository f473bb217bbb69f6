"""`model.fit(data, ...)`: the loop of `loop.py` for a model here, a job for one elsewhere.

Who trains is decided here, by what answers the model's calls. A local executor's target is trained
in this process, in place, by the run that the kind of its backend has. Any other executor is asked
through what the entry point `submit` in the group `maas.fitting` names: a function
`submit(model, data, recipe, *, validation, name, resume)`, which gives a `maas.jobs` job.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from maas.errors import Unsupported
from maas.executors.local import LocalExecutor
from maas.model import Model
from maas.train.here import local_executor, rows_for
from maas.train.history import History, Step
from maas.train.progress import shown
from maas.train.recipe import Recipe

__all__ = ["Fit", "run_for"]


def run_for(kind: str) -> Callable[..., Any]:
    """The class of runs for targets of that kind: `Run(target, source, recipe, *, validation)`.

    Raises
    ------
    Unsupported
        Nothing here trains such targets.
    """
    if kind == "torch":
        return importlib.import_module("maas.train.loop").Run  # type: ignore[no-any-return]
    found = importlib.import_module("maas.entry_points").load("maas.runs", kind)
    if found is None:
        raise Unsupported(f"fit trains torch modules and Keras models, and this model is a {kind}")
    return found  # type: ignore[no-any-return]


class Fit:
    """`model.fit`."""

    def __init__(self, model: Model[..., Any]) -> None:
        self._model = model

    def __call__(
        self, data: Any, *, validation: Any = None, progress: bool | None = None, **options: Any
    ) -> History:
        """Trains the model, and tells how it went.

        A model here is trained in place: its own module has the new weights. For one elsewhere
        this is a job that is followed to its end.

        Parameters
        ----------
        data : anything that `maas.data.Data.of` takes: `(inputs, targets)`, a torch dataset, a
            file, ... Raw rows, for a model behind a preprocessing.
        validation : a share of the rows (0.2) that is held out, or rows of their own.
        progress : a bar; by default where a terminal shows it.
        options : those of `Recipe`.

        Raises
        ------
        TypeError
            An option that does not exist.
        ValueError
            A value that makes no sense, or data that do not fit the model.
        FloatingPointError
            The loss became infinite or not a number.
        MemoryError
            It would not fit in memory; see `model.estimate`.
        Unsupported
            The model cannot be trained where it is.
        """
        recipe, validation = _recipe(options, validation)
        executor = local_executor(self._model)
        if executor is None:
            job = _submit(self._model, data, recipe, validation=validation)
            return _followed(job, self._model, progress)
        backend = executor.backend
        held = None if validation is None else rows_for(self._model, validation)
        rows = rows_for(self._model, data)
        run = run_for(backend.kind)(backend.target, rows, recipe, validation=held)
        history = History()
        for step in shown(_steps(run, executor), getattr(run, "total", None), progress=progress):
            history.add(step)
        history.stopped, history.best = run.stopped, run.best
        return history

    def submit(
        self,
        data: Any,
        *,
        validation: Any = None,
        name: str | None = None,
        resume: Any = None,
        **options: Any,
    ) -> Any:
        """A job that trains the model, wherever it runs; see the reference of jobs.

        Raises
        ------
        TypeError, ValueError
            As `fit` raises them.
        Unsupported
            Jobs are not installed.
        """
        recipe, validation = _recipe(options, validation)
        return _submit(self._model, data, recipe, validation=validation, name=name, resume=resume)


def _recipe(options: dict[str, Any], validation: Any) -> tuple[Recipe, Any]:
    """The recipe, and rows to measure on if they were given beside it."""
    if isinstance(validation, int | float) and not isinstance(validation, bool):
        return Recipe.of({**options, "validation": validation}), None
    return Recipe.of(options), validation


def _submit(
    model: Model[..., Any],
    data: Any,
    recipe: Recipe,
    *,
    validation: Any = None,
    name: str | None = None,
    resume: Any = None,
) -> Any:
    submit = importlib.import_module("maas.entry_points").load("maas.fitting", "submit")
    if submit is None:
        raise Unsupported(f"nothing here trains a model that runs at {model.where}")
    return submit(model, data, recipe, validation=validation, name=name, resume=resume)


def _followed(job: Any, model: Model[..., Any], progress: bool | None) -> History:
    """The history of a job, whose result the handle then is: as after training here."""
    try:
        for _ in shown(job.events(), job.total, progress=progress):
            pass
    except BaseException:
        job.cancel()
        raise
    history: History = job.hand_over(model)
    return history


def _steps(run: Any, executor: LocalExecutor) -> Iterator[Step]:
    """The steps of a run; calls of the model take their turns between them."""
    steps = iter(run)
    while True:
        with executor.alone():
            step = next(steps, None)
        if step is None:
            return
        yield step
