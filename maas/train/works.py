"""What is done to a model in training between its calls: steps, zeroed gradients, clipping.

A work is a small list of plain values that its kind leads. Works are named from a closed table
and so are optimizers: a server never receives code. They are numbered where they are sent, and each
is done once, in order, however often it arrives.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from maas.errors import CodecError, NotFound, Unsupported

__all__ = ["OPTIMIZERS", "Workshop"]

OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}
_Gradients = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Parameters, none twice, and a gradient of each."""

_STATE = {"SGD": 1, "Adam": 3, "AdamW": 3}
"""Tensors that an optimizer keeps for each parameter at most, of the parameter's size."""


class Workshop:
    """The optimizers of one module, and what may be done to its gradients.

    `charge` is asked for bytes before an optimizer is made, and may refuse them.
    """

    def __init__(self, module: torch.nn.Module, charge: Callable[[int], None]) -> None:
        self._parameters = dict(module.named_parameters())
        self.parameters = tuple(self._parameters.values())
        self._charge = charge
        self.optimizers: dict[int, torch.optim.Optimizer] = {}
        self._run = 0
        self._gathered: list[_Gradients] = []

    def do(self, work: Any) -> Any:
        """Does one work and gives what it gives.

        Raises
        ------
        CodecError
            It is none.
        """
        if type(work) is not list or not work or work[0] not in self._KINDS:
            raise CodecError(f"a work begins with one of {', '.join(self._KINDS)}")
        kind, *arguments = work
        try:
            return self._KINDS[kind](self, *arguments)
        except (TypeError, AttributeError, KeyError) as error:
            raise CodecError(f"the work {kind!r} cannot be done so: {error!s:.200}") from error

    def _make(self, number: int, name: str, groups: list[dict[str, Any]]) -> None:
        if name not in OPTIMIZERS:
            raise Unsupported(f"no optimizer {name!r:.40} here; {', '.join(OPTIMIZERS)} are")
        held = [{**group, "params": self._named(group["params"])} for group in groups]
        every = [each for group in held for each in group["params"]]
        self._charge(_STATE[name] * sum(each.nbytes for each in every))
        make: Callable[..., torch.optim.Optimizer] = OPTIMIZERS[name]
        self.optimizers[number] = make(held)

    def _named(self, names: Iterable[str]) -> list[torch.nn.Parameter]:
        missing = [name for name in names if name not in self._parameters]
        if missing:
            raise NotFound(f"the model has no parameter {missing[0]!r:.80}")
        return [self._parameters[name] for name in names]

    def optimizer(self, number: int) -> torch.optim.Optimizer:
        """The optimizer of that number; NotFound where there is none."""
        if number not in self.optimizers:
            raise NotFound(f"this copy of the model has no optimizer {number!r:.20}")
        return self.optimizers[number]

    def _step(self, number: int, changes: list[dict[str, Any]]) -> None:
        optimizer = self.optimizer(number)
        for group, changed in zip(optimizer.param_groups, changes, strict=True):
            if changed.keys() - (group.keys() - {"params"}):
                raise CodecError(f"a group of this optimizer has {', '.join(group)}")
            group.update(changed)
        optimizer.step()

    def gather(self, run: int, gradients: _Gradients) -> None:
        """Keeps gradients until the backward run that they belong to is over."""
        if run != self._run:
            # Of a run that has failed, nothing is left.
            self._run, self._gathered = run, []
        self._gathered.append(gradients)

    def _merge(self, run: int) -> None:
        """That backward run is over: its gradients are added to those of the parameters."""
        gathered, self._gathered = self._gathered, []
        if run != self._run:
            return
        others: dict[torch.Tensor, torch.Tensor] = {}
        taken: set[int] = set()
        for parameter, gradient in _added(gathered):
            memory = gradient.untyped_storage().data_ptr() if gradient.is_contiguous() else 0
            first = parameter.grad is None and gradient.stride() == parameter.stride()
            if first and memory and memory not in taken:
                parameter.grad = gradient  # as torch does with a first one of its own memory
                taken.add(memory)
            else:
                others[parameter] = gradient
        if others:
            # torch's own rules for `.grad`, by a backward run that begins and ends at the leaves.
            torch.autograd.backward(list(others), list(others.values()))

    def _zero(self, number: int | None, set_to_none: bool) -> None:
        if number is None:
            _zero(self.parameters, set_to_none)
        else:
            self.optimizer(number).zero_grad(set_to_none)

    def _clip_norm(self, names: list[str], most: float, kind: float, strict: bool) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(
            self._named(names), most, kind, error_if_nonfinite=strict
        )

    def _clip_value(self, names: list[str], most: float) -> None:
        torch.nn.utils.clip_grad_value_(self._named(names), most)

    def _load(self, number: int, state: dict[str, Any]) -> None:
        self.optimizer(number).load_state_dict(state)

    _KINDS: Mapping[str, Callable[..., Any]] = {
        "make": _make,
        "step": _step,
        "merge": _merge,
        "zero": _zero,
        "clip norm": _clip_norm,
        "clip value": _clip_value,
        "load": _load,
    }


def _added(gathered: list[_Gradients]) -> _Gradients:
    """Those of one backward run added up, as the engine does before it hands them on."""
    if len(gathered) == 1:
        return gathered[0]
    found: dict[torch.Tensor, torch.Tensor] = {}
    for gradients in gathered:
        for parameter, gradient in gradients:
            before = found.get(parameter)
            found[parameter] = gradient if before is None else before + gradient
    return list(found.items())


def _zero(parameters: Iterable[torch.nn.Parameter], set_to_none: bool) -> None:
    for parameter in parameters:
        if set_to_none:
            parameter.grad = None
        elif parameter.grad is not None:
            parameter.grad.detach_().zero_()
