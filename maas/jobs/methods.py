"""`model.job(name)`, `model.jobs()` and `model.fit.submit(...)`, by entry points."""

import math
import secrets
from typing import Any

from maas.data import Data
from maas.jobs.handles import TrainingJob
from maas.jobs.rows import packed
from maas.jobs.sides import side_of
from maas.model import Model
from maas.train.recipe import Recipe

__all__ = ["copy", "job", "jobs", "publish", "submit"]


def job(model: Model[..., Any], name: str) -> TrainingJob:
    """The job of that name, submitted by whoever has this key.

    Raises
    ------
    NotFound
        There is none.
    """
    found = TrainingJob(side_of(model), name)
    found.told()
    return found


def jobs(model: Model[..., Any]) -> list[TrainingJob]:
    """Your jobs of this model, in the order of their submission."""
    side = side_of(model)
    return [TrainingJob(side, name) for name in side.ask("names")]


def copy(model: Model[..., Any], name: str) -> Model[..., Any]:
    """A copy of the model as this handle sees it, kept until `model.job(name).delete()`.

    At a server it is a version of the model, `net@name`, and survives a restart; here it is in
    the folder of jobs, and a model of its own.

    Raises
    ------
    Conflict
        There is a job or a copy of that name.
    Forbidden, Unsupported, LimitExceeded
        As `model.fit.submit`.
    """
    side = side_of(model)
    side.copy(name)
    return side.made(name)


def publish(model: Model[..., Any], alias: str | None = None) -> None:
    """From now on `alias` means this version of the model at its server; its own name by default.

    Calls that were taken before end on the version that they found. A server that is started again
    begins with the versions that it is given.

    Raises
    ------
    Forbidden
        The server does not grant "publish", or not for that name.
    ValueError
        The name cannot be an alias.
    Unsupported
        The model is not at a server, or the handle has a private copy; `model.copy(name)` makes
        that a version.
    """
    side_of(model).publish(alias or "")


def submit(
    model: Model[..., Any],
    data: Any,
    recipe: Recipe,
    *,
    validation: Any = None,
    name: str | None = None,
    resume: TrainingJob | None = None,
) -> TrainingJob:
    """A job that trains the model by that recipe, in a process of its own.

    Parameters
    ----------
    name : what to call it; the same name and arguments are the same job. A new one by default.
    resume : a job that was cancelled or has failed, which then goes on from its last checkpoint;
        the arguments must be those that it was given.

    Raises
    ------
    Conflict
        A job of that name was given other arguments.
    Forbidden, Unsupported, LimitExceeded
        The server does not grant training, keeps no jobs, or no more of them.
    """
    side = side_of(model)
    if resume is not None:
        if name is not None and name != resume.name:
            raise ValueError(f"name={name!r} and resume={resume!r} are two jobs; give one of them")
        name = resume.name
    name = name or f"fit-{secrets.token_hex(6)}"
    rows = {"rows": side.rows(packed(data)), "validation": side.rows(packed(validation))}
    side.submit(name, recipe.to_data(), rows, resume is not None)
    return TrainingJob(side, name, _steps(Data.of(data), recipe))


def _steps(data: Data, recipe: Recipe) -> int:
    """How many there are, if all epochs are run."""
    if recipe.validation and data.name is None:
        data, _ = data.split(recipe.validation, seed=recipe.seed)
    batches = data.steps(recipe.batch_size) or 0
    return math.ceil(batches / recipe.accumulate) * recipe.epochs
