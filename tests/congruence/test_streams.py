"""Streams: the same items, the same end, and the generator closed exactly once."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import maas
from maas.testing import Arguments, assert_congruent, values

EXAMPLES = settings(max_examples=8)
PATIENCE = 20.0


@maas.register
class Dry(Exception):
    pass


def gives(items: list[Any], fail_at: int | None = None) -> Iterator[Any]:
    for index, item in enumerate(items):
        if index == fail_at:
            raise Dry(index, items)
        yield item
    if fail_at is not None and fail_at >= len(items):
        raise Dry("at the end")


async def agives(items: list[Any], fail_at: int | None = None) -> AsyncIterator[Any]:
    for index, item in enumerate(items):
        await asyncio.sleep(0)
        if index == fail_at:
            raise Dry(index, items)
        yield item
    if fail_at is not None and fail_at >= len(items):
        raise Dry("at the end")


@maas.method(stochastic=True)
def samples(n: int) -> Iterator[Any]:
    for _ in range(n):
        yield torch.rand(2)


ITEMS = st.lists(values(max_leaves=3, arrays=False), max_size=5)


@pytest.mark.parametrize("function", [gives, agives], ids=lambda f: f.__name__)
@pytest.mark.parametrize("way", ["now", "stream", "async for"])
@given(items=ITEMS, fail_at=st.none() | st.integers(0, 5))
@EXAMPLES
def test_items_and_end(maas_connect, function, way, items, fail_at):
    """Every item arrives in order, and then the end or the error that the generator had."""
    call = Arguments((items,), {"fail_at": fail_at})
    with torch.no_grad():
        assert_congruent(function, maas_connect(function), call, way=way)


@pytest.mark.parametrize("function", [gives, agives], ids=lambda f: f.__name__)
def test_large_and_empty_items(maas_connect, function):
    """Items larger than any buffer and items of nothing keep their borders."""
    items = [torch.zeros(0), torch.arange(200_000), b"", b"x" * 300_000, None, torch.tensor(1)]
    assert_congruent(function, maas_connect(function), Arguments((items,)))


def test_wrong_arguments_of_a_stream(maas_connect):
    """A stream with wrong arguments raises what the bare generator function raises."""
    for call in (Arguments(), Arguments(([],), {"nothing": 1})):
        assert_congruent(gives, maas_connect(gives), call, way="stream")
    with pytest.raises(maas.SignatureError, match="'items' wants list"):
        list(maas_connect(gives).stream(3))


def test_draws_of_a_stream_are_the_callers(maas_connect):
    """A stochastic generator draws from its caller's, and leaves that where bare torch does."""
    torch.manual_seed(2)
    assert_congruent(samples, maas_connect(samples), Arguments((3,)))


def test_a_stream_that_is_not_read_leaves_the_generator_alone(maas_connect):
    """Bare generators draw when they are asked; so does a model's."""
    model = maas_connect(samples)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    model.stream(3).close()
    assert torch.equal(torch.get_rng_state(), before)


def plain(x: int) -> int:
    return x


def test_what_does_not_stream_says_so(maas_connect):
    """`.stream` of a plain function, and `.submit` of a generator, name the right way to ask."""
    with pytest.raises(maas.SignatureError, match="one value, not a stream"):
        list(maas_connect(plain).stream(1))
    with pytest.raises(maas.Unsupported, match=r"\.stream\(\.\.\.\)"):
        maas_connect(gives).submit([]).result(PATIENCE)


class Source:
    """Counts up for ever, and tells how it was left."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = 0
        self.left = threading.Event()

    @maas.method(pure=True)
    def count(self) -> Iterator[int]:
        try:
            while True:
                self.made += 1
                yield self.made
        finally:
            self.closed += 1
            self.left.set()

    @maas.method
    async def acount(self) -> AsyncIterator[int]:
        try:
            while True:
                self.made += 1
                yield self.made
                await asyncio.sleep(0)
        finally:
            self.closed += 1
            self.left.set()


@pytest.mark.parametrize("method", ["count", "acount"])
@pytest.mark.parametrize("way", ["close", "with", "collected", "aclose"])
def test_a_reader_that_stops_closes_the_generator_once(maas_connect, method, way):
    """Whoever stops reading ends the generator where it runs, exactly once."""
    source = Source()
    stream = getattr(maas_connect(source), method).stream()
    if way == "aclose":
        assert asyncio.run(_two(stream)) == [1, 2]
    else:
        assert [next(stream), next(stream)] == [1, 2]
    if way == "close":
        stream.close()
        stream.close()
    elif way == "with":
        with stream:
            pass
    del stream
    assert source.left.wait(PATIENCE)
    assert source.closed == 1


async def _two(stream):
    async with stream:
        return [await anext(stream), await anext(stream)]


@pytest.mark.parametrize("method", ["count", "acount"])
def test_nothing_is_read_after_the_end(maas_connect, method):
    """A closed stream has no more items, and says so as an exhausted generator does."""
    stream = getattr(maas_connect(Source()), method).stream()
    next(stream)
    stream.close()
    assert list(stream) == []


def test_items_are_made_as_they_are_asked_for(maas_connect):
    """A reader that does not read holds the generator: what is ahead of it is bounded."""
    source = Source()
    with maas_connect(source).count.stream() as stream:
        assert next(stream) == 1
        taken = source.made
        assert taken <= (1 if maas_connect.place == "here" else 100_000)
        assert [next(stream) for _ in range(50)] == list(range(2, 52))


def big() -> Iterator[bytes]:
    while True:
        made.append(None)
        yield b"x" * 1_000_000


made: list[None] = []


def test_a_slow_reader_bounds_the_memory(maas_connect):
    """A stream of large items is made no further ahead than the buffers on its way."""
    made.clear()
    with maas_connect(big).stream() as stream:
        for _ in range(3):
            next(stream)
        # Sockets take a few MB; a process that ran ahead would have made hundreds.
        assert len(made) < 30


def test_info_comes_with_the_end(maas_connect):
    """`info` of a stream is None until the last item, and then tells where it ran."""
    stream = maas_connect(gives).stream([1, 2])
    assert next(stream) == 1
    assert stream.info is None
    assert list(stream) == [2]
    info = stream.info
    assert info is not None
    assert info.compute_seconds > 0
    assert info.where == maas_connect(gives).where


def test_two_readers_share_a_stream(maas_connect):
    """Threads that read one stream get every item once."""
    stream = maas_connect(gives).stream(list(range(200)))
    taken: list[list[int]] = [[], []]
    threads = [threading.Thread(target=lambda own=own: own.extend(stream)) for own in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(taken[0] + taken[1]) == list(range(200))
