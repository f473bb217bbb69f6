"""Two handles that train one served net, against two modules that bare torch trains.

A machine of hypothesis: whatever is done to the handles, in any order, while replies are lost,
leases end and the server is started again, each handle is its module to the last bit.
"""

import copy
import gc
import tempfile
import threading

import attrs
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import nn

import maas
from maas.errors import TransportError
from maas.testing.equality import difference

PATIENT = 60.0
OPTIMIZERS = {"mirror": torch.optim.SGD, "resident": maas.optim.Adam}
BARE = {"mirror": torch.optim.SGD, "resident": torch.optim.Adam}
WHICH = st.sampled_from(sorted(OPTIMIZERS))
ROWS = st.integers(2, 5)
RATES = st.sampled_from([None, None, 0.0, 0.01, 0.2])
LOST = st.sampled_from(["", "", "request", "reply"])


def net():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.4), nn.Linear(4, 2)
        )


class Losing:
    """A transport that loses the next reply, or the next request, when it is told to."""

    def __init__(self, inner):
        self._inner = inner
        self.next = ""

    def send(self, request, deadline, cap):
        lost, self.next = self.next, ""
        if lost == "request":
            raise TransportError("lost on its way there", sent=False)
        reply = self._inner.send(request, deadline, cap)
        if lost == "reply":
            raise TransportError("lost on its way back", sent=True)
        return reply

    def __getattr__(self, name):
        return getattr(self._inner, name)


