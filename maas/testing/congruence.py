"""`assert_congruent`: a model does what its bare target does, wherever it runs.

One call is made twice, on the target itself and on the model, each time with arguments of its
own and with the generators where they were. Afterwards everything that a program could notice
must be the same: the value bit for bit, or the exception with its class, arguments, notes and
causes; the arguments; the modes; and what was drawn.

What `maas` documents to differ is allowed for, and nothing else: a model's outputs require grad
only if an argument does, one that means "leave" arrives as a `ModelExit`, and wrong arguments are a
`SignatureError` that says what Python's `TypeError` says.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np

from maas import ambient, tensors
from maas.calls import CALL
from maas.errors import SignatureError
from maas.exception_classes import known_class, wire_names
from maas.model import Asked
from maas.testing.arguments import Arguments
from maas.testing.equality import difference
from maas.testing.outcomes import WAYS, Outcome, generators, modes, outcome, rebuilt

__all__ = ["assert_congruent"]


@contextlib.contextmanager
def _replayed() -> Iterator[None]:
    """Sets torch's generator back afterwards, so that the next run starts where this one did."""
    before = ambient.generator_state()
    try:
        yield
    finally:
        if before is not None:
            ambient.set_generator_state(before)


# The reference.


def _reference(reference: Any, model: Asked[..., Any]) -> Callable[[Arguments], Any]:
    """How the bare target is run: a module in the handle's mode."""
    training = _training(model)
    if not _is_module(reference) or training is None:
        return lambda call: call.of(reference)
    return lambda call: _in_mode(reference, training, call)


def _training(model: Asked[..., Any]) -> bool | None:
    own = model._executor.describe().training
    return own if model._training is None else model._training


def _is_module(target: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(target, torch.nn.Module)


def _in_mode(module: Any, training: bool, call: Arguments) -> Any:
    before = _modes_of(module)
    module.train(training)
    try:
        return call.of(module)
    finally:
        for part, mode in before:
            part.training = mode


def _modes_of(module: Any) -> list[tuple[Any, bool]]:
    return [(part, part.training) for part in module.modules()] if _is_module(module) else []


@contextlib.contextmanager
def _buffers_kept(module: Any) -> Iterator[None]:
    """Sets a module's buffers back afterwards: both runs see the same running statistics."""
    if not _is_module(module):
        yield
        return
    before = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)


# The law.


def assert_congruent(
    reference: Any,
    model: Asked[..., Any],
    call: Arguments,
    *,
    tolerance: float | None = None,
    way: str = "now",
) -> None:
    """Raises `AssertionError` where the model does something else than its bare target.

    Parameters
    ----------
    reference : the function, module or bound method itself, or a Model of it in another place. One
        that keeps a state of its own must be another object than the one the model runs.
    model : the Model, or one of its methods.
    call : the arguments.
    tolerance : arrays and floats may differ by so much, relatively or absolutely. There is none
        unless given, and one that was needed is printed.
    way : how the model is asked: "now", "submit", "await", "map", "stream" or "async for".
    """
    __tracebackhide__ = True
    before, started = _modes_of(reference), modes()
    start = generators()
    with _replayed(), _buffers_kept(reference):
        wanted = outcome(_reference(reference, model), call)
    given = outcome(lambda own: WAYS[way](model, own), call)
    leaked = [part for part, mode in before if part.training is not mode]
    complaints = [
        *_answers(_as_sent(wanted, call), given, tolerance),
        *_arguments(call, wanted, given),
        *_drawn(start, wanted, given, model),
        *_changed("the target", started, wanted.modes),
        *_changed("the model", started, given.modes),
        *(f"{type(part).__name__} was left in the other mode" for part in leaked[:1]),
    ]
    if complaints:
        place = model._executor.where
        raise AssertionError(
            "\n  ".join([f"not congruent at {place} ({way}): {_name(model)}{call}", *complaints])
        )


def _name(model: Asked[..., Any]) -> str:
    return model._name if model._method == CALL else f"{model._name}.{model._method}"


def _as_sent(wanted: Outcome, call: Arguments) -> Outcome:
    """What is documented to differ: outputs require grad only if an argument does."""
    if ambient.captured().grad and any(map(_wants_grad, (*call.args, *call.kwargs.values()))):
        return wanted
    return attrs.evolve(wanted, value=rebuilt(wanted.value, _detached))


def _wants_grad(value: Any) -> bool:
    found: list[bool] = []
    rebuilt(value, lambda array: found.append(getattr(array, "requires_grad", False)))
    return any(found)


