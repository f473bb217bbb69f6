"""One explanation from its question to its numbers: checked, counted, then computed.

All that can be refused without running the model is refused when an `Attribution` is made, and how
many rows it will cost is known then. What needs one run (which outputs there are, whether gradients
reach the input) is refused after that run.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np
import torch

from maas import ambient
from maas.calls import Context
from maas.errors import LimitExceeded, Unsupported
from maas.executors.gradients import replaced, tensors_in
from maas.explain.algorithms import MODULE, VALUES, Algorithm, Problem, algorithm
from maas.explain.explanation import Question
from maas.explain.layers import leaves
from maas.explain.options import baselines_of, chosen, groups_of, shared_out
from maas.explain.targets import checked_target, selected
from maas.spelling import offered

__all__ = ["MOST_ROWS", "Attribution", "Found"]

MOST_ROWS = 262_144
"""Rows that one explanation may put through a model."""


@attrs.frozen
class Found:
    """What came out: one tensor for each explained input, or those of the layer's output."""

    attributions: tuple[torch.Tensor, ...]
    gap: float | None
    rows: int


class _Subject(torch.nn.Module):
    """The model as algorithms see it: tensors in, [rows, ...] out; counts the rows."""

    def __init__(
        self,
        target: Callable[..., Any],
        arguments: tuple[Any, Any],
        places: Sequence[int],
        most: int,
        check: Callable[[], object],
    ) -> None:
        super().__init__()
        self.target: Any = target
        self.rows = 0
        self._arguments = arguments
        self._given = tensors_in(arguments)
        self._places = places
        self._most = most
        self._check = check

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The model's output for these in place of the tensors that vary."""
        rows = tensors[0].shape[0]
        self._check()
        self.rows += rows
        if self.rows > self._most:
            raise LimitExceeded(f"the method wants more than the {self._most} rows that it told")
        every = list(self._given)
        for place, tensor in zip(self._places, tensors, strict=True):
            every[place] = tensor
        args, kwargs = replaced(self._arguments, every)
        found = tensors_in(self.target(*args, **kwargs))
        if len(found) != 1 or found[0].dim() == 0 or found[0].shape[0] != rows:
            shapes = [list(each.shape) for each in found]
            raise Unsupported(
                f"only a model that gives one array with a row for each of its {rows} rows of "
                f"input can be explained; this one gave arrays of {shapes}"
            )
        return found[0]