@attrs.define
class Side:
    """A model, here or there, and what trains it."""

    model: object
    optimizer: torch.optim.Optimizer

    def step(self, x):
        self.optimizer.zero_grad()
        loss = self.model(x).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def called(self, x):
        with torch.no_grad():
            return self.model(x)

    def submitted(self, x):
        submit = getattr(self.model, "submit", None)
        with torch.no_grad():
            return self.model(x) if submit is None else submit(x).result(PATIENT)

    def input_gradient(self, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(self.model(x).sum(), x)

    def state(self):
        return dict(self.model.state_dict())


class Machine(RuleBasedStateMachine):
    """The handles by their rung, and beside each the module that it must be."""

    folder = ""

    @initialize(seed=st.integers(0, 99))
    def begin(self, seed):
        torch.manual_seed(seed)
        self.net = net()
        self.untouched = copy.deepcopy(self.net.state_dict())
        self.lost = self.steps = 0
        self.serve()
        self.sides = {rung: self.connected(rung, net()) for rung in OPTIMIZERS}

    def serve(self):
        self.server = maas.Server({"net": self.net}, allow={"call", "describe", "grad", "train"})
        self.running = maas.serve(self.server, uds=f"{self.folder}/s", block=False)

    def stop(self):
        self.running.close()
        self.server.close()

    def connected(self, rung, own):
        """A handle that begins with the module's weights, and that module."""
        handle = maas.connect(f"http+unix://{self.folder.replace('/', '%2F')}%2Fs/net")
        handle.executor._transport = Losing(handle.executor._transport)
        handle = handle.with_options(retries=9).train(own.training)
        there = Side(handle, OPTIMIZERS[rung](handle.parameters(), lr=0.05))
        handle.load_state_dict(own.state_dict())
        return there, Side(own, BARE[rung](own.parameters(), lr=0.05))

    def same(self, rung, what):
        """Both sides give the same, and draw the same."""
        there, here = self.sides[rung]
        before = torch.get_rng_state()
        wanted = what(here), torch.get_rng_state()
        torch.set_rng_state(before)
        assert difference((what(there), torch.get_rng_state()), wanted) is None

    @rule(rung=WHICH, rows=ROWS, rate=RATES, lost=LOST, look=st.booleans())
    def step(self, rung, rows, rate, lost, look):
        """One step, maybe at another rate, of which the first message may be lost."""
        if rate is not None:
            for side in self.sides[rung]:
                side.optimizer.param_groups[0]["lr"] = rate
        self.lose(rung, lost)
        x = torch.randn(rows, 3)
        self.same(rung, lambda side: side.step(x))
        self.steps += 1
        if look:
            self.compare(rung)

    @rule(rung=WHICH, rows=ROWS)
    def call(self, rung, rows):
        x = torch.randn(rows, 3)
        self.same(rung, lambda side: side.called(x))

    @rule(rung=WHICH, rows=ROWS)
    def submit(self, rung, rows):
        x = torch.randn(rows, 3)
        self.same(rung, lambda side: side.submitted(x))

    @rule(rung=WHICH, rows=ROWS)
    def differentiate(self, rung, rows):
        x = torch.randn(rows, 3)
        self.same(rung, lambda side: side.input_gradient(x))

    @rule(rung=WHICH)
    def call_in_vain(self, rung):
        """A result that nobody differentiates leaves its graph there, for a while."""
        x = torch.randn(2, 3)
        self.same(rung, lambda side: side.model(x).detach())

    @rule(rung=WHICH)
    def cancel(self, rung):
        """In eval mode, where a call leaves nothing behind, whether or not it was begun."""
        there, here = self.sides[rung]
        if not here.model.training:
            with torch.no_grad():
                there.model.submit(torch.zeros(2, 3)).cancel()

    @rule(rung=WHICH, training=st.booleans())
    def switch(self, rung, training):
        for side in self.sides[rung]:
            side.model.train(training)

    @rule(source=WHICH, taker=WHICH)
    def load(self, source, taker):
        """What one handle has learned, into the other or into itself."""
        there, here = self.states(source)
        assert difference(there, here) is None
        self.heard(taker)
        self.sides[taker][0].model.load_state_dict(there)
        self.sides[taker][1].model.load_state_dict(here)

    @rule(rung=WHICH)
    def compare(self, rung):
        assert difference(*self.states(rung)) is None

    def states(self, rung):
        self.heard(rung)
        return [side.state() for side in self.sides[rung]]

    def heard(self, rung):
        """What is asked next is not lost: only calls are tried again."""
        self.sides[rung][0].model.executor.inner._transport.next = ""

    @rule(rung=WHICH, what=LOST)
    def lose(self, rung, what):
        """Of the next call, unless something else is asked before it."""
        if what and self.lost < 9:  # there is a budget for trying again
            self.lost += 1
            self.sides[rung][0].model.executor.inner._transport.next = what

    # Seldom: whoever begins again would have nothing left in which to differ.

    @precondition(lambda self: self.steps > 4)
    @rule(rung=WHICH)
    def expire(self, rung):
        """The copy is gone: its handle says so, and another one begins where the module is."""
        self.compare(rung)
        there, _ = self.sides[rung]
        self.tables()[1].drop("anyone", [there.model.executor._copy])
        self.ended(rung)

    @precondition(lambda self: self.steps > 4)
    @rule()
    def restart(self):
        for rung in self.sides:
            self.compare(rung)
        self.stop()
        self.serve()
        for rung in self.sides:
            self.ended(rung)

    def ended(self, rung):
        there, here = self.sides[rung]
        self.heard(rung)
        with pytest.raises(maas.Expired):
            there.state()
        self.sides[rung] = self.connected(rung, here.model)
        self.steps = 0

    @invariant()
    def nobody_else_sees_it(self):
        if hasattr(self, "net"):
            assert difference(dict(self.net.state_dict()), dict(self.untouched)) is None

    def tables(self):
        services = self.server.handler._services
        return services.graphs.table, services.made("_train").table

    def teardown(self):
        if not hasattr(self, "sides"):
            return
        try:
            for rung in self.sides:
                self.compare(rung)
            self.sides.clear()
            gc.collect()
            for table in self.tables():
                _emptied(table)
        finally:
            self.stop()


def _emptied(table):
    """Returns once nothing is kept: what was collected is told of from the I/O loop."""
    moved, drop = threading.Event(), table.drop
    table.drop = lambda *args: (drop(*args), moved.set())
    while len(table):
        assert moved.wait(PATIENT), f"{len(table)} are left"
        moved.clear()
    del table.drop


@pytest.mark.parametrize("examples", [6, pytest.param(300, marks=pytest.mark.long)])
def test_each_handle_is_its_module(examples):
    """Any order of calls, steps, loads, losses and ends leaves each handle what its module is."""
    # The path of a socket has 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="maas-") as Machine.folder:
        # Not made shorter: each attempt serves and connects anew, which takes minutes in all.
        phases = [Phase.explicit, Phase.reuse, Phase.generate]
        chosen = settings(
            max_examples=examples, stateful_step_count=20, deadline=None, phases=phases
        )
        run_state_machine_as_test(Machine, settings=chosen)
