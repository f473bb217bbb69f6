import asyncio
import subprocess
import sys
import threading

import pytest
import torch

import maas
from maas import ambient
from maas.calls import AMBIENT, Autocast, Context


def told() -> tuple[bool, bool, bool, torch.dtype]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    )


CONTEXTS = [
    AMBIENT,
    Context(grad=False),
    Context(autocast=(Autocast("cpu", "bfloat16", enabled=True),)),
    Context(grad=False, autocast=(Autocast("cpu", "float16", enabled=True),)),
]


@pytest.mark.parametrize("context", CONTEXTS, ids=range(len(CONTEXTS)))
def test_what_is_captured_is_applied_elsewhere(context):
    """A context captured under some state puts that state in force on another thread."""
    with ambient.applied(context):
        captured, here = ambient.captured(), told()
    assert captured == context
    seen = []

    def elsewhere():
        with ambient.applied(captured):
            seen.append(told())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [here]


@pytest.mark.parametrize("inside", CONTEXTS, ids=range(len(CONTEXTS)))
@pytest.mark.parametrize("outside", CONTEXTS, ids=range(len(CONTEXTS)))
def test_any_state_holds_inside_any_other(inside, outside):
    """A context is in force inside every other one, which is back afterwards."""
    with ambient.applied(outside):
        before = told()
        assert ambient.in_force(inside) == (inside == outside)
        with ambient.applied(inside):
            assert ambient.in_force(inside)
            assert ambient.captured() == inside
        assert told() == before


def test_inference_mode_is_grad_mode_off():
    """A caller in inference mode asks for no gradient, and its tensors are usual ones."""
    with torch.inference_mode():
        captured = ambient.captured()
        assert not ambient.in_force(captured)
        with ambient.applied(captured):
            assert not torch.ones(1).is_inference()
    assert captured == Context(grad=False)


def test_the_usual_state_is_the_very_same_object():
    """Nothing is built for a caller who set nothing: a call costs no record."""
    assert ambient.captured() is AMBIENT


@pytest.mark.parametrize("name", ["float64", "manual_seed", "__dict__", "hub"])
def test_a_strangers_dtype_leads_to_no_attribute(name):
    """Autocast takes the two dtypes it is made for, whatever name a caller sends."""
    context = Context(autocast=(Autocast("cpu", name, enabled=True),))
    with pytest.raises(maas.CodecError, match="bfloat16 and float16"), ambient.applied(context):
        pass


def test_a_seed_forks():
    """A seeded run draws what a freshly seeded torch draws, and nothing of the process's."""
    torch.manual_seed(5)
    wanted = torch.rand(3)
    state = torch.get_rng_state()
    drawn = ambient.Drawn()
    with ambient.stochastic(Context(seed=5), drawn):
        assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn.state is None


def test_a_state_that_came_is_sent_back_advanced():
    """A run under a caller's state draws from it and leaves this process's generator alone."""
    torch.manual_seed(5)
    theirs = ambient.generator_state()
    wanted = torch.rand(3)
    advanced = ambient.generator_state()
    torch.manual_seed(6)
    ours = ambient.generator_state()
    drawn = ambient.Drawn()
    with pytest.raises(ValueError), ambient.stochastic(Context(rng=theirs), drawn):
        assert torch.equal(torch.rand(3), wanted)
        raise ValueError("a run that fails has drawn all the same")
    assert drawn.state == advanced
    assert ambient.generator_state() == ours


def test_with_neither_the_process_draws():
    """A drawing run of this process's own draws from its generator, as bare torch does."""
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    with ambient.stochastic(AMBIENT, ambient.Drawn()):
        assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("state", [b"", b"\x00" * 16, b"\xff" * 5056, b"\x00" * 8192])
def test_bytes_that_are_no_state_are_refused(state):
    """A stranger's generator state is checked, and the process's own one kept."""
    before = ambient.generator_state()
    with pytest.raises(maas.CodecError, match="not a state"):
        ambient.set_generator_state(state)
    assert ambient.generator_state() == before


async def _asks(seen: list[bool], context: Context) -> str:
    async def steps() -> str:
        for _ in range(3):
            seen.append(torch.is_grad_enabled())
            await asyncio.sleep(0)
        return "done"

    return await ambient.stepwise(steps(), context)


def test_a_coroutine_keeps_its_state_and_shares_it_with_nobody():
    """Two coroutines that take turns on one thread each run under their own state."""
    seen: tuple[list[bool], list[bool]] = ([], [])

    async def both():
        return await asyncio.gather(
            _asks(seen[0], Context(grad=False)), _asks(seen[1], AMBIENT), _between()
        )

    async def _between():
        for _ in range(4):
            assert torch.is_grad_enabled()
            await asyncio.sleep(0)

    assert asyncio.run(both())[:2] == ["done", "done"]
    assert seen == ([False] * 3, [True] * 3)


def test_a_cancelled_coroutine_may_clean_up():
    """Cancellation reaches a stepwise coroutine, under its state."""
    seen = []

    async def sleeps():
        try:
            await asyncio.sleep(60)
        finally:
            seen.append(torch.is_grad_enabled())

    async def cancels():
        task = asyncio.ensure_future(ambient.stepwise(sleeps(), Context(grad=False)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancels())
    assert seen == [False]


def test_without_torch_there_is_nothing():
    """A program that never loads torch captures nothing, and applies nothing."""
    code = """
import sys
from maas import ambient
from maas.calls import AMBIENT, Context
assert ambient.captured() is AMBIENT
assert ambient.generator_state() is None
with ambient.applied(Context(grad=False)), ambient.stochastic(Context(seed=1), ambient.Drawn()):
    pass
assert ambient.in_force(Context(grad=False))
assert "torch" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
