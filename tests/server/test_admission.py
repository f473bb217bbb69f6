"""Admission: what is refused, with what status, and that it costs those who are served nothing."""

import asyncio
import concurrent.futures
import contextlib
import hashlib
import threading
import time

import attrs
import httpx
import numpy as np
import pytest

import maas
from maas.calls import CALL, Call
from maas.executors.prompt import Prompt
from maas.server.admission import Quota, Quotas, Slots, rows_of

PATIENCE = 30.0


def double(x: int) -> int:
    return 2 * x


# Quotas.


def test_a_quota_is_used_up():
    """Above its quota a caller is refused with the time to come back; another one is not."""
    quotas = Quotas({"requests": "2/minute"})
    for _ in range(2):
        quotas.charge("alice", None, "requests", 1)
    with pytest.raises(
        maas.Overloaded, match=r"2 requests in 60 s is used up; ask again in \d+ s"
    ) as refused:
        quotas.charge("alice", None, "requests", 1)
    assert 0 < refused.value.retry_after <= 120
    quotas.charge("bob", None, "requests", 1)


def test_a_refused_charge_costs_nothing():
    """What does not fit is not counted, by any of several limits."""
    quotas = Quotas({"rows": "10/minute; 12/hour"})
    quotas.charge("alice", None, "rows", 6)
    for _ in range(3):
        with pytest.raises(maas.Overloaded):
            quotas.charge("alice", None, "rows", 5)
    quotas.charge("alice", None, "rows", 4)


def test_a_call_above_the_whole_quota_is_told_so():
    """A call that no waiting would let through is another error."""
    with pytest.raises(maas.LimitExceeded, match="11 rows is above the quota of 10 rows"):
        Quotas({"rows": "10/minute"}).charge("alice", None, "rows", 11)


def test_a_keys_own_quota_wins():
    """A key's own quota stands in place of the one for everybody."""
    quotas = Quotas({"requests": "1/hour"})
    own = Quota.of({"requests": "3/hour"}, "alice")
    for _ in range(3):
        quotas.charge("alice", own, "requests", 1)
    with pytest.raises(maas.Overloaded):
        quotas.charge("alice", own, "requests", 1)


@pytest.mark.parametrize(
    "wrong", [{"calls": "1/second"}, {"rows": "many"}, {"rows": 3}, "1/second"]
)
def test_a_quota_that_cannot_be_read_is_refused(wrong):
    """A wrong quota is refused when the server is made, with an example of a right one."""
    with pytest.raises(ValueError, match="the quota of every key wants limits"):
        maas.Server(double, quotas=wrong)


@pytest.mark.parametrize(
    ("args", "rows"),
    [
        ((np.ones((3, 2)),), 3),
        ((1, {"x": np.ones(4)}), 4),
        (("text",), 1),
        ((np.float64(1.0),), 1),
        ((), 1),
    ],
)
def test_rows_of_a_call(args, rows):
    """Rows are the first dimension of the first array, and a call without one has one."""
    assert rows_of(Call("net", CALL, args)) == rows


def test_quotas_in_a_key_file(tmp_path):
    """A key file gives each key a quota of requests, rows and bytes; 429 says when to come back."""
    keys = {name: f"key-of-{name}" for name in ("alice", "bob", "carol", "dave")}
    quotas = {
        "alice": 'quota = { requests = "2/hour" }',
        "bob": 'quota = { rows = "5/hour" }',
        "carol": 'quota = { bytes = "700/hour" }',
        "dave": "",
    }
    path = tmp_path / "keys.toml"
    path.write_text(
        "".join(
            f'[{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n{quotas[name]}\n'
            for name, key in keys.items()
        )
    )

    def length(x: np.ndarray) -> int:
        return len(x)

    with maas.serve(length, port=0, block=False, auth=path) as server:

        def ask(name, x):
            with maas.connect(f"{server.url}/length", auth=keys[name]) as model:
                return model(x)

        small, large = np.ones(2), np.ones((3, 25))
        for name, allowed in {"alice": 2, "bob": 2, "carol": 2, "dave": 8}.items():
            for _ in range(allowed):
                assert ask(name, small) == 2
        for name, x in {"alice": small, "bob": large, "carol": large}.items():
            with pytest.raises(maas.Overloaded, match="is used up") as refused:
                ask(name, x)
            assert refused.value.retry_after > 1
        reply = httpx.post(
            f"{server.url}/length",
            json={"x": [1.0]},
            headers={"authorization": f"Bearer {keys['alice']}"},
        )
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) > 1
        assert ask("dave", large) == 3


