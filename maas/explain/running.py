"""An explanation computed in this process: of a module that is here, or of what calls give."""

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import torch

from maas import ambient
from maas.backends.base import RESULT, admit, release
from maas.calls import CALL, Call, Context
from maas.errors import Unsupported
from maas.executors.base import Executor
from maas.executors.batching import BatchingExecutor
from maas.executors.local import LocalExecutor
from maas.explain.algorithms import algorithm
from maas.explain.attribution import Attribution, Found
from maas.explain.explanation import Question
from maas.explain.replica import replica, shuffle
from maas.limits import Limits
from maas.model import Model
from maas.values import Path, rebuild

__all__ = ["by_calls", "by_module", "local"]

_ARGUMENTS: Path = (None, "args", 1)
_LIMITS = Limits()


def local(executor: Executor) -> LocalExecutor | None:
    """What runs the torch module of this executor in this process, if it has one."""
    inner = executor.inner if isinstance(executor, BatchingExecutor) else executor
    if isinstance(inner, LocalExecutor) and isinstance(inner.backend.target, torch.nn.Module):
        return inner
    return None


def by_module(
    executor: LocalExecutor,
    question: Question,
    context: Context,
    *,
    owned: bool = False,
    charge: Callable[[int], None] = lambda _rows: None,
    given_up: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """The explanation of a module in this process.

    Parameters
    ----------
    executor : runs the module for others meanwhile.
    owned : the arguments belong to nobody else.
    charge : told the rows before any is run; may refuse.
    given_up : whether nobody waits any more.
    """
    method = executor.method(CALL)
    method.signature.check(question.args, question.kwargs, method.label)
    module: torch.nn.Module = executor.backend.target
    call = Call(executor.name, CALL, question.args, question.kwargs, context, owned=owned)
    border, args, kwargs = admit(executor.backend, call)
    work = Attribution(question, args, kwargs, module)
    charge(work.rows)
    own = algorithm(question.method).changes or question.shuffled is not None
    with executor.alone():
        made = replica(module, own_weights=own)
    if context.training is not None:
        made.train(context.training)
    if question.shuffled is not None:
        shuffle(made, question.shuffled)

    def check() -> None:
        context.remaining()
        if given_up():
            raise _NobodyWaits

    with ambient.applied(attrs.evolve(context, grad=True)):
        found = work.carried_out(made, check, shared=True)
    return _answer(question, work, found, lambda value: release(value, RESULT, border))


class _NobodyWaits(Exception):
    """Ends work whose answer nobody will read."""


def by_calls(model: Model[..., Any], question: Question, context: Context) -> dict[str, Any]:
    """The explanation of any model by what its calls give, and by their gradients."""
    if question.shuffled is not None:
        raise Unsupported("only a module's weights can be shuffled, and calls do not reach them")
    kinds: set[bool] = set()

    def tensor(array: Any, _path: Path) -> Any:
        kinds.add(isinstance(array, np.ndarray))
        return torch.from_numpy(array.copy()) if isinstance(array, np.ndarray) else array

    args = rebuild(list(question.args), _ARGUMENTS, tensor, _LIMITS)
    kwargs = rebuild(dict(question.kwargs), _ARGUMENTS, tensor, _LIMITS)
    work = Attribution(question, args, kwargs, None)
    arrays = True in kinds
    # A torch module takes either; a function may want what its caller gave.
    asked = _with_arrays(model) if arrays and model.info.kind != "torch" else model
    found = work.carried_out(asked, context.remaining, shared=False)
    return _answer(question, work, found, _to_arrays if arrays else lambda value: value)


def _with_arrays(model: Model[..., Any]) -> Any:
    """The model, for one that wants NumPy."""

    def ask(*args: Any, **kwargs: Any) -> Any:
        plain = _to_arrays((args, kwargs))
        return rebuild(model(*plain[0], **plain[1]), _ARGUMENTS, _to_tensor, _LIMITS)

    return ask


def _to_tensor(array: Any, _path: Path) -> Any:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def _to_arrays(value: Any) -> Any:
    return rebuild(
        value,
        _ARGUMENTS,
        lambda array, _path: array.detach().numpy() if isinstance(array, torch.Tensor) else array,
        _LIMITS,
    )


def _answer(
    question: Question, work: Attribution, found: Found, leave: Callable[[Any], Any]
) -> dict[str, Any]:
    if question.at is None:
        value = _placed(question, work, found)
    else:
        several = len(found.attributions) > 1
        value = found.attributions if several else found.attributions[0]
    return {
        "attributions": leave(value),
        "gap": found.gap,
        "assumption": algorithm(question.method).assumes,
        "local": algorithm(question.method).local,
        "rows": found.rows,
    }


def _placed(question: Question, work: Attribution, found: Found) -> Any:
    """The attributions in the structure of the arguments."""
    number = 0
    by_place = dict(zip(work.explained, found.attributions, strict=True))

    def place(_array: Any, _path: Path) -> Any:
        nonlocal number
        number += 1
        return by_place.get(number - 1)

    value = rebuild(tuple(question.args), _ARGUMENTS, place, _LIMITS)
    return value[0] if len(value) == 1 else value
