"""Training through gateways and worker processes: the copy is where the model runs."""

import contextlib
import gc
import threading

import pytest
import torch

import maas
from maas.calls import AMBIENT
from maas.errors import TransportError
from maas.executors.remote import RemoteExecutor
from maas.loops import run
from maas.server.guard import GRANTS
from maas.testing import Processes
from maas.testing.equality import difference
from maas.transports.inprocess import InProcessTransport

pytestmark = pytest.mark.usefixtures("one_thread")

PATIENT = 240.0
RUNGS = {
    "mirror": (torch.optim, torch.nn.utils.clip_grad_norm_),
    "resident": (maas.optim, maas.optim.clip_grad_norm_),
}
X = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(7))


def _trained(training, model, rung, steps=4):
    kind, clip = RUNGS[rung]
    optimizer = kind.Adam(model.parameters(), lr=0.01)
    return training.looped(model, optimizer, steps=steps, clip=clip)


def _bare(training, steps=4):
    own = training.net()
    optimizer = torch.optim.Adam(own.parameters(), lr=0.01)
    clip = torch.nn.utils.clip_grad_norm_
    return training.looped(own, optimizer, steps=steps, clip=clip)


def _table(server):
    return server.handler._services.made("_train").table


@contextlib.contextmanager
def _ends_of(table):
    """An event: something of the table was let go of."""
    ended, drop = threading.Event(), table.drop
    table.drop = lambda *args: (drop(*args), ended.set())
    yield ended
    del table.drop


# Gateways.


@pytest.fixture
def behind(server):
    """A server in front of another server's model, beside what `server` has."""
    server.front = maas.Server({"net": maas.connect(server.server)}, allow=GRANTS)
    yield server
    server.front.close()


@pytest.mark.parametrize("rung", RUNGS)
def test_through_a_gateway_it_is_bare_torchs(training, rung):
    """Losses, weights, buffers and draws of a loop two servers away are bare torch's."""
    with contextlib.ExitStack() as stack:
        back = stack.enter_context(
            maas.serve({"net": training.net()}, port=0, block=False, allow=GRANTS)
        )
        middle = stack.enter_context(maas.connect(f"{back.url}/net"))
        front = stack.enter_context(
            maas.serve({"net": middle}, port=0, block=False, allow={"call", "describe", "train"})
        )
        model = stack.enter_context(maas.connect(f"{front.url}/net"))
        assert difference(_trained(training, model, rung), _bare(training)) is None


def test_others_never_see_it_through_a_gateway(behind):
    """Who trains through a gateway disturbs neither its other callers nor the server behind it."""
    alice, bob, reader = (maas.connect(behind.front) for _ in range(3))
    before = reader.eval()(X)
    for model, rate in ((alice, 0.1), (bob, 0.2)):
        optimizer = maas.optim.SGD(model.parameters(), lr=rate)
        model(X).square().mean().backward()
        optimizer.step()
    assert not torch.equal(alice.eval()(X), bob.eval()(X))
    assert torch.equal(reader(X), before)
    assert behind.untouched()


def test_a_copy_behind_a_gateway_is_its_callers(behind):
    """A copy's name means nothing to another caller of the gateway, nor does its name there."""
    keys = {"alice": "a" * 20, "bob": "b" * 20}
    front = maas.Server({"net": maas.connect(behind.server)}, auth=keys.values(), allow=GRANTS)
    alice, bob = (maas.connect(front, auth=key) for key in keys.values())
    list(alice.parameters())
    list(bob.parameters())
    (there,) = behind.copies()._held.values()
    question = (1, [], {}, {}, True)
    for name in (alice.executor._copy, *there):
        with pytest.raises(maas.Expired, match="not yours"):
            bob.executor.inner.ask("_train", ("pull", name, *question), AMBIENT)
    front.close()


def test_what_is_collected_is_let_go_of_behind_a_gateway(behind):
    """A collected result's graph and a collected handle's copy end on both servers."""
    model = maas.connect(behind.front)
    list(model.parameters())
    graphs = behind.server.handler._services.graphs.table
    y = model(X)
    assert len(graphs) == 1
    with _ends_of(graphs) as ended:
        del y
        gc.collect()
        assert ended.wait(PATIENT)
    assert len(graphs) == 0
    assert (len(_table(behind.front)), len(behind.copies())) == (1, 1)
    with _ends_of(behind.copies()) as ended:
        del model
        gc.collect()
        assert ended.wait(PATIENT)
    assert (len(_table(behind.front)), len(behind.copies())) == (0, 0)


def test_a_gateway_gives_no_more_than_it_is_granted(behind):
    """Behind a server that does not grant training it is refused by name, and nothing is kept."""
    closed = maas.Server({"net": behind.net}, allow={"call", "describe"})
    front = maas.Server({"net": maas.connect(closed)}, allow=GRANTS)
    with pytest.raises(maas.Forbidden, match="'train'"):
        list(maas.connect(front).parameters())
    assert len(_table(front)) == 0
    front.close()


