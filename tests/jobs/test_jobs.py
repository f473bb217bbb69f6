"""Jobs as users have them: submitted, followed, cancelled, resumed, and what they make."""

import asyncio
import copy
import hashlib
import threading
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest
import torch

import maas
from maas.errors import Cancelled, Conflict, Forbidden, NotFound, Unsupported
from maas.limits import Leases
from maas.server.guard import GRANTS
from maas.testing.equality import difference

RECIPE = {"epochs": 3, "lr": 0.01, "schedule": "cosine", "validation": 0.2, "metrics": ["mae"]}


def fitted(net, rows, **recipe):
    """What training here gives: the module and its history."""
    module = copy.deepcopy(net)
    history = maas.Model(module).fit(rows, **recipe)
    return module, history


def told(history):
    """A history without the time it took."""
    return attrs.asdict(attrs.evolve(history, seconds=0.0))


@pytest.fixture
def place(training, tmp_path):
    """A server that keeps jobs, a model there, and what it was."""
    net = training.net()
    server = maas.Server({"net": net}, allow=GRANTS, jobs=tmp_path / "jobs")
    yield SimpleNamespace(
        server=server,
        net=net,
        before=copy.deepcopy(net.state_dict()),
        rows=training.rows(),
        connect=lambda address="net": maas.connect(server, model=address),
    )
    server.close()


def test_a_job_is_what_fit_is(place):
    """Its events, history and result are those of `fit` here, and its name is one job."""
    model = place.connect()
    job = model.fit.submit(place.rows, name="run-1", **RECIPE)
    steps = list(job.events())
    module, history = fitted(place.net, place.rows, **RECIPE)
    assert job.state == "done"
    assert [step.loss for step in steps] == history.losses
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert len(steps) == job.total
    assert told(job.history()) == told(history)

    # The result is a version of the model, which others see under its own address alone.
    result = job.result()
    assert difference(dict(result.state_dict()), dict(module.state_dict())) is None
    assert (
        difference(dict(place.connect("net@run-1").state_dict()), dict(module.state_dict())) is None
    )
    assert difference(dict(model.state_dict()), dict(place.before)) is None
    assert result.info.version == "run-1"
    assert difference(dict(place.net.state_dict()), dict(place.before)) is None

    # Found, followed from any event, by `for` and by `async for`.
    same = place.connect().job("run-1")
    assert [step.step for step in same.events(start=15)] == list(range(16, len(steps) + 1))
    assert asyncio.run(_followed(same)) == steps
    assert [found.name for found in model.jobs()] == ["run-1"]
    with pytest.raises(NotFound, match="there are: run-1"):
        model.job("other")

    # The same name and arguments are the same job, however many submit it.
    again = [None] * 4

    def submit(number):
        again[number] = place.connect().fit.submit(place.rows, name="run-1", **RECIPE).state

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert again == ["done"] * 4
    with pytest.raises(Conflict, match="epochs=3 there and 4 here"):
        model.fit.submit(place.rows, name="run-1", **{**RECIPE, "epochs": 4})

    job.delete()
    assert model.jobs() == []
    with pytest.raises(NotFound):
        place.connect("net@run-1").ready(1.0)


def test_a_job_of_a_prepared_model_learns_from_prepared_rows(training, tmp_path):
    """Raw rows pass the preprocessing in front of the model in a job as they do in `fit`."""
    inputs, targets = training.rows()
    scaler = maas.data.StandardScaler().fit(inputs.numpy() * 100.0)
    module = training.net()
    prepared = maas.Model(copy.deepcopy(module)).prepared(scaler)
    server = maas.Server({"net": maas.Model(module).prepared(scaler)}, allow=GRANTS, jobs=tmp_path)
    rows = (inputs * 100.0, targets)
    job = maas.connect(server).fit.submit(rows, name="prepared", **RECIPE)
    job.wait()
    assert told(job.history()) == told(prepared.fit(rows, **RECIPE))
    server.close()


async def _followed(job):
    return [step async for step in job.events()]


def test_fit_elsewhere_is_followed_to_its_end(place):
    """A remote `fit` gives the same history, and the handle then is what was trained, alone."""
    model, other = place.connect(), place.connect()
    history = model.fit(place.rows, **RECIPE)
    module, expected = fitted(place.net, place.rows, **RECIPE)
    assert told(history) == told(expected)
    x = place.rows[0][:4]
    assert torch.equal(model.eval()(x), module.eval()(x))
    assert difference(dict(other.state_dict()), dict(place.before)) is None