def _detached(array: Any) -> Any:
    return array.detach() if getattr(array, "requires_grad", False) else array


def _answers(wanted: Outcome, given: Outcome, tolerance: float | None) -> Iterator[str]:
    if wanted.error is not None and given.error is not None:
        yield from _errors(wanted.error, given.error)
    elif wanted.error is not None:
        yield f"the target raises {wanted.error!r}; the model gives a value"
    elif given.error is not None:
        yield f"the target gives a value; the model raises {given.error!r}"
    found = difference(wanted.value, given.value)
    if found is not None and tolerance is not None:
        # A tolerance that nobody sees becomes the way things are.
        print(f"assert_congruent: within {tolerance:g}, not the same: {found}")  # noqa: T201
        found = difference(wanted.value, _snapped(given.value, wanted.value, tolerance))
    if found is not None:
        yield found


def _errors(wanted: BaseException, given: BaseException) -> Iterator[str]:
    unknown = _unregistered(wanted)
    if unknown is not None:
        yield (
            f"{unknown.__qualname__} is not registered, so elsewhere it arrives as another class; "
            f"maas.register({unknown.__qualname__}) on both sides"
        )
        return
    if type(given) is SignatureError and type(wanted) is TypeError:
        # Python suggests a near name since 3.13 only; we do everywhere.
        if _unhinted(given) != _unhinted(wanted):
            yield f"the arguments are refused in other words: {wanted} | {given}"
        return
    found = difference(wanted, given)
    if found is not None:
        yield f"errors differ, {wanted!r} and {given!r}: {found}"


def _unhinted(error: BaseException) -> str:
    return str(error).partition(". Did you mean")[0]


def _unregistered(error: BaseException | None) -> type | None:
    """The first class in the chain of causes that does not cross as itself."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        kind = type(error)
        if isinstance(error, Exception) and known_class(wire_names(kind)[0]) is not kind:
            return kind
        members = getattr(error, "exceptions", ()) if isinstance(error, BaseExceptionGroup) else ()
        found = next(filter(None, map(_unregistered, members)), None)
        if found is not None:
            return found
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _arguments(call: Arguments, wanted: Outcome, given: Outcome) -> Iterator[str]:
    for who, after in (("target", wanted.arguments), ("model", given.arguments)):
        found = difference((call.args, dict(call.kwargs)), (after.args, dict(after.kwargs)))
        if found is not None:
            yield (
                f"the {who} changes its arguments: {found}; run elsewhere it changes a copy, "
                "so clone them in the target"
            )


def _drawn(
    start: dict[str, Any], wanted: Outcome, given: Outcome, model: Asked[..., Any]
) -> Iterator[str]:
    told = model._executor.method(model._method).stochastic or _training(model)
    for name, before in start.items():
        drew = wanted.state[name] != before
        if name != "torch's generator":
            if drew or given.state[name] != before:
                yield f"it draws from {name}, whose state does not travel; let it take a seed"
        elif drew and not told:
            yield f"it draws from {name} undeclared; mark it @maas.method(stochastic=True)"
        elif wanted.state[name] != given.state[name]:
            yield f"{name} is elsewhere afterwards: the target and the model drew differently"


def _changed(who: str, before: Any, after: Any) -> Iterator[str]:
    if before != after:
        yield f"{who} leaves another grad mode or autocast behind: {before} became {after}"


# Tolerance.


def _snapped(given: Any, wanted: Any, tolerance: float) -> Any:
    """`given`, with everything that is close enough replaced by what was wanted."""
    if type(given) is not type(wanted):
        return given
    if isinstance(given, float) or tensors.facts(given) is not None:
        return wanted if _close(given, wanted, tolerance) else given
    if type(given) in (list, tuple) and len(given) == len(wanted):
        return type(given)(_snapped(*both, tolerance) for both in zip(given, wanted, strict=True))
    if type(given) is dict and given.keys() == wanted.keys():
        return {key: _snapped(value, wanted[key], tolerance) for key, value in given.items()}
    return given


def _close(given: Any, wanted: Any, tolerance: float) -> bool:
    if tensors.facts(given) != tensors.facts(wanted):
        return False
    # Twice as wide as any float that crosses, and known to NumPy, as bfloat16 is not.
    ours, theirs = (_wide(value) for value in (given, wanted))
    return bool(np.allclose(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True))


def _wide(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.cfloat() if value.is_complex() else value.double()).numpy()
    return np.asarray(value)
