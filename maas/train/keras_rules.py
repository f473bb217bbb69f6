"""What a recipe's names are in Keras: its own losses, optimizers and metrics do the work.

Options are called as torch calls them and are translated; where one has no counterpart, or a
default differs, Keras's own holds or the recipe is refused, never bent.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from maas.train.recipe import Choice, Recipe

__all__ = ["check", "loss_of", "metrics_of", "optimizer_of"]

_OPTIMIZERS: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    "sgd": ("SGD", {"momentum": ("momentum",), "nesterov": ("nesterov",)}),
    **{
        name: (own, {"betas": ("beta_1", "beta_2"), "eps": ("epsilon",)} | more)
        for name, own, more in (
            ("adam", "Adam", {"amsgrad": ("amsgrad",)}),
            ("adamw", "AdamW", {"amsgrad": ("amsgrad",)}),
            ("adamax", "Adamax", {}),
            ("nadam", "Nadam", {}),
        )
    },
    "rmsprop": (
        "RMSprop",
        {
            "alpha": ("rho",),
            "eps": ("epsilon",),
            "momentum": ("momentum",),
            "centered": ("centered",),
        },
    ),
    "adagrad": (
        "Adagrad",
        {"eps": ("epsilon",), "initial_accumulator_value": ("initial_accumulator_value",)},
    ),
    "adadelta": ("Adadelta", {"rho": ("rho",), "eps": ("epsilon",)}),
}
"""A recipe's optimizer to Keras's, and its options to the arguments there."""

_METRICS = {"mae": "MeanAbsoluteError", "mse": "MeanSquaredError", "rmse": "RootMeanSquaredError"}

_ELSEWHERE = ("schedule", "dropout", "precision", "accumulate", "prune", "quantize")


def check(recipe: Recipe) -> None:
    """Raises `ValueError` for what a recipe wants and Keras's loop is not given."""
    plain = Recipe()
    wrong = [name for name in _ELSEWHERE if getattr(recipe, name) != getattr(plain, name)]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)}: fit does not set these for a Keras model, whose layers and "
            "optimizer hold them; build the model so, or leave them out"
        )


def optimizer_of(recipe: Recipe) -> Any:
    """The optimizer, with Keras's own defaults for what the recipe does not say."""
    name, options = recipe.optimizer.name, dict(recipe.optimizer.options)
    if name not in _OPTIMIZERS:
        raise ValueError(f"Keras has no optimizer {name!r}; there are: {', '.join(_OPTIMIZERS)}")
    own, translated = _OPTIMIZERS[name]
    arguments = {
        "learning_rate": recipe.lr,
        "weight_decay": recipe.weight_decay,
        "global_clipnorm": recipe.clip_norm,
        "clipvalue": recipe.clip_value,
    }
    for option, value in options.items():
        if option not in translated:
            known = ", ".join(translated) or "none"
            raise ValueError(f"{name} of Keras has no option {option!r}; there are: {known}")
        names = translated[option]
        arguments |= zip(names, value if len(names) > 1 else [value], strict=True)
    given = {key: value for key, value in arguments.items() if value is not None}
    return getattr(keras.optimizers, own)(**given)


def loss_of(recipe: Recipe, model: Any, targets: Any) -> Any:
    """The loss; of raw scores unless the model ends with softmax or sigmoid."""
    whole = np.asarray(targets).dtype.kind in "iu"
    choice = recipe.loss or Choice("cross_entropy" if whole else "mse")
    make = _LOSSES.get(choice.name)
    if make is None:
        raise ValueError(f"no loss {choice.name!r} for Keras; there are: {', '.join(_LOSSES)}")
    options = dict(choice.options)
    unknown = options.keys() - ({"delta"} if choice.name == "huber" else set())
    if unknown:
        raise ValueError(f"{choice.name} of Keras has no option {', '.join(sorted(unknown))}")
    return make(recipe, _last_activation(model), whole, options)


def _last_activation(model: Any) -> str:
    layers = getattr(model, "layers", [])
    found = getattr(layers[-1], "activation", None) if layers else None
    return getattr(found, "__name__", type(layers[-1]).__name__.lower() if layers else "")


def _cross_entropy(recipe: Recipe, last: str, whole: bool, _options: Any) -> Any:
    logits, smoothing = last != "softmax", recipe.label_smoothing
    if not whole:
        return keras.losses.CategoricalCrossentropy(from_logits=logits, label_smoothing=smoothing)
    if smoothing:
        raise ValueError("label_smoothing wants one-hot targets for Keras, and these are numbers")
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)


_LOSSES: Mapping[str, Callable[[Recipe, str, bool, Any], Any]] = {
    "mse": lambda *_: keras.losses.MeanSquaredError(),
    "mae": lambda *_: keras.losses.MeanAbsoluteError(),
    "huber": lambda _recipe, _last, _whole, options: keras.losses.Huber(**options),
    "cross_entropy": _cross_entropy,
    "binary_cross_entropy": lambda _recipe, last, _whole, _options: keras.losses.BinaryCrossentropy(
        from_logits=last != "sigmoid"
    ),
}


def metrics_of(recipe: Recipe, targets: Any) -> dict[str, Any]:
    """Keras's metrics by the recipe's names."""
    made = {}
    for choice in recipe.metrics:
        if choice.name == "accuracy":
            whole = np.asarray(targets).dtype.kind in "iu"
            own = "SparseCategoricalAccuracy" if whole else "CategoricalAccuracy"
        elif choice.name in _METRICS:
            own = _METRICS[choice.name]
        else:
            known = ", ".join(("accuracy", *_METRICS))
            raise ValueError(f"no metric {choice.name!r} for Keras; there are: {known}")
        if choice.options:
            raise ValueError(f"{choice.name} of Keras takes no options here")
        made[choice.name] = getattr(keras.metrics, own)()
    return made
