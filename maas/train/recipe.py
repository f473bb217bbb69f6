"""How a model is to be trained, as plain data.

A `Recipe` names everything from closed tables, so it can cross the wire, be kept beside a
checkpoint and be compared, and a server that is sent one never receives code. Nothing here needs
torch: who trains elsewhere may have none.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from maas.spelling import offered

__all__ = [
    "LOSSES",
    "METRICS",
    "OPTIMIZERS",
    "PRECISIONS",
    "PRUNINGS",
    "QUANTIZATIONS",
    "SCHEDULES",
    "Choice",
    "Recipe",
]


@attrs.frozen
class Named:
    """What a name stands for takes these options; the table that holds it says what it is."""

    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    each: str = ""
    better: str = ""


LOSSES: Mapping[str, Named] = {
    "mse": Named(),
    "mae": Named(),
    "huber": Named(("delta",)),
    "cross_entropy": Named(("weight", "ignore_index")),
    "binary_cross_entropy": Named(("pos_weight",)),
    "nll": Named(("weight", "ignore_index")),
    "poisson": Named(("log_input", "full")),
}
OPTIMIZERS: Mapping[str, Named] = {
    "sgd": Named(("momentum", "dampening", "nesterov", "fused")),
    "adam": Named(("betas", "eps", "amsgrad", "fused")),
    "adamw": Named(("betas", "eps", "amsgrad", "fused")),
    "adamax": Named(("betas", "eps")),
    "nadam": Named(("betas", "eps", "momentum_decay", "decoupled_weight_decay")),
    "radam": Named(("betas", "eps", "decoupled_weight_decay")),
    "rmsprop": Named(("alpha", "eps", "momentum", "centered")),
    "adagrad": Named(("lr_decay", "eps", "initial_accumulator_value", "fused")),
    "adadelta": Named(("rho", "eps")),
}
SCHEDULES: Mapping[str, Named] = {
    "step": Named(("gamma",), needs=("step_size",), each="epoch"),
    "multistep": Named(("gamma",), needs=("milestones",), each="epoch"),
    "exponential": Named(needs=("gamma",), each="epoch"),
    "plateau": Named(
        ("factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr"), each="epoch"
    ),
    "linear": Named(("start_factor", "end_factor", "total_iters"), each="step"),
    "polynomial": Named(("total_iters", "power"), each="step"),
    "cosine": Named(("T_max", "eta_min"), each="step"),
    "cosine_restarts": Named(("T_mult", "eta_min"), needs=("T_0",), each="step"),
    "one_cycle": Named(
        ("max_lr", "pct_start", "anneal_strategy", "div_factor", "final_div_factor", "three_phase"),
        each="step",
    ),
}
METRICS: Mapping[str, Named] = {
    "accuracy": Named(("top_k",), better="higher"),
    "balanced_accuracy": Named(better="higher"),
    "precision": Named(better="higher"),
    "recall": Named(better="higher"),
    "f1": Named(better="higher"),
    "auroc": Named(better="higher"),
    "matthews": Named(better="higher"),
    "mae": Named(better="lower"),
    "mse": Named(better="lower"),
    "rmse": Named(better="lower"),
    "r2": Named(better="higher"),
}
PRECISIONS = ("full", "bfloat16")
PRUNINGS: Mapping[str, Named] = {
    "gradual": Named(("begin", "end", "turns"), needs=("amount",)),
}
QUANTIZATIONS = ("int8",)

_LONGEST = 1000
"""Numbers that an option may list at most."""


@attrs.frozen
class Choice:
    """A name from a table and its options; written as the name alone, or as a dict with `name`."""

    name: str
    options: Mapping[str, Any] = attrs.field(factory=dict)

    def to_data(self) -> str | dict[str, Any]:
        """As it is written."""
        return {"name": self.name, **self.options} if self.options else self.name


def _chosen(what: str, table: Mapping[str, Named], given: Any) -> Choice:
    if isinstance(given, Choice):
        given = given.to_data()
    name, options = given, {}
    if isinstance(given, Mapping):
        options = {key: value for key, value in given.items() if key != "name"}
        name = given.get("name")
    if type(name) is not str or name not in table:
        raise ValueError(f"no {what} {name!r:.80}; {offered(name, table)}")
    entry = table[name]
    known = (*entry.needs, *entry.options)
    for option, value in options.items():
        if option not in known:
            told = offered(option, known) if known else "it takes none"
            raise TypeError(f"{what} {name!r} has no option {option!r:.80}; {told}")
        _check_plain(f"{what} {name!r}: {option}", value)
    missing = [option for option in entry.needs if option not in options]
    if missing:
        raise TypeError(
            f"{what} {name!r} needs {', '.join(missing)}: "
            f"write {what}={{'name': {name!r}, {missing[0]!r}: ...}}"
        )
    return Choice(name, {key: _listed(value) for key, value in options.items()})


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_plain(what: str, value: Any) -> None:
    parts = value if isinstance(value, list | tuple) and len(value) <= _LONGEST else [value]
    if not all(isinstance(part, bool | int | float | str) for part in parts):
        raise TypeError(
            f"{what} wants a number, a bool, a word or a list of up to {_LONGEST} numbers, "
            f"got {value!r:.80}"
        )


def _loss(given: Any) -> Choice | None:
    return None if given is None else _chosen("loss", LOSSES, given)


def _optimizer(given: Any) -> Choice:
    return _chosen("optimizer", OPTIMIZERS, given)


def _schedule(given: Any) -> Choice | None:
    return None if given is None else _chosen("schedule", SCHEDULES, given)


def _pruning(given: Any) -> Choice | None:
    if isinstance(given, int | float) and not isinstance(given, bool):
        given = {"name": "gradual", "amount": given}
    return None if given is None else _chosen("prune", PRUNINGS, given)


def _metrics(given: Any) -> tuple[Choice, ...]:
    several = given if isinstance(given, list | tuple) else [given]
    return tuple(_chosen("metric", METRICS, each) for each in several)


def _number(
    *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf, whole: bool
) -> Callable[[Any, Any, Any], None]:
    """A check of a number; an attribute whose default is None may be None."""
    kinds = int if whole else int | float
    bounds = [
        *([f"above {above:g}"] if above > -math.inf else []),
        *([f"from {least:g}"] if least > -math.inf else []),
        *([f"up to {most:g}"] if most < math.inf else []),
    ]
    wanted = f"{'a whole number' if whole else 'a number'} {' '.join(bounds)}".strip()

    def check(_recipe: Any, field: Any, value: Any) -> None:
        if value is None and field.default is None:
            return
        plain = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if not plain or not (value > above and least <= value <= most):
            raise ValueError(f"{field.name} wants {wanted}, got {value!r:.80}")

    return check


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _yes_or_no(_recipe: Any, field: Any, value: Any) -> None:
    if type(value) is not bool:
        raise ValueError(f"{field.name} wants True or False, got {value!r:.80}")


@attrs.frozen(kw_only=True)
class Recipe:
    """What `model.fit` does. Names are those of the tables above.

    A name with options is written as a dict:
    `optimizer={"name": "sgd", "momentum": 0.9}`; options are called as torch calls them.

    Attributes
    ----------
    loss : what is made small; by default `cross_entropy` for targets that are whole numbers, and
        `mse` for others.
    optimizer : the rule by which weights follow their gradients.
    lr : its learning rate; torch's own default for that optimizer if not given.
    weight_decay : pull towards zero, as the optimizer applies it; its own default if not given.
    schedule : how the rate changes, each epoch or each step.
    batch_size : rows in a batch.
    epochs : times that all rows are seen.
    shuffle : a new order of rows for each epoch; else they come as they stand.
    accumulate : batches whose gradients make one step, weighted by their rows.
    clip_norm : gradients are scaled down to this norm over all of them.
    clip_value : each element of a gradient is cut off at plus and minus this.
    label_smoothing : share of each label that is spread over all classes; for `cross_entropy`.
    dropout : rate of every dropout layer of the model while it trains; their own if not given.
    precision : "full", or "bfloat16" for forward runs under torch's autocast.
    prune : share of the weights that is zero in the end, the smallest first, for
        `compress(Prune(share))` afterwards; or {"name": "gradual", "amount": 0.8, "begin": 0.0,
        "end": 0.5, "turns": 20}: from which part of the steps to which, and how many times.
        Early stopping watches from the end of that on.
    quantize : "int8": the model trains with weights as `compress(Quantize("int8"))` will keep them.
    validation : share of the rows that is held out, and measured at the end of each epoch.
    metrics : what is measured there beside the loss.
    patience : stop after so many epochs without a better `watch`, and put the weights of the best
        epoch back.
    min_delta : what is better by no more than this is not better.
    watch : what is watched: "loss", "validation_loss" or a metric; the validation's loss by
        default where there is one.
    seed : of the order of rows and of all draws (dropout) of the run; the caller's generator stays
        as it is.
    """

    loss: Choice | None = attrs.field(default=None, converter=_loss)
    optimizer: Choice = attrs.field(default=Choice("adam"), converter=_optimizer)
    lr: float | None = attrs.field(default=None, validator=_number(above=0, whole=False))
    weight_decay: float | None = attrs.field(default=None, validator=_number(least=0, whole=False))
    schedule: Choice | None = attrs.field(default=None, converter=_schedule)
    batch_size: int = attrs.field(default=32, validator=_number(least=1, whole=True))
    epochs: int = attrs.field(default=1, validator=_number(least=1, whole=True))
    shuffle: bool = attrs.field(default=True, validator=_yes_or_no)
    accumulate: int = attrs.field(default=1, validator=_number(least=1, whole=True))
    clip_norm: float | None = attrs.field(default=None, validator=_number(above=0, whole=False))
    clip_value: float | None = attrs.field(default=None, validator=_number(above=0, whole=False))
    label_smoothing: float = attrs.field(
        default=0.0, validator=_number(least=0, most=1, whole=False)
    )
    dropout: float | None = attrs.field(
        default=None, validator=_number(least=0, most=1, whole=False)
    )
    precision: str = attrs.field(default="full")
    prune: Choice | None = attrs.field(default=None, converter=_pruning)
    quantize: str | None = attrs.field(default=None)
    validation: float = attrs.field(default=0.0, validator=_number(least=0, most=0.9, whole=False))
    metrics: tuple[Choice, ...] = attrs.field(default=(), converter=_metrics)
    patience: int | None = attrs.field(default=None, validator=_number(least=1, whole=True))
    min_delta: float = attrs.field(default=0.0, validator=_number(least=0, whole=False))
    watch: str | None = attrs.field(default=None)
    seed: int = attrs.field(default=0, validator=_number(least=0, most=2**63 - 1, whole=True))

    @precision.validator
    def _check_precision(self, _attribute: object, value: object) -> None:
        if value not in PRECISIONS:
            raise ValueError(f"no precision {value!r:.80}; {offered(value, PRECISIONS)}")

    @prune.validator
    def _check_prune(self, _attribute: object, value: Choice | None) -> None:
        if value is None:
            return
        told = {"begin": 0.0, "end": 0.5, "turns": 20, **value.options}
        shares = [told[name] for name in ("amount", "begin", "end")]
        if not all(_is_number(each) for each in shares) or not (
            0 < told["amount"] < 1 and 0 <= told["begin"] < told["end"] <= 1
        ):
            raise ValueError(
                "prune wants an amount between 0 and 1, and a begin before an end from 0 to 1; "
                f"got {value.to_data()!r:.120}"
            )
        if type(told["turns"]) is not int or not 1 <= told["turns"] <= _LONGEST:
            raise ValueError(f"prune wants 1 to {_LONGEST} turns, got {told['turns']!r:.80}")

    @quantize.validator
    def _check_quantize(self, _attribute: object, value: object) -> None:
        if value is not None and value not in QUANTIZATIONS:
            raise ValueError(f"no quantize {value!r:.80}; {offered(value, QUANTIZATIONS)}")

    @label_smoothing.validator
    def _check_smoothing(self, _attribute: object, value: float) -> None:
        if value and self.loss is not None and self.loss.name != "cross_entropy":
            raise ValueError(
                f"label_smoothing is for the loss 'cross_entropy', not for {self.loss.name!r}"
            )

    @watch.validator
    def _check_watch(self, _attribute: object, value: object) -> None:
        known = ["loss", "validation_loss", *(metric.name for metric in self.metrics)]
        if value is not None and value not in known:
            raise ValueError(f"nothing to watch is called {value!r:.80}; {offered(value, known)}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Recipe":
        """The recipe of these options, as `fit` is given them or as `to_data` wrote them.

        Raises
        ------
        TypeError
            An option that does not exist; the message tells the nearest, and all there are.
        ValueError
            A value that makes no sense, or a name that no table has.
        """
        known = [field.name for field in attrs.fields(cls)]
        for name in options:
            if name not in known:
                raise TypeError(f"fit has no option {name!r:.80}; {offered(name, known)}")
        return cls(**options)

    def to_data(self) -> dict[str, Any]:
        """What differs from the defaults, as plain values; `Recipe.of` reads it."""
        return {
            field.name: _written(getattr(self, field.name))
            for field in attrs.fields(Recipe)
            if getattr(self, field.name) != getattr(_DEFAULT, field.name)
        }

    @property
    def watched(self) -> tuple[str, bool]:
        """What early stopping and the schedule `plateau` go by, and whether higher is better."""
        return self.watching(held_out=self.validation > 0)

    def watching(self, *, held_out: bool) -> tuple[str, bool]:
        """As `watched`, told whether rows are held out, which may be given beside the recipe."""
        name = self.watch or ("validation_loss" if held_out else "loss")
        return name, name in METRICS and METRICS[name].better == "higher"


def _written(value: Any) -> Any:
    if isinstance(value, Choice):
        return value.to_data()
    return [each.to_data() for each in value] if isinstance(value, tuple) else value


_DEFAULT = Recipe()
