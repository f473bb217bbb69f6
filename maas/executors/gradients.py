"""Gradients across the wire, the caller's side: a remote call as one node of autograd's graph.

A place that answers a differentiable call keeps the graph of its run and names it in the
answer. `Crossing` makes of that answer a node of the graph here: its inputs are the arguments
that require grad, its outputs are the results. Its backward step is one message: the gradients of
the outputs go there, those of the inputs come back (a vector-Jacobian product; Griewank and
Walther, Evaluating Derivatives, 2nd ed. 2008, chapter 3.2).

That step is differentiable as well. With `create_graph=True` the place keeps the graph of its
backward run over the same inputs and the given gradients, and the answer is a node of the same
kind. So there are derivatives of any order. `torch.func` finds what it needs, too: the whole
crossing happens inside `forward`, which sees plain tensors once every transform is peeled off.
"""

import inspect
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import attrs
import torch

from maas import ambient
from maas.calls import BACKWARD, RELEASE, Call, Context, Result
from maas.limits import Limits
from maas.values import Path, rebuild

__all__ = ["Crossing", "Manner", "Place", "attached", "replaced", "tensors_in", "transformed"]

_VALUE: Path = (None, "value", 1)
_LIMITS = Limits()


class Place(Protocol):
    """Where a graph is kept."""

    def ask(self, method: str, args: tuple[Any, ...], context: Context) -> Result:
        """The answer to one of the place's own questions."""

    def tell(self, method: str, args: tuple[Any, ...]) -> None:
        """Tells the place something, some time."""

    def later(self, args: tuple[Any, ...]) -> None:
        """Has a backward step run there before anything else, when nothing is wanted of it here."""


@attrs.frozen
class Manner:
    """How a call was made: within how many seconds, and how often tried again."""

    patience: float | None = None
    retries: int = 0
    priority: int = 0

    @classmethod
    def of(cls, context: Context) -> "Manner":
        """That of a call which is about to be made."""
        return cls(context.remaining(), context.retries, context.priority)

    def context(self) -> Context:
        """Of whoever runs backward: its grad mode is on if the gradients shall have a graph."""
        deadline = None if self.patience is None else time.monotonic() + self.patience
        return attrs.evolve(
            ambient.captured(), deadline=deadline, retries=self.retries, priority=self.priority
        )


class _Kept:
    """A graph at its place, let go of when this is collected."""

    def __init__(self, place: Place, name: str) -> None:
        self.place = place
        self.name = name
        self.freed = False
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, place.tell, RELEASE, ([name],))
        self._finalizer.atexit = False

    def use(self, *, keep: bool) -> bool:
        """Whether the graph is there for one more run; one that does not keep it is the last."""
        with self._lock:
            there = not self.freed
            self.freed = self.freed or not keep
        if there and not keep:
            self._finalizer.detach()
        return there