def test_a_gateway_keeps_so_many_copies(behind):
    """The gateway counts the copies of each of its callers; their bytes count where they are."""
    leases = maas.Leases(copies=1)
    front = maas.Server({"net": maas.connect(behind.server)}, allow=GRANTS, leases=leases)
    first, second = maas.connect(front), maas.connect(front)
    list(first.parameters())
    with pytest.raises(maas.LimitExceeded, match="copies=1"):
        list(second.parameters())
    front.close()


class Losing:
    """A transport that loses every fifth reply after the server has given it."""

    def __init__(self, inner):
        self._inner = inner
        self.sent = 0

    async def asend(self, request, deadline, cap):
        reply = await self._inner.asend(request, deadline, cap)
        self.sent += 1
        if self.sent % 5 == 0:
            raise TransportError("lost on its way back", sent=True)
        return reply

    def __getattr__(self, name):
        return getattr(self._inner, name)


@pytest.mark.parametrize("rung", RUNGS)
def test_a_reply_lost_behind_a_gateway_is_not_a_second_step(server, training, rung):
    """A gateway asks again for what was lost behind it, and each step is done once."""
    transport = Losing(InProcessTransport(server.server))
    middle = maas.Model.over(RemoteExecutor(transport, "/net", "lossy"), "net")
    front = maas.Server({"net": middle}, allow=GRANTS)
    model = maas.connect(front).with_options(retries=5)
    assert difference(_trained(training, model, rung, 6), _bare(training, 6)) is None
    assert transport.sent > 10
    front.close()


def test_jobs_do_not_begin_with_a_copy_behind_a_gateway(behind, tmp_path):
    """A gateway has no weights to begin a job with; the error says where they are."""
    front = maas.Server({"net": maas.connect(behind.server)}, allow=GRANTS, jobs=tmp_path)
    model = maas.connect(front)
    optimizer = maas.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    optimizer.step()
    with pytest.raises(maas.Unsupported, match=r"private copy.*state_dict"):
        model.copy("mine")
    front.close()


# Worker processes.


@pytest.fixture(scope="module")
def workers(training, tmp_path_factory, one_thread):
    """Two processes that have the net of these tests."""
    folder = tmp_path_factory.mktemp("workers") / "net"
    maas.save(maas.Model(training.net(), name="net"), folder)
    with maas.connect(f"workers:{folder}", count=2, name="net") as model:
        yield model


@pytest.fixture
def handle(workers):
    """Makes handles of their own over the same processes."""
    crew = workers.executor.crew
    all_ready = crew._watch(lambda: all(each.life.takes_calls for each in crew.workers))
    run(all_ready).result(PATIENT)
    return lambda: maas.Model.over(workers.executor, "net")


@pytest.mark.parametrize("rung", RUNGS)
def test_in_workers_it_is_bare_torchs(training, handle, rung):
    """A loop over worker processes leaves what bare torch leaves: one of them has the copy."""
    assert difference(_trained(training, handle(), rung), _bare(training)) is None


@pytest.mark.parametrize("rung", RUNGS)
def test_behind_a_server_in_workers_it_is_bare_torchs(training, handle, rung):
    """So does one over HTTP at a server whose models run in worker processes."""
    with (
        maas.serve({"net": handle()}, port=0, block=False, allow=GRANTS) as server,
        maas.connect(f"{server.url}/net") as model,
    ):
        assert difference(_trained(training, model, rung), _bare(training)) is None


def test_a_lost_worker_takes_its_copies_and_graphs(workers, handle):
    """What a lost worker kept raises `Expired`, which says so; copies in the other one go on."""
    with maas.serve({"net": handle()}, port=0, block=False, allow=GRANTS) as server:
        direct, served, plain = handle(), maas.connect(f"{server.url}/net"), handle()
        models = [direct, served]
        optimizers = [maas.optim.SGD(each.parameters(), lr=0.1) for each in models]
        for model, optimizer in zip(models, optimizers, strict=True):
            model(X).square().mean().backward()
            optimizer.step()
            model.state_dict()
        x = X.clone().requires_grad_()
        graphs = [plain(x), plain(x)]
        Processes.of(workers).kill(0)
        questions = [*(each.state_dict for each in models), *(y.sum().backward for y in graphs)]
        errors = [str(error) for ask in questions if (error := _expired(ask)) is not None]
        # They were dealt out in turn, to two workers.
        assert len(errors) == 2
        assert all("worker of net that kept" in error for error in errors)
        served.close()


def _expired(ask):
    try:
        ask()
    except maas.Expired as error:
        return error
    return None


def test_a_job_does_not_begin_with_a_copy_in_a_worker(handle, tmp_path, monkeypatch):
    """A job would begin with what the workers import, and not with the handle's own weights."""
    monkeypatch.chdir(tmp_path)
    model = handle()
    optimizer = maas.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    optimizer.step()
    with pytest.raises(maas.Unsupported, match="private copy in a worker"):
        model.fit.submit((X, torch.zeros(4, 5)), epochs=1)
