"""The loop of training, in sight: `for step in Run(module, source, recipe): ...`.

Between two steps the module is as its owner left it but for its weights: mode, dropout rates and
torch's generator are those of the run only while a step is computed. There the run's whole state
can be taken (`state`) and put back (`restore`), and what follows is the same to the last bit.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import attrs
import torch

from maas.data import Data
from maas.train import rules
from maas.train.estimate import check_memory
from maas.train.feeding import called, moved, rows_in
from maas.train.history import Epoch, Step
from maas.train.layout import tensors_of
from maas.train.measuring import Meters
from maas.train.recipe import SCHEDULES, Recipe

__all__ = ["Run"]

Batch = tuple[Any, Any]


class Run:
    """Training of one module by one recipe; iterating it yields a `Step` for each optimizer step.

    Parameters
    ----------
    module : trained in place.
    source : rows to learn from: anything that `maas.data.Data.of` takes.
    recipe : how.
    validation : rows that are measured at the end of each epoch, instead of a share of `source`.

    Attributes
    ----------
    total : steps of all epochs, if the source tells how many rows it has.
    epochs : the epochs that have ended.
    stopped : "epochs" or "patience" once the run has ended.
    best : number of the best epoch so far, where early stopping watches for one.

    Raises
    ------
    ValueError
        What the recipe asks for does not fit the module or the rows.

    Iterating it raises `MemoryError`, before the first step, for what will not fit in memory, and
    `FloatingPointError` where a loss is no finite number.
    """

    def __init__(
        self, module: torch.nn.Module, source: Any, recipe: Recipe, *, validation: Any = None
    ) -> None:
        self.module = module
        self.recipe = recipe
        self._source, self._held = _parts(source, recipe, validation)
        self._watch, self._higher = recipe.watching(held_out=self._held is not None)
        self._check_watch()
        self._device = next((each.device for each in module.parameters()), torch.device("cpu"))
        self._dropouts = _dropouts(module, recipe)
        self._loss = rules.Loss(recipe)
        self._meters = Meters(recipe)
        self._optimizer = rules.optimizer_of(recipe, module)
        self.total = self._all_steps()
        self._schedule = rules.schedule_of(recipe, self._optimizer, self.total, higher=self._higher)
        self._draws = _Draws(recipe.seed, self._device)
        self._step = self._epoch = self._batch = 0
        self._sum, self._rows = 0.0, 0
        self.epochs: list[Epoch] = []
        self.stopped: str | None = None
        self.best: int | None = None
        self._kept: dict[str, torch.Tensor] = {}

    def _check_watch(self) -> None:
        wants = [metric.name for metric in self.recipe.metrics]
        if self._watch == "validation_loss":
            wants.append(self._watch)
        if wants and self._held is None:
            raise ValueError(
                f"{', '.join(wants)} are measured on rows that are held out: "
                "give validation=0.2, or rows of their own"
            )

    def _all_steps(self) -> int | None:
        batches = self._source.steps(self.recipe.batch_size)
        if batches is None:
            return None
        return math.ceil(batches / self.recipe.accumulate) * self.recipe.epochs

    # The loop.

    def __iter__(self) -> Iterator[Step]:
        check_memory(self.module, self._source, self.recipe)
        while self.stopped is None:
            began = time.perf_counter()
            for batches, last in self._groups():
                with self._in_force():
                    step = self._stepped(batches)
                    if last:
                        step = self._ended(step)
                yield attrs.evolve(step, seconds=time.perf_counter() - began)
                began = time.perf_counter()
        self._optimizer.zero_grad()

    def _groups(self) -> Iterator[tuple[list[Batch], bool]]:
        """The batches of each step left in this epoch, and whether they are its last."""
        recipe = self.recipe
        order = (recipe.seed, self._epoch) if recipe.shuffle else None
        batches = iter(self._source.batches(recipe.batch_size, order=order, start=self._batch))
        group = list(islice(batches, recipe.accumulate))
        if not group:
            raise ValueError("there is no row to learn from; give data with at least one")
        while group:
            following = list(islice(batches, recipe.accumulate))
            yield group, not following
            group = following

    def _stepped(self, batches: list[Batch]) -> Step:
        """One step: zero the gradients, forward, loss, backward, step."""
        self._optimizer.zero_grad()
        rows = [rows_in(inputs) for inputs, _ in batches]
        total = sum(rows)
        lr = self._optimizer.param_groups[0]["lr"]
        mean = 0.0
        for (inputs, targets), part in zip(batches, rows, strict=True):
            loss = self._forward(inputs, targets)[0]
            if part != total:
                loss = loss * (part / total)
            mean += self._finite(loss.item())
            loss.backward()  # type: ignore[no-untyped-call]
        self._clip()
        self._optimizer.step()
        if self._schedule is not None and self._paced("step"):
            self._schedule.step()
        self._step += 1
        self._batch += len(batches)
        self._sum += mean * total
        self._rows += total
        return Step(
            step=self._step, epoch=self._epoch + 1, loss=mean, lr=float(lr), rows=total, seconds=0.0
        )

    def _forward(self, inputs: Any, targets: Any) -> tuple[torch.Tensor, Any, Any]:
        inputs, targets = moved(inputs, self._device), moved(targets, self._device)
        if self.recipe.precision == "full":
            outputs = called(self.module, inputs)
            return self._loss(outputs, targets), outputs, targets
        with torch.autocast(self._device.type, torch.bfloat16):
            outputs = called(self.module, inputs)
            return self._loss(outputs, targets), outputs, targets

    def _finite(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        raise FloatingPointError(
            f"the loss became {loss} at step {self._step + 1}; the weights are those before it. "
            "A smaller lr, clip_norm=1.0 or scaled inputs help most often"
        )

    def _clip(self) -> None:
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip_norm)
        if self.recipe.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self.module.parameters(), self.recipe.clip_value)

    def _paced(self, each: str) -> bool:
        schedule = self.recipe.schedule
        return schedule is not None and SCHEDULES[schedule.name].each == each

    # The end of an epoch.

    def _ended(self, step: Step) -> Step:
        """Measures, watches, and turns to the next epoch; the step with what was found."""
        loss = self._sum / self._rows
        step = attrs.evolve(step, metrics={"loss": loss, **self._validated()})
        epoch = Epoch.ended_by(step)
        self.epochs.append(epoch)
        if self._schedule is not None and self._paced("epoch"):
            if self.recipe.schedule.name == "plateau":  # type: ignore[union-attr]
                self._schedule.step(epoch.value(self._watch))  # type: ignore[arg-type]
            else:
                self._schedule.step()
        self._epoch += 1
        self._batch = 0
        self._sum, self._rows = 0.0, 0
        self._judge(epoch)
        return step

    def _validated(self) -> dict[str, float]:
        """Loss and metrics over the held-out rows, in eval mode."""
        if self._held is None:
            return {}
        total, rows = 0.0, 0
        self._meters.reset()
        with torch.no_grad(), _mode(self.module, training=False):
            for inputs, targets in self._held.batches(self.recipe.batch_size, order=None):
                loss, outputs, on_device = self._forward(inputs, targets)
                here = rows_in(inputs)
                total += loss.item() * here
                rows += here
                self._meters.add(outputs, on_device)
        if not rows:
            raise ValueError("no row is held out; give validation data with at least one")
        return {"validation_loss": total / rows, **self._meters.values()}

    def _judge(self, epoch: Epoch) -> None:
        """Whether this was the best epoch, and whether there is to be another one."""
        recipe = self.recipe
        if recipe.patience is not None:
            if self._is_best(epoch):
                self.best = epoch.number
                self._kept = _copied(tensors_of(self.module))
            elif epoch.number - (self.best or 0) >= recipe.patience:
                self.stopped = "patience"
        if self.stopped is None and self._epoch >= recipe.epochs:
            self.stopped = "epochs"
        if self.stopped is not None and self._kept:
            _put_back(self.module, self._kept)

    def _is_best(self, epoch: Epoch) -> bool:
        if self.best is None:
            return True
        best, least = self.epochs[self.best - 1], self.recipe.min_delta
        return epoch.betters(best, self._watch, higher=self._higher, by=least)

    @contextmanager
    def _in_force(self) -> Iterator[None]:
        """The run's own generator, train mode and dropout rates."""
        with ExitStack() as stack:
            stack.enter_context(self._draws.in_force())
            stack.enter_context(_mode(self.module, training=True))
            stack.enter_context(torch.enable_grad())
            if self._dropouts:
                stack.enter_context(_rates(self._dropouts, self.recipe.dropout))
            yield

    # Resuming.

    def state(self) -> dict[str, Any]:
        """All that the steps to come depend on but the rows, as plain values and tensors.

        Taken between two steps; what trains on does not change it.
        """
        return {
            "recipe": self.recipe.to_data(),
            "weights": _copied(tensors_of(self.module)),
            "optimizer": _snapshot(self._optimizer.state_dict()),
            "schedule": None if self._schedule is None else _snapshot(self._schedule.state_dict()),
            "draws": dict(self._draws.states),
            "position": {"step": self._step, "epoch": self._epoch, "batch": self._batch},
            "sums": {"loss": self._sum, "rows": self._rows},
            "epochs": [attrs.asdict(epoch) for epoch in self.epochs],
            "stopped": self.stopped,
            "best": self.best,
            "kept": dict(self._kept),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back, or on, to where `state()` was taken, of this run or of one like it.

        Raises
        ------
        ValueError
            The state belongs to another recipe or another module.
        """
        if Recipe.of(state["recipe"]) != self.recipe:
            raise ValueError(
                f"this state belongs to another recipe: {state['recipe']!r:.200}, "
                f"and not to {self.recipe.to_data()!r:.200}"
            )
        _put_back(self.module, state["weights"])
        self._optimizer.load_state_dict(_snapshot(state["optimizer"]))
        if self._schedule is not None:
            self._schedule.load_state_dict(_schedule_state(state["schedule"]))
        self._draws.states = dict(state["draws"])
        self._step, self._epoch, self._batch = (
            state["position"][name] for name in ("step", "epoch", "batch")
        )
        self._sum, self._rows = state["sums"]["loss"], state["sums"]["rows"]
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.stopped, self.best = state["stopped"], state["best"]
        self._kept = dict(state["kept"])


def _parts(source: Any, recipe: Recipe, validation: Any) -> tuple[Data, Data | None]:
    data = Data.of(source)
    if data.own_batches and recipe.batch_size != Recipe().batch_size:
        raise ValueError("these data come in batches of their own, so batch_size cannot be chosen")
    if validation is not None:
        if recipe.validation:
            raise ValueError(
                f"validation is a share ({recipe.validation}) and rows of its own at once; give one"
            )
        return data, Data.of(validation)
    return data.split(recipe.validation, seed=recipe.seed) if recipe.validation else (data, None)


# What is in force during a step.


@contextmanager
def _mode(module: torch.nn.Module, *, training: bool) -> Iterator[None]:
    before = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


def _dropouts(module: torch.nn.Module, recipe: Recipe) -> list[Any]:
    if recipe.dropout is None:
        return []
    kind = torch.nn.modules.dropout._DropoutNd
    found = [part for part in module.modules() if isinstance(part, kind)]
    if not found:
        raise ValueError("dropout is a rate for dropout layers, and this model has none")
    return found


@contextmanager
def _rates(dropouts: list[Any], rate: float | None) -> Iterator[None]:
    before = [part.p for part in dropouts]
    for part in dropouts:
        part.p = rate
    try:
        yield
    finally:
        for part, own in zip(dropouts, before, strict=True):
            part.p = own


class _Draws:
    """The run's own place in torch's generators; between steps they are the caller's."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._devices = [] if device.type == "cpu" else [device]
        self.states = {
            str(each): torch.Generator(each).manual_seed(seed).get_state()
            for each in (torch.device("cpu"), *self._devices)
        }

    def _captured(self) -> dict[str, torch.Tensor]:
        others = {
            str(each): torch.get_device_module(each).get_rng_state(each) for each in self._devices
        }
        return {"cpu": torch.get_rng_state(), **others}

    def _set(self, states: Mapping[str, torch.Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        for each in self._devices:
            torch.get_device_module(each).set_rng_state(states[str(each)], each)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        outer = self._captured()
        self._set(self.states)
        try:
            yield
        finally:
            self.states = self._captured()
            self._set(outer)


# State.


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in tensors.items()}


def _put_back(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    held = tensors_of(module)
    fits = held.keys() == tensors.keys() and all(
        held[name].shape == each.shape and held[name].dtype == each.dtype
        for name, each in tensors.items()
    )
    if not fits:
        raise ValueError(
            "this state belongs to another module: its weights have other names or shapes"
        )
    with torch.no_grad():
        for name, each in tensors.items():
            held[name].copy_(each)


def _snapshot(tree: Any) -> Any:
    """A copy of plain values and tensors, in plain containers."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: _snapshot(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_snapshot(value) for value in tree)
    return tree


def _schedule_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """As torch wants it: milestones are a Counter there, and a plain dict in a snapshot."""
    held = _snapshot(state)
    if "milestones" in held:
        held["milestones"] = Counter(held["milestones"])
    return held  # type: ignore[no-any-return]
