"""What a step is given beside the model: the original, and the data that the result is judged by.

    check=xs              inputs, their rows along the first axis
    check=(xs, ys)        inputs and targets; with targets, the task's own metric is measured
    check=((a, b), ys)    the inputs of a model that takes two arrays

Data that does not fit the model is refused before any work.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import attrs
import numpy as np
import torch

from maas.calls import CALL
from maas.model import Model

__all__ = ["Check", "Step", "Trial", "check_steps", "step_name"]


@attrs.frozen(eq=False)
class Check:
    """Inputs with or without targets, all of the same number of rows.

    Attributes
    ----------
    args : the model's arguments, each with the rows along its first axis.
    targets : what the model ought to give, or None.
    """

    args: tuple[torch.Tensor, ...]
    targets: torch.Tensor | None

    @classmethod
    def of(cls, data: Any, what: str = "check") -> Self:
        """The data as tensors.

        Raises
        ------
        TypeError
            What is there is no array.
        ValueError
            No rows, numbers of rows that differ, or numbers that are not finite.
        """
        if isinstance(data, cls):
            return data
        inputs, targets = data if type(data) is tuple and len(data) == 2 else (data, None)
        given = inputs if type(inputs) is tuple else (inputs,)
        args = tuple(_tensor(each, what) for each in given)
        wanted = None if targets is None else _tensor(targets, what)
        sizes = {each.shape[0] for each in (*args, *(() if wanted is None else (wanted,)))}
        if len(sizes) != 1 or min(sizes) < 2:
            raise ValueError(
                f"{what}= wants at least 2 rows, as many in each array; got {sorted(sizes)}. "
                "Rows are along the first axis; a pair is (inputs, targets)"
            )
        return cls(args, wanted)

    def __len__(self) -> int:
        return int(self.args[0].shape[0])

    def rows(self, wanted: int) -> tuple[torch.Tensor, ...]:
        """So many rows of the arguments; from the beginning again where there are fewer."""
        index = torch.arange(wanted) % len(self)
        return tuple(each[index] for each in self.args)

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """The arguments, `size` rows at a time."""
        for start in range(0, len(self), size):
            yield tuple(each[start : start + size] for each in self.args)

    def check_fits(self, model: Model[..., Any], what: str = "check") -> None:
        """Raises `SignatureError`, or what the model raises, where it does not take the inputs."""
        method = model.executor.method(CALL)
        method.signature.check(self.args, {}, method.label)
        try:
            with torch.no_grad():
                model.with_options().eval()(*self.rows(2))
        except Exception as error:
            error.add_note(f"This was the first call with the data of {what}=; no work was done.")
            raise


def _tensor(value: Any, what: str) -> torch.Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.array(value))
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        raise TypeError(
            f"{what}= wants arrays or tensors with rows, or a pair (inputs, targets) of them; "
            f"got {type(value).__name__} {value!r:.40}"
        )
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise ValueError(f"{what}= holds numbers that are not finite")
    return value.detach()


class Trial:
    """One run of `compress`.

    Attributes
    ----------
    original : the model that is compressed; a step must not change it.
    check : the data that the result is judged by, or None.
    notes : what the steps have to say to whoever reads the report.
    """

    def __init__(self, original: Model[..., Any], check: Check | None) -> None:
        self.original = original
        self.check = check
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Puts a sentence into the report, once."""
        if text not in self.notes:
            self.notes.append(text)

    def inputs(self, step: object) -> Check:
        """The check data, for a step that cannot do without.

        Raises
        ------
        ValueError
            There is none.
        """
        if self.check is None:
            raise ValueError(f"{step} wants rows to work with: give check=")
        return self.check


class Step(Protocol):
    """What `compress` takes: a callable that makes a model of a model, and changes neither.

    A third party's step is a function of this shape, in a file of its own. Its name in the report
    is its `str`, or a function's `__name__`.
    """

    def __call__(self, model: Model[..., Any], trial: Trial, /) -> Model[..., Any]:
        """The smaller model."""


def step_name(step: object) -> str:
    """What the report calls a step."""
    name = getattr(step, "__name__", None)
    return name if isinstance(name, str) else str(step)


def check_steps(steps: Sequence[object], known: Sequence[str]) -> None:
    """Raises TypeError where one is no step."""
    for step in steps:
        if isinstance(step, type) or not callable(step):
            raise TypeError(
                f"a step is a callable (model, trial) -> model, such as Quantize('int8'); "
                f"got {step!r:.60}; steps: {', '.join(known)}"
            )
