"""Short models on the loop of the connections: over real sockets, and noticed by nobody."""

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import torch
from torch import Tensor, nn

import maas
from maas.calls import Call
from maas.executors.base import Job
from maas.executors.placement import RUNS, STALLS
from maas.executors.prompt import Prompt
from maas.executors.queue import Waiting
from maas.server.metrics import Tally

PATIENCE = 30.0


def on_loop(server: maas.Server, name: str = "net") -> int:
    """Calls whose model ran on the loop, so far."""
    tallies = [tally for (model, _, _), tally in server.handler.metrics if model == name]
    return sum(tally.on_loop for tally in tallies)


def until_on_loop(server: maas.Server, model: "maas.Model[..., Tensor]", x: Tensor) -> None:
    """Asks until the model runs on the loop, as it does once it is known to be short."""
    before, until = on_loop(server), time.monotonic() + PATIENCE
    while on_loop(server) == before:
        assert time.monotonic() < until, "it never came to the loop"
        model(x)


class Threads(nn.Module):
    """Tells by which thread it ran, and remembers it."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []
        self.seconds: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(threading.current_thread().name)
        if self.seconds is not None:
            asyncio.run(asyncio.sleep(self.seconds))  # as a model may that knows of no loop
        return x * 2


@pytest.fixture
def net():
    return nn.Linear(4, 2).eval()


@pytest.fixture(params=[None, maas.Batching(8)], ids=["alone", "batched"])
def served(request, net):
    """A server over a small module, in each of the two ways; the server, its URL and the module."""
    server = maas.Server(maas.Model(net, name="net", batching=request.param), auth="secret")
    with maas.serve(server, port=0, block=False) as running:
        yield server, f"{running.url}/net", net


def test_a_short_model_comes_to_the_loop(served):
    """After fifty short runs calls are answered on the loop, with the same values as before."""
    server, url, net = served
    x = torch.randn(3, 4)
    with torch.no_grad(), maas.connect(url, auth="secret") as model:
        first = model(x)
        assert on_loop(server) == 0
        until_on_loop(server, model, x)
        for _ in range(20):
            torch.testing.assert_close(model(x), first, rtol=0, atol=0)
            other = torch.randn(3, 4)
            torch.testing.assert_close(model(other), net(other))
        job = model.submit(x)
        assert torch.equal(job.result(PATIENCE), first)
        assert job.info.compute_seconds > 0


@contextmanager
def uncollected():
    """The kinds of what only a collector finds, once it is over."""
    found = set()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found.update(map(type, gc.garbage))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_a_call_leaves_no_garbage(served):
    """What a call took is freed with it, and no collector has to hold the loop to find it."""
    server, url, _ = served
    x = torch.randn(3, 4)
    headers = {"content-type": "application/json", "authorization": "Bearer secret"}
    local = server.handler.models["net"]
    with torch.no_grad(), maas.connect(url, auth="secret") as model, ThreadPoolExecutor(8) as pool:
        until_on_loop(server, model, x)
        with uncollected() as found:
            for asked in [pool.submit(model, x) for _ in range(100)]:
                asked.result(PATIENCE)
            ways = (local, local.with_options(timeout=1e-9))
            here = [way.submit(x) for way in ways for _ in range(20)]
            for job in here:
                job.exception(PATIENCE)
            for seconds, status in (("9", 200), ("0.000001", 504)):
                timed = headers | {"maas-timeout": seconds}
                reply = httpx.post(url, content="[[[1, 2, 3, 4]]]", headers=timed)
                assert reply.status_code == status
            del asked, here, job
    assert not found & {Prompt, Waiting, Job, Call}


def test_many_callers_get_their_own_rows(served):
    """Sixteen callers at once, on the loop and on its way there, each get their own answers."""
    server, url, net = served
    rows = torch.randn(64, 1, 4)
    with torch.no_grad():
        wanted = net(rows)
    with maas.connect(url, auth="secret") as model, ThreadPoolExecutor(16) as pool:

        def ask(number):
            with torch.no_grad():
                return model(rows[number % 64])

        for number, answer in enumerate(pool.map(ask, range(64 * 25))):
            torch.testing.assert_close(answer, wanted[number % 64], rtol=1e-4, atol=1e-5)
    tally = next(tally for (name, _, _), tally in server.handler.metrics if name == "net")
    assert (tally.active, tally.requests) == (0, 64 * 25)
    assert server.handler.entrance.slots("net").total == 0


def test_it_can_be_switched_off(net):
    """With `on_loop=False` no call is answered on the loop."""
    server = maas.Server({"net": net}, on_loop=False)
    with (
        maas.serve(server, port=0, block=False) as running,
        maas.connect(f"{running.url}/net") as model,
    ):
        for _ in range(3 * RUNS):
            model(torch.zeros(1, 4))
    assert on_loop(server) == 0


def test_errors_are_those_of_any_thread(served):
    """A wrong argument has the same error, class, arguments and notes apart, wherever it runs."""
    server, url, _ = served
    with torch.no_grad(), maas.connect(url, auth="secret") as model:
        for wrong in (torch.zeros(3, 5), torch.zeros(3, 4, dtype=torch.int64)):
            with pytest.raises(RuntimeError) as before:
                model(wrong)
            until_on_loop(server, model, torch.zeros(3, 4))
            for _ in range(2 * RUNS):
                with pytest.raises(RuntimeError) as after:
                    model(wrong)
                assert after.value.args == before.value.args


def test_a_model_on_the_loop_sees_no_loop():
    """A model may run a loop of its own there; then one that sleeps leads back to a thread."""
    target = Threads().eval()
    server = maas.Server(maas.Model(target, name="net"))
    x = torch.ones(1, 4)
    with (
        maas.serve(server, port=0, block=False) as running,
        maas.connect(f"{running.url}/net") as model,
        torch.no_grad(),
    ):
        until_on_loop(server, model, x)
        assert target.seen[-1] == "maas-server"
        target.seconds = STALLS
        assert torch.equal(model(x), x * 2)
        assert torch.equal(model(x), x * 2)
        assert target.seen[-2] == "maas-server"
        assert target.seen[-1] != "maas-server"


def test_calls_that_draw_stay_away(served):
    """Train mode and seeds are answered by a thread, also while like calls are on the loop."""
    server, url, _ = served
    x = torch.randn(3, 4)
    with torch.no_grad(), maas.connect(url, auth="secret") as model:
        until_on_loop(server, model, x)
        before = on_loop(server)
        model.with_options(seed=3)(x)
        trained = maas.connect(url, auth="secret").train()
        trained(x)
        trained.close()
        assert on_loop(server) == before


def test_a_deadline_that_has_passed_is_never_run(served):
    """Work that is late when it arrives is refused, on the loop as on a thread."""
    server, url, _ = served
    x = torch.randn(3, 4)
    with torch.no_grad(), maas.connect(url, auth="secret") as model:
        until_on_loop(server, model, x)
        timed = model.with_options(timeout=PATIENCE)
        until_on_loop(server, timed, x)
        with pytest.raises(maas.DeadlineExceeded):
            model.with_options(timeout=1e-9)(x)


class Gate(nn.Module):
    """Waits until it is opened, where it is told to."""

    def __init__(self):
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) < 0:
            self.entered.release()
            assert self.opened.wait(PATIENCE)
        return x * 2


@pytest.mark.parametrize("batching", [None, maas.Batching(8)], ids=["alone", "batched"])
def test_a_deadline_that_passes_while_it_waits_releases_its_caller(batching):
    """Who waits behind a long run is released at his deadline, and what left takes no slot."""
    gate = Gate().eval()
    server = maas.Server(maas.Model(gate, name="net", batching=batching))
    with (
        maas.serve(server, port=0, block=False) as running,
        maas.connect(f"{running.url}/net") as model,
        torch.no_grad(),
    ):
        model(torch.ones(1, 4))
        long = model.submit(-torch.ones(1, 4))
        assert gate.entered.acquire(timeout=PATIENCE)
        with pytest.raises(maas.DeadlineExceeded):
            model.with_options(timeout=0.2)(-torch.ones(1, 4))
        gate.opened.set()
        assert torch.equal(long.result(PATIENCE), -2 * torch.ones(1, 4))
        assert torch.equal(model(torch.ones(1, 4)), 2 * torch.ones(1, 4))
    assert server.handler.entrance.slots("net").total == 0


def test_what_is_shown_tells_of_it(served):
    """The status and the counters say how many calls ran on the loop."""
    server, url, _ = served
    with torch.no_grad(), maas.connect(url, auth="secret") as model:
        until_on_loop(server, model, torch.zeros(1, 4))
    tally = next(tally for (name, _, _), tally in server.handler.metrics if name == "net")
    assert isinstance(tally, Tally)
    assert 0 < tally.on_loop <= tally.requests
