"""The loop of training, in sight: `for step in Run(module, source, recipe): ...`.

Between two steps the module is as its owner left it but for its weights: mode, dropout rates and
torch's generator are those of the run only while a step is computed. There the run's whole state
can be taken (`state`) and put back (`restore`), and what follows is the same to the last bit.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from maas.train import rules
from maas.train.course import Batch, Course, rows_in
from maas.train.draws import Draws
from maas.train.estimate import check_memory
from maas.train.feeding import moved
from maas.train.history import Step
from maas.train.layout import tensors_of
from maas.train.measuring import Meters
from maas.train.recipe import SCHEDULES, Recipe
from maas.train.slimming import Slimming

__all__ = ["Run"]


class Run(Course):
    """Training of one module by one recipe; iterating it yields a `Step` for each optimizer step.

    Parameters
    ----------
    module : trained in place.
    source : rows to learn from: anything that `maas.data.Data.of` takes.
    recipe : how.
    validation : rows that are measured at the end of each epoch, instead of a share of `source`.

    Attributes
    ----------
    total, epochs, stopped, best : as those of `Course`.

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
        super().__init__(source, recipe, validation)
        self.module = module
        self._device = next((each.device for each in module.parameters()), torch.device("cpu"))
        self._dropouts = _dropouts(module, recipe)
        self._loss = rules.Loss(recipe)
        self._meters = Meters(recipe)
        self._optimizer = rules.optimizer_of(recipe, module)
        self._schedule = rules.schedule_of(recipe, self._optimizer, self.total, higher=self._higher)
        self._slimming = Slimming(recipe, module, self.total)
        self._draws = Draws(recipe.seed, self._device)

    # The loop.

    def __iter__(self) -> Iterator[Step]:
        check_memory(self.module, self._source, self.recipe)
        yield from super().__iter__()
        self._optimizer.zero_grad()

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
            mean += self._finite(loss.item(), weights="before")
            loss.backward()  # type: ignore[no-untyped-call]
        self._clip()
        self._optimizer.step()
        if self._schedule is not None and self._paced("step"):
            self._schedule.step()
        step = self._counted(mean, total, float(lr), len(batches))
        self._slimming.stepped(step.step)
        return step

    def _forward(self, inputs: Any, targets: Any) -> tuple[torch.Tensor, Any, Any]:
        inputs, targets = moved(inputs, self._device), moved(targets, self._device)
        if self.recipe.precision == "full":
            outputs = self._slimming.called(inputs)
            return self._loss(outputs, targets), outputs, targets
        with torch.autocast(self._device.type, torch.bfloat16):
            outputs = self._slimming.called(inputs)
            return self._loss(outputs, targets), outputs, targets

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
        step = super()._ended(step)
        if self._schedule is not None and self._paced("epoch"):
            if self.recipe.schedule.name == "plateau":  # type: ignore[union-attr]
                self._schedule.step(self.epochs[-1].value(self._watch))  # type: ignore[arg-type]
            else:
                self._schedule.step()
        return step

    def _validated(self) -> dict[str, float]:
        """Loss and metrics over the held-out rows, in eval mode."""
        self._meters.reset()
        with torch.no_grad(), _mode(self.module, training=False):
            return super()._validated()

    def _measured(self, inputs: Any, targets: Any) -> float:
        loss, outputs, on_device = self._forward(inputs, targets)
        self._meters.add(outputs, on_device)
        return loss.item()

    def _metrics(self) -> dict[str, float]:
        return self._meters.values()

    def _settled(self) -> bool:
        return self._slimming.done(self._step)

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

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: each.detach().clone() for name, each in tensors_of(self.module).items()}

    def _put_back(self, weights: Mapping[str, torch.Tensor]) -> None:
        _put_back(self.module, weights)

    def state(self) -> dict[str, Any]:
        """As `Course.state`."""
        return {
            **super().state(),
            "optimizer": _snapshot(self._optimizer.state_dict()),
            "schedule": None if self._schedule is None else _snapshot(self._schedule.state_dict()),
            "draws": dict(self._draws.states),
            "gone": dict(self._slimming.gone),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """As `Course.restore`."""
        super().restore(state)
        self._optimizer.load_state_dict(_snapshot(state["optimizer"]))
        if self._schedule is not None:
            self._schedule.load_state_dict(_schedule_state(state["schedule"]))
        self._draws.states = dict(state["draws"])
        self._slimming.restore(state.get("gone", {}))


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


# State.


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