def test_every_form_of_call_is_metered():
    """Messages, JSON and the Open Inference Protocol count against one quota, and hear 429."""

    def sum_(x: np.ndarray) -> float:
        return float(x.sum())

    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}
    forms = {"/sum": {"x": [1.0]}, "/v2/models/sum/infer": {"inputs": [tensor]}}
    server = maas.serve({"sum": sum_}, port=0, block=False, quotas={"requests": "3/hour"})
    with server, maas.connect(f"{server.url}/sum") as model:
        assert model(np.ones(1)) == 1.0
        for path, body in forms.items():
            assert httpx.post(server.url + path, json=body).status_code == 200
        for path, body in forms.items():
            reply = httpx.post(server.url + path, json=body)
            assert (reply.status_code, int(reply.headers["retry-after"]) > 0) == (429, True)
        with pytest.raises(maas.Overloaded):
            model(np.ones(1))


# Slots.


def test_slots_are_bounded():
    """As many calls as there are slots are in hand; the next is refused until one has ended."""
    slots = Slots(2, "net", shared=False)
    slots.enter("anyone")
    slots.enter("anyone")
    with pytest.raises(maas.Overloaded, match="2 calls are in hand") as refused:
        slots.enter("anyone")
    assert refused.value.retry_after == 1.0
    slots.leave("anyone")
    slots.enter("anyone")


def test_slots_are_shared():
    """Once half the slots are taken nobody takes more than a fair part of them."""
    slots = Slots(12, "net", shared=True)
    taken = {"greedy": 0, "modest": 0, "new": 0}
    for name in ["greedy"] * 20 + ["modest"] * 20 + ["new"] * 20:
        try:
            slots.enter(name)
        except maas.Overloaded:
            continue
        taken[name] += 1
    assert taken == {"greedy": 6, "modest": 4, "new": 2}
    assert slots.total == 12


