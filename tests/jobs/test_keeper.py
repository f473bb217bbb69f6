"""The keeper of a folder of jobs: one job a name, bounds before anything is spent, no strays."""

import os
import subprocess
import sys
import threading

import attrs
import pytest
import torch

import maas
from maas.errors import Cancelled, Conflict, LimitExceeded, NotFound
from maas.jobs.folders import JobFolder, Outcome
from maas.jobs.keeper import Keeper, _Watched
from maas.jobs.ordering import order_for
from maas.jobs.rows import packed
from maas.limits import Leases
from maas.train.recipe import Recipe


@pytest.fixture
def order(training):
    """An order for a job; another name, owner, recipe or rows make it another one."""
    model = maas.Model(training.net(), name="net")

    def made(name="run", owner="alice", data=None, **options):
        rows = {"rows": packed(data or training.rows()), "validation": None}
        recipe = Recipe.of({"epochs": 3, **options}).to_data()
        return order_for(model, recipe, rows, name=name, owner=owner, address="net@v1")

    return made


@pytest.fixture
def keeper(tmp_path):
    """One that starts no process."""
    made = Keeper(tmp_path / "jobs")
    made.close()
    return made


def test_a_name_is_one_job(keeper, order, tmp_path):
    """Many who submit the same at once, through two keepers of one folder, get one job."""
    other = Keeper(tmp_path / "jobs")
    other.close()
    found, barrier, wanted = [], threading.Barrier(8), order()

    def submit(number):
        barrier.wait()
        found.append((keeper, other)[number % 2].submit(wanted).path)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert keeper.names("alice", "net") == ["run"]
    assert [path.name for path in found[0].parent.iterdir()] == ["net.run"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"epochs": 4}, "epochs=3 there and 4 here"),
        ({"lr": 0.5}, "lr='its default' there and 0.5 here"),
        ({"data": (torch.zeros(4, 8), torch.zeros(4, 1))}, "other rows"),
    ],
)
def test_the_same_name_with_other_arguments_is_a_conflict(keeper, order, change, told):
    """A name whose job was given something else is refused, and what differs is told."""
    keeper.submit(order())
    with pytest.raises(Conflict, match=told):
        keeper.submit(order(**change))


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "a.b", "x" * 65, ".tmp", "a\0"])
def test_a_name_that_is_none_leads_nowhere(keeper, order, name):
    """A name that could be a path is refused, to submit and to find, and no file is made."""
    before = sorted(os.walk(keeper.folder))
    with pytest.raises(ValueError, match="a job's name matches"):
        keeper.submit(order(name=name))
    with pytest.raises(NotFound):
        keeper.find("alice", "net", name)
    assert sorted(os.walk(keeper.folder)) == before


def test_owners_do_not_meet(keeper, order):
    """The same name is another job for another owner, who neither finds nor lists the first."""
    keeper.submit(order())
    with pytest.raises(NotFound, match="there are: none"):
        keeper.find("bob", "net", "run")
    keeper.submit(order(owner="bob", epochs=9))
    assert keeper.find("alice", "net", "run").record.recipe["epochs"] == 3
    assert keeper.find("bob", "net", "run").record.recipe["epochs"] == 9


@pytest.mark.parametrize(
    ("leases", "told"),
    [(Leases(jobs=1), r"Leases\(jobs=1\)"), (Leases(job_bytes=1000), r"Leases\(job_bytes=1000\)")],
)
def test_bounds_are_kept_before_anything_is_written(tmp_path, order, leases, told):
    """One job too many, or one too large, is refused with the limit's name and leaves no file."""
    keeper = Keeper(tmp_path / "jobs", leases)
    keeper.close()
    if leases.jobs == 1:
        keeper.submit(order())
    before = sorted(os.walk(keeper.folder))
    with pytest.raises(LimitExceeded, match=told):
        keeper.submit(order(name="more"))
    assert sorted(os.walk(keeper.folder)) == before


def test_a_job_that_waits_is_cancelled_at_once(keeper, order):
    """Without a process there is nothing to wait for; resumed, it waits again; then it is gone."""
    job = keeper.submit(order())
    assert keeper.state(job) == "queued"
    with pytest.raises(Conflict, match="has not ended"):
        keeper.delete(job)
    job.cancel()
    assert keeper.state(job) == "cancelled"
    assert isinstance(keeper.outcome(job).exception, Cancelled)
    keeper.resume(job)
    assert keeper.state(job) == "queued"
    job.cancel()
    keeper.delete(job)
    assert keeper.names("alice", "net") == []
    assert list(job.path.parent.iterdir()) == []


def test_a_job_may_be_deleted_before_its_process_has_left(keeper, order):
    """A job that is done and deleted is forgotten when its process ends, and nothing is raised."""
    job = keeper.submit(order())
    job.end(Outcome(state="done"))
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    keeper.delete(job)
    assert keeper._looked(_Watched(job, process)) == "ended"
    assert keeper.names("alice", "net") == []


def test_a_job_that_runs_is_told_by_its_lock(keeper, order):
    """Whoever holds the lock carries the job out, and nobody else can meanwhile."""
    job = keeper.submit(order())
    with job.locked() as mine:
        assert mine
        assert JobFolder(job.path).state == "running"
        with JobFolder(job.path).locked() as other:
            assert not other
    assert job.state == "queued"


def test_an_error_is_kept_as_data(keeper, order):
    """What a job failed by is raised as the class that it was."""
    job = keeper.submit(order())
    job.end(Outcome.of(FloatingPointError("the loss became inf at step 3")))
    error = JobFolder(job.path).outcome.exception
    assert type(error) is FloatingPointError
    assert error.args == ("the loss became inf at step 3",)


def test_nothing_there_can_run(keeper, order):
    """The folder of a job holds JSON, sealed files and safetensors, and no pickle."""
    job = keeper.submit(order())
    names = {
        path.relative_to(job.path).as_posix() for path in job.path.rglob("*") if path.is_file()
    }
    assert names == {"job.json", "data", "base/model.json", "base/weights.safetensors"}
    assert attrs.asdict(job.record)["module"] is None
    for path in job.path.rglob("*"):
        assert path.is_dir() or b"\x80\x02" not in path.read_bytes()[:2]
