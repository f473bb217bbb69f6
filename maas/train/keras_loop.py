"""The loop of training for a Keras model: `train_on_batch` of Keras's own, told step by step.

The recipe is that of torch modules, with what Keras calls by the same names; the batches are the
same rows in the same order. The model is compiled for it, as `model.compile` does, and is as
compiled between two steps too: what its layers draw comes from states of their own, and these are
part of the run's state, as its weights are.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from maas.backends.keras_calls import array_of, in_numpy
from maas.train import keras_rules
from maas.train.course import Batch, Course, rows_in
from maas.train.history import Step
from maas.train.recipe import Recipe

__all__ = ["Run"]


class Run(Course):
    """Training of one Keras model by one recipe; iterating it yields a `Step` for each batch.

    Parameters
    ----------
    model : trained in place, and compiled for it.
    source : rows to learn from: anything that `maas.data.Data.of` takes.
    recipe : how.
    validation : rows that are measured at the end of each epoch, instead of a share of `source`.

    Attributes
    ----------
    total, epochs, stopped, best : as those of `Course`.

    Raises
    ------
    ValueError
        What the recipe asks for is not Keras's, or does not fit the model or the rows.

    Iterating it raises `FloatingPointError` where a loss is no finite number.
    """

    def __init__(self, model: Any, source: Any, recipe: Recipe, *, validation: Any = None) -> None:
        keras_rules.check(recipe)
        super().__init__(source, recipe, validation)
        self.model = model
        self._optimizer = keras_rules.optimizer_of(recipe)
        if model.built:
            self._optimizer.build(model.trainable_variables)
        self._loss: Any = None
        self._meters: dict[str, Any] = {}
        self._draws = _draws(recipe.seed, model)

    @contextmanager
    def _in_force(self) -> Iterator[None]:
        if self._draws is None:
            yield
            return
        with self._draws.in_force():
            yield

    def _stepped(self, batches: list[Batch]) -> Step:
        """One step, which is Keras's own."""
        ((inputs, targets),) = ((_arrays(one), _arrays(other)) for one, other in batches)
        if self._loss is None:
            self._loss = keras_rules.loss_of(self.recipe, self.model, targets)
            self._meters = keras_rules.metrics_of(self.recipe, targets)
            self.model.compile(optimizer=self._optimizer, loss=self._loss)
        lr = float(array_of(self._optimizer._learning_rate))
        loss = self._finite(float(self.model.train_on_batch(inputs, targets)), weights="after")
        return self._counted(loss, rows_in(inputs), lr, 1)

    def _validated(self) -> dict[str, float]:
        for meter in self._meters.values():
            meter.reset_state()
        return super()._validated()

    def _measured(self, inputs: Any, targets: Any) -> float:
        """In eval mode."""
        targets = _arrays(targets)
        outputs = keras.ops.stop_gradient(self.model(_arrays(inputs), training=False))
        for meter in self._meters.values():
            meter.update_state(targets, outputs)
        return float(self._loss(targets, outputs))

    def _metrics(self) -> dict[str, float]:
        return {name: float(meter.result()) for name, meter in self._meters.items()}

    # Resuming.

    def _weights(self) -> dict[str, Any]:
        return _copied(self.model.variables)

    def _put_back(self, weights: Mapping[str, Any]) -> None:
        _put_back(self.model.variables, weights)

    def state(self) -> dict[str, Any]:
        """As `Course.state`."""
        return {
            **super().state(),
            "optimizer": _copied(self._optimizer.variables),
            "draws": {} if self._draws is None else dict(self._draws.states),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """As `Course.restore`."""
        super().restore(state)
        _put_back(self._optimizer.variables, state["optimizer"])
        if self._draws is not None:
            self._draws.states = dict(state["draws"])


def _draws(seed: int, model: Any) -> Any:
    """What layers without a seed draw from: torch's generators. Elsewhere each has its own."""
    if keras.backend.backend() != "torch":
        return None
    import torch

    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    return importlib.import_module("maas.train.draws").Draws(seed, device)


def _copied(variables: Sequence[Any]) -> dict[str, Any]:
    """By their places: their names come of layers, which Keras numbers anew in each process."""
    return {str(place): array_of(each) for place, each in enumerate(variables)}


def _put_back(variables: Sequence[Any], arrays: Mapping[str, Any]) -> None:
    held = {str(place): each for place, each in enumerate(variables)}
    facts = {place: (tuple(each.shape), str(each.dtype)) for place, each in held.items()}
    if facts != {place: (each.shape, str(each.dtype)) for place, each in arrays.items()}:
        raise ValueError(
            "this state belongs to another model: its variables have other shapes or dtypes"
        )
    for place, variable in held.items():
        variable.assign(arrays[place])


def _arrays(value: Any) -> Any:
    """Arrays of every kind as NumPy's, whatever holds them."""
    if isinstance(value, dict):
        return {name: _arrays(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_arrays(each) for each in value)
    return in_numpy(value)
