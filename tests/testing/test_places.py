import asyncio
import gc
import threading
from pathlib import Path

import pytest

import maas
from maas.testing.places import PLACES, Connector, Mounted


def add(a: int, b: int = 2) -> int:
    return a + b


class Box:
    @maas.method
    def put(self, n: int) -> int:
        return n


@pytest.fixture(
    params=[place for place in PLACES.values() if place.open and not place.missing],
    ids=lambda p: p.name,
)
def connector(request):
    connector = Connector(request.param.name)
    yield connector
    connector.close()


def test_a_target_is_opened_once(connector):
    """Handles of one target share what was opened; other targets and options have their own."""
    first, second = connector(add), connector(add)
    assert first is not second
    assert first.executor is second.executor
    assert connector(add, name="other").executor is not first.executor
    assert connector(lambda a: a).executor is not first.executor
    assert connector(add, name="other").name == "other"


def test_handles_share_no_mode(connector):
    """What one test sets on its handle the next one does not find."""
    import torch

    net = torch.nn.Dropout(0.5)
    connector(net).eval()
    assert connector(net).training is True


def test_the_oldest_is_closed_when_there_are_too_many(connector):
    """No more than 16 servers are open at once, of nine descriptors, and those in use stay open."""
    before, descriptors = len(_servers()), open_descriptors()
    kept = connector(add)
    targets = [Box() for _ in range(30)]
    for target in targets:
        assert connector(target).put(1) == 1
        connector(add)
    assert kept(1) == 3
    assert len(_servers()) <= before + 16
    assert open_descriptors() <= descriptors + 16 * 9
    assert connector(targets[0]).put(2) == 2


def open_descriptors() -> int:
    here = Path("/proc/self/fd")
    return len(list(here.iterdir())) if here.exists() else 0


def _servers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "maas-server"}


def test_closing_leaves_nothing(connector):
    """Afterwards there is no server, no socket file and no thread of one."""
    # Those that the session keeps for its other tests stay.
    before = _servers()
    connector(add)(1)
    where = connector(add).where
    connector.close()
    gc.collect()
    assert _servers() <= before
    if where.startswith("http+unix"):
        assert not Path(where.partition("//")[2].partition("/")[0].replace("%2F", "/")).exists()


def test_a_model_is_taken_as_it_is(connector):
    """A Model that the test made itself is served, and not closed with the place."""
    model = maas.Model(add, name="mine")
    assert connector(model)(1) == 3
    connector.close()
    assert model(1) == 3


def test_a_mounted_app_hears_its_prefix():
    """An app under a prefix is told by `root_path`, and its path is whole; others are not found."""
    scopes, sent = [], []

    async def app(scope, receive, send):
        scopes.append(scope)

    async def send(event):
        sent.append(event)

    async def receive():
        return {}

    mounted = Mounted(Mounted(app, "/inner"), "/outer")
    asyncio.run(mounted({"type": "http", "path": "/outer/outer/x"}, receive, send))
    asyncio.run(Mounted(app, "/models")({"type": "http", "path": "/models/net"}, receive, send))
    assert [scope["root_path"] for scope in scopes] == ["/models"]
    assert scopes[0]["path"] == "/models/net"
    assert sent[0]["status"] == 404