class Attribution:
    """One explanation that is going to be computed.

    Parameters
    ----------
    question : what was asked; its arguments are those below.
    args, kwargs : the model's arguments, their arrays as torch tensors where the model is.
    module : the module, if it can be looked into; for its layers' names and kinds alone.

    Attributes
    ----------
    rows : rows of the model that it will cost.

    Raises
    ------
    ValueError, TypeError
        An unknown method, layer or option, or a value that makes no sense.
    Unsupported
        The method cannot explain such a model or input.
    LimitExceeded
        It would cost more than `MOST_ROWS`.
    """

    def __init__(
        self, question: Question, args: Any, kwargs: Any, module: torch.nn.Module | None
    ) -> None:
        self._question = question
        self._algorithm = found = algorithm(question.method)
        options = chosen(question.method, found, question.options)
        _check_seen(question, found, module)
        self._arguments = (tuple(args), dict(kwargs))
        given = tensors_in(self._arguments)
        self.explained = _explained(len(tensors_in(self._arguments[0])), given, question, found)
        inputs = tuple(given[place].detach().clone() for place in self.explained)
        beside = [
            place
            for place, each in enumerate(given)
            if place not in self.explained and each.dim() and each.shape[0] == inputs[0].shape[0]
        ]
        self._places = [*self.explained, *beside]
        if found.needs != VALUES:
            for each in inputs:
                each.requires_grad_(each.is_floating_point())
        self._problem = Problem(
            inputs=inputs,
            baselines=baselines_of(question.baseline, inputs, many=found.many),
            beside=tuple(given[place] for place in beside),
            options=options,
            groups=groups_of(options.get("groups"), inputs),
            at=question.at,
        )
        self.rows = found.rows(self._problem) + self._probed()
        if self.rows > MOST_ROWS:
            raise LimitExceeded(
                f"this explanation would put {self.rows} rows through the model, and "
                f"{MOST_ROWS} are allowed; give fewer rows, steps or samples, or larger groups"
            )

    def _probed(self) -> int:
        """Rows for the output itself and for what it is compared with."""
        there = self._problem.baselines[0].shape[0] if self._algorithm.sums == "change" else 0
        return self._problem.rows + there

    def carried_out(
        self, target: Callable[..., Any], check: Callable[[], object], *, shared: bool
    ) -> Found:
        """The numbers.

        Parameters
        ----------
        target : the model, or a replica of it that is free to be changed.
        check : called before each run of the model; what it raises ends the work.
        shared : whether others may draw from this process's generators meanwhile, and are
            made to wait.
        """
        subject = _Subject(target, self._arguments, self._places, self.rows, check)
        # Of this one alone: the parts of a module may be in several modes.
        subject.training = bool(getattr(target, "training", False))
        draws = self._algorithm.draws or _trains(target)
        with contextlib.ExitStack() as stack:
            if draws:
                stack.enter_context(_seeded(self._question.seed, alone=shared))
            stack.enter_context(_quiet())
            total = self._looked_at(subject)
            made = self._algorithm.attribute(subject, self._problem, self._layer(subject))
        found = tuple(
            each.detach() for each in ([made] if isinstance(made, torch.Tensor) else made)
        )
        return Found(found, self._gap(found, total), subject.rows)

    def _layer(self, subject: _Subject) -> torch.nn.Module | None:
        at = self._question.at
        return None if at is None else subject.target.get_submodule(at)

    # One run.

    def _looked_at(self, subject: _Subject) -> torch.Tensor | None:
        """What the attributions of each row must add up to; checks what only a run can tell."""
        problem, kind = self._problem, self._algorithm
        with contextlib.ExitStack() as stack:
            if kind.needs == MODULE or problem.at is not None:
                stack.enter_context(self._counted(subject))
            with torch.set_grad_enabled(kind.needs != VALUES):
                output = subject(*problem.inputs, *problem.beside)
        if not kind.targeted:
            return None
        problem.target = checked_target(self._question.target, output.shape)
        chosen_ = selected(output, problem.target)
        if kind.needs != VALUES and problem.at is None:
            self._check_gradients(chosen_)
        if not kind.sums:
            return None
        total = chosen_.detach().double()
        return total - self._without(subject) if kind.sums == "change" else total

    def _without(self, subject: _Subject) -> torch.Tensor:
        """The output at the baseline, for each row."""
        problem = self._problem
        with torch.no_grad():
            output = subject(*problem.baselines, *problem.beside).double()
        if self._algorithm.many:
            output = output.mean(0, keepdim=True).expand(problem.rows, *output.shape[1:])
        return selected(output, problem.target)

    def _check_gradients(self, output: torch.Tensor) -> None:
        inputs = self._problem.inputs
        found: Sequence[torch.Tensor | None] = [None] * len(inputs)
        if output.requires_grad:
            found = torch.autograd.grad(output.sum(), inputs, allow_unused=True)
        missing = [number for number, each in enumerate(found) if each is None]
        if missing:
            raise Unsupported(
                f"no gradient of the output reaches input {', '.join(map(str, missing))} of "
                f"{len(inputs)}, which {self._question.method} needs; feature_ablation and "
                "shapley_sampling need none"
            )

    @contextlib.contextmanager
    def _counted(self, subject: _Subject) -> Iterator[None]:
        """Refuses layers that run more than once: Captum tells the runs of one layer not apart."""
        module = subject.target
        counts: dict[str, int] = {}
        watched = dict(leaves(module)) if self._algorithm.once else {}
        if self._question.at is not None:
            watched[self._question.at] = module.get_submodule(self._question.at)

        def hook(name: str) -> Callable[..., None]:
            def count(*_: Any) -> None:
                counts[name] = counts.get(name, 0) + 1

            return count

        handles = [each.register_forward_hook(hook(name)) for name, each in watched.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if self._question.at is not None and not counts.get(self._question.at):
            raise Unsupported(f"the layer {self._question.at!r} does not run for this input")
        for name, count in counts.items():
            if count > 1:
                raise Unsupported(
                    f"the layer {name!r} runs {count} times in one call, and "
                    f"{self._question.method} takes each layer to run once; give each use a "
                    "layer of its own"
                )

    def _gap(self, found: Sequence[torch.Tensor], total: torch.Tensor | None) -> float | None:
        if total is None:
            return None
        parts = shared_out(found, self._problem.groups)
        given = sum(each.flatten(1).sum(1) for each in parts)
        return float((given - total).abs().max())


def _trains(target: Any) -> bool:
    """Whether a part of the module is in train mode, in which it may draw."""
    return isinstance(target, torch.nn.Module) and any(each.training for each in target.modules())


def _check_seen(question: Question, found: Algorithm, module: torch.nn.Module | None) -> None:
    """Whether what the method needs of the model can be seen."""
    name = question.method
    if question.at is None and found.at == "layer":
        raise ValueError(f"{name} is of a layer; say which with at=, such as {_some(module)}")
    if question.at is not None and found.at == "input":
        raise ValueError(f"{name} explains inputs only; drop at={question.at!r}")
    if question.target is not None and not found.targeted:
        raise ValueError(f"{name} is of no output; drop target={question.target!r:.40}")
    if module is None:
        if found.needs == MODULE or question.at is not None:
            raise Unsupported(
                f"{name} looks into a torch module, and this model is seen by its calls alone"
            )
        return
    if found.fits is not None:
        found.fits(module)
    if question.at is not None:
        names = [each for each, _ in module.named_modules() if each]
        if question.at not in names:
            raise ValueError(f"no layer {question.at!r:.80}; {offered(question.at, names)}")


def _some(module: torch.nn.Module | None) -> str:
    names = [] if module is None else [name for name, _ in module.named_modules() if name]
    return ", ".join(map(repr, names[:8])) or "'layer2'"


def _explained(
    args: int, given: Sequence[torch.Tensor], question: Question, found: Algorithm
) -> list[int]:
    """Which of the tensors: the floating-point ones among the `args` first, else whole numbers."""
    floating = [place for place in range(args) if given[place].is_floating_point()]
    whole = [place for place in range(args) if _counts(given[place])]
    if not floating and found.needs != VALUES and question.at is None:
        raise Unsupported(
            f"{question.method} needs the gradient at the input, and there is no floating-point "
            "array among the arguments; at='embedding' explains the output of a layer"
        )
    places = floating or whole
    if not places:
        raise Unsupported("there is no array of numbers among the arguments to explain")
    rows = {given[place].shape[:1] for place in places}
    if len(rows) > 1 or () in rows or torch.Size([0]) in rows:
        raise ValueError(
            "the arrays to explain have the same number of rows, at least one, as their first "
            f"dimension; got shapes {[list(given[place].shape) for place in places]}"
        )
    return places


def _counts(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


# Around the work.


@contextlib.contextmanager
def _seeded(seed: int, *, alone: bool) -> Iterator[None]:
    """torch's and NumPy's generators as the seed gives them, and as they were afterwards."""
    with contextlib.ExitStack() as stack:
        if alone:
            context = Context(seed=seed)
            stack.enter_context(ambient.stochastic(context, ambient.Drawn()))
        else:
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(seed)
        # Captum draws from NumPy's global generator as well.
        state = np.random.get_state()  # noqa: NPY002 - there is no other way to it
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the same
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002 - the same


_REMARKS = (
    r"\s*Setting (forward, )?backward hooks",
    "You are providing multiple inputs for Lime",
    "Attempting to construct interpretable model with > 10000 features",
)
"""What Captum warns of in every run, or what `rows` has told already."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for remark in _REMARKS:
            warnings.filterwarnings("ignore", remark)
        yield
