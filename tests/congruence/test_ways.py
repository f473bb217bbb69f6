"""Now, later, awaited, many, streamed: one answer, whichever way it is asked for."""

import asyncio
import concurrent.futures
import subprocess
import sys
import warnings
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import maas
from maas.testing import Arguments, assert_congruent, difference, values

EXAMPLES = settings(max_examples=10)
WAYS = ["now", "submit", "await", "map"]


def echo(value: Any) -> Any:
    return value


def refuses(value: Any) -> None:
    raise ValueError("not this", value)


async def aecho(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("function", [echo, refuses, aecho], ids=lambda f: f.__name__)
@given(value=values(arrays=False, max_leaves=4))
@EXAMPLES
def test_every_way_gives_the_same(maas_connect, way, function, value):
    """Calling, submitting, awaiting and mapping give one and the same answer or error."""
    assert_congruent(function, maas_connect(function), Arguments((value,)), way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", [False, True])
def test_the_callers_state_travels_every_way(maas_connect, way, mode):
    """Train mode, grad mode, autocast and draws are the caller's whichever way it asks."""
    model = maas_connect(DROPPING).train(mode)
    torch.manual_seed(4)
    with torch.no_grad(), torch.autocast("cpu"):
        assert_congruent(DROPPING, model, Arguments((torch.ones(4, 8),)), way=way)


torch.manual_seed(0)
DROPPING = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))


def test_draws_of_submitted_calls_keep_their_order(maas_connect):
    """Calls that draw are run in the order of their submission, so the draws are bare torch's."""
    model = maas_connect(DROPPING).train()
    xs = [torch.full((2, 8), float(n)) for n in range(6)]
    torch.manual_seed(9)
    jobs = [model.submit(x) for x in xs]
    given = [job.result(20.0) for job in jobs]
    state = torch.get_rng_state()
    torch.manual_seed(9)
    with torch.no_grad():
        assert difference([DROPPING.train()(x) for x in xs], given) is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("in_flight", [1, 3, 50])
@given(xs=st.lists(st.integers(), max_size=20))
@EXAMPLES
def test_map_keeps_the_order(maas_connect, in_flight, xs):
    """`map` yields in the order of its arguments, however many calls are on their way."""
    assert list(maas_connect(echo).map(iter(xs), in_flight=in_flight)) == xs


def test_map_is_lazy_and_bounded(maas_connect):
    """`map` takes no more arguments than `in_flight` ahead of its reader."""
    taken: list[int] = []

    def source():
        for n in range(1000):
            taken.append(n)
            yield n

    answers = maas_connect(echo).map(source(), in_flight=4)
    assert taken == []
    assert next(answers) == 0
    assert len(taken) <= 5
    answers.close()
    assert list(answers) == []


@pytest.mark.parametrize("batch_size", [1, 3, 10, 32])
def test_batches_are_composed_alike(maas_connect, batch_size):
    """`map(batch_size=)` makes the same batches in every place, so the numbers are the same."""
    net = DROPPING.eval()
    xs = [torch.randn(8, generator=torch.Generator().manual_seed(n)) for n in range(10)]
    with torch.no_grad():
        rows = [
            row
            for start in range(0, 10, batch_size)
            for row in net(torch.stack(xs[start : start + batch_size]))
        ]
    given = list(maas_connect(net).eval().map(xs, batch_size=batch_size))
    if maas_connect.batching is None:
        assert difference(rows, given) is None
    else:
        torch.testing.assert_close(given, rows)  # several of these batches may have shared a run


def split(batch: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return batch + 1, {"twice": 2 * batch}


def lengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


def mean(batch: np.ndarray) -> float:
    return float(batch.mean())


def test_batches_of_anything(maas_connect):
    """Lists make lists, arrays stacks; tuples and dicts of arrays are taken apart row by row."""
    assert list(maas_connect(lengths).map(["a", "bcd", ""], batch_size=2)) == [1, 3, 0]
    rows = list(maas_connect(split).map([np.full(1, n) for n in range(5)], batch_size=2))
    assert len(rows) == 5
    assert [int(plus[0]) for plus, _ in rows] == [1, 2, 3, 4, 5]
    assert [int(double["twice"][0]) for _, double in rows] == [0, 2, 4, 6, 8]


def test_an_answer_without_rows_is_refused(maas_connect):
    """A batch whose answer has not one row an argument raises, and says what to do."""
    with pytest.raises(maas.SignatureError, match="map without batch_size="):
        list(maas_connect(mean).map([np.ones(2), np.ones(2)], batch_size=2))


def test_the_error_of_a_mapped_call_stands_at_its_place(maas_connect):
    """`map` gives the answers before a failing call, and then raises its error."""
    answers = maas_connect(odd_only).map([1, 3, 4, 5])
    assert [next(answers), next(answers)] == [1, 3]
    with pytest.raises(ValueError, match="4 is even"):
        next(answers)


def odd_only(n: int) -> int:
    if n % 2 == 0:
        raise ValueError(f"{n} is even")
    return n


def test_async_map(maas_connect):
    """`async for` over `map` gives what `for` gives."""

    async def gather():
        return [answer async for answer in maas_connect(echo).map(range(10))]

    assert asyncio.run(gather()) == list(range(10))


def test_many_awaited_at_once(maas_connect):
    """Jobs go with asyncio.gather and concurrent.futures.wait alike."""
    model = maas_connect(echo)

    async def gather():
        return await asyncio.gather(*(model.submit(n) for n in range(20)))

    assert asyncio.run(gather()) == list(range(20))
    jobs = [model.submit(n) for n in range(20)]
    done, waiting = concurrent.futures.wait(jobs, timeout=20.0)
    assert (len(done), len(waiting)) == (20, 0)
    assert {job.result() for job in done} == set(range(20))


def test_job_info(maas_connect):
    """A job tells, once it is done, where and how long the model ran."""
    model = maas_connect(echo)
    job = model.submit(1)
    assert job.result(20.0) == 1
    assert job.info.where == model.where
    assert job.info.compute_seconds >= 0
    assert job.info.queue_seconds >= 0
    assert job.info.batch_size == 1


def weighs(x: Annotated[torch.Tensor, maas.TensorSpec("float32", ("batch", 2))]) -> torch.Tensor:
    return x.sum(1)


def test_a_signature_is_the_same_everywhere(maas_connect):
    """`info` has the same methods with the same signatures in every place."""
    here = maas.Model(weighs).info
    there = maas_connect(weighs).info
    assert dict(there.methods) == dict(here.methods)
    assert (there.name, there.kind, there.training) == (here.name, here.kind, here.training)


BLOCKING = """
import asyncio, warnings
import maas
from maas.testing.places import Connector

def echo(x):
    return x

model = Connector({place!r})(echo)

async def main():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert model(1) == model(1) == 1
    (warning,) = caught
    assert "await model.submit" in str(warning.message), warning
    assert warning.filename == __file__, warning.filename

asyncio.run(main())
"""


@pytest.mark.maas(places=["here", "http"])
def test_a_blocking_call_in_a_loop_warns_once(maas_connect, tmp_path):
    """A plain call inside a running loop works, and warns once at the caller's line."""
    script = tmp_path / "blocking.py"
    script.write_text(BLOCKING.format(place=maas_connect.place))
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr


def test_no_way_warns_outside_a_loop(maas_connect):
    """Without a running loop no way of asking warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = maas_connect(echo)
        assert model(1) == model.submit(1).result(20.0) == next(model.map([1])) == 1
