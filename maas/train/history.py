"""What a run of training tells: each step, each epoch, and the whole of it. No torch is needed."""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from maas.plots import WIDE, plot

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
    step : number of its last step.
    loss : mean over its rows, each before the step it belongs to.
    metrics : what was measured on held-out rows at its end, `validation_loss` first.
    lr : the learning rate of its last step.
    """

    number: int
    step: int
    loss: float
    metrics: Mapping[str, float] = attrs.field(factory=dict)
    lr: float

    def value(self, name: str) -> float:
        """What is called so: `loss` or a metric."""
        return self.loss if name == "loss" else self.metrics[name]

    def betters(self, other: "Epoch", name: str, *, higher: bool, by: float) -> bool:
        """Whether what is called so is better than in the other one, by more than `by`."""
        before, now = other.value(name), self.value(name)
        return (now - before if higher else before - now) > by

    @classmethod
    def ended_by(cls, step: Step) -> "Epoch":
        """The epoch whose last step this was."""
        measured = dict(step.metrics)
        loss = measured.pop("loss")
        return cls(number=step.epoch, step=step.step, loss=loss, metrics=measured, lr=step.lr)


def _count(several: list[Any]) -> str:
    return f"<{len(several)}>"


@attrs.define(kw_only=True)
class History:
    """What a run has told.

    Attributes
    ----------
    epochs : each epoch that has ended.
    losses : of each step.
    best : number of the epoch whose weights the model has, where early stopping chose one.
    stopped : why it ended: "epochs" (all were run) or "patience"; None if it did not.
    seconds : of all steps.
    """

    epochs: list[Epoch] = attrs.field(factory=list, repr=_count)
    losses: list[float] = attrs.field(factory=list, repr=_count)
    best: int | None = None
    stopped: str | None = None
    seconds: float = attrs.field(default=0.0, repr="{:.1f}".format)

    def add(self, step: Step) -> None:
        """Takes in one step."""
        self.losses.append(step.loss)
        self.seconds += step.seconds
        if step.metrics:
            self.epochs.append(Epoch.ended_by(step))

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
    def last(self) -> dict[str, Any]:
        """What is known of the epoch whose weights the model has: the best, or else the last."""
        if not self.epochs:
            return {}
        epoch = next((each for each in self.epochs if each.number == self.best), self.epochs[-1])
        return {"epoch": epoch.number, "loss": epoch.loss, **epoch.metrics}

    # Pictures.

    def picture(self) -> str:
        """The loss over the steps in plain characters: `.` of training, `o` of held-out rows."""
        points = [*self._measured("o"), *self._trained(".")]
        if not points:
            return "no step was made"
        powers = all(loss > 0 for _, loss, _ in points)
        return "\n".join(plot(points, "steps", "loss", powers=powers))

    def _trained(self, mark: str) -> Iterator[tuple[float, float, str]]:
        """Means over as many steps as fall into one column."""
        width = max(1, -(-len(self.losses) // WIDE))
        for first in range(0, len(self.losses), width):
            part = self.losses[first : first + width]
            yield first + (len(part) + 1) / 2, statistics.fmean(part), mark

    def _measured(self, mark: str) -> Iterator[tuple[float, float, str]]:
        for epoch in self.epochs:
            if "validation_loss" in epoch.metrics:
                yield epoch.step, epoch.metrics["validation_loss"], mark

    def plot(self, path: str | Path) -> None:
        """The curves as a picture file, drawn by matplotlib; its ending says of which kind.

        Raises
        ------
        ModuleNotFoundError
            matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "pictures are drawn by matplotlib: pip install matplotlib; "
                "history.picture() needs nothing",
                name="matplotlib",
            ) from None
        names = [] if not self.epochs else [*self.epochs[-1].metrics][1:]
        figure = Figure(figsize=(6.4, 3.2 * (1 + len(names))), layout="constrained")
        axes = figure.subplots(1 + len(names), squeeze=False)[:, 0]
        axes[0].plot(*_apart(self._trained("")), label="training")
        measured = [*self._measured("")]
        if measured:
            axes[0].plot(*_apart(measured), marker="o", label="held out")
        axes[0].set(xlabel="step", ylabel="loss")
        axes[0].legend()
        for each, name in zip(axes[1:], names, strict=True):
            each.plot([epoch.step for epoch in self.epochs], self.curve(name), marker="o")
            each.set(xlabel="step", ylabel=name.replace("_", " "))
        figure.savefig(path)


def _apart(points: Iterable[tuple[float, float, str]]) -> tuple[list[float], list[float]]:
    taken = [*points]
    return [x for x, _, _ in taken], [y for _, y, _ in taken]
