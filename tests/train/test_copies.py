"""Private copies: nobody else sees them, each step is done once, and they are bounded."""

import copy
import gc
import threading

import pytest
import torch
from torch import nn

import maas
from maas.calls import AMBIENT, Context
from maas.errors import TransportError
from maas.executors.remote import RemoteExecutor
from maas.server.guard import GRANTS
from maas.testing.equality import difference
from maas.train.elsewhere import AS_LEFT, TRAIN
from maas.transports.inprocess import InProcessTransport

X = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(7))
RUNGS = {"mirror": torch.optim, "resident": maas.optim}


def _step(model, optimizer, x=X):
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("rung", RUNGS)
def test_others_never_see_it(server, rung):
    """Two who train the same model, and one who reads it, do not disturb each other."""
    alice, bob, reader = (maas.connect(server.server) for _ in range(3))
    before = reader.eval()(X)
    kind = RUNGS[rung]
    first, second = (kind.SGD(model.parameters(), lr=0.1) for model in (alice, bob))
    for _ in range(3):
        _step(alice, first)
        _step(bob, second, x=2 * X)
        assert torch.equal(reader(X), before)
    assert server.untouched()
    assert not torch.equal(alice.state_dict()["0.weight"], bob.state_dict()["0.weight"])
    assert difference(dict(reader.state_dict()), dict(server.net.state_dict())) is None


def test_reading_makes_no_copy(server):
    """Parameters and state can be read without a copy of the weights; the first change makes it."""
    model = maas.connect(server.server)
    state = model.state_dict()
    assert difference(dict(state), dict(server.net.state_dict())) is None
    state["0.weight"].zero_()
    parameters = list(model.parameters())
    assert [type(each) for each in parameters] == [nn.Parameter] * 6
    (held,) = server.copies()._held["anyone"].values()
    assert held.nbytes == 0
    parameters[0].data.zero_()
    model.eval()(X)
    assert held.nbytes > sum(each.nbytes for each in parameters)
    assert server.untouched()


def test_buffers_advance_on_the_copy(server):
    """BatchNorm's statistics move in the private copy, are shown there, and nowhere else."""
    model = maas.connect(server.server)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(3):
        _step(model, optimizer)
    assert model.state_dict()["1.num_batches_tracked"].item() == 3
    assert dict(model.named_buffers())["1.num_batches_tracked"].item() == 3
    assert len(list(model.buffers())) == 3
    assert server.untouched()


def test_another_handle_of_the_same_copy(server):
    """A handle with other options is of the same copy; one connected anew is not."""
    model = maas.connect(server.server)
    optimizer = maas.optim.SGD(model.parameters(), lr=0.1)
    _step(model, optimizer)
    patient = model.with_options(timeout=30)
    assert torch.equal(patient.eval()(X), model.eval()(X))
    assert not torch.equal(maas.connect(server.server).eval()(X), model(X))


