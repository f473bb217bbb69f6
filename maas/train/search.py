"""`model.search(data, space, trials)`: the options of `fit` that do best on rows held out.

Optuna (extra `train`) proposes, by its tree-structured Parzen estimator (Bergstra et al.,
*Algorithms for Hyper-Parameter Optimization*, NeurIPS 2011), and gives up what after an epoch is
worse than the median of the trials before. The loop of trials stands here: ask, train, tell.
"""

import copy
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from maas.bars import bar
from maas.data import Data
from maas.errors import Conflict, Unsupported
from maas.executors.local import LocalExecutor
from maas.model import Model
from maas.plots import plot
from maas.train.here import as_prepared, local_executor, rows_for
from maas.train.loop import Run
from maas.train.recipe import Recipe
from maas.train.search_jobs import JobRun, JobTrainer

__all__ = ["Search", "Trial", "search"]

VARIANT = "variant"
_STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
_WARM = 5
"""Trials that are all run to their end before any is given up."""


@attrs.frozen(kw_only=True)
class Trial:
    """One choice of options, trained.

    Attributes
    ----------
    number : from 0.
    state : "done", "pruned" (given up for its first epochs) or "failed" (its loss was no number).
    options : those of the space, as `fit` takes them.
    variant : the name of the module that was trained; None where there is one only.
    value : what was watched, at its end; None if it failed.
    epochs : that it was trained for.
    seconds : that it took.
    """

    number: int
    state: str
    options: Mapping[str, Any]
    variant: str | None
    value: float | None
    epochs: int
    seconds: float


@attrs.define(kw_only=True)
class Search:
    """What was tried, and what was best.

    Attributes
    ----------
    watch : what was compared.
    trials : all of them, in their order.
    """

    watch: str
    trials: list[Trial] = attrs.field(repr=False)
    _fixed: Mapping[str, Any] = attrs.field(repr=False)
    _higher: bool = attrs.field(repr=False)
    _trainer: "_Trainer | JobTrainer" = attrs.field(repr=False)

    @property
    def best(self) -> Trial:
        """The best that was trained to its end.

        Raises
        ------
        ValueError
            None was.
        """
        done = [trial for trial in self.trials if trial.state == "done"]
        if not done:
            raise ValueError("no trial was trained to its end; a smaller lr helps most often")
        return min(done, key=lambda trial: -_sure(trial) if self._higher else _sure(trial))

    @property
    def options(self) -> dict[str, Any]:
        """All options of the best trial: `model.fit(data, **search.options)` trains it again."""
        return {**self._fixed, **self.best.options}

    @property
    def model(self) -> Model[..., Any]:
        """The best trial's model, trained; one of an earlier session is trained again."""
        return self._trainer.model(self.best)

    def table(self) -> str:
        """The trials as lines of text, best first."""
        order = sorted(self.trials, key=self._rank)
        head = f"{'trial':>5} {self.watch.replace('_', ' '):>16} {'epochs':>6} {'seconds':>7}"
        return "\n".join([head, *map(_row, order)])

    def _rank(self, trial: Trial) -> tuple[bool, float]:
        value = trial.value if trial.value is not None else 0.0
        return trial.state != "done", -value if self._higher else value

    def picture(self) -> str:
        """The trials in plain characters: `o` done, `x` given up, over their numbers."""
        marks = {"done": "o", "pruned": "x"}
        points = [
            (float(trial.number + 1), trial.value, marks[trial.state])
            for trial in self.trials
            if trial.value is not None and trial.state in marks
        ]
        if not points:
            return "no trial has a value"
        powers = all(value > 0 for _, value, _ in points)
        name = self.watch.replace("_", " ")
        return "\n".join(plot(points, "trials", name, powers=powers and not self._higher))


def _sure(trial: Trial) -> float:
    return trial.value if trial.value is not None else float("nan")


