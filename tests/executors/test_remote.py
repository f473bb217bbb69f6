import contextlib

import pytest

import maas
from maas.testing import ExecutorConformance
from maas.testing.places import PLACES


@pytest.fixture
def opened():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("place", ["wire", "asgi", "unix", "http"])
class TestRemote(ExecutorConformance):
    @pytest.fixture
    def executor_for(self, place, opened):
        if PLACES[place].missing:
            pytest.skip(PLACES[place].missing)
        return lambda target: PLACES[place].open(maas.Model(target), opened)._executor