def test_later_and_in_threads(server):
    """`submit` and `map` ask the private copy, in their order, also from several threads."""
    model = maas.connect(server.server)
    optimizer = maas.optim.SGD(model.parameters(), lr=0.1)
    _step(model, optimizer)
    model.eval()
    wanted = model(X)
    found = [model.submit(X).result(20), *model.map([X, X])]
    threads = [threading.Thread(target=lambda: found.append(model(X))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 7
    assert all(torch.equal(each, wanted) for each in found)


# Exactly once.


class Losing:
    """A transport that loses some replies after the server has given them, and some requests."""

    def __init__(self, inner):
        self._inner = inner
        self.every = 0
        self.sent = 0

    def send(self, request, deadline, cap):
        self.sent += 1
        if self.every and self.sent % self.every == 0:
            raise TransportError("lost on its way there", sent=False)
        reply = self._inner.send(request, deadline, cap)
        if self.every and self.sent % self.every == 1:
            raise TransportError("lost on its way back", sent=True)
        return reply

    def __getattr__(self, name):
        return getattr(self._inner, name)


@pytest.mark.parametrize("rung", RUNGS)
def test_a_lost_reply_is_not_a_second_step(server, training, rung):
    """Steps whose replies are lost and asked for again are each done once: bare torch's numbers."""
    transport = Losing(InProcessTransport(server.server))
    executor = RemoteExecutor(transport, "/net", "lossy")
    model = maas.Model.over(executor, "net").with_options(retries=5)
    own = training.net()
    optimizer = RUNGS[rung].Adam(model.parameters(), lr=0.01)
    wanted = torch.optim.Adam(own.parameters(), lr=0.01)
    transport.every = 5
    given = training.looped(model, optimizer, steps=6)
    assert difference(given, training.looped(own, wanted, steps=6)) is None


def test_a_step_outlives_a_failed_call(server, training):
    """A step that waits for a call which fails is done with the next one, once."""
    model, own = maas.connect(server.server), training.net()
    optimizer = maas.optim.SGD(model.parameters(), lr=0.1)
    wanted = torch.optim.SGD(own.parameters(), lr=0.1)
    for run, steps in ((model, optimizer), (own, wanted)):
        torch.manual_seed(0)
        for _ in range(3):
            _step(run, steps)
            with pytest.raises(RuntimeError):
                run(torch.zeros(1, 2, 3))
    assert difference(dict(model.state_dict()), dict(own.state_dict())) is None


def test_a_resident_step_is_one_message(server):
    """Zeroing, the backward run and the step of a resident loop travel with the next call."""
    transport = Losing(InProcessTransport(server.server))
    model = maas.Model.over(RemoteExecutor(transport, "/net", "counted"), "net")
    optimizer = maas.optim.Adam(model.parameters(), lr=0.01)
    _step(model, optimizer)
    before = transport.sent
    for _ in range(4):
        _step(model, optimizer)
    assert transport.sent - before == 4


class Weighing(Losing):
    """A transport that tells how many bytes of bodies went there and came back, call by call."""

    def __init__(self, inner):
        super().__init__(inner)
        self.bytes = []

    def send(self, request, deadline, cap):
        reply = super().send(request, deadline, cap)
        self.bytes.append([sum(map(len, each.body)) for each in (request, reply)])
        return reply


@pytest.mark.parametrize("rung", RUNGS)
def test_a_generator_travels_where_it_is_news(training, rung):
    """The generator's 5 KB go there after a draw here, and come back after a draw there."""
    state = torch.get_rng_state().numel()

    def called(model, x, transport=None):
        """What four calls give, a draw before the third; and which messages could hold a state."""
        torch.manual_seed(0)
        outputs, could = [], []
        for number in range(4):
            torch.rand(2 if number == 2 else 0)
            outputs.append(model(x))
            could += [size > state for size in transport.bytes[-1]] if transport else []
        return [*outputs, torch.rand(2)], could

    there, back = True, True
    for net, x, wanted in (
        (training.net(), X, [there, back, False, back, there, back, False, back]),
        (
            nn.Linear(2, 2),
            torch.ones(1, 2),
            [there, False, False, False, there, False] + [False] * 2,
        ),
    ):
        transport = Weighing(InProcessTransport(maas.Server(net, allow=GRANTS)))
        model = maas.Model.over(RemoteExecutor(transport, "/", "weighed"), "net")
        list(model.parameters()) if rung == "mirror" else maas.optim.SGD(model.parameters(), 0.1)
        given, could = called(model, x, transport)
        assert could == wanted
        assert difference(given, called(net, x)[0]) is None


def test_a_generator_that_was_never_there(server):
    """A stranger's word for the state that a copy had is refused where it had none."""
    asked = maas.connect(server.server).executor
    name = asked.ask(TRAIN, ("open", ""), AMBIENT).value["copy"]
    question = ("call", name, 1, [], {}, {}, "__call__", [X], {}, "none")
    with pytest.raises(maas.CodecError, match="generator"):
        asked.ask(TRAIN, question, Context(rng=AS_LEFT))


def test_what_a_waiting_backward_raises(server):
    """An error of a backward run that waited is raised by the next question; later ones go on."""
    model = maas.connect(server.server)
    optimizer = maas.optim.SGD(model.parameters(), lr=0.1)
    _step(model, optimizer)
    before = model.state_dict()
    y = model(X)
    server.server.handler._services.graphs.table.drop("anyone", [y.grad_fn.crossing.kept.name])
    y.sum().backward()
    optimizer.step()
    with pytest.raises(maas.Expired, match="graph"):
        model(X)
    assert difference(dict(model.state_dict())["0.weight"], before["0.weight"]) is None
    _step(model, optimizer)


# Bounds and grants.


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("allow", [{"call", "describe"}, {"call", "describe", "grad"}])
def test_training_is_refused_by_default(server, rung, allow):
    """A server that did not grant training refuses it and names the grant; calls go on."""
    model = maas.connect(maas.Server({"net": server.net}, allow=allow))
    with pytest.raises(maas.Forbidden, match="'train'"):
        RUNGS[rung].SGD(model.parameters(), lr=0.1)
    with pytest.raises(maas.Forbidden, match="'train'"):
        model.load_state_dict({})
    assert model.eval()(X).shape == (4, 5)


def test_a_copy_that_does_not_fit(server):
    """A copy is charged before it is made; the error names the limit, and others are served."""
    leases = maas.Leases(copy_bytes=1_000)
    model = maas.connect(maas.Server({"net": server.net}, allow=GRANTS, leases=leases))
    optimizer = maas.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(maas.LimitExceeded, match="copy_bytes=1000"):
        _step(model, optimizer)
    assert server.untouched()


def test_an_optimizers_state_is_charged(server):
    """What an optimizer will hold is charged when it is made."""
    weights = sum(each.nbytes for each in server.net.parameters())
    leases = maas.Leases(copy_bytes=3 * weights)
    model = maas.connect(maas.Server({"net": server.net}, allow=GRANTS, leases=leases))
    optimizer = maas.optim.Adam(model.parameters(), lr=0.1)
    with pytest.raises(maas.LimitExceeded, match="copy_bytes"):
        _step(model, optimizer)


def test_too_many_copies(server):
    """One caller has so many copies at once; one whose handle is collected makes room."""
    leases = maas.Leases(copies=2)
    server = maas.Server({"net": server.net}, allow=GRANTS, leases=leases)
    models = [maas.connect(server) for _ in range(2)]
    for model in models:
        list(model.parameters())
    with pytest.raises(maas.LimitExceeded, match="copies=2"):
        list(maas.connect(server).parameters())
    table = server.handler._services._service("_train").table
    ended, drop = threading.Event(), table.drop
    table.drop = lambda *args: (drop(*args), ended.set())
    del models, model
    gc.collect()
    assert ended.wait(20)
    list(maas.connect(server).parameters())


def test_an_expired_copy_says_so(server):
    """A copy that was not used for its time is gone, and its error names the limit."""
    model = maas.connect(server.server)
    optimizer = maas.optim.SGD(model.parameters(), lr=0.1)
    _step(model, optimizer)
    table = server.copies()
    (held,) = table._held["anyone"].values()
    held.used -= 10_000
    table.sweep()
    with pytest.raises(maas.Expired, match=r"3600 s.*copy_seconds"):
        _step(model, optimizer)


@pytest.mark.parametrize("target", [lambda x: x, maas.Model(lambda x: x)], ids=["bare", "wrapped"])
def test_what_has_no_parameters(maas_connect, target):
    """A function has no parameters, in any place, and is still called."""
    model = maas_connect(target)
    with pytest.raises(maas.Unsupported, match="no torch module"):
        list(model.parameters())
    assert model(3) == 3


# The two rungs exclude each other.


@pytest.mark.parametrize(
    "touch",
    [
        lambda p: p + 1,
        lambda p: p.data,
        lambda p: p.grad,
        lambda p: p.detach(),
        lambda p: p.cpu(),
        lambda p: torch.equal(p, p),
        lambda p: nn.utils.clip_grad_norm_([p], 1.0),
        lambda p: p.requires_grad_(False),
        lambda p: p.add_(1),
        nn.init.zeros_,
        lambda p: p.tolist(),
        lambda p: p.numpy(),
    ],
)
def test_touching_a_resident_parameter_raises(server, touch):
    """Whatever reads or writes a parameter that is elsewhere raises, and says what to do."""
    model = maas.connect(server.server)
    maas.optim.SGD(model.parameters(), lr=0.1)
    parameter = next(model.parameters())
    assert (parameter.shape, parameter.dtype) == ((3, 1, 3, 3), torch.float32)
    assert sum(each.numel() for each in model.parameters()) == 281
    with pytest.raises(maas.Unsupported, match=r"0\.weight.*state_dict"):
        touch(parameter)


def test_one_rung_a_handle(server):
    """Parameters that were fetched are not trained elsewhere, and the other way round."""
    model = maas.connect(server.server)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert len(optimizer.param_groups[0]["params"]) == 6
    with pytest.raises(maas.Unsupported, match="connect anew"):
        maas.optim.SGD(model.parameters(), lr=0.1)


def test_a_state_that_does_not_fit(maas_connect, training):
    """`load_state_dict` raises torch's error for what does not fit, or tells what is missing."""
    model, own = maas_connect(training.net()), training.net()
    state = {**own.state_dict(), "0.weight": torch.zeros(1), "more": torch.zeros(1)}
    del state["5.bias"]
    messages = []
    for run in (model, own):
        with pytest.raises(RuntimeError) as caught:
            run.load_state_dict(state)
        messages.append(str(caught.value).partition("\n")[2])
    assert messages[0] == messages[1]
    del state["0.weight"]
    told, wanted = (run.load_state_dict(state, strict=False) for run in (model, own))
    assert told == wanted


def test_where_the_model_is_here_the_optimizer_is_torchs(training):
    """For a model in this process `maas.optim` gives torch's own optimizer."""
    model = maas.Model(training.net())
    assert type(maas.optim.Adam(model.parameters(), 0.01)) is torch.optim.Adam
    assert type(maas.optim.SGD(list(model.parameters()), lr=0.01)) is torch.optim.SGD
    groups = [{"params": [each]} for each in model.parameters()]
    assert len(maas.optim.AdamW(groups).param_groups) == 6


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (2.0, 0.9)}, {"nonsense": 1}])
def test_wrong_options_are_torchs_error(server, options):
    """An option that makes no sense raises what torch raises, before anything is sent."""
    model = maas.connect(server.server)
    with pytest.raises((ValueError, TypeError)) as caught:
        maas.optim.Adam(model.parameters(), **options)
    with pytest.raises(type(caught.value)):
        torch.optim.Adam([torch.zeros(1, requires_grad=True)], **options)


