import contextlib
import gc
import threading
from collections.abc import Iterator

import pytest
import torch

import maas
from maas.testing import ExecutorConformance
from maas.testing.places import PLACES

PATIENCE = 20.0


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
        return lambda target: PLACES[place].open(maas.Model(target), opened).executor


def add(a: int, b: int = 2) -> int:
    return a + b


def sub(a: int) -> int:
    return a - 1


def test_connecting_does_nothing():
    """A model at an address where nobody listens is made; its first use raises."""
    model = maas.connect("http://127.0.0.1:1/net")
    assert model.where == "http://127.0.0.1:1/net"
    with pytest.raises(maas.TransportError):
        model(1)
    with pytest.raises(ConnectionError):
        model.submit(1).result(PATIENCE)


def test_a_server_with_one_model_needs_no_name():
    """The address of a server stands for its only model."""
    with maas.serve(add, port=0, block=False) as server, maas.connect(server.url) as model:
        assert model(1) == 3
        assert model.executor.name == "add"


def test_a_server_with_two_models_wants_one_named():
    """Where the address leaves a choice the error lists it."""
    with maas.serve({"one": add, "two": sub}, port=0, block=False) as server:
        with maas.connect(server.url) as model, pytest.raises(maas.NotFound, match="one, two"):
            model(1)
        with maas.connect(f"{server.url}/two") as model:
            assert model(1) == 0
        told = "no model 'three' here; there are: one, two"
        with maas.connect(f"{server.url}/three") as model, pytest.raises(maas.NotFound, match=told):
            model(1)


def test_a_replaced_server_is_asked_anew():
    """A client notices that another model answers at its address, and learns what it takes."""
    with maas.serve(add, port=0, block=False) as server:
        model = maas.connect(f"{server.url}/net", limits=None)
        port = int(server.url.rpartition(":")[2])
    with maas.serve({"net": add}, port=port, block=False):
        assert model(1, 5) == 6
    with maas.serve({"net": sub}, port=port, block=False), model:
        # The first call still knows the old signature; the server's refusal brings the new one.
        with pytest.raises(maas.SignatureError):
            model(1, 5)
        assert model(5) == 4


def test_likeness_is_checked_at_the_first_use():
    """`like=` costs nothing at connect, and a server that differs is told line by line."""
    with maas.serve(add, port=0, block=False) as server:
        with maas.connect(server.url, like=add) as model:
            assert model(1) == 3
        told = "'b' is an optional parameter there"
        model = maas.connect(server.url, like=sub)
        with model, pytest.raises(maas.SignatureError, match=told):
            model(1)


def test_a_gateway_is_a_server_over_a_remote_model():
    """A server in front of a remote model passes values, errors and streams on."""
    with contextlib.ExitStack() as stack:
        back = stack.enter_context(maas.serve({"c": count}, port=0, block=False))
        middle = stack.enter_context(maas.connect(f"{back.url}/c"))
        front = stack.enter_context(maas.serve({"c": middle}, port=0, block=False))
        model = stack.enter_context(maas.connect(f"{front.url}/c"))
        assert list(model(3)) == [0, 1, 2]
        with pytest.raises(ValueError, match="negative"):
            list(model(-1))


def count(n: int) -> Iterator[int]:
    if n < 0:
        raise ValueError("negative")
    yield from range(n)


def test_a_gateway_keeps_draws_the_callers():
    """Dropout behind two servers draws from the first caller's generator."""
    net = torch.nn.Dropout(0.5)
    middle = maas.connect(maas.Server(net))
    model = maas.connect(maas.Server(middle)).train()
    torch.manual_seed(3)
    wanted = net.train()(torch.ones(32))
    state = torch.get_rng_state()
    torch.manual_seed(3)
    assert torch.equal(model(torch.ones(32)), wanted)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_key_is_shown_and_wanted():
    """A server with a key lets in who shows it, and says what is missing to who does not."""
    key = "k" * 40
    with maas.serve(add, port=0, block=False, auth=key) as server:
        with maas.connect(server.url, auth=key) as model:
            assert model(1) == 3
        with maas.connect(server.url) as model, pytest.raises(maas.Unauthenticated):
            model(1)
        with maas.connect(server.url, auth="x" * 40) as model, pytest.raises(PermissionError):
            model(1)


def test_the_servers_limits_are_the_clients():
    """What the server would refuse is refused before it is sent."""
    small = maas.Limits(body=100_000)
    with maas.connect(maas.Server(lambda x: x, limits=small)) as model:
        assert model(b"x" * 1_000) == b"x" * 1_000
        with pytest.raises(maas.LimitExceeded, match=r"args\[0\]"):
            model(b"x" * 200_000)


def test_ready_waits_for_a_server_that_comes_later():
    """`ready` returns once the server is there, and gives up at its deadline before."""
    with maas.serve(add, port=0, block=False) as server:
        port = int(server.url.rpartition(":")[2])
    model = maas.connect(f"http://127.0.0.1:{port}/add")
    with pytest.raises(maas.DeadlineExceeded):
        model.ready(0.2)
    waiting = threading.Thread(target=model.ready, args=(PATIENCE,))
    waiting.start()
    with maas.serve(add, port=port, block=False), model:
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
        assert model(1) == 3


def test_a_server_that_hides_tracebacks():
    """`tracebacks=False` keeps the class and the message, and tells nothing of the code."""
    model = maas.connect(maas.Server(count, tracebacks=False))
    with model, pytest.raises(ValueError, match="negative") as caught:
        list(model(-1))
    assert "test_remote" not in "".join(getattr(caught.value, "__notes__", []))


def test_a_dropped_stream_is_ended_there():
    """A remote stream that is dropped unread closes its generator at the server."""
    ended = threading.Event()

    def numbers() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            ended.set()

    with maas.serve(numbers, port=0, block=False) as server, maas.connect(server.url) as model:
        stream = model.stream()
        next(stream)
        del stream
        gc.collect()
        assert ended.wait(PATIENCE)
