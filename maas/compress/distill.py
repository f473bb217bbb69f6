"""`Distill`: a student learns to give what the teacher gives.

For classes the loss is that of Hinton et al., 2015 (arXiv:1503.02531), with the teacher's and the
student's logits t and z, a temperature T and a weight a:

    a T^2 KL(softmax(t / T) || softmax(z / T))  +  (1 - a) CE(z, labels)

for numbers the two terms are mean squared errors. A teacher does not always help: where there are
labels, a twin of the student is trained on them alone, and the report tells which was better.
"""

import copy
import statistics
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn import functional

from maas.compress.figures import has_classes, outputs, score
from maas.compress.layers import around, copied
from maas.compress.trial import Check, Trial
from maas.errors import SignatureError, Unsupported
from maas.model import Model

__all__ = ["Distill"]


@attrs.frozen(eq=False)
class Distill:
    """Trains a student on the outputs of a teacher, wherever that runs.

    Parameters
    ----------
    student : a torch module; None takes the model as the steps before left it, which makes good
        what pruning or factoring broke.
    data : what it learns from: inputs, or a pair (inputs, targets); not the check data.
    teacher : a Model, here or elsewhere; the original by default.
    epochs, batch_size, lr : of the training, by Adam.
    temperature, weight : T and a above; without targets a is 1.
    seeds : how many students are trained with and without the teacher for the comparison; each
        but the first begins from weights of its own. The first one is what is returned.
    seed : of the first one.
    """

    student: nn.Module | None = None
    data: Any = None
    teacher: Model[..., Any] | None = attrs.field(default=None, kw_only=True)
    epochs: int = attrs.field(default=15, kw_only=True)
    batch_size: int = attrs.field(default=64, kw_only=True)
    lr: float = attrs.field(default=1e-3, kw_only=True)
    temperature: float = attrs.field(default=3.0, kw_only=True)
    weight: float = attrs.field(default=0.7, kw_only=True)
    seeds: int = attrs.field(default=1, kw_only=True)
    seed: int = attrs.field(default=0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.student is not None and not isinstance(self.student, nn.Module):
            raise TypeError(
                f"Distill's student is a torch module; got {type(self.student).__name__}. "
                "Data alone is data="
            )
        if self.data is None:
            raise ValueError("Distill wants data=, inputs or (inputs, targets) to learn from")
        counts = {"epochs": self.epochs, "batch_size": self.batch_size, "seeds": self.seeds}
        for name, value in counts.items():
            if type(value) is not int or value < 1:
                raise ValueError(f"Distill's {name} is a positive int; got {value!r:.40}")
        if not 0 <= self.weight <= 1 or self.temperature <= 0 or self.lr <= 0:
            raise ValueError(
                "Distill's weight is from 0 to 1, its temperature and lr are above 0; got "
                f"{self.weight!r}, {self.temperature!r} and {self.lr!r}"
            )

    def __str__(self) -> str:
        return "Distill()" if self.student is None else f"Distill({type(self.student).__name__})"

    def __call__(self, model: Model[..., Any], trial: Trial) -> Model[..., Any]:
        """The student, in eval mode."""
        data = Check.of(self.data, "data")
        teacher = trial.original if self.teacher is None else self.teacher
        data.check_fits(teacher, "data")
        start = copied(model) if self.student is None else copy.deepcopy(self.student)
        if not any(each.requires_grad for each in start.parameters()):
            raise Unsupported("this student has nothing to train: distil before packing")
        wanted = outputs(teacher, data)[0]
        _check_shape(start, data, wanted)
        taught = [self._trained(start, data, wanted, self._weight(data), n) for n in self._seeds]
        self._compare(taught, start, data, wanted, trial)
        return around(model, taught[0])

    @property
    def _seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    def _weight(self, data: Check) -> float:
        return self.weight if data.targets is not None else 1.0

    def _compare(
        self,
        taught: Sequence[nn.Module],
        start: nn.Module,
        data: Check,
        wanted: torch.Tensor,
        trial: Trial,
    ) -> None:
        """Tells whether the teacher helped; nobody can say without labels to judge by."""
        check = trial.check
        if data.targets is None or check is None or check.targets is None:
            return
        alone = [self._trained(start, data, wanted, 0.0, seed) for seed in self._seeds]
        ours, theirs = (
            [_scored(student, check) for student in students] for students in (taught, alone)
        )
        helped = statistics.mean(ours) > statistics.mean(theirs)
        trial.note(
            f"{self}: score {_told(ours)} with the teacher, {_told(theirs)} with labels alone, "
            f"{self.seeds} seed{'s' * (self.seeds > 1)}: the teacher "
            f"{'helped' if helped else 'did not help'}"
        )

    # Training.

    def _trained(
        self, start: nn.Module, data: Check, wanted: torch.Tensor, weight: float, seed: int
    ) -> nn.Module:
        student = copy.deepcopy(start).train()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            if self.student is not None and seed != self.seed:
                _begin_anew(student)
            optimizer = torch.optim.Adam(student.parameters(), lr=self.lr)
            for _ in range(self.epochs):
                for rows in torch.split(torch.randperm(len(data)), self.batch_size):
                    optimizer.zero_grad()
                    given = student(*(each[rows] for each in data.args))
                    targets = None if data.targets is None else data.targets[rows]
                    torch.autograd.backward(self._loss(given, wanted[rows], targets, weight))
                    optimizer.step()
        for parameter in student.parameters():
            parameter.grad = None
        return student.eval()

    def _loss(
        self, given: torch.Tensor, wanted: torch.Tensor, targets: torch.Tensor | None, weight: float
    ) -> torch.Tensor:
        classes = has_classes(wanted) and (targets is None or not targets.is_floating_point())
        heat = self.temperature
        if not classes:
            soft = functional.mse_loss(given, wanted)
        else:
            soft = heat**2 * functional.kl_div(
                functional.log_softmax(given / heat, -1),
                functional.log_softmax(wanted / heat, -1),
                reduction="batchmean",
                log_target=True,
            )
        if targets is None:
            return soft
        hard = (
            functional.cross_entropy(given, targets)
            if classes
            else functional.mse_loss(given, targets.view_as(given))
        )
        return weight * soft + (1 - weight) * hard


def _check_shape(student: nn.Module, data: Check, wanted: torch.Tensor) -> None:
    training = student.training
    with torch.no_grad():
        given = student.eval()(*data.rows(2))
    student.train(training)
    if not isinstance(given, torch.Tensor) or given.shape[1:] != wanted.shape[1:]:
        shape = list(given.shape[1:]) if isinstance(given, torch.Tensor) else type(given).__name__
        raise SignatureError(
            f"the student gives {shape} for a row, and the teacher {list(wanted.shape[1:])}"
        )


def _begin_anew(student: nn.Module) -> None:
    for layer in student.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()


def _scored(student: nn.Module, check: Check) -> float:
    assert check.targets is not None  # noqa: S101 - as _compare sees to
    with torch.no_grad():
        return score(student(*check.args), check.targets, None)


def _told(scores: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.4f}{spread}"