def test_a_module_that_calls_a_model(maas_connect, training):
    """`as_module()` composes: a head is trained here on a body that runs there."""
    target = training.net().eval()
    found = []
    for body in (maas_connect(target).as_module(), training.net()):
        torch.manual_seed(2)
        net = nn.Sequential(body, nn.Linear(5, 2)).eval()
        x = X.clone().requires_grad_()
        net(x).square().sum().backward()
        found.append((x.grad, net[1].weight.grad))
    assert difference(*found) is None
    assert not list(maas_connect(target).as_module().parameters())


def test_a_batched_model_is_trained_by_itself():
    """A model whose calls are batched trains as its module: a private copy has one caller."""
    torch.manual_seed(2)
    net = nn.Linear(3, 2)
    bare = copy.deepcopy(net)
    served = maas.Model(net, batching=maas.Batching(8))
    x = torch.randn(4, 3)
    with maas.connect(maas.Server({"net": served}, allow=GRANTS)) as model:
        there = torch.optim.SGD(model.parameters(), lr=0.1)
        here = torch.optim.SGD(bare.parameters(), lr=0.1)
        assert [_step(model, there, x) for _ in range(3)] == [
            _step(bare, here, x) for _ in range(3)
        ]
        assert difference(dict(model.state_dict()), dict(bare.state_dict())) is None


def test_a_prepared_model_is_no_copys():
    """A private copy would see raw rows, so training one behind a preprocessing is refused."""
    steps = maas.data.StandardScaler().fit(torch.randn(8, 3).numpy())
    served = maas.Model(nn.Linear(3, 2)).prepared(steps)
    with (
        maas.connect(maas.Server({"net": served}, allow=GRANTS)) as model,
        pytest.raises(maas.Unsupported, match="train it with fit"),
    ):
        model.train().state_dict()


def test_a_state_is_asked_for_again_as_calls_are(server):
    """Once a handle was called with retries, a request for its state that is lost is repeated."""
    transport = Losing(InProcessTransport(server.server))
    model = maas.Model.over(RemoteExecutor(transport, "/net", "lossy"), "net")
    model = model.with_options(retries=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _step(model, optimizer)
    wanted = dict(model.state_dict())
    transport.every, transport.sent = 3, 2
    assert difference(dict(model.state_dict()), wanted) is None
    assert transport.sent > 3
