"""The suite tested: executors broken on purpose, each of which it must catch.

Each mutant is a whole executor that answers as the local one does, but for one fault. The
battery is a short form of this folder's tests; a mutant is killed by the check that it names.
"""

import datetime as dt
import itertools
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import nn

import maas
from maas.calls import AMBIENT, Call, Result
from maas.executors.base import END, Executor, Job, Stream
from maas.testing import Arguments, assert_congruent
from maas.wire import Failure

NAN = struct.unpack("<d", bytes.fromhex("010000000000f07f"))[0]


# Targets.


@maas.register(name="mutations.Pair")
@attrs.frozen
class Pair:
    left: Any
    right: Any


@maas.register(name="mutations.Spoilt")
class Spoilt(Exception):
    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


def echo(value: Any = ()) -> Any:
    return value


def fails(how: str) -> None:
    error: Exception = {
        "plain": lambda: ValueError("x", 1),
        "group": lambda: ExceptionGroup("two", [ValueError(1), KeyError(2)]),
        "own": lambda: Spoilt("x", code=3),
    }[how]()
    error.add_note("a note")
    raise error from KeyError("cause")


def three(fail: bool) -> Iterator[int]:
    yield from (1, 2, 3)
    if fail:
        raise ValueError("at the end")


@maas.method(stochastic=True)
def draws() -> Any:
    return torch.rand(3)


class Told(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return (
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            self.training,
            x.requires_grad,
            x.is_contiguous(memory_format=torch.channels_last),
        )


TOLD = Told()
NET = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).eval()
IMAGE = torch.zeros(1, 2, 3, 3).contiguous(memory_format=torch.channels_last)
VALUES = [
    True, 1, 2**70, -0.0, NAN, 1e-300, "\ud800", bytearray(b"x"), (1, (2,)), {1, 2}, [[]],
    {"b": 1, "a": 2}, {1: 2}, dt.datetime(2026, 1, 1, tzinfo=dt.UTC), Pair(1, (2,)),
    torch.tensor(0.5), torch.tensor([0.1, 0.2], dtype=torch.float64), torch.zeros(2, 0),
    np.float32(3),
]  # fmt: skip

ModelFor = Callable[[Any], maas.Model]


# The battery.


def checks_values(model_for: ModelFor) -> None:
    assert_congruent(echo, model_for(echo), Arguments((VALUES,)))


def checks_two_calls(model_for: ModelFor) -> None:
    model = model_for(echo)
    for n in (1, 2):
        assert_congruent(echo, model, Arguments((n,)))
    assert_congruent(echo, model, Arguments((), {"value": 3}))


def checks_errors(model_for: ModelFor) -> None:
    for how in ("plain", "group", "own"):
        assert_congruent(fails, model_for(fails), Arguments((how,)))


def checks_streams(model_for: ModelFor) -> None:
    for fail in (False, True):
        assert_congruent(three, model_for(three), Arguments((fail,)))


def checks_draws(model_for: ModelFor) -> None:
    assert_congruent(draws, model_for(draws), Arguments())
    assert_congruent(NET, model_for(NET).train(), Arguments((torch.ones(2, 3),)))


def checks_state(model_for: ModelFor) -> None:
    model = model_for(TOLD).train()
    assert_congruent(TOLD, model, Arguments((IMAGE,)))
    with torch.no_grad(), torch.autocast("cpu"):
        leaf = IMAGE.clone(memory_format=torch.preserve_format).requires_grad_()
        assert_congruent(TOLD, model.eval(), Arguments((leaf,)))
    NET.eval()
    assert_congruent(NET, model_for(NET).train(), Arguments((torch.ones(2, 3),)))


BATTERY = {
    check.__name__.removeprefix("checks_"): check
    for check in (
        checks_values,
        checks_two_calls,
        checks_errors,
        checks_streams,
        checks_draws,
        checks_state,
    )
}


def killers(model_for: ModelFor) -> dict[str, str]:
    """The checks that fail, with their words."""
    failed = {}
    for name, check in BATTERY.items():
        torch.manual_seed(1)
        try:
            check(model_for)
        except AssertionError as error:
            failed[name] = str(error)
        finally:
            torch.set_grad_enabled(True)
            NET.eval()
    return failed


# Mutants.


def _same(value: Any) -> Any:
    return value


