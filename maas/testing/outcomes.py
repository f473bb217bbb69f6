"""One run of a call, and all that a program notices of it.

The arguments are copied first, so that the next run finds them as they were. A coroutine is
awaited and a stream is read to its end, since only then is there something to compare.
"""

import asyncio
import contextlib
import inspect
import random
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import numpy as np

from maas import ambient, tensors, values
from maas.errors import CodecError
from maas.executors.base import Stream
from maas.failures import presentable
from maas.limits import Limits
from maas.model import Asked
from maas.testing.arguments import Arguments
from maas.values import Path

__all__ = ["WAYS", "Outcome", "generators", "modes", "outcome", "rebuilt"]

_MOST_ITEMS = 1_000
"""Items of a stream that are compared; one without end is closed there."""

_ROOT: Path = (None, "value", 1)


# The ways to ask.


def _one(model: Asked[..., Any], call: Arguments) -> Any:
    (argument,) = call.args
    return next(iter(model.map([argument])))


async def _awaited(model: Asked[..., Any], call: Arguments) -> Any:
    return await model.submit(*call.args, **call.kwargs)


async def _gathered(stream: AsyncIterator[Any], taken: Callable[[Any], bool]) -> None:
    async for item in stream:
        if taken(item):
            break


def _now(model: Asked[..., Any], call: Arguments) -> Any:
    return call.of(model)


WAYS: dict[str, Callable[[Asked[..., Any], Arguments], Any]] = {
    "now": _now,
    "submit": lambda model, call: model.submit(*call.args, **call.kwargs).result(),
    "await": lambda model, call: asyncio.run(_awaited(model, call)),
    "map": _one,
    "stream": lambda model, call: model.stream(*call.args, **call.kwargs),
    "async for": lambda model, call: _Async(model.stream(*call.args, **call.kwargs)),
}
"""What `assert_congruent(way=...)` may be; "map" takes calls of one positional argument."""


@attrs.frozen
class _Async:
    """A stream to be read by `async for`."""

    stream: AsyncIterator[Any]


# One run and what it leaves behind.


@attrs.frozen
class Outcome:
    """What a program notices of one call.

    Attributes
    ----------
    value : what was given back; of a stream the list of its items.
    error : what was raised instead, or at the end of a stream.
    arguments : the arguments as they are afterwards.
    state : torch's generator, Python's and NumPy's, afterwards.
    modes : grad mode and autocast afterwards.
    """

    value: Any
    error: BaseException | None
    arguments: Arguments
    state: dict[str, Any]
    modes: Any


def outcome(run: Callable[[Arguments], Any], call: Arguments) -> Outcome:
    """What `run` does with a copy of the call's arguments."""
    own = _copied(call)
    items: list[Any] = []
    value, error = None, None
    try:
        value = _settled(run(own), items)
    except KeyboardInterrupt:
        raise
    except BaseException as raised:  # noqa: BLE001 - what a model raises is what is compared
        value, error = items, presentable(raised)
    return Outcome(value, error, own, generators(), modes())


def _settled(answer: Any, items: list[Any]) -> Any:
    """The value of a coroutine, the items of a stream, or the answer itself."""
    if inspect.iscoroutine(answer):
        return asyncio.run(answer)

    def taken(item: Any) -> bool:
        items.append(item)
        return len(items) >= _MOST_ITEMS

    if isinstance(answer, _Async | AsyncIterator) and not isinstance(answer, Stream):
        source = answer.stream if isinstance(answer, _Async) else answer
        asyncio.run(_gathered(source, taken))
        return items
    if inspect.isgenerator(answer) or isinstance(answer, Stream):
        with contextlib.closing(answer):
            any(map(taken, answer))
        return items
    return answer


def _copied(call: Arguments) -> Arguments:
    return Arguments(
        tuple(rebuilt(value, _copy) for value in call.args),
        {name: rebuilt(value, _copy) for name, value in call.kwargs.items()},
    )


def rebuilt(value: Any, array: Callable[[Any], Any]) -> Any:
    """A copy of the value, `array` applied to every array in it; itself where it cannot cross."""
    try:
        return values.rebuild(value, _ROOT, lambda found, _path: array(found), Limits())
    except CodecError:
        return value


def _copy(array: Any) -> Any:
    adapter: Any = tensors.adapter_for(type(array))
    if not getattr(array, "requires_grad", False):
        return adapter.copy(array)
    return adapter.copy(array.detach()).requires_grad_()


def generators() -> dict[str, Any]:
    """The states of the generators that a process has one of."""
    # NumPy's is the global one, because a model that draws from it is to be told.
    state: Any = np.random.get_state()  # noqa: NPY002
    _kind, key, position, *_ = state
    return {
        "torch's generator": ambient.generator_state(),
        "Python's random": random.getstate(),
        "NumPy's global generator": (bytes(key), position),
    }


def modes() -> Any:
    """Grad mode, autocast and inference mode of this thread."""
    torch = sys.modules.get("torch")
    return ambient.captured(), torch is not None and torch.is_inference_mode_enabled()