class Crossing:
    """One question to a place, as a function from tensors to tensors.

    Parameters
    ----------
    place : who keeps the graph.
    differentiable : the numbers of the inputs to differentiate with respect to; the others only
        vary under `torch.vmap`.
    manner : how the call was made, which its backward step is as well.
    ask : gives the answer for plain inputs.
    """

    def __init__(
        self,
        place: Place,
        differentiable: Sequence[int],
        manner: "Manner",
        ask: Callable[[Sequence[torch.Tensor]], Result],
    ) -> None:
        self.place = place
        self.differentiable = list(differentiable)
        self.manner = manner
        self.ask = ask
        self.kept: _Kept | None = None
        self.part: list[int] = []
        self.samples: list[Crossing] = []
        self.staying: int | None = None
        self._result = Result(None)

    def run(self, inputs: Sequence[torch.Tensor]) -> Result:
        """The answer, its tensors part of the caller's graph."""
        with torch.enable_grad():
            outputs = _Crossed.apply(self, *inputs)  # type: ignore[no-untyped-call]
        value = replaced(self._result.value, outputs)
        return attrs.evolve(self._result, value=value, graph=None, leaves=())

    def cross(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What the place gives for plain tensors: every tensor of its answer."""
        self._result = result = self.ask(inputs)
        found = tensors_in(result.value)
        leaves = {id(leaf): number for number, leaf in enumerate(result.leaves)}
        self.part = [leaves.get(id(tensor), -1) for tensor in found]
        if result.graph is not None:
            self.kept = _Kept(self.place, result.graph)
        return tuple(tensor.detach() for tensor in found)

    def sample(self, number: int) -> "Crossing":  # noqa: ARG002 - a backward step asks for it
        """The same question, for one sample of a batch that `torch.vmap` made."""
        return Crossing(self.place, self.differentiable, self.manner, self.ask)

    def sampled(self, samples: "list[Crossing]") -> None:
        """Hears that it was asked once a sample."""
        self.samples = samples
        self._result, self.part = samples[0]._result, samples[0].part

    def back(
        self,
        gradients: Sequence[torch.Tensor | None],
        wanted: Sequence[int],
        saved: Callable[[], Sequence[torch.Tensor]],
    ) -> list[torch.Tensor | None]:
        """The gradients of the wanted inputs; `saved` gives all inputs, or raises torch's error."""
        present = {
            number: gradient
            for number, gradient in zip(self.part, gradients, strict=True)
            if gradient is not None and number >= 0
        }
        asked = [number for number in wanted if number in self.differentiable]
        if not present or not asked or not (self.kept or self.samples):
            return [None] * len(wanted)
        answer = self._differentiated(present, asked, saved)
        found = dict(zip(asked, answer, strict=True))
        return [found.get(number) for number in wanted]

    def _differentiated(
        self,
        present: Mapping[int, torch.Tensor],
        asked: Sequence[int],
        saved: Callable[[], Sequence[torch.Tensor]],
    ) -> list[torch.Tensor | None]:
        context = self.manner.context()
        # Gradients that have a graph have this one in theirs.
        keep = context.grad or _keeps_graph()
        if self.kept is not None and not self.kept.use(keep=keep):
            saved()
        wanted = [self.differentiable.index(number) for number in asked]
        question = _Question(list(present), wanted, keep, context)
        gradients = list(present.values())
        if asked == [self.staying] and not context.grad and not context.autocast:
            assert self.kept is not None  # noqa: S101 - `back` has looked
            own = [gradient.clone() for gradient in gradients]
            self.place.later((self.kept.name, list(present), own, wanted, keep))
            return [torch.zeros(())]
        if not question.context.grad:
            return question.put(self, gradients).value  # type: ignore[no-any-return]
        inputs = saved()
        return _Backward(self, question, len(inputs)).run([*inputs, *gradients]).value  # type: ignore[no-any-return]


@attrs.frozen
class _Question:
    """What a backward step asks: the gradients of some inputs, given those of some outputs."""

    given: list[int]
    wanted: list[int]
    keep: bool
    context: Context

    def put(self, crossing: Crossing, gradients: Sequence[torch.Tensor]) -> Result:
        """The answer of the place that keeps the graph of `crossing`."""
        assert crossing.kept is not None  # noqa: S101 - `back` has looked
        question = (crossing.kept.name, self.given, list(gradients), self.wanted, self.keep)
        return crossing.place.ask(BACKWARD, question, self.context)


class _Backward(Crossing):
    """The backward step of a crossing, as a crossing: of the same inputs and then the gradients."""

    def __init__(self, forward: Crossing, question: _Question, inputs: int) -> None:
        gradients = range(inputs, inputs + len(question.given))
        super().__init__(
            forward.place,
            [*forward.differentiable, *gradients],
            forward.manner,
            lambda every: question.put(forward, [_leaf(each) for each in every[inputs:]]),
        )
        self._forward = forward
        self._question = question
        self._inputs = inputs

    def sample(self, number: int) -> Crossing:
        """Of the sample's own graph, if the forward step was asked sample by sample too."""
        samples = self._forward.samples
        forward = samples[number] if samples else self._forward
        return _Backward(forward, self._question, self._inputs)


class _Crossed(torch.autograd.Function):
    """Autograd's view of a crossing."""

    @staticmethod
    def forward(crossing: Crossing, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return crossing.cross(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        crossing, *tensors = inputs
        ctx.crossing = crossing
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        plain = [tensor for tensor, number in zip(output, crossing.part, strict=True) if number < 0]
        ctx.mark_non_differentiable(*plain)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        wanted = _wanted(ctx)
        numbers = [number for number, asked in enumerate(wanted) if asked]
        crossing: Crossing = ctx.crossing
        found = dict(
            zip(numbers, crossing.back(gradients, numbers, lambda: ctx.saved_tensors), strict=True)
        )
        return (None, *(found.get(number) for number in range(len(wanted))))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], crossing: Crossing, *inputs: torch.Tensor
    ) -> tuple[Any, Any]:
        """One crossing a sample: a place need not be able to run under `torch.vmap`."""
        samples = [crossing.sample(number) for number in range(info.batch_size)]
        rows = []
        for number, sample in enumerate(samples):
            row = [
                tensor if dim is None else tensor.select(dim, number)
                for tensor, dim in zip(inputs, in_dims[1:], strict=True)
            ]
            rows.append(_Crossed.apply(sample, *row))  # type: ignore[no-untyped-call]
        crossing.sampled(samples)
        outputs = tuple(torch.stack(column) for column in zip(*rows, strict=True))
        return outputs, (0,) * len(outputs)


def _wanted(ctx: Any) -> list[bool]:
    """Which inputs this very run is about; `needs_input_grad` tells which could be."""
    wanted = []
    for (node, _), needed in zip(ctx.next_functions, ctx.needs_input_grad[1:], strict=True):
        asked = needed and node is not None
        if asked:
            try:
                asked = torch._C._will_engine_execute_node(node)
            except RuntimeError:  # a leaf that `torch.autograd.grad` was asked for
                asked = True
        wanted.append(asked)
    return wanted


def _keeps_graph() -> bool:
    """Whether this backward run was told `retain_graph=True`."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_()


# `apply` binds to it at each call; to read it anew each time takes longer than all that is bound.
_Crossed.forward.__signature__ = inspect.signature(_Crossed.forward)  # type: ignore[attr-defined]


# Between a call and a crossing.


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every torch tensor in a value, in the order of the message that held it."""
    if type(value) is torch.Tensor:
        return [value]
    found: list[torch.Tensor] = []

    def look(array: Any, _path: Path) -> Any:
        if isinstance(array, torch.Tensor):
            found.append(array)
        return array

    rebuild(value, _VALUE, look, _LIMITS)
    return found


def replaced(value: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """The value with other tensors in place of its own, in the order of `tensors_in`."""
    if type(value) is torch.Tensor:
        return tensors[0]
    rest = iter(tensors)
    return rebuild(
        value,
        _VALUE,
        lambda array, _path: next(rest) if isinstance(array, torch.Tensor) else array,
        _LIMITS,
    )


def attached(
    place: Place,
    call: Call,
    result: Result,
    manner: Manner,
    more: Sequence[torch.Tensor] = (),
    *,
    staying: bool = False,
) -> Result:
    """The answer to a differentiable call, made part of the caller's graph.

    `more` are inputs beside its arguments, such as parameters; if these are `staying`, the one of
    them stands for parameters whose gradients nobody wants here.
    """
    given = tensors_in((call.args, dict(call.kwargs)))
    inputs = [*(each for each in given if each.requires_grad), *more]
    crossing = Crossing(place, range(len(inputs)), manner, lambda _inputs: result)
    crossing.staying = len(inputs) - 1 if staying else None
    return crossing.run(inputs)


def transformed(place: Place, call: Call, answer: Callable[[Call], Result]) -> Result:
    """The answer to a call under `torch.func`'s transforms, whose tensors hold no numbers here."""
    arguments = (call.args, dict(call.kwargs))
    inputs = tensors_in(arguments)
    differentiable = [
        number
        for number, each in enumerate(inputs)
        if each.is_floating_point() or each.is_complex()
    ]

    def ask(plain: Sequence[torch.Tensor]) -> Result:
        sent = [
            _leaf(each) if number in differentiable else each for number, each in enumerate(plain)
        ]
        args, kwargs = replaced(arguments, sent)
        return answer(attrs.evolve(call, args=args, kwargs=kwargs))

    return Crossing(place, differentiable, Manner.of(call.context), ask).run(inputs)
