"""A closed model is closed in the same words and the same class, whichever way it is asked."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

import maas
from maas.testing.places import PLACES

PATIENCE = 30.0


def echo(value: int) -> int:
    return value


async def later(value: int) -> int:
    return value


def count(value: int) -> Iterator[int]:
    yield value


async def count_slowly(value: int) -> AsyncIterator[int]:
    yield value


async def awaited(model):
    return await model.submit(1)


async def iterated(model):
    return [item async for item in model.stream(1)]


WAYS = {
    "now": lambda model: model(1),
    "with a deadline": lambda model: model.with_options(timeout=PATIENCE)(1),
    "later": lambda model: model.submit(1).result(PATIENCE),
    "awaited": lambda model: asyncio.run(awaited(model)),
    "many": lambda model: list(model.map([1])),
    "streamed": lambda model: list(model.stream(1)),
    "streamed in async code": lambda model: asyncio.run(iterated(model)),
    "ready": lambda model: model.ready(PATIENCE),
}


@pytest.mark.maas(places=["here", "wire", "asgi", "unix", "http"])  # each opened once for itself
@pytest.mark.parametrize("target", [echo, later, count, count_slowly], ids=lambda f: f.__name__)
@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_a_closed_model_takes_no_calls(maas_connect, target, used):
    """Every way of asking a closed model, also a wrong one, is a RuntimeError that says closed."""
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(maas.Model(target))
        model = PLACES[maas_connect.place].open(own, stack)
        if used:
            assert model.info.name
        model.close()
        model.close()
        for way, ask in WAYS.items():
            with pytest.raises(
                RuntimeError, match=r"was closed; (wrap it anew|connect again)"
            ) as e:
                ask(model)
            assert type(e.value) is RuntimeError, way


def test_a_stream_of_a_closed_model_can_be_closed():
    """The generator of a stream that outlived its model still ends, in async code as well."""
    ended = []

    def endless() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            ended.append(True)

    async def walk() -> None:
        model = maas.Model(endless)
        stream = model.stream()
        assert await anext(stream) == 0
        model.close()
        await stream.aclose()

    asyncio.run(walk())
    assert ended == [True]