def _row(trial: Trial) -> str:
    value = "-" if trial.value is None else f"{trial.value:.5g}"
    told = {**({VARIANT: trial.variant} if trial.variant else {}), **trial.options}
    cells = "  ".join(f"{name}={_short(each)}" for name, each in told.items())
    state = "" if trial.state == "done" else f"  ({trial.state})"
    return f"{trial.number:5} {value:>16} {trial.epochs:6} {trial.seconds:7.1f}  {cells}{state}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')


def search(
    model: Model[..., Any],
    data: Any,
    space: Mapping[str, Any],
    trials: int = 20,
    *,
    variants: Mapping[str, torch.nn.Module] | None = None,
    validation: Any = 0.2,
    store: str | Path | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Search:
    """Tries options of `fit` on copies of the model; the model itself stays as it is.

    Of a model at a server each trial is a job there, which is deleted once another one did better;
    the best one's model is a version of it, `net@search-...`.

    Parameters
    ----------
    data : as for `fit`.
    space : option to what it may be: a list of choices, or a tuple `(least, most)`, between which
        it is drawn evenly; `(least, most, "log")` draws factors evenly. Two whole numbers make a
        whole number.
    trials : how many, those of an earlier session in the same store included.
    variants : modules by name, one of which each trial trains a copy of; by default the model's.
    validation : a share of the rows that is held out, or rows of their own, as for `fit`.
    store : a file that remembers the trials, so that a search that was broken off goes on.
    progress : a bar; by default where a terminal shows it.
    options : of `fit`, the same in all trials; `watch` and `metrics` say what is compared,
        `seed` also what is proposed.

    Raises
    ------
    TypeError, ValueError
        As `fit` raises them, before anything is trained.
    Conflict
        The store belongs to another space.
    ModuleNotFoundError
        Optuna is not installed.
    Unsupported
        The model is no torch module; or variants are given for one elsewhere, as no code travels.
    Forbidden, LimitExceeded
        As `model.fit.submit`, of a model elsewhere.
    """
    optuna = _optuna()
    share = isinstance(validation, int | float) and not isinstance(validation, bool)
    fixed = {**options, "validation": validation} if share else dict(options)
    _check_space(space, fixed, variants)
    if type(trials) is not int or trials < 1:
        raise ValueError(f"trials wants a whole number from 1, got {trials!r:.80}")
    recipe = Recipe.of(fixed)
    watch, higher = recipe.watching(held_out=True)
    trainer = _trainer_for(
        model, data, None if share else validation, fixed=fixed, variants=variants
    )
    for variant in trainer.variants:
        # What does not fit a module is said before another one is trained.
        trainer.check(
            {option: _borders(option, among)[0] for option, among in space.items()}, variant
        )
    study = _study(optuna, store, _written(space, variants), higher=higher, seed=recipe.seed)
    if isinstance(trainer, JobTrainer):
        trainer.token = _token(study)
    drawn = bar(trials, "trial", progress)
    try:
        for _ in range(len(_told(study)), trials):
            _try(optuna, study, trainer, space, watch)
            if drawn is not None:
                drawn.update()
                drawn.set_postfix_str(_leading(study, watch))
    finally:
        if drawn is not None:
            drawn.close()
    tried = [_trial(each) for each in _told(study)]
    return Search(watch=watch, trials=tried, fixed=fixed, higher=higher, trainer=trainer)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ModuleNotFoundError(
            "a search is led by Optuna: pip install 'maas-sdk[train]'", name="optuna"
        ) from None
    return optuna


def _trainer_for(
    model: Model[..., Any],
    data: Any,
    validation: Any,
    *,
    fixed: Mapping[str, Any],
    variants: Mapping[str, torch.nn.Module] | None,
) -> "_Trainer | JobTrainer":
    """What trains where the model is."""
    executor = local_executor(model)
    if executor is None:
        if variants:
            raise Unsupported(f"variants are modules, which do not travel to {model.where}")
        return JobTrainer(asked=model, data=data, validation=validation, fixed=fixed)
    if not isinstance(executor.backend.target, torch.nn.Module):
        raise Unsupported(f"{model.name} is no torch module, so there is nothing to search")
    return _Trainer(
        asked=model,
        data=rows_for(model, data),
        validation=None if validation is None else rows_for(model, validation),
        fixed=fixed,
        variants=variants or {"": _own(executor)},
    )


def _own(executor: LocalExecutor) -> torch.nn.Module:
    """A copy of the module as it is now; later searches of the same begin with the same weights."""
    with executor.alone():
        module: torch.nn.Module = copy.deepcopy(executor.backend.target)
    return module


# The space.


def _check_space(
    space: Mapping[str, Any], fixed: Mapping[str, Any], variants: Mapping[str, Any] | None
) -> None:
    if not space and not variants:
        raise ValueError("the space is empty; give options, such as {'lr': (1e-4, 1e-1, 'log')}")
    for name, among in space.items():
        if name in fixed:
            raise ValueError(f"{name} is fixed and in the space at once; give one of them")
        for value in _borders(name, among):
            Recipe.of({**_without(fixed, name), name: value})


def _without(fixed: Mapping[str, Any], _name: str) -> dict[str, Any]:
    """The metrics are what `watch` is checked by; all else stands for itself."""
    return {key: value for key, value in fixed.items() if key in ("metrics", "watch", "loss")}


def _borders(name: str, among: Any) -> Sequence[Any]:
    """What is to be a good value of the option: each choice, or both ends."""
    if isinstance(among, list) and among:
        return among
    if isinstance(among, tuple) and 2 <= len(among) <= 3 and among[2:] in ((), ("log",)):
        numbers = all(
            isinstance(each, int | float) and not isinstance(each, bool) for each in among[:2]
        )
        if numbers and among[0] < among[1] and (len(among) == 2 or among[0] > 0):
            return among[:2]
    raise ValueError(
        f"{name} wants a list of choices, (least, most) or (least, most, 'log') with a least above "
        f"0, got {among!r:.80}"
    )


def _proposed(trial: Any, name: str, among: Any) -> Any:
    if isinstance(among, list):
        # Optuna's choices are plain words; ours may be dicts with options.
        return among[trial.suggest_categorical(name, [*range(len(among))])]
    low, high, *log = among
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=bool(log))
    return trial.suggest_float(name, low, high, log=bool(log))


