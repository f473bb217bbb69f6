"""The batching executor: what a caller of it sees, with real torch as the oracle."""

import attrs
import pytest

import maas
from maas.executors.batching import batched
from maas.testing import ExecutorConformance


def declared_pure(executor):
    """The same executor, as if the author had declared all its methods pure."""
    for name, method in executor.describe().methods.items():
        executor._methods[name] = attrs.evolve(method, pure=True)
    return executor


class TestConformance(ExecutorConformance):
    @pytest.fixture
    def executor_for(self):
        def made(target):
            inner = declared_pure(maas.Model(target).executor)
            try:
                return batched(inner, maas.Batching(8))
            except ValueError:
                return inner  # a generator or a coroutine function

        return made
