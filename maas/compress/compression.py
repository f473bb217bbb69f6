"""`model.compress(...)`: a smaller model beside the old one, and the figures of both."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from maas.bars import bar
from maas.compress.asking import asked
from maas.compress.compressed import Compressed
from maas.compress.distill import Distill
from maas.compress.figures import BATCHES, SECONDS, Figures, Metric, figures, latencies, outputs
from maas.compress.gate import Gate, check_gates
from maas.compress.layers import around, copied, is_local, local
from maas.compress.question import Question
from maas.compress.report import Report, Row
from maas.compress.search import Budget
from maas.compress.trial import Check, Step, Trial, step_name
from maas.errors import Error, TooLossy, Unsupported
from maas.model import Model

__all__ = ["compress", "compressed"]

Tell = Callable[[Row], object]
"""Is told each row of the report as it is found; what it raises ends the work."""


@attrs.frozen(kw_only=True)
class Attempt:
    """What a recipe came to: the models after each step, and the rows of the report."""

    models: Sequence[Model[..., Any]]
    rows: Sequence[Row]
    notes: Sequence[str]


def compress(
    model: Model[..., Any],
    *steps: Step,
    check: Any = None,
    keep: Gate | Sequence[Gate] | None = None,
    metric: Metric | None = None,
    auto: Budget | None = None,
    name: str | None = None,
) -> Compressed:
    """A smaller model beside this one, which stays bit for bit as it is.

    A model here gives another one here. One at a server is compressed there, by a job that is
    followed to its end, and the result is one more version of it, `net@name`: a server grants
    that by `compress`. `model.publish` makes it the served one.

    Parameters
    ----------
    model : a torch model.
    steps : what is done, in this order: `Quantize`, `Prune`, `Factor`, `Distill`, `Compile`, or
        any callable `(model, trial) -> model`.
    check : data that the result is judged by: inputs (rows, ...), or a pair (inputs, targets).
        Without it nothing is compared and only sizes are reported.
    keep : how far the result may be from the original: `Agreement(0.99)`, `RelativeError(0.05)`,
        `ScoreDrop(0.01)` or several. It is looked at after every step.
    auto : instead of steps: recipes are tried until all are, with a progress bar, and the smallest
        model within the budget is returned with the table of all; the check data is needed.
    metric : the task's own measure, `metric(outputs, targets) -> float`, larger being better.
        Accuracy by default where targets are classes, else minus the mean squared error.
        It is code, so a server is not sent one.
    name : of the version at a server; a new one by default. The same name with the same
        arguments is the same work, which goes on there when this program has ended. Without a
        name it ends with whoever asked for it.

    Returns
    -------
    Compressed
        The new model, in eval mode, with a `report`.

    Raises
    ------
    TooLossy
        A step's result is beyond `keep`, or not finite; its `figures` tell how far.
    SignatureError
        The check data does not fit the model.
    TypeError, ValueError
        A step, a layer or data that makes no sense; refused before any work where it can be.
    Unsupported
        The model is no torch module, or has what a step cannot treat; at a server, a step that
        is no name there, or a server that keeps no jobs.
    Forbidden
        The server does not grant `compress` to this key.
    LimitExceeded, Overloaded
        It would cost more rows than the quota allows.
    Conflict
        There is a version of that name, made by other arguments.
    """
    question = Question.of(steps, check=check, keep=keep, auto=auto)
    if not is_local(model) and not _taught_here(steps):
        if metric is not None:
            raise Unsupported(f"metric= is code, and {model.where} is not sent any; leave it out")
        return asked(model, question, name)
    if name is not None:
        raise TypeError("name= is for a version at a server; a model here makes no version")
    return compressed(model, question, metric)


def _taught_here(steps: Sequence[Step]) -> bool:
    """Whether a student here learns from the model, wherever that runs."""
    return bool(steps) and isinstance(steps[0], Distill) and steps[0].student is not None


def compressed(
    model: Model[..., Any],
    question: Question,
    metric: Metric | None,
    tell: Tell = lambda _row: None,
) -> Compressed:
    """The answer in this process; raises as `compress` does."""
    steps, check, gates = question.steps, question.check, question.gates
    # A handle of the model that nobody else's options reach.
    original = (
        model.with_options()
        if not is_local(model) and _taught_here(steps)
        else Model.over(local(model), model.name)
    )
    if check is not None:
        check.check_fits(model)
    if question.auto is not None and check is not None:
        return searched(original, question.auto, check, gates, metric=metric, tell=tell)
    found = attempt(original, steps, check, gates, metric=metric, tell=tell)
    rows = timed(found.rows, found.models, check)
    return Compressed.of(found.models[-1], Report(rows, found.notes))


def attempt(
    original: Model[..., Any],
    steps: Sequence[Step],
    check: Check | None,
    gates: Sequence[Gate],
    *,
    metric: Metric | None,
    tell: Tell = lambda _row: None,
) -> Attempt:
    """Takes the steps one by one, each result past the gates; raises as `compress` does."""
    trial = Trial(original, check)
    wanted = [] if check is None else outputs(original, check)
    first = figures(original, check, wanted, metric)
    models = [original]
    rows = [Row("original", first)]
    model = around(original, copied(original)) if is_local(original) else original
    for step in steps:
        start = time.perf_counter()
        model = _taken(step, model, trial)
        seconds = time.perf_counter() - start
        found = figures(model, check, wanted, metric)
        _check_finite(step_name(step), model, check)
        check_gates(gates, step_name(step), found, first)
        models.append(model)
        rows.append(Row(step_name(step), found, seconds))
        tell(rows[-1])
    return Attempt(models=models, rows=rows, notes=trial.notes)


def _taken(step: Step, model: Model[..., Any], trial: Trial) -> Model[..., Any]:
    made = step(model, trial)
    if not isinstance(made, Model):
        raise TypeError(
            f"step {step_name(step)} gave a {type(made).__name__}; a step gives a maas.Model"
        )
    return made


def _check_finite(step: str, model: Model[..., Any], check: Check | None) -> None:
    if check is None:
        return
    if not all(bool(each.isfinite().all()) for each in outputs(model, check)):
        raise TooLossy(f"{step} was refused: the model gives numbers that are not finite")


def timed(
    rows: Sequence[Row],
    models: Sequence[Model[..., Any]],
    check: Check | None,
    *,
    seconds: float = SECONDS,
) -> list[Row]:
    """The rows with latencies, all measured in one run."""
    if check is None:
        return list(rows)
    return [
        attrs.evolve(row, figures=attrs.evolve(row.figures, latency=shares))
        for row, shares in zip(rows, latencies(models, check, seconds=seconds), strict=True)
    ]


def searched(
    original: Model[..., Any],
    budget: Budget,
    check: Check,
    gates: Sequence[Gate],
    *,
    metric: Metric | None,
    tell: Tell,
) -> Compressed:
    """The smallest model within the budget, and the table of all that were tried.

    Raises
    ------
    TooLossy
        No recipe is within it; the message has the table.
    """
    first = figures(original, check, outputs(original, check), metric)
    rows = [Row("original", attrs.evolve(first, latency=dict.fromkeys(BATCHES, 1.0)))]
    notes: list[str] = []
    best: tuple[int, Model[..., Any]] | None = None
    for recipe in _shown(budget.tried()):
        tell(rows[-1])
        name = " + ".join(map(step_name, recipe))
        start = time.perf_counter()
        try:
            found = attempt(original, recipe, check, (), metric=metric)
        except (Error, ImportError) as error:
            rows.append(Row(name, Figures(disk=0, memory=0, numbers=0), refused=str(error)))
            continue
        seconds = time.perf_counter() - start
        ends = (found.rows[0], found.rows[-1]), (found.models[0], found.models[-1])
        last = timed(*ends, check, seconds=_GLANCE)[-1]
        reasons = [budget.fits(last.figures, first)]
        reasons += [gate(last.figures, first) for gate in gates]
        refused = "; ".join(filter(None, reasons))
        rows.append(Row(name, last.figures, seconds, refused))
        notes += [note for note in found.notes if note not in notes]
        if not refused and (best is None or last.figures.disk < rows[best[0]].figures.disk):
            best = len(rows) - 1, found.models[-1]
    if best is None:
        table = Report(rows, notes, 0)
        raise TooLossy(f"no recipe of {len(rows) - 1} is within {budget}:\n{table}")
    return Compressed.of(best[1], Report(rows, notes, best[0]))


_GLANCE = 0.1
"""Seconds in which one recipe of many is timed, for each batch size and side."""


def _shown(recipes: Sequence[Any]) -> Iterator[Any]:
    """The recipes, with a bar beside them on a terminal."""
    drawn = bar(len(recipes), "recipe", None)
    for recipe in recipes:
        yield recipe
        if drawn is not None:
            drawn.update()
    if drawn is not None:
        drawn.close()