# The trials.


@attrs.define(kw_only=True)
class _Trainer:
    """Trains copies, and keeps the best of this session."""

    asked: Model[..., Any]
    data: Data
    validation: Data | None
    fixed: Mapping[str, Any]
    variants: Mapping[str, torch.nn.Module]
    _kept: tuple[int, torch.nn.Module] | None = None

    def check(self, options: Mapping[str, Any], variant: str) -> None:
        """Raises what does not fit the module."""
        self.run(options, variant, 0)

    def run(self, options: Mapping[str, Any], variant: str, _number: int) -> Run:
        """Of a new copy."""
        recipe = Recipe.of({**self.fixed, **options})
        module = copy.deepcopy(self.variants[variant])
        return Run(module, self.data, recipe, validation=self.validation)

    def keep(self, number: int, run: Run) -> None:
        """This trial is the best so far."""
        self._kept = number, run.module

    def drop(self, run: Run) -> None:
        """Nothing is left of a run that nobody holds."""

    def model(self, trial: Trial) -> Model[..., Any]:
        """The trial's model, trained."""
        if self._kept is None or self._kept[0] != trial.number:
            run = self.run(trial.options, trial.variant or "", trial.number)
            for _ in run:
                pass
            self.keep(trial.number, run)
        module = self._kept[1]  # type: ignore[index]
        return as_prepared(self.asked, Model(module, name=self.asked.name))