@attrs.define
class Mutant:
    """An executor around another one, with one of its parts replaced."""

    inner: Executor
    answer: Callable[[Any], Any] = _same
    error: Callable[[Exception], Exception] = _same
    call: Callable[[Call], Call] = _same
    items: Callable[[Iterator[Any]], Iterator[Any]] = _same
    around: Callable[[Any, Call, Callable[[], Any]], Any] = lambda _inner, _call, run: run()
    where: str = "mutant"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, call: Call) -> Result:
        if self.inner.method(call.method).streams:
            return Result(self.stream(call))
        try:
            result = self.around(self.inner, call, lambda: self.inner.run(self.call(call)))
        except Exception as error:
            raise self.error(error) from error.__cause__
        return attrs.evolve(result, value=self.answer(result.value))

    def submit(self, call: Call) -> Job[Any]:
        job: Job[Any] = Job()
        try:
            job.settle(self.run(call))
        except Exception as error:
            job.settle(Failure(error))
        return job

    def stream(self, call: Call) -> Stream[Any]:
        return Items(self.items(iter(self.inner.stream(self.call(call)))))


class Items(Stream[Any]):
    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items

    def _step(self) -> Any:
        return next(self._items, END)

    def close(self) -> None:
        pass


def every(kind: type, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Applies `change` to every value of exactly this type, inside containers too."""

    def rewrite(value: Any) -> Any:
        if type(value) is kind:
            value = change(value)
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(map(rewrite, value))
        if type(value) is dict:
            return {key: rewrite(member) for key, member in value.items()}
        return value

    return rewrite


def context(**changes: Any) -> Callable[[Call], Call]:
    return lambda call: attrs.evolve(call, context=attrs.evolve(call.context, **changes))


def arguments(change: Callable[[Any], Any]) -> Callable[[Call], Call]:
    return lambda call: attrs.evolve(call, args=tuple(map(change, call.args)))


def _noteless(error: Exception) -> Exception:
    error.__dict__.pop("__notes__", None)
    return error


def _causeless(error: Exception) -> Exception:
    error.__cause__ = None
    return error


def _stripped(error: Exception) -> Exception:
    vars(error).pop("code", None)
    return error


def _swapped(error: Exception) -> Exception:
    other = RuntimeError(*error.args)
    vars(other).update(vars(error))
    other.__cause__ = error.__cause__
    return other if type(error) is ValueError else error


def _flattened(error: Exception) -> Exception:
    return error.exceptions[0] if isinstance(error, ExceptionGroup) else error


def _worded(error: Exception) -> Exception:
    error.args = (str(error),)
    return error


def _swallowing(items: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from items
    except ValueError:
        return


def _stopped_short(items: Iterator[Any]) -> Iterator[Any]:
    return itertools.islice(items, 2)


def _endless(items: Iterator[Any]) -> Iterator[Any]:
    return itertools.chain(items, itertools.repeat(3))


def _backwards(items: Iterator[Any]) -> Iterator[Any]:
    return iter(list(items)[::-1])


def _draws_nothing(_inner: Any, _call: Call, run: Callable[[], Any]) -> Any:
    state = torch.get_rng_state()
    try:
        return run()
    finally:
        torch.set_rng_state(state)


def _draws_more(_inner: Any, _call: Call, run: Callable[[], Any]) -> Any:
    torch.rand(1)
    return run()


def _draws_python(_inner: Any, _call: Call, run: Callable[[], Any]) -> Any:
    import random

    random.random()
    return run()


def _leaks_grad(_inner: Any, _call: Call, run: Callable[[], Any]) -> Any:
    result = run()
    torch.set_grad_enabled(False)
    return result


def _leaks_mode(_inner: Any, _call: Call, run: Callable[[], Any]) -> Any:
    result = run()
    NET.train()
    return result


def _spoils_arguments(_inner: Any, call: Call, run: Callable[[], Any]) -> Any:
    result = run()
    if call.args and type(call.args[0]) is list:
        call.args[0].append(1)
    return result


def _answers_late() -> Callable[[Any, Call, Callable[[], Any]], Any]:
    """Gives the answer of the call before: a connection whose replies are out of step."""
    last: list[Any] = []

    def around(_inner: Any, _call: Call, run: Callable[[], Any]) -> Any:
        last.append(run())
        return last[-2] if len(last) > 1 else last[-1]

    return around


def _swallows_errors(_inner: Any, _call: Call, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception:
        return Result(None)


tensor = torch.Tensor
MUTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tuple to list": ("values", {"answer": every(tuple, list)}),
    "set to frozenset": ("values", {"answer": every(set, frozenset)}),
    "bytearray to bytes": ("values", {"answer": every(bytearray, bytes)}),
    "bool to int": ("values", {"answer": every(bool, int)}),
    "large int to float": (
        "values",
        {"answer": every(int, lambda n: float(n) if n > 2**64 else n)},
    ),
    "int keys to text": (
        "values",
        {"answer": every(dict, lambda d: {str(key): value for key, value in d.items()})},
    ),
    "reordered dict": ("values", {"answer": every(dict, lambda d: dict(sorted(d.items())))}),
    "surrogate replaced": (
        "values",
        {"answer": every(str, lambda s: s.encode("utf-8", "replace").decode())},
    ),
    "zone dropped": ("values", {"answer": every(dt.datetime, lambda t: t.replace(tzinfo=None))}),
    "object to dict": ("values", {"answer": every(Pair, lambda p: attrs.asdict(p, recurse=False))}),
    "-0.0 lost": ("values", {"answer": every(float, lambda x: x + 0.0 if x == 0 else x)}),
    "NaN quieted": ("values", {"answer": every(float, lambda x: math.nan if math.isnan(x) else x)}),
    "underflow": ("values", {"answer": every(float, lambda x: 0.0 if 0 < x < 1e-200 else x)}),
    "NumPy scalar to float": ("values", {"answer": every(np.float32, float)}),
    "dtype dropped": ("values", {"answer": every(tensor, lambda t: t.float())}),
    "precision lost": ("values", {"answer": every(tensor, lambda t: t.bfloat16().to(t.dtype))}),
    "0-d to 1-d": (
        "values",
        {"answer": every(tensor, lambda t: t.reshape(-1) if not t.dim() else t)},
    ),
    "empty shape lost": (
        "values",
        {"answer": every(tensor, lambda t: t if t.numel() else t.reshape(0))},
    ),
    "torch to NumPy": ("values", {"answer": every(tensor, lambda t: t.numpy())}),
    "empty list to None": ("values", {"answer": every(list, lambda x: x or None)}),
    "argument changed": ("values", {"around": _spoils_arguments}),
    "answers out of step": ("two_calls", {"around": _answers_late()}),
    "keywords dropped": ("two_calls", {"call": lambda call: attrs.evolve(call, kwargs={})}),
    "exception class swapped": ("errors", {"error": _swapped}),
    "note lost": ("errors", {"error": _noteless}),
    "cause lost": ("errors", {"error": _causeless}),
    "attribute lost": ("errors", {"error": _stripped}),
    "group flattened": ("errors", {"error": _flattened}),
    "arguments to text": ("errors", {"error": _worded}),
    "error swallowed": ("errors", {"around": _swallows_errors}),
    "stream's error swallowed": ("streams", {"items": _swallowing}),
    "stream cut": ("streams", {"items": _stopped_short}),
    "stream without end": ("streams", {"items": _endless}),
    "stream backwards": ("streams", {"items": _backwards}),
    "generator not advanced": ("draws", {"around": _draws_nothing}),
    "generator advanced twice": ("draws", {"around": _draws_more}),
    "Python's generator drawn from": ("values", {"around": _draws_python}),
    "seeded": ("draws", {"call": context(seed=1)}),
    "grad mode not carried": ("state", {"call": context(grad=True)}),
    "autocast not carried": ("state", {"call": context(autocast=())}),
    "train mode not carried": ("state", {"call": context(training=None)}),
    "context not carried": ("state", {"call": lambda call: attrs.evolve(call, context=AMBIENT)}),
    "requires_grad lost": ("state", {"call": arguments(lambda x: x.detach())}),
    "layout lost": (
        "state",
        {"call": arguments(lambda x: x.clone(memory_format=torch.contiguous_format))},
    ),
    "grad mode leaked": ("state", {"around": _leaks_grad}),
    "train mode leaked": ("state", {"around": _leaks_mode}),
}


def test_the_battery_passes_what_is_whole():
    """An executor around another one that changes nothing fails no check."""
    assert killers(lambda target: _wrapped(target, {})) == {}


def _wrapped(target: Any, fault: dict[str, Any]) -> maas.Model:
    return maas.Model.over(Mutant(maas.Model(target)._executor, **fault), "mutant")


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_killed(name):
    """An executor with one fault fails the check that is there for it."""
    killer, fault = MUTANTS[name]
    failed = killers(lambda target: _wrapped(target, fault))
    assert killer in failed, f"{name} survives {killer}; killed by {sorted(failed)}"
