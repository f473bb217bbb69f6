import functools
from collections.abc import AsyncIterator, Iterator

import pytest
import torch

import maas
from maas.backends.base import backend_for, declared, describe_method


def plain(x: int) -> int:
    """What it does.

    And more.
    """
    return x


async def later(x: int) -> int:
    return x


def many(x: int) -> Iterator[int]:
    yield x


async def many_later(x: int) -> AsyncIterator[int]:
    yield x


class Callable_:
    async def __call__(self, x: int) -> int:
        return x


@pytest.mark.parametrize(
    ("function", "streams", "asynchronous"),
    [
        (plain, False, False),
        (later, False, True),
        (many, True, False),
        (many_later, True, True),
        (Callable_(), False, True),
        (functools.partial(many, 1), True, False),
        (functools.wraps(later)(functools.partial(later)), False, True),
        (functools.lru_cache(plain), False, False),
    ],
    ids=[
        "plain",
        "async",
        "generator",
        "async generator",
        "object",
        "partial",
        "wrapped",
        "cached",
    ],
)
def test_the_kind_of_a_function_is_read_from_it(function, streams, asynchronous):
    """Whether a function streams or is a coroutine is told by the function itself."""
    method = describe_method("f", function, exclusive=True)
    assert (method.streams, method.asynchronous) == (streams, asynchronous)


def test_what_is_declared_is_kept():
    """`@maas.method` changes nothing but what is known of the function."""
    marked = maas.method(name="other", pure=True, stochastic=True)(plain)
    assert marked is plain
    told = declared(plain)
    assert (told.name, told.pure, told.stochastic) == ("other", True, True)
    method = describe_method("f", plain, exclusive=True)
    assert (method.pure, method.stochastic, method.exclusive) == (True, True, False)
    assert method.doc == "What it does."
    del plain.__maas_method__  # type: ignore[attr-defined]
    assert declared(plain).pure is None


def test_what_awaits_cannot_be_stochastic():
    """A coroutine cannot hold the process's generator, so it is refused at wrapping."""

    @maas.method(stochastic=True)
    async def draws() -> None:
        pass

    @maas.method(stochastic=True)
    async def draws_many() -> AsyncIterator[int]:
        yield 1

    for function in (draws, draws_many):
        with pytest.raises(TypeError, match="only a plain function can be stochastic"):
            maas.Model(function)


def test_the_backend_is_chosen_by_the_target():
    """Modules are run by the torch backend, everything else as Python."""
    assert backend_for(torch.nn.Identity()).kind == "torch"
    assert backend_for(plain).kind == "function"
    assert backend_for(Callable_()).kind == "object"
    with pytest.raises(TypeError, match="device='cpu' is for torch modules"):
        maas.Model(plain, device="cpu")
