"""What a run of training tells: each step, each epoch, and the whole of it. No torch is needed."""

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

__all__ = ["Epoch", "History", "Step"]


@attrs.frozen(kw_only=True)
class Step:
    """One step of an optimizer.

    Attributes
    ----------
    step : its number, from 1.
    epoch : the epoch it belongs to, from 1.
    loss : mean over its rows, before the step.
    lr : the learning rate that it took, of the first group of weights.
    rows : rows that it saw.
    seconds : since the step before, validation included.
    metrics : at the last step of an epoch: `loss`, the mean over the epoch, and what was measured
        on held-out rows, `validation_loss` first.
    """

    step: int
    epoch: int
    loss: float
    lr: float
    rows: int
    seconds: float
    metrics: Mapping[str, float] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Epoch:
    """One pass over all rows.

    Attributes
    ----------
    number : from 1.
    loss : mean over its rows, each before the step it belongs to.
    metrics : what was measured on held-out rows at its end, `validation_loss` first.
    lr : the learning rate of its last step.
    """

    number: int
    loss: float
    metrics: Mapping[str, float] = attrs.field(factory=dict)
    lr: float

    def value(self, name: str) -> float:
        """What is called so: `loss` or a metric."""
        return self.loss if name == "loss" else self.metrics[name]


@attrs.define(kw_only=True)
class History:
    """What a run has told so far.

    Attributes
    ----------
    epochs : each epoch that has ended.
    losses : of each step.
    best : number of the epoch whose weights the model has, where early stopping chose one.
    stopped : why it ended: "epochs" (all were run) or "patience"; None while it runs.
    seconds : of all steps.
    """

    epochs: list[Epoch] = attrs.field(factory=list)
    losses: list[float] = attrs.field(factory=list)
    best: int | None = None
    stopped: str | None = None
    seconds: float = 0.0

    def add(self, step: Step) -> None:
        """Takes in one step."""
        self.losses.append(step.loss)
        self.seconds += step.seconds
        if step.metrics:
            measured = {name: each for name, each in step.metrics.items() if name != "loss"}
            self.epochs.append(
                Epoch(number=step.epoch, loss=step.metrics["loss"], metrics=measured, lr=step.lr)
            )

    @classmethod
    def of(cls, steps: Iterable[Step]) -> "History":
        """Of all these steps."""
        made = cls()
        for step in steps:
            made.add(step)
        return made

    def curve(self, name: str = "loss") -> list[float]:
        """`loss`, `validation_loss` or a metric, epoch by epoch."""
        return [epoch.value(name) for epoch in self.epochs]

    @property
    def last(self) -> Mapping[str, Any]:
        """All that is known of the best epoch, or else of the last one."""
        if not self.epochs:
            return {}
        numbers = [epoch.number for epoch in self.epochs]
        at = numbers.index(self.best) if self.best in numbers else -1
        epoch = self.epochs[at]
        return {"epoch": epoch.number, "loss": epoch.loss, **epoch.metrics}