def test_a_job_begins_with_what_its_handle_trained(place):
    """A handle whose private copy was trained by a loop hands that copy to the job."""
    x, target = place.rows
    model, module = place.connect(), copy.deepcopy(place.net)
    for each in (model, maas.Model(module)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        torch.manual_seed(0)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(each(x), target).backward()
        optimizer.step()
    job = model.fit.submit((x, target), epochs=1)
    expected, _ = fitted(module, (x, target), epochs=1)
    assert difference(dict(job.result().state_dict()), dict(expected.state_dict())) is None


def test_cancelled_and_resumed_it_is_as_never_cancelled(place):
    """A job that was stopped goes on from its checkpoint, also under another server."""
    recipe = {"epochs": 150, "lr": 0.01, "schedule": "cosine"}
    job = place.connect().fit.submit(place.rows, name="long", **recipe)
    next(job.events())
    job.cancel()
    assert job.wait(120) == "cancelled"
    with pytest.raises(Cancelled):
        job.result()
    stopped = job.told()["steps"]
    assert 0 < stopped < job.total
    with pytest.raises(Conflict):
        place.connect().fit.submit(place.rows, resume=job, **{**recipe, "lr": 0.5})
    assert job.state == "cancelled"
    # The first server lets go of it while it runs.
    resumed = place.connect().fit.submit(place.rows, resume=job, **recipe)
    assert next(resumed.events(start=stopped)).step == stopped + 1
    place.server.close()
    folder = place.server.handler._services.jobs
    second = maas.Server({"net": place.net}, allow=GRANTS, jobs=folder)
    found = maas.connect(second).job("long")
    module, history = fitted(place.net, place.rows, **recipe)
    assert difference(dict(found.result(240).state_dict()), dict(module.state_dict())) is None
    assert told(found.history()) == told(history)
    second.close()


def test_a_job_fails_by_what_fit_raises(place):
    """An error in training is raised by the job's result, of the same class, and names the step."""
    job = place.connect().fit.submit(place.rows, optimizer="sgd", lr=1e30)
    with pytest.raises(FloatingPointError, match="at step"):
        job.result(240)
    assert job.state == "failed"
    assert "at step" in job.told()["message"]
    # Others are not held up, and what does not fit is said before a process starts.
    with pytest.raises(ValueError, match="no optimizer"):
        place.connect().fit.submit(place.rows, optimizer="sdg")


def test_a_class_of_ones_own_is_found_by_its_import_path(training, tmp_path, monkeypatch):
    """A job in this process's folder imports the model, takes its weights, and gives a new one."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    model = maas.connect("local:job_models:net")
    target = model.executor.backend.target
    before = copy.deepcopy(target.state_dict())
    job = model.fit.submit(training.rows(), **RECIPE)
    module, history = fitted(target, training.rows(), **RECIPE)
    result = job.result(240)
    assert difference(dict(result.state_dict()), dict(module.state_dict())) is None
    assert told(job.history()) == told(history)
    assert type(result.executor.backend.target) is type(target)
    assert difference(dict(target.state_dict()), dict(before)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["maas-jobs"]


def test_a_class_that_nobody_could_find_is_refused(place, tmp_path, monkeypatch):
    """Without standard layers and import path, the two ways are told and nothing is started."""

    class Own(torch.nn.Linear):
        pass

    monkeypatch.chdir(tmp_path)
    for model in (
        maas.Model(Own(8, 1)),
        maas.connect(maas.Server({"own": Own(8, 1)}, allow=GRANTS, jobs=tmp_path / "others")),
    ):
        with pytest.raises(Unsupported, match=r"standard layers.*local:package\.module:net"):
            model.fit.submit(place.rows)
        assert model.jobs() == []


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({}, Forbidden, "'train'"),
        ({"allow": GRANTS}, Unsupported, r"jobs='folder'.*--jobs FOLDER"),
        ({"allow": GRANTS - {"train", "compress"}, "jobs": "jobs"}, Forbidden, "'train'"),
    ],
)
def test_what_is_not_granted_is_refused(training, tmp_path, monkeypatch, settings, error, words):
    """Without the grant or a folder, each question is refused with what to grant or to give."""
    monkeypatch.chdir(tmp_path)
    model = maas.connect(maas.Server({"net": training.net()}, **settings))
    for ask in (
        lambda: model.fit(training.rows()),
        lambda: model.fit.submit(training.rows(), name="a"),
        lambda: model.job("a"),
        model.jobs,
    ):
        with pytest.raises(error, match=words):
            ask()


def test_callers_do_not_see_each_others_jobs(training, tmp_path):
    """A job is its key's own: to another key it is as if it were not there."""
    server = maas.Server(
        {"net": training.net()},
        auth=["alice's", "bob's"],
        allow=GRANTS,
        jobs=tmp_path,
        leases=Leases(jobs=1),
    )
    alice, bob = (maas.connect(server, auth=key) for key in ("alice's", "bob's"))
    job = alice.fit.submit(training.rows(), name="mine", epochs=10_000)
    try:
        with pytest.raises(NotFound, match="there are: none"):
            bob.job("mine")
        assert bob.jobs() == []
        with pytest.raises(maas.LimitExceeded, match="jobs=1"):
            alice.fit.submit(training.rows(), name="second")
    finally:
        job.cancel()
        assert job.wait(120) == "cancelled"
        server.close()


def test_results_of_one_name_have_an_address_each(training, tmp_path):
    """A name that another caller's result has, or a version, gives another address and no error."""
    server = maas.Server(
        {"net": training.net()}, auth=["alice's", "bob's"], allow=GRANTS, jobs=tmp_path
    )
    alice, bob = (maas.connect(server, auth=key) for key in ("alice's", "bob's"))
    made = [model.copy(name) for name in ("mine", "v1") for model in (alice, bob)]
    addresses = [model.name for model in made]
    assert len(set(addresses)) == 4
    assert addresses[0] == "net@mine"
    assert all(address.startswith("net@mine") for address in addresses[:2])
    assert "net@v1" not in addresses
    for each in made:
        assert each.eval()(torch.zeros(1, 8)).shape == (1, 1)
    bob.job("mine").delete()
    assert alice.job("mine").result().name == "net@mine"
    server.close()


def test_rows_that_cannot_be_kept_are_refused(training):
    """An iterator cannot be read again after a crash, so a job does not take it."""
    batches = iter([training.rows(4)])
    model = maas.Model(training.net())
    with pytest.raises(Unsupported, match="arrays"):
        model.fit.submit(batches)


def test_a_copy_is_kept_and_published(place):
    """A private copy becomes a version that lasts, and then what everybody gets by the name."""
    x, target = place.rows
    model, reader = place.connect(), place.connect().eval()
    before = reader(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.nn.functional.mse_loss(model(x), target).backward()
    optimizer.step()
    with pytest.raises(Unsupported, match=r"copy\(name\)"):
        model.publish()
    copied = model.copy("better")
    assert difference(dict(copied.state_dict()), dict(model.state_dict())) is None
    with pytest.raises(Conflict, match="better"):
        model.copy("better")
    assert model.job("better").history().losses == []
    assert torch.equal(reader(x), before)
    copied.publish("stable")
    copied.publish()
    assert torch.equal(reader(x), copied.eval()(x))
    assert not torch.equal(reader(x), before)
    with pytest.raises(ValueError, match="means net@better"):
        model.job("better").delete()
    # Another server over the folder has it still.
    state = dict(copied.state_dict())
    place.server.close()
    folder = place.server.handler._services.jobs
    second = maas.Server({"net": place.net}, allow=GRANTS, jobs=folder)
    again = maas.connect(second).job("better").result()
    assert difference(dict(again.state_dict()), state) is None
    second.close()


def test_publishing_wants_a_grant_of_its_own(training, tmp_path):
    """Who may train may not say what others get, and not by names that the key is not held to."""
    allow = GRANTS - {"publish"}
    server = maas.Server({"net": training.net()}, allow=allow, jobs=tmp_path)
    with pytest.raises(Forbidden, match="'publish'"):
        maas.connect(server).publish()
    with pytest.raises(Unsupported, match="not at a server"):
        maas.Model(training.net()).publish()
    keys = tmp_path / "keys.toml"
    digest = hashlib.sha256(b"secret").hexdigest()
    keys.write_text(f'[alice]\nsha256 = "{digest}"\nmodels = ["net"]\n')
    server = maas.Server({"net": training.net()}, auth=keys, allow=GRANTS, jobs=tmp_path)
    model = maas.connect(server, auth="secret")
    model.publish()
    with pytest.raises(Forbidden, match="'other'"):
        model.publish("other")
