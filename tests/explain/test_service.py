"""A server explains for whom it grants it, at the cost of the rows that ran."""

import hashlib
import threading

import pytest
import torch
from torch import nn

import maas
from maas.explain.asking import EXPLAIN
from maas.server.guard import GRANTS

NET = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
X = torch.ones(2, 6)


def keyed(tmp_path, **tables):
    """A server of the net with a key file."""
    lines = []
    for name, rest in tables.items():
        digest = hashlib.sha256(name.encode()).hexdigest()
        lines += [f"[{name}]", f'sha256 = "{digest}"', *rest, ""]
    path = tmp_path / "keys.toml"
    path.write_text("\n".join(lines))
    return maas.Server({"net": NET}, auth=path)


def test_it_is_refused_unless_granted():
    """By default a server explains to nobody, and the error names the grant."""
    model = maas.connect(maas.Server({"net": NET}))
    with pytest.raises(maas.Forbidden, match="the grant 'explain'"):
        model.explain(X, target=1)
    with pytest.raises(maas.Forbidden, match="the grant 'grad'"):
        model.explain(X, target=1, through="calls")


def test_values_need_the_grant_of_calls_alone():
    """What only calls the model is free to whoever may call it."""
    model = maas.connect(maas.Server({"net": NET}))
    found = model.explain(X, target=1, method="feature_ablation", through="calls")
    wanted = maas.Model(NET).explain(X, target=1, method="feature_ablation")
    assert torch.equal(found.attributions, wanted.attributions)


def test_each_key_has_its_grant(tmp_path):
    """One key may have explanations and another not, of the same model."""
    server = keyed(
        tmp_path,
        alice=['allow = ["call", "describe", "explain"]'],
        bob=['allow = ["call", "describe"]'],
        carol=['allow = ["call", "describe", "explain"]', 'models = ["net.other"]'],
    )
    assert maas.connect(server, auth="alice").explain(X, target=1).rows == 2 * 64 + 4
    for name in ("bob", "carol"):
        with pytest.raises(maas.Forbidden):
            maas.connect(server, auth=name, model="net").explain(X, target=1)


def test_rows_are_charged(tmp_path):
    """An explanation takes as many rows from the quota as it runs, before it runs them."""
    server = keyed(
        tmp_path,
        alice=['allow = ["call", "describe", "explain"]', 'quota = { rows = "300/hour" }'],
    )
    model = maas.connect(server, auth="alice", model="net")
    assert model.explain(X, target=1, steps=64).rows == 132
    assert model.explain(X, target=1, steps=64).rows == 132
    with pytest.raises(maas.Overloaded, match="300 rows"):
        model.explain(X, target=1, steps=64)
    # The refused one cost the row that its message counts for.
    assert model.explain(X, target=1, steps=14).rows == 32
    model(X)
    with pytest.raises(maas.Overloaded, match="300 rows"):
        model(X)


def test_more_than_the_quota_ever_allows_is_refused(tmp_path):
    """One that costs more than a whole quota is told so, and costs nothing."""
    server = keyed(
        tmp_path,
        alice=['allow = ["call", "describe", "explain"]', 'quota = { rows = "300/hour" }'],
    )
    model = maas.connect(server, auth="alice", model="net")
    with pytest.raises(maas.LimitExceeded, match="above the quota of 300 rows"):
        model.explain(X, target=1, steps=256)
    assert model.explain(X, target=1, steps=128).rows == 260


def test_gradients_are_charged_by_their_rows(tmp_path):
    """A backward step counts the rows of its gradients, as the call before it counted its own."""
    server = keyed(
        tmp_path,
        alice=['allow = ["call", "describe", "grad"]', 'quota = { rows = "10/hour" }'],
    )
    model = maas.connect(server, auth="alice", model="net")
    x = torch.ones(4, 6, requires_grad=True)
    model(x).sum().backward()
    with pytest.raises(maas.Overloaded):
        model(x)


class Stopping(nn.Module):
    """Says that it runs, and waits for leave to go on."""

    running = threading.Event()
    leave = threading.Event()
    runs: list[int] = []  # noqa: RUF012 - shared by copies is the point

    def forward(self, x):
        Stopping.runs.append(1)
        Stopping.running.set()
        assert Stopping.leave.wait(20)
        return x.sum(1)


def test_work_that_nobody_waits_for_ends():
    """Once the caller's time is over, the next run of the model does not begin."""
    server = maas.Server({"net": Stopping()}, allow=GRANTS)
    model = maas.connect(server).ready(20).with_options(timeout=0.3)
    with pytest.raises(maas.DeadlineExceeded):
        model.explain(X, method="feature_ablation", batch_size=1)
    assert Stopping.running.wait(20)
    Stopping.leave.set()
    service = server.handler._services._service(EXPLAIN)
    done = threading.Event()
    service._lane.put(done.set, lambda _error: None)
    assert done.wait(20)
    assert len(Stopping.runs) == 1
    assert service._slots.total == 0


def test_no_more_than_a_few_wait():
    """A caller who asks for ever more explanations is told to come back later."""
    Stopping.leave.clear()
    server = maas.Server({"net": Stopping()}, allow=GRANTS)
    service_slots = 64
    model = maas.connect(server)
    model.info  # so that each of them goes straight there
    errors, threads = [], []

    def ask():
        try:
            model.explain(X, method="feature_ablation")
        except maas.Overloaded as error:
            errors.append(error)
            if len(errors) == 8:
                Stopping.leave.set()

    for _ in range(service_slots + 8):
        threads.append(threading.Thread(target=ask))
        threads[-1].start()
    for thread in threads:
        thread.join(60)
    assert len(errors) >= 8
    assert all(error.retry_after > 0 for error in errors)


@pytest.mark.parametrize(
    "data",
    [{}, {"method": "saliency"}, "extra", "args", "seed", "seed below", "options", "method"],
)
def test_odd_questions_are_refused(data):
    """A message that is no question is an error of the sender, whatever it holds."""
    good = {
        "args": (X,), "kwargs": {}, "target": 1, "method": "saliency", "at": None,
        "baseline": None, "options": {}, "seed": 0, "shuffled": None,
    }  # fmt: skip
    changes = {
        "extra": {"more": 1}, "args": {"args": [X]}, "seed": {"seed": "0"},
        "seed below": {"seed": -1}, "options": {"options": {1: 2}}, "method": {"method": 5},
    }  # fmt: skip
    odd = {**good, **changes[data]} if isinstance(data, str) else data
    executor = maas.connect(maas.Server({"net": NET}, allow=GRANTS)).executor
    ask = maas.calls.Context(grad=False)
    assert executor.ask(EXPLAIN, (good,), ask).value["rows"] == 4
    with pytest.raises((maas.CodecError, ValueError)):
        executor.ask(EXPLAIN, (odd,), ask)
