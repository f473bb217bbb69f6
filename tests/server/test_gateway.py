"""A gateway: a server that stands in front of models which run behind other servers."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given

import maas
from maas.executors.base import Executor
from maas.testing import ExecutorConformance, assert_congruent, calls

PATIENCE = 30.0


@contextlib.contextmanager
def in_front_of(back) -> Iterator[maas.Model]:
    """The model of a server, asked for by HTTP through a gateway that asks for it by HTTP."""
    with contextlib.ExitStack() as stack:
        middle = stack.enter_context(maas.connect(f"{back.url}/model"))
        front = stack.enter_context(maas.serve({"model": middle}, port=0, block=False))
        yield stack.enter_context(maas.connect(f"{front.url}/model"))


@contextlib.contextmanager
def behind_two(target) -> Iterator[maas.Model]:
    """The same, with the server."""
    with maas.serve({"model": target}, port=0, block=False) as back, in_front_of(back) as model:
        yield model


class TestAGatewayIsAnExecutor(ExecutorConformance):
    """What every executor keeps to, two servers away."""

    @pytest.fixture
    def executor_for(self):
        with contextlib.ExitStack() as stack:

            def make(target) -> Executor:
                return stack.enter_context(behind_two(target)).executor

            yield make


def parts(
    text: str, *, at: int = 1, weights: dict[str, float] | None = None
) -> tuple[str, list[str], dict[str, float]]:
    if at == 0:
        raise ZeroDivisionError("at is zero", text)
    return text[:at], list(text[at:]), weights or {}


@given(call=calls(parts))
def test_a_call_through_a_gateway_is_congruent(gateway, call):
    """Values and exceptions cross two servers as they are."""
    assert_congruent(parts, gateway, call)


@pytest.fixture(scope="module")
def gateway():
    with behind_two(parts) as model:
        yield model


def test_a_gateway_tells_what_the_model_is():
    """Signature, layers and mode are those of the model far behind."""
    net = torch.nn.Linear(3, 2).eval()
    with behind_two(net) as model:
        own = maas.Model(net).info
        assert model.info.methods == own.methods
        assert (model.info.kind, model.info.training) == ("torch", False)
        assert model.describe()["details"] == own.details


def test_a_deadline_passes_on():
    """What is left of a deadline reaches the model behind: it hears of it, and ends its stream."""
    ended = threading.Event()

    def endless() -> Iterator[int]:
        try:
            for number in range(10**9):
                time.sleep(0.01)  # an item takes its time, or the deadline would find a full pipe
                yield number
        finally:
            ended.set()

    with behind_two(endless) as model:
        with pytest.raises(maas.DeadlineExceeded):
            list(model.with_options(timeout=3).stream())
        assert ended.wait(PATIENCE)


def test_who_leaves_is_missed_behind():
    """A caller that closes a stream closes the generator two servers away."""
    ended = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            ended.set()

    async def leave(model) -> None:
        async with model.stream() as stream:
            assert await anext(stream) == 0

    with behind_two(endless) as model:
        asyncio.run(leave(model))
        assert ended.wait(PATIENCE)


def test_each_server_has_its_own_key():
    """Callers show the gateway's key; the key of what stands behind is the gateway's alone."""
    with contextlib.ExitStack() as stack:
        back = stack.enter_context(maas.serve({"p": parts}, auth="back", port=0, block=False))
        middle = maas.connect(f"{back.url}/p", auth="back")
        front = stack.enter_context(maas.serve({"p": middle}, auth="front", port=0, block=False))
        with maas.connect(f"{front.url}/p", auth="front") as model:
            assert model("ab") == ("a", ["b"], {})
        for url, key in ((front.url, "back"), (back.url, "front"), (front.url, None)):
            with maas.connect(f"{url}/p", auth=key) as model, pytest.raises(maas.Unauthenticated):
                model("ab")


def test_a_gateway_whose_server_is_gone_says_so():
    """The error names what failed and comes in time, and the gateway lives on."""
    back = maas.serve({"model": parts}, port=0, block=False)
    with in_front_of(back) as model:
        assert model("ab") == ("a", ["b"], {})
        back.close()
        with pytest.raises(ConnectionError) as caught:
            model.with_options(timeout=PATIENCE)("ab")
        assert isinstance(caught.value, maas.Error)
        with pytest.raises(ConnectionError):
            model("ab")


def test_a_model_that_was_replaced_behind_is_met_again():
    """After the server behind came back with another signature, callers learn the new one."""
    back = maas.serve({"model": parts}, port=0, block=False)
    port = int(back.url.rpartition(":")[2])

    def other(text: str, *, times: int) -> str:
        return text * times

    with in_front_of(back) as model:
        assert model("ab")[0] == "a"
        back.close()
        with maas.serve({"model": other}, port=port, block=False):
            # What callers have learned still fits the old one; the refusal says more.
            with pytest.raises(maas.SignatureError, match="times"):
                model("ab")
            assert model("ab", times=2) == "abab"
