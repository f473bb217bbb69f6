import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maas
from maas.batches import Mapped, batched, split
from maas.calls import Result
from maas.executors.base import Job
from maas.testing import difference
from maas.wire import Failure


@given(st.lists(st.integers(), max_size=20), st.integers(1, 7))
def test_batches_are_the_arguments_in_order(xs, size):
    """All but the last batch are full, and together they are what was given."""
    groups = list(batched(iter(xs), size))
    assert [x for group in groups for x in group.argument] == xs
    assert [group.size for group in groups[:-1]] == [size] * (len(groups) - 1)
    assert all(group.size == len(group.argument) for group in groups)


@given(st.integers(1, 6), st.integers(0, 3))
def test_splitting_undoes_stacking(rows, width):
    """Arrays put together and taken apart are the same arrays."""
    xs = [torch.full((width,), float(n)) for n in range(rows)]
    (group,) = batched(xs, rows)
    assert difference(list(split(group.argument, rows)), xs) is None
    arrays = [x.numpy() for x in xs]
    (group,) = batched(arrays, rows)
    assert difference(list(split(group.argument, rows)), arrays) is None


def test_without_a_size_nothing_is_put_together():
    """Each argument is a call of its own, as it is."""
    assert [(group.argument, group.size) for group in batched([[1], 2], None)] == [
        ([1], None),
        (2, None),
    ]


def test_mixed_kinds_make_a_list():
    """A batch of different kinds of values is a list of them."""
    (group,) = batched([torch.zeros(1), np.zeros(1)], 2)
    assert type(group.argument) is list


def test_containers_of_columns_become_containers_of_rows():
    """Tuples and dicts of arrays are taken apart together, nested too."""
    answer = {"a": np.arange(2), "b": (np.arange(2) * 10, [7, 8])}
    rows = split(answer, 2)
    assert difference(
        rows,
        [
            {"a": np.int64(0), "b": (np.int64(0), 7)},
            {"a": np.int64(1), "b": (np.int64(10), 8)},
        ],
    ) is None  # fmt: skip


@pytest.mark.parametrize(
    "answer", [3, "ab", None, [1], np.zeros(()), torch.zeros(3, 2), {"a": [1, 2], "b": [1]}]
)
def test_an_answer_without_rows_is_refused(answer):
    """What has not one row an argument is told with its kind and shape."""
    with pytest.raises(maas.SignatureError, match="a batch of 2 wants an answer of 2 rows"):
        split(answer, 2)


def answered(value: Any) -> Job[Any]:
    job: Job[Any] = Job()
    job.settle(Failure(value) if isinstance(value, Exception) else Result(value))
    return job


@pytest.mark.parametrize("options", [(0, 8), (None, 0), (True, 8), (2, 1.5)])
def test_sizes_are_positive_ints(options):
    """Sizes that make no sense are refused where they are written."""
    with pytest.raises(ValueError, match="positive int"):
        Mapped(answered, [1], *options)


def test_an_error_of_the_source_is_the_readers():
    """What the source of arguments raises reaches who reads the answers."""

    def source():
        yield 1
        raise OSError("the disk")

    answers: Mapped[int] = Mapped(answered, source(), None, 1)
    assert next(answers) == 1
    with pytest.raises(OSError, match="the disk"):
        next(answers)


def test_closing_gives_up_what_is_on_its_way():
    """`close` cancels the calls that nobody will read."""
    jobs: list[Job[Any]] = []

    def submit(_value):
        jobs.append(Job())
        if len(jobs) == 1:
            jobs[0].settle(Result(0))
        return jobs[-1]

    answers: Mapped[int] = Mapped(submit, range(100), None, 3)
    assert next(answers) == 0
    answers.close()
    assert [job.cancelled() for job in jobs[1:]] == [True] * (len(jobs) - 1)
    assert list(answers) == []


def test_an_async_reader_gets_the_same():
    """`async for` gives what `for` gives, batches taken apart."""

    def mapped() -> Mapped[int]:
        return Mapped(answered, range(5), 2, 2)

    async def gather():
        return [row async for row in mapped()]

    assert asyncio.run(gather()) == list(mapped()) == list(range(5))