def _try(
    optuna: Any,
    study: Any,
    trainer: "_Trainer | JobTrainer",
    space: Mapping[str, Any],
    watch: str,
) -> None:
    """Asks for one proposal, trains it, and tells how it did."""
    trial = study.ask()
    began = time.perf_counter()
    options = {name: _proposed(trial, name, among) for name, among in space.items()}
    names = [*trainer.variants]
    variant = trial.suggest_categorical(VARIANT, names) if len(names) > 1 else names[0]
    trial.set_user_attr("options", options)
    trial.set_user_attr(VARIANT, variant)
    states = optuna.trial.TrialState
    run: Any = trainer.run(options, variant, trial.number)
    state = states.COMPLETE
    try:
        for step in run:
            if step.metrics:
                trial.report(step.metrics[watch], step.epoch)
                if run.stopped is None and trial.should_prune():
                    state = states.PRUNED
                    break
    except FloatingPointError:
        state = states.FAIL
    except BaseException:
        trainer.drop(run)
        raise
    trial.set_user_attr("epochs", len(run.epochs))
    trial.set_user_attr("seconds", time.perf_counter() - began)
    value = _reached(run, watch) if state is states.COMPLETE else None
    study.tell(trial, value, state=state)
    if value is not None and study.best_trial.number == trial.number:
        trainer.keep(trial.number, run)
    else:
        trainer.drop(run)


def _reached(run: Run | JobRun, watch: str) -> float:
    """Of the epoch whose weights the module has."""
    return run.epochs[-1 if run.best is None else run.best - 1].value(watch)


def _told(study: Any) -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in _STATES]


def _trial(told: Any) -> Trial:
    last = max(told.intermediate_values, default=None)
    value = told.value if last is None or told.value is not None else told.intermediate_values[last]
    known = told.user_attrs
    return Trial(
        number=told.number,
        state=_STATES[told.state.name],
        options=known.get("options", {}),
        variant=known.get(VARIANT) or None,
        value=value,
        epochs=known.get("epochs", 0),
        seconds=known.get("seconds", 0.0),
    )


def _leading(study: Any, watch: str) -> str:
    done = [trial for trial in _told(study) if trial.state.name == "COMPLETE"]
    return f"best {watch.replace('_', ' ')} {study.best_value:.4g}" if done else ""


# The store.


def _study(optuna: Any, store: str | Path | None, written: str, *, higher: bool, seed: int) -> Any:
    """A new study, or the one in that file; its trials that were broken off have failed."""
    said = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=None if store is None else _journal(optuna, store),
            study_name="maas",
            direction="maximize" if higher else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_WARM),
            load_if_exists=True,
        )
    finally:
        optuna.logging.set_verbosity(said)
    if study.user_attrs.setdefault("space", written) != written:
        raise Conflict(
            f"{store} is of a search over {study.user_attrs['space']:.200}; take another file"
        )
    study.set_user_attr("space", written)
    for trial in study.get_trials(deepcopy=False):
        if trial.state is optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    # A search that goes on must not propose its first trials again.
    study.sampler = optuna.samplers.TPESampler(seed=(seed + len(_told(study))) % 2**32)
    return study


def _token(study: Any) -> str:
    """Begins the names of a study's jobs: a session after this one finds them again."""
    if "jobs" not in study.user_attrs:
        study.set_user_attr("jobs", secrets.token_hex(6))
    token: str = study.user_attrs["jobs"]
    return token


def _journal(optuna: Any, store: str | Path) -> Any:
    """A file of JSON lines; no database, and nothing in it is run."""
    backend = optuna.storages.journal.JournalFileBackend(str(store))
    return optuna.storages.JournalStorage(backend)


def _written(space: Mapping[str, Any], variants: Mapping[str, Any] | None) -> str:
    return json.dumps({"space": dict(space), "variants": [*(variants or ())]}, sort_keys=True)