class Gate:
    """Holds its callers until it is opened."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    @maas.method(pure=True)
    def wait(self, x: np.ndarray) -> np.ndarray:
        self.entered.release()
        self.opened.wait(PATIENCE)
        return x


ONE, TWO = np.ones((1, 1)), np.full((1, 1), 2.0)
BATCHED = pytest.mark.parametrize("batching", [None, maas.Batching(8)], ids=["alone", "batched"])


@BATCHED
@pytest.mark.parametrize("place", ["in this process", "over HTTP"])
def test_a_slot_is_held_until_the_work_has_ended(batching, place):
    """A caller who leaves does not make room while the model still works for nothing."""
    gate = Gate()
    server = maas.Server(maas.Model(gate, name="gate", batching=batching), max_pending=1)
    with contextlib.ExitStack() as stack:
        if place == "over HTTP":
            running = stack.enter_context(maas.serve(server, port=0, block=False))
            model = stack.enter_context(maas.connect(f"{running.url}/gate"))
        else:
            model = stack.enter_context(maas.connect(server, model="gate"))
        with pytest.raises(maas.DeadlineExceeded):
            model.wait.with_options(timeout=0.3)(ONE)
        assert gate.entered.acquire(timeout=PATIENCE)
        with pytest.raises(maas.Overloaded, match="in hand"):
            model.wait(TWO)
        gate.opened.set()
        slots = server.handler.entrance.slots("gate")
        deadline = time.monotonic() + PATIENCE
        while slots.total and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert model.wait(TWO) == TWO


@BATCHED
def test_work_that_runs_ends_later_than_its_caller_leaves(batching):
    """A call that is given up while it runs has ended when the run has, and not before."""
    gate = Gate()
    executor = maas.Model(gate, name="gate", batching=batching).executor
    job, ended = executor.submit(Call("gate", "wait", (ONE,))), threading.Event()
    job.when_ended(ended.set)
    assert gate.entered.acquire(timeout=PATIENCE)
    assert job.cancel()
    assert not ended.is_set()
    gate.opened.set()
    assert ended.wait(PATIENCE)


@pytest.mark.parametrize("end_first", [False, True])
def test_a_call_on_a_loop_that_runs_ends_later_than_its_caller_leaves(end_first):
    """The same of calls that are answered on a loop, in whichever order the two sides come."""
    heard = []

    async def ask():
        prompt = Prompt(heard.append, asyncio.get_running_loop())
        prompt.begin()
        assert prompt.cancel()
        if end_first:
            prompt.end()
        prompt.when_ended(lambda: heard.append("ended"))
        assert heard == (["ended"] if end_first else [])
        prompt.end()

    asyncio.run(ask())
    assert heard == ["ended"]


@BATCHED
def test_slots_come_back_whatever_becomes_of_the_calls(batching):
    """Answered, failed, refused by the signature, evicted, late, given up: no slot is lost."""
    gate = Gate()
    server = maas.Server(maas.Model(gate, name="gate", batching=batching))
    with (
        maas.serve(server, port=0, block=False) as running,
        maas.connect(f"{running.url}/gate") as model,
    ):
        jobs = [model.wait.submit(ONE)]
        assert gate.entered.acquire(timeout=PATIENCE)
        jobs += [model.wait.with_options(timeout=0.2).submit(ONE) for _ in range(4)]
        jobs += [model.wait.with_options(priority=n).submit(ONE) for n in range(8)]
        jobs += [model.wait.submit("text"), model.wait.submit(np.ones((9, 1)))]
        for job in jobs[-6::2]:
            job.cancel()
        for job in jobs[1:5]:
            with pytest.raises(maas.DeadlineExceeded):
                job.result(PATIENCE)
        gate.opened.set()
        concurrent.futures.wait(jobs, PATIENCE)
        slots = server.handler.entrance.slots("gate")
        deadline = time.monotonic() + PATIENCE
        while slots.total and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert slots.total == 0


def test_a_call_that_waits_and_is_given_up_frees_its_slot():
    """A call that never began frees its slot when its caller leaves."""
    gate = Gate()
    executor = maas.Model(gate).executor
    call = Call("gate", "wait", (ONE,))
    executor._methods["wait"] = attrs.evolve(executor.method("wait"), pure=False, exclusive=True)
    running = executor.submit(call)
    assert gate.entered.acquire(timeout=PATIENCE)
    waiting, ended = executor.submit(call), threading.Event()
    waiting.when_ended(ended.set)
    assert not ended.is_set()
    assert waiting.cancel()
    assert ended.wait(PATIENCE)
    gate.opened.set()
    assert running.result(PATIENCE) == ONE


# Both, under load.


class Slow:
    """A model that takes 2 ms for a run of any number of rows, and counts them."""

    def __init__(self):
        self.rows = 0

    @maas.method(pure=True, batching=maas.Batching(8, max_queue=32))
    def __call__(self, x: np.ndarray) -> np.ndarray:
        time.sleep(0.002)
        self.rows += len(x)
        return x * 2


def test_a_greedy_caller_does_not_starve_another():
    """While one key asks with twenty times as many callers, nearly all calls of another succeed,
    and the greedy one's are refused with 429.
    """
    slow = Slow()
    keys = ["greedy", "modest"]
    outcomes = {name: {"answered": 0, "refused": 0} for name in keys}
    server = maas.Server(maas.Model(slow, name="slow"), auth=keys)

    async def caller(model, name, calls):
        for n in range(calls):
            try:
                assert (await model.submit(np.full((1, 1), float(n)))).item() == 2 * n
                outcomes[name]["answered"] += 1
            except maas.Overloaded:
                outcomes[name]["refused"] += 1
                await asyncio.sleep(0.001)

    async def load():
        models = {name: maas.connect(server, auth=name) for name in keys}
        greedy = [
            asyncio.ensure_future(caller(models["greedy"], "greedy", 10**9)) for _ in range(80)
        ]
        await asyncio.gather(*(caller(models["modest"], "modest", 25) for _ in range(4)))
        for task in greedy:
            task.cancel()
        await asyncio.gather(*greedy, return_exceptions=True)
        for model in models.values():
            model.close()

    asyncio.run(load())
    assert outcomes["greedy"]["refused"] > 0
    assert outcomes["modest"]["answered"] >= 95
