"""The course of a run of training, whatever trains: its epochs, when it ends, and its state.

`loop.py` says how torch makes a step, `keras_loop.py` how Keras does. All else is here, once.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import attrs

from maas.data import Data
from maas.train.history import Epoch, Step
from maas.train.recipe import Recipe

__all__ = ["Batch", "Course", "rows_in"]

Batch = tuple[Any, Any]


class Course(ABC):
    """Iterating it yields a `Step` for each optimizer step, from where it is to the end.

    Parameters
    ----------
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
        What the recipe asks for does not fit the rows.
    """

    def __init__(self, source: Any, recipe: Recipe, validation: Any) -> None:
        self.recipe = recipe
        self._source, self._held = _parts(source, recipe, validation)
        self._watch, self._higher = recipe.watching(held_out=self._held is not None)
        self._check_watch()
        self.total = self._all_steps()
        self._step = self._epoch = self._batch = 0
        self._sum, self._rows = 0.0, 0
        self.epochs: list[Epoch] = []
        self.stopped: str | None = None
        self.best: int | None = None
        self._kept: dict[str, Any] = {}

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

    # What trains says.

    @abstractmethod
    def _in_force(self) -> AbstractContextManager[None]:
        """What is in force while a step is made, and not between two."""

    @abstractmethod
    def _stepped(self, batches: list[Batch]) -> Step:
        """Makes one step, and counts it."""

    @abstractmethod
    def _measured(self, inputs: Any, targets: Any) -> float:
        """The mean loss over rows that are held out, which all metrics hear of."""

    @abstractmethod
    def _metrics(self) -> dict[str, float]:
        """What the metrics found over all of these."""

    @abstractmethod
    def _weights(self) -> dict[str, Any]:
        """A copy of all that is trained, and of what moves with it, by name."""

    @abstractmethod
    def _put_back(self, weights: Mapping[str, Any]) -> None:
        """Takes such weights; raises `ValueError` where they are another model's."""

    # The loop.

    def __iter__(self) -> Iterator[Step]:
        while self.stopped is None:
            began = time.perf_counter()
            for batches, last in self._groups():
                with self._in_force():
                    step = self._stepped(batches)
                    if last:
                        step = self._ended(step)
                yield attrs.evolve(step, seconds=time.perf_counter() - began)
                began = time.perf_counter()

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

    def _counted(self, loss: float, rows: int, lr: float, batches: int) -> Step:
        """The step that was just made."""
        self._step += 1
        self._batch += batches
        self._sum += loss * rows
        self._rows += rows
        return Step(
            step=self._step, epoch=self._epoch + 1, loss=loss, lr=lr, rows=rows, seconds=0.0
        )

    # The end of an epoch.

    def _ended(self, step: Step) -> Step:
        """Measures, watches, and turns to the next epoch; the step with what was found."""
        loss = self._sum / self._rows
        step = attrs.evolve(step, metrics={"loss": loss, **self._validated()})
        epoch = Epoch.ended_by(step)
        self.epochs.append(epoch)
        self._epoch += 1
        self._batch = 0
        self._sum, self._rows = 0.0, 0
        self._judge(epoch)
        return step

    def _validated(self) -> dict[str, float]:
        """Loss and metrics over the held-out rows."""
        if self._held is None:
            return {}
        total, rows = 0.0, 0
        for inputs, targets in self._held.batches(self.recipe.batch_size, order=None):
            here = rows_in(inputs)
            total += self._measured(inputs, targets) * here
            rows += here
        if not rows:
            raise ValueError("no row is held out; give validation data with at least one")
        return {"validation_loss": total / rows, **self._metrics()}

    def _judge(self, epoch: Epoch) -> None:
        """Whether this was the best epoch, and whether there is to be another one."""
        recipe = self.recipe
        if recipe.patience is not None and self._settled():
            if self._is_best(epoch):
                self.best = epoch.number
                self._kept = self._weights()
            elif epoch.number - (self.best or 0) >= recipe.patience:
                self.stopped = "patience"
        if self.stopped is None and self._epoch >= recipe.epochs:
            self.stopped = "epochs"
        if self.stopped is not None and self._kept:
            self._put_back(self._kept)

    def _settled(self) -> bool:
        """Whether the weights are of the kind that the best ones are to be."""
        return True

    def _is_best(self, epoch: Epoch) -> bool:
        if self.best is None:
            return True
        best, least = self.epochs[self.best - 1], self.recipe.min_delta
        return epoch.betters(best, self._watch, higher=self._higher, by=least)

    def _finite(self, loss: float, *, weights: str) -> float:
        if math.isfinite(loss):
            return loss
        raise FloatingPointError(
            f"the loss became {loss} at step {self._step + 1}; the weights are those {weights} it. "
            "A smaller lr, clip_norm=1.0 or scaled inputs help most often"
        )

    # Resuming.

    def state(self) -> dict[str, Any]:
        """All that the steps to come depend on but the rows, as plain values and arrays.

        Taken between two steps; what trains on does not change it.
        """
        return {
            "recipe": self.recipe.to_data(),
            "weights": self._weights(),
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
            The state belongs to another recipe or another model.
        """
        if Recipe.of(state["recipe"]) != self.recipe:
            raise ValueError(
                f"this state belongs to another recipe: {state['recipe']!r:.200}, "
                f"and not to {self.recipe.to_data()!r:.200}"
            )
        self._put_back(state["weights"])
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


def rows_in(inputs: Any) -> int:
    """Rows of a batch: of its first array."""
    while isinstance(inputs, dict | tuple | list):
        inputs = next(iter(inputs.values() if isinstance(inputs, dict) else inputs))
    return len(inputs)
