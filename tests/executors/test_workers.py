"""Worker processes: real ones, and threads that stand for them where a test looks inside."""

import asyncio
import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import maas
from maas.calls import AMBIENT
from maas.errors import DeadlineExceeded, NotReady, Overloaded, WorkerLost
from maas.executors.crew import Crew
from maas.executors.spawning import worker_name, worker_target
from maas.executors.supervision import Pace
from maas.executors.workers import WorkerExecutor
from maas.loops import run
from maas.server.handler import Handler
from maas.testing import Arguments, ExecutorConformance, assert_congruent
from maas.worker import attend

HERE = Path(__file__).parent
PATIENT = 60.0
QUICK = Pace(first_pause=0.01, longest_pause=0.1)


class InThread:
    """Stands for a process: the same front at the other end of the same socket."""

    def __init__(self, target) -> None:
        self.control, self._theirs = socket.socketpair()
        self._handler = Handler({"model": maas.Model(target, name="model")})
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        with self._theirs:
            self._theirs.sendall(b'{"ready": true}\n')
            asyncio.run(attend(self._theirs, self._handler))

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._theirs.shutdown(socket.SHUT_RDWR)

    def wait(self) -> None:
        self._thread.join(PATIENT)


class TestConformance(ExecutorConformance):
    @pytest.fixture
    def executor_for(self):
        return lambda target: WorkerExecutor(
            lambda _number: InThread(target), "model", "workers:here", count=2, pace=QUICK
        )


# Real processes.


@pytest.fixture(scope="module", autouse=True)
def _targets_are_found():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        yield


@pytest.fixture(scope="module")
def workers(_targets_are_found):
    """`workers(name)`: a Model of that target in two processes, kept for the module."""
    opened = {}

    def workers(name, *, count=2, module="worker_targets"):
        if (name, count) not in opened:
            place = f"workers:{module}:{name}"
            opened[name, count] = maas.connect(place, count=count, pace=QUICK)
        model = opened[name, count]
        wait_until(lambda: set(model.executor.phases) == {"ready"})
        return model

    yield workers
    for model in opened.values():
        model.close()


def targets():
    return importlib.import_module("worker_targets")


def modules():
    return importlib.import_module("worker_modules")


