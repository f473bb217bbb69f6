"""The loop of training for a Keras model: `train_on_batch` of Keras's own, told step by step.

The recipe is that of torch modules, with what Keras calls by the same names; the batches are the
same rows in the same order. The model is compiled for it, as `model.compile` does.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import attrs
import keras

from maas import tensors
from maas.backends.keras_calls import array_of
from maas.data import Data
from maas.train import keras_rules
from maas.train.history import Epoch, Step
from maas.train.recipe import Recipe

__all__ = ["Run"]

Batch = tuple[Any, Any]


class Run:
    """Training of one Keras model by one recipe; iterating it yields a `Step` for each batch.

    Parameters
    ----------
    model : trained in place, and compiled for it.
    source : rows to learn from: anything that `maas.data.Data.of` takes.
    recipe : how.
    validation : rows that are measured at the end of each epoch, instead of a share of `source`.

    Attributes
    ----------
    total, epochs, stopped, best : as those of `maas.train.loop.Run`.

    Raises
    ------
    ValueError
        What the recipe asks for is not Keras's, or does not fit the model or the rows.

    Iterating it raises `FloatingPointError` where a loss is no finite number.
    """

    def __init__(self, model: Any, source: Any, recipe: Recipe, *, validation: Any = None) -> None:
        keras_rules.check(recipe)
        self.model = model
        self.recipe = recipe
        self._source, self._held = _parts(source, recipe, validation)
        self._watch, self._higher = recipe.watching(held_out=self._held is not None)
        wants = bool(recipe.metrics) or self._watch == "validation_loss"
        if wants and self._held is None:
            raise ValueError("metrics are measured on rows that are held out: give validation=0.2")
        batches = self._source.steps(recipe.batch_size)
        self.total = None if batches is None else batches * recipe.epochs
        self._loss: Any = None
        self._metrics: dict[str, Any] = {}
        self.epochs: list[Epoch] = []
        self.stopped: str | None = None
        self.best: int | None = None
        self._kept: list[Any] = []

    def __iter__(self) -> Iterator[Step]:
        number = 0
        while self.stopped is None:
            epoch, loss, rows = len(self.epochs) + 1, 0.0, 0
            began = time.perf_counter()
            for (inputs, targets), last in _with_last(self._batches(epoch)):
                step = self._stepped(inputs, targets)
                number += 1
                step = attrs.evolve(step, step=number, epoch=epoch)
                loss, rows = loss + step.loss * step.rows, rows + step.rows
                if last:
                    step = self._ended(step, loss / rows)
                yield attrs.evolve(step, seconds=time.perf_counter() - began)
                began = time.perf_counter()
            if not rows:
                raise ValueError("there is no row to learn from; give data with at least one")

    def _batches(self, epoch: int) -> Iterator[Batch]:
        order = (self.recipe.seed, epoch - 1) if self.recipe.shuffle else None
        for inputs, targets in self._source.batches(self.recipe.batch_size, order=order):
            yield _in_numpy(inputs), _in_numpy(targets)

    def _stepped(self, inputs: Any, targets: Any) -> Step:
        if self._loss is None:
            self._loss = keras_rules.loss_of(self.recipe, self.model, targets)
            self._metrics = keras_rules.metrics_of(self.recipe, targets)
            self.model.compile(optimizer=keras_rules.optimizer_of(self.recipe), loss=self._loss)
        self.model.reset_metrics()  # what it tells is a mean over all batches since
        lr = float(array_of(self.model.optimizer._learning_rate))
        loss = float(self.model.train_on_batch(inputs, targets))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss}. A smaller lr, clip_norm=1.0 or scaled inputs help most "
                "often"
            )
        return Step(step=0, epoch=0, loss=loss, lr=lr, rows=len(_first(inputs)), seconds=0.0)

    def _ended(self, step: Step, loss: float) -> Step:
        step = attrs.evolve(step, metrics={"loss": loss, **self._validated()})
        epoch = Epoch.ended_by(step)
        self.epochs.append(epoch)
        if self.recipe.patience is not None:
            if self._is_best(epoch):
                self.best = epoch.number
                self._kept = [array_of(each) for each in self.model.variables]
            elif epoch.number - (self.best or 0) >= self.recipe.patience:
                self.stopped = "patience"
        if self.stopped is None and epoch.number >= self.recipe.epochs:
            self.stopped = "epochs"
        if self.stopped is not None:
            for variable, value in zip(self.model.variables, self._kept, strict=False):
                variable.assign(value)
        return step

    def _validated(self) -> dict[str, float]:
        """Loss and metrics over the held-out rows, in eval mode."""
        if self._held is None:
            return {}
        total, rows = 0.0, 0
        for metric in self._metrics.values():
            metric.reset_state()
        for given, wanted in self._held.batches(self.recipe.batch_size, order=None):
            inputs, targets = _in_numpy(given), _in_numpy(wanted)
            outputs = keras.ops.stop_gradient(self.model(inputs, training=False))
            total += float(self._loss(targets, outputs)) * len(_first(inputs))
            rows += len(_first(inputs))
            for metric in self._metrics.values():
                metric.update_state(targets, outputs)
        if not rows:
            raise ValueError("no row is held out; give validation data with at least one")
        measured = {name: float(metric.result()) for name, metric in self._metrics.items()}
        return {"validation_loss": total / rows, **measured}

    def _is_best(self, epoch: Epoch) -> bool:
        if self.best is None:
            return True
        best, least = self.epochs[self.best - 1], self.recipe.min_delta
        return epoch.betters(best, self._watch, higher=self._higher, by=least)


def _parts(source: Any, recipe: Recipe, validation: Any) -> tuple[Data, Data | None]:
    data = Data.of(source)
    if validation is not None:
        return data, Data.of(validation)
    return data.split(recipe.validation, seed=recipe.seed) if recipe.validation else (data, None)


def _with_last(batches: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Each with whether it is the last."""
    before = next(batches, None)
    while before is not None:
        following = next(batches, None)
        yield before, following is None
        before = following


def _in_numpy(value: Any) -> Any:
    """Arrays of every kind as NumPy's, whatever holds them."""
    if isinstance(value, dict):
        return {name: _in_numpy(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_in_numpy(each) for each in value)
    adapter = tensors.adapter_for(type(value))
    if adapter is None:
        raise ValueError(f"a Keras model learns from arrays, and a batch holds {value!r:.60}")
    dtype, shape = adapter.facts(value)
    data = bytearray(adapter.contents(adapter.contiguous(value), ()))
    return tensors.restore("$array", dtype, shape, (), memoryview(data))


def _first(value: Any) -> Any:
    while isinstance(value, dict | tuple | list):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value
