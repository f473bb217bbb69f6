"""What users have written against stays: the public signatures, and what each place can do."""

import asyncio
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import maas
from maas.testing.places import PLACES, Connector

SNAPSHOT = Path(__file__).with_name("public_signatures.txt")


def _signature(thing: Callable[..., Any]) -> str:
    """Names, kinds and defaults; hints are the type checker's, and each Python spells them anew."""
    found = inspect.signature(thing)
    bare = [
        each.replace(annotation=each.empty, default=_default(each.default))
        for each in found.parameters.values()
    ]
    return str(found.replace(parameters=bare, return_annotation=found.empty))


def _default(value: Any) -> Any:
    """The default itself where its text is the same in every process."""
    plain = value is inspect.Parameter.empty or isinstance(value, int | float | str | tuple | None)
    return value if plain else ...


def _members(cls: type) -> Iterator[str]:
    ours = [base for base in reversed(cls.__mro__) if base.__module__.startswith("maas")]
    members = {name: member for base in ours for name, member in vars(base).items()}
    for name, member in sorted(members.items()):
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            yield f"    {name}"
        elif inspect.isfunction(member) or isinstance(member, classmethod):
            yield f"    {name}{_signature(getattr(cls, name))}"


def _lines(prefix: str, module: Any) -> Iterator[str]:
    for name in sorted(module.__all__):
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            continue
        if isinstance(thing, type) and issubclass(thing, BaseException):
            yield f"{prefix}{name}({', '.join(base.__name__ for base in thing.__bases__)})"
        elif isinstance(thing, type):
            yield f"{prefix}{name}{'' if thing is maas.Executor else _signature(thing)}"
            # What a place must pass may grow; that is no change to those who are given it.
            yield from () if thing is maas.testing.ExecutorConformance else _members(thing)
        else:
            yield f"{prefix}{name}{_signature(thing)}"


def public_signatures() -> str:
    """Every public name with what it takes, one a line."""
    return "\n".join([*_lines("maas.", maas), *_lines("maas.testing.", maas.testing)]) + "\n"


def test_public_signatures_are_frozen():
    """No public name or parameter goes, appears or moves unless this file's snapshot says so.

    After a change that is meant: python tests/congruence/test_freeze.py
    """
    assert public_signatures().splitlines() == SNAPSHOT.read_text().splitlines()


# The capability matrix.


def double(x: int) -> int:
    return 2 * x


def count(n: int) -> Iterator[int]:
    yield from range(n)


async def later(x: int) -> int:
    return x


class Calculator:
    @maas.method(pure=True)
    def triple(self, x: int) -> int:
        return 3 * x


NET = torch.nn.Linear(2, 2).eval()
X = torch.ones(1, 2)


async def _items(stream: Any) -> list[Any]:
    return [item async for item in stream]


async def _awaited(job: Any) -> Any:
    return await job


VERBS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "call": (double, lambda model: model(1)),
    "submit": (double, lambda model: model.submit(1).result(20.0)),
    "await": (double, lambda model: asyncio.run(_awaited(model.submit(1)))),
    "cancel": (double, lambda model: model.submit(1).cancel() in (True, False)),
    "map": (double, lambda model: list(model.map([1, 2]))),
    "async for map": (double, lambda model: asyncio.run(_items(model.map([1, 2])))),
    "map batch_size": (NET, lambda model: len(list(model.map([X[0], X[0]], batch_size=2)))),
    "call a generator": (count, lambda model: list(model(2))),
    "stream": (count, lambda model: list(model.stream(2))),
    "async for": (count, lambda model: asyncio.run(_items(model.stream(2)))),
    "stream info": (count, lambda model: model.stream(0).info),
    "coroutine": (later, lambda model: model(1)),
    "method": (Calculator(), lambda model: model.triple(1)),
    "method submit": (Calculator(), lambda model: model.triple.submit(1).result(20.0)),
    "method map": (Calculator(), lambda model: list(model.triple.map([1]))),
    "dir": (Calculator(), lambda model: "triple" in dir(model)),
    "timeout": (double, lambda model: model.with_options(timeout=50)(1)),
    "seed": (NET, lambda model: model.with_options(seed=1)(X).shape),
    "priority": (double, lambda model: model.with_options(priority=1)(1)),
    "key": (double, lambda model: model.with_options(key="k")(1)),
    "retries": (Calculator(), lambda model: model.triple.with_options(retries=1)(1)),
    "retries with key": (double, lambda model: model.with_options(retries=1, key="r")(1)),
    "retries without": (double, lambda model: model.with_options(retries=1)(1)),
    "train": (NET, lambda model: model.train().training),
    "eval": (NET, lambda model: model.eval().training),
    "train a function": (double, lambda model: model.train()),
    "NumPy": (NET, lambda model: type(model(X.numpy())).__name__),
    "info": (NET, lambda model: sorted(model.info.methods)),
    "describe": (NET, lambda model: sorted(model.describe())),
    "ready": (double, lambda model: model.ready(20.0) is model),
    "name": (double, lambda model: model.name),
    "wrong method": (double, lambda model: model.nothing),
    "stream a value": (double, lambda model: list(model.stream(1))),
    "submit a generator": (count, lambda model: model.submit(1).result(20.0)),
}


def _does(place: str, verb: str) -> Any:
    target, ask = VERBS[verb]
    try:
        return ask(PLACE[place](target))
    except Exception as error:
        return type(error)


PLACE: dict[str, Connector] = {}


@pytest.fixture(scope="module", autouse=True)
def _places() -> Iterator[None]:
    opened = {name for name, place in PLACES.items() if place.open and not place.missing}
    PLACE.update({name: Connector(name) for name in opened})
    yield
    for connector in PLACE.values():
        connector.close()


@pytest.mark.parametrize("verb", VERBS)
def test_every_place_can_do_the_same(verb):
    """Each verb gives one answer in all places, or one class of error in all."""
    answers = {place: _does(place, verb) for place in PLACE}
    assert len({repr(answer) for answer in answers.values()}) == 1, answers


def test_the_verbs_are_all_there():
    """The matrix has a row for each public method of a Model."""
    asked = " ".join([*VERBS, *(inspect.getsource(ask) for _, ask in VERBS.values())])
    public = {name for name in dir(maas.Model) if not name.startswith("_")}
    unasked = {name for name in public if not re.search(rf"\b{name}\b", asked)}
    # How a Model is made and let go, not what it does; `where` is what differs.
    assert unasked == {"over", "close", "executor", "where"}


def test_options_of_a_place_are_not_taken_elsewhere():
    """A connect option that makes no sense for a place is an error, never ignored."""
    misplaced: list[tuple[Any, dict[str, Any]]] = [
        (double, {"auth": "key"}),
        (double, {"limits": maas.Limits()}),
        (maas.Model(double), {"name": "other"}),
        (maas.Server(double), {"device": "cpu"}),
        ("http://localhost:1/x", {"example": 1}),
        ("http+unix://%2Fnowhere/x", {"http2": True}),
    ]
    for target, option in misplaced:
        with pytest.raises(TypeError, match=next(iter(option))):
            maas.connect(target, **option)


def test_options_are_frozen():
    """The options of a call are those that the page of names tells."""
    names = [field.name for field in attrs.fields(maas.Options)]
    assert names == ["timeout", "retries", "seed", "priority", "key"]


if __name__ == "__main__":
    SNAPSHOT.write_text(public_signatures())