VALUES = [
    None, True, 2**80, -0.0, float("nan"), b"\0", (1, [2, {3}]), {"b": 1, 3: None}, ...,
    np.arange(4, dtype=np.int8), [ValueError("a", 1)],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("way", ["now", "submit", "await"])
def test_values_are_the_same_in_a_worker(workers, value, way):
    """What a worker gives is bit for bit what the target gives here, however it is asked."""
    assert_congruent(targets().echo, workers("echo"), Arguments((value,)), way=way)


def test_a_module_is_the_same_in_a_worker(workers):
    """A torch module's outputs, modes and random draws are those it has here."""
    net = modules().net
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    for training in (False, True):
        model = workers("net", module="worker_modules").with_options().train(training)
        with torch.no_grad():
            for _ in range(3):
                assert_congruent(net, model, Arguments((x,)))
    assert net.training is False


def test_errors_are_the_same_in_a_worker(workers):
    """Class, arguments and cause of what the model raises."""
    assert_congruent(targets().fails, workers("fails"), Arguments(("why",)))
    with pytest.raises(ValueError) as caught:
        workers("fails")("why")
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_models_own_transport_error_is_its_own(workers):
    """A model that raises what a lost worker raises is not taken for one."""
    model = workers("said_lost")
    before = model.executor.phases
    with pytest.raises(maas.TransportError, match="the model's own") as caught:
        model()
    assert not isinstance(caught.value, WorkerLost)
    assert model.executor.phases == before


def test_streams_come_from_workers(workers):
    """Items of a generator in a worker, in order; closing the stream ends the generator there."""
    assert list(workers("agent").items.stream(4)) == [0, 1, 2, 3]


def test_calls_are_spread(workers):
    """Each worker has its share of the calls, and `info` tells the place."""
    model = workers("pid")
    assert len({model() for _ in range(10)}) == 2
    job = model.submit()
    assert job.result(PATIENT) != os.getpid()
    assert (job.info.where, job.info.version) == ("workers:worker_targets:pid", None)


def test_a_worker_is_a_fresh_interpreter(workers):
    """It inherits one socket and no program: no `__main__`, no descriptor, its own group."""
    with Path(os.devnull).open() as open_here:
        os.set_inheritable(open_here.fileno(), True)
        seen = workers("environment", count=1)()
    assert seen["main"].endswith("maas/worker.py")
    assert open_here.closed or open_here.fileno() not in seen["descriptors"]
    assert seen["group"] != os.getpgid(0)


def test_threads_are_shared_out(workers, monkeypatch):
    """Each worker computes with its share of the processors, unless the environment says."""
    cpus = len(os.sched_getaffinity(0))
    assert workers("threads", module="worker_modules")() == (
        max(1, cpus // 2),
        str(max(1, cpus // 2)),
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with maas.connect("workers:worker_modules:threads", count=2) as model:
        assert model() == (2, "2")


def test_each_worker_answers_its_example_before_others(tmp_path, monkeypatch):
    """`example=` crosses as any argument does, and runs in every worker."""
    monkeypatch.setenv("EXAMPLES", str(tmp_path / "seen"))
    options = {"count": 2, "example": np.arange(3.0), "pace": QUICK}
    with maas.connect("workers:worker_targets:example_of", **options) as model:
        wait_until(lambda: model.executor.phases == ("ready", "ready"))
        seen = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
        assert [total for _, total in seen] == ["3.0", "3.0"]
        assert len({pid for pid, _ in seen}) == 2
    options["example"] = np.array([-1.0])
    with (
        maas.connect("workers:worker_targets:example_of", **options) as model,
        pytest.raises(NotReady, match="ValueError: a bad example"),
    ):
        model.ready(PATIENT)


def test_a_folder_goes_to_workers(tmp_path):
    """A saved model is opened by each worker, on the device it is assigned."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 2)).eval()
    maas.save(maas.Model(net, name="saved"), tmp_path / "saved")
    with maas.connect(f"workers:{tmp_path / 'saved'}", devices=["cpu"]) as model:
        x = torch.ones(3, 4)
        assert torch.equal(model(x), net(x).detach())
        assert (model.name, model.info.device) == ("saved", "cpu")


def test_devices_are_dealt_out(workers):
    """Workers take the devices in turn; a device that is not there is said to be none."""
    with maas.connect("workers:worker_modules:net", count=2, devices=["cpu", "meta"]) as model:
        model.ready(PATIENT)
    with (
        maas.connect("workers:worker_modules:net", devices=["nowhere:0"], pace=QUICK) as model,
        pytest.raises(NotReady, match="nowhere"),
    ):
        model.ready(PATIENT)


# Lost workers.


def test_a_pure_call_is_given_to_another_worker(workers, tmp_path):
    """The caller of a pure method does not notice that a worker died of it."""
    model = workers("dies_first")
    pid = model(str(tmp_path / "once"))
    assert pid > 0
    assert list(tmp_path.iterdir()) == [tmp_path / "once"]


def test_a_keyed_call_is_given_to_another_worker(workers, tmp_path):
    """A key says that twice is once."""
    model = workers("dies_once")
    keyed = model.with_options(key="k")
    with pytest.raises(FileExistsError):
        keyed(str(tmp_path / "once"))


def test_another_call_is_not_repeated(workers, tmp_path):
    """Who may have been run is told so, and is not run again."""
    model = workers("dies_once")
    with pytest.raises(WorkerLost, match="may have run") as caught:
        model(str(tmp_path / "once"))
    assert (caught.value.sent, caught.value.answered) == (True, True)
    assert isinstance(caught.value, ConnectionError)
    with pytest.raises(FileExistsError):
        model(str(tmp_path / "once"))


def test_a_call_that_kills_costs_two_workers_and_not_all(workers):
    """A poisonous call is given up after its second worker, and the others are served on."""
    model = workers("dies", count=3)
    for _ in range(2):
        with pytest.raises(WorkerLost, match="2 workers"):
            model()
    assert set(workers("dies", count=3).executor.phases) == {"ready"}


def test_a_stream_is_begun_anew_only_before_its_first_item(workers, tmp_path):
    """Lost before its first item a pure stream comes from another worker; after it, it breaks."""
    agent = workers("agent")
    items = agent.items_at_second_try.stream(str(tmp_path / "once"))
    assert [next(items) > 0, next(items), list(items)] == [True, 1, []]
    broken = agent.items_until_death.stream(3)
    assert [next(broken) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WorkerLost, match="after 3 items"):
        next(broken)
    assert list(broken) == []
    assert list(agent.items.stream(2)) == [0, 1]


def test_calls_wait_while_workers_start_again(workers):
    """Calls made while every worker is gone are answered once one is back."""
    model = workers("pid")
    for worker in model.executor.crew.workers:
        wait_until(lambda worker=worker: worker.process is not None)
        process = worker.process
        process.kill()
        # A call that is sent to two of them before that is heard of counts as one that kills.
        wait_until(lambda worker=worker, process=process: worker.process is not process)
    assert all(job.result(PATIENT) for job in [model.submit() for _ in range(20)])


@pytest.mark.parametrize("state", ["starting", "ready", "busy", "draining", "backing off"])
def test_a_kill_in_every_state_is_survived(workers, tmp_path, state):
    """Whenever its process is killed, a worker ends ready, or stopped where it was to stop."""
    pace = Pace(first_pause=0.3, longest_pause=0.3)
    model = maas.connect("workers:worker_targets:agent", pace=pace)
    executor = model.executor
    worker = executor.crew.workers[0]
    job = None
    if state != "starting":
        model.ready(PATIENT)
    if state in ("busy", "draining"):
        job = model.wait.submit(str(tmp_path))
        wait_until(lambda: list(tmp_path.glob("started*")))
    if state == "draining":
        model.close()
    if state == "backing off":
        worker.process.kill()
    wait_until(lambda: executor.phases == (state,))
    wait_until(lambda: worker.process is not None or state == "backing off")
    if worker.process is not None:
        worker.process.kill()
    if state == "draining":
        with pytest.raises(RuntimeError):
            job.result(PATIENT)
    else:
        Path(tmp_path, "go").touch()
        assert model.wait(str(tmp_path)) > 0
        assert job is None or job.result(PATIENT) > 0
        model.close()
    wait_until(lambda: executor.phases == ("stopped",))


def test_a_paused_worker_costs_its_calls_their_deadline_and_no_more(workers):
    """A worker that stands still holds up whom it has; others answer, and it comes back."""
    model = workers("pid")
    paused = model.executor.crew.workers[0].process.pid
    os.kill(paused, signal.SIGSTOP)
    try:
        fast = model.with_options(timeout=0.5)
        late = 0
        for _ in range(6):
            try:
                assert fast() != paused
            except DeadlineExceeded:
                late += 1
        assert 0 < late < 6
    finally:
        os.kill(paused, signal.SIGCONT)
    wait_until(lambda: paused in {model() for _ in range(4)})


def test_what_comes_back_late_is_not_the_next_processs_call():
    """A call of a lost process that ends late leaves the calls of its successor counted."""
    crew = Crew(
        lambda _: InThread(abs), "model", "workers:here", count=1, limits=maas.Limits(), pace=QUICK
    )

    async def scene():
        await crew.open()
        (worker,) = crew.workers
        await crew.taken(AMBIENT)
        first = worker.executor
        crew.lost(worker, first)
        await crew.taken(AMBIENT)
        second = worker.executor
        crew.give_back(worker, first)
        crew.lost(worker, first)
        seen = (second is not first, worker.life.phase.value, worker.life.calls)
        crew.give_back(worker, second)
        await crew.close()
        return seen

    assert run(scene()).result(PATIENT) == (True, "busy", 1)


def test_a_worker_that_goes_while_it_is_chosen_is_not_the_callers_business(monkeypatch):
    """A call, or a stream, that was given to a worker of which nothing is left goes to another."""
    executor = WorkerExecutor(
        lambda _: InThread(count_to), "model", "workers:here", count=2, pace=QUICK
    )
    taken = executor.crew.taken

    async def taken_too_late(context):
        worker = await taken(context)
        monkeypatch.undo()
        worker.executor.close()
        return worker

    with maas.Model.over(executor, "model") as model:
        assert list(model.stream(2)) == [0, 1]
        monkeypatch.setattr(executor.crew, "taken", taken_too_late)
        assert list(model.stream(3)) == [0, 1, 2]


def count_to(n: int) -> Iterator[int]:
    yield from range(n)


# Cancelling and deadlines.


def test_cancelling_reaches_the_worker(workers, tmp_path):
    """A coroutine in a worker is cancelled when its caller gives up, or its deadline passes."""
    model = workers("agent")
    for ask in (
        lambda: model.forever.submit(str(tmp_path)),
        lambda: model.forever.with_options(timeout=1.0).submit(str(tmp_path)),
    ):
        job = ask()
        wait_until((tmp_path / "started").exists)
        job.cancel()
        wait_until((tmp_path / "ended").exists)
        for name in ("started", "ended"):
            (tmp_path / name).unlink()
    with pytest.raises(DeadlineExceeded):
        model.forever.with_options(timeout=0.2)(str(tmp_path))
    wait_until((tmp_path / "ended").exists)


def test_leaving_a_stream_reaches_the_worker(workers, tmp_path):
    """A generator in a worker is closed with its stream, and the worker is free again."""
    model = workers("agent")
    with model.endless.stream(str(tmp_path)) as items:
        assert [next(items), next(items)] == [0, 1]
    wait_until((tmp_path / "ended").exists)
    wait_until(lambda: set(model.executor.phases) == {"ready"})


# Waiting.


def test_what_waits_is_bounded(monkeypatch):
    """Of calls that wait for a worker there are so many, and the next one is refused."""
    monkeypatch.setattr("maas.executors.crew._MOST_CALLS", 1)
    monkeypatch.setattr("maas.executors.crew._MOST_WAITING", 3)
    entered, go_on = threading.Semaphore(0), threading.Event()

    def wait(x: int) -> int:
        entered.release()
        go_on.wait(PATIENT)
        return x

    executor = WorkerExecutor(lambda _: InThread(wait), "model", "workers:here", count=1)
    with maas.Model.over(executor, "model") as model:
        jobs = [model.submit(0)]
        assert entered.acquire(timeout=PATIENT)
        jobs += [model.submit(n) for n in range(1, 4)]
        with pytest.raises(Overloaded, match="3 calls wait"):
            model.submit(4).result(PATIENT)
        with pytest.raises(Overloaded):
            model(5)
        model.ready(PATIENT)
        assert jobs.pop(2).cancel()
        late = model.with_options(timeout=0.2).submit(6)
        with pytest.raises(DeadlineExceeded):
            late.result(PATIENT)
        jobs.append(model.submit(7))
        go_on.set()
        assert [job.result(PATIENT) for job in jobs] == [0, 1, 3, 7]


# Starting and stopping.


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("worker_targets:nothing", "no attribute 'nothing'"),
        ("no_such_module:net", "No module named 'no_such_module'"),
        ("worker_targets:Agent", "is a class"),
    ],
)
def test_what_cannot_start_says_why_to_its_owner(target, why, caplog, capfd):
    """`ready` and the log tell; a caller hears only that the model cannot be started."""
    with maas.connect(f"workers:{target}", pace=QUICK) as model:
        with pytest.raises(NotReady, match=why):
            model.ready(PATIENT)
        with pytest.raises(NotReady) as caught:
            model()
        assert why not in str(caught.value)
    assert "Traceback" in caplog.text
    assert capfd.readouterr().err == ""


def test_what_starts_in_the_end_is_ready(tmp_path, monkeypatch):
    """A target that is mended while its workers try again becomes ready."""
    monkeypatch.syspath_prepend(str(tmp_path))
    with maas.connect("workers:mended_later:net", pace=QUICK) as model:
        with pytest.raises(NotReady):
            model.ready(PATIENT)
        (tmp_path / "mended_later.py").write_text("def net(x: int) -> int:\n    return x\n")
        wait_until(lambda: model.executor.phases == ("ready",))
        assert model(3) == 3


def test_a_process_that_only_ends_is_given_up(tmp_path, monkeypatch, caplog):
    """A target that ends its process without a word keeps no caller waiting for ever."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ends_at_once.py").write_text("import os\nos._exit(3)\n")
    with maas.connect("workers:ends_at_once:net", pace=QUICK) as model:
        with pytest.raises(NotReady):
            model(1)
        with pytest.raises(NotReady, match="ends while it starts"):
            model.ready(PATIENT)


def test_a_start_that_takes_too_long_is_given_up(tmp_path, monkeypatch, caplog):
    """A target that never comes to be is killed in time, and its caller hears why."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "starts_never.py").write_text("import time\ntime.sleep(600)\n")
    pace = Pace(start=1.0, first_pause=30.0)
    with (
        maas.connect("workers:starts_never:net", pace=pace) as model,
        pytest.raises(NotReady, match="not ready within 1 s"),
    ):
        model.ready(PATIENT)
    wait_until(lambda: model.executor.phases == ("stopped",))


@pytest.mark.parametrize("target", ["", "worker_targets", "a/b", "no/folder", "a:b:c", "a b:c"])
def test_what_a_worker_could_not_find_is_an_error_at_once(target):
    """Neither an import path nor a folder."""
    with pytest.raises(ValueError, match="module:attribute"):
        maas.connect(f"workers:{target}")


@pytest.mark.parametrize("options", [{"count": 0}, {"count": True}, {"count": "2"}, {"name": "A"}])
def test_options_that_make_no_sense(options):
    """A count that is none, or a name that is none."""
    with pytest.raises(ValueError, match=r"wants|matches"):
        maas.connect("workers:worker_targets:pid", **options)


def test_targets_of_this_process_are_found_by_name():
    """A function that can be imported is named by its path; an object is an error that says so."""
    assert worker_target(worker_name) == "maas.executors.spawning:worker_name"
    assert worker_target("a.b:c") == "a.b:c"
    assert worker_target(Path("models", "net")) == os.path.join("models", "net")  # noqa: PTH118
    for target in (torch.nn.Linear(1, 1), lambda: 0, InThread):
        if target is InThread:
            continue
        with pytest.raises(TypeError, match="import path"):
            worker_target(target)
    assert worker_name("a.models:TextNet.big") == "big"
    assert worker_name("a.models:TextNet") == "text_net"


def test_closing_lets_calls_end_and_leaves_nobody(tmp_path):
    """Calls under way are answered, then every process is gone, and no new call is taken."""
    model = maas.connect("workers:worker_targets:agent", count=2)
    wait_until(lambda: set(model.executor.phases) == {"ready"})
    jobs = [model.wait.submit(str(tmp_path)) for _ in range(4)]
    wait_until(lambda: len(list(tmp_path.glob("started*"))) == 4)
    pids = [worker.process.pid for worker in model.executor.crew.workers]
    model.close()
    assert model.executor.phases == ("draining", "draining")
    with pytest.raises(RuntimeError, match="closed"):
        model.count()
    Path(tmp_path, "go").touch()
    assert {job.result(PATIENT) for job in jobs} <= set(pids)
    wait_until(lambda: model.executor.phases == ("stopped", "stopped"))
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("when", ["ready", "starting"])
def test_workers_leave_with_their_parent(when, tmp_path):
    """A parent that is killed leaves no worker behind."""
    script = textwrap.dedent(f"""
        import maas, sys
        model = maas.connect("workers:worker_targets:pid", count=1)
        if {when == "ready"}:
            model.ready(60)
        worker = model.executor.crew.workers[0]
        while worker.process is None:
            pass
        print(worker.process.pid, flush=True)
        sys.stdin.read()
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
    )
    with parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    wait_until(lambda: not _runs(pid))


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_signals_of_the_group_are_the_servers_business(workers):
    """SIGTERM and SIGINT, which reach a whole service, end no worker: its server dismisses it."""
    model = workers("pid")
    before = {model() for _ in range(8)}
    for pid in before:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert {model() for _ in range(8)} == before


# Served.


def test_a_server_runs_its_models_in_workers():
    """`serve(..., workers=2)` listens once the models are ready, and its end is theirs."""
    models = {"pid": "worker_targets:pid", "net@v1": "worker_modules:net"}
    with (
        maas.serve(models, workers=2, port=0, block=False) as server,
        maas.connect(f"{server.url}/pid") as pid,
        maas.connect(f"{server.url}/net") as net,
    ):
        assert pid() != os.getpid()
        x = torch.ones(2, 4)
        with torch.no_grad():
            assert torch.equal(net(x), modules().net(x))
        pids = {pid() for _ in range(10)}
    for each in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(each, 0)


def test_a_server_whose_model_cannot_start_says_why():
    """`serve` raises the reason before it listens, and leaves no process."""
    with pytest.raises(NotReady, match="no attribute 'nothing'"):
        maas.serve("worker_targets:nothing", workers=1, port=0, block=False)


def test_versions_in_workers_are_switched(tmp_path):
    """A new version in workers takes over when it is ready, and the old processes leave."""
    server = maas.Server({"model": "worker_targets:pid"}, workers=1)
    with maas.serve(server, port=0, block=False) as running:
        with maas.connect(f"{running.url}/model") as model:
            old = model()
            assert server.load("model", "worker_targets:pid", example=1) == "model@v2"
            new = model()
            assert new != old
            wait_until(lambda: not _runs(old))
        with pytest.raises(NotReady, match="nothing"):
            server.load("model", "worker_targets:nothing", timeout=PATIENT)
        with maas.connect(f"{running.url}/model") as model:
            assert model() == new
    server.close()
    assert not _runs(new)


def test_devices_without_workers_are_an_error():
    """Devices are dealt out to workers; without any they make no sense."""
    with pytest.raises(TypeError, match=r"workers="):
        maas.serve(targets().pid, devices=["cpu"], port=0, block=False)
    with pytest.raises(TypeError, match=r"maas\.Server"):
        maas.serve(maas.Server(targets().pid), workers=2, port=0, block=False)


def wait_until(done, patience=PATIENT):
    """Looks again and again: what is waited for happens in another process."""
    until = time.monotonic() + patience
    while not done():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)
