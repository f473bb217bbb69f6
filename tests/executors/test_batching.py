"""The batching executor: nobody can notice whom a run was shared with; bare torch is the oracle."""

import contextlib
import math
import threading
import time
from typing import Annotated

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import maas
from maas.executors.batching import BatchingExecutor, batched
from maas.parameters import Parameter
from maas.testing import ExecutorConformance, difference

PATIENCE = 30.0
WIDTH = 24
POISON = 1e4


def declared_pure(executor):
    """The same executor, as if the author had declared all its methods pure."""
    for name, method in executor.describe().methods.items():
        executor._methods[name] = attrs.evolve(method, pure=True)
    return executor


class TestConformance(ExecutorConformance):
    @pytest.fixture
    def executor_for(self):
        def made(target):
            inner = declared_pure(maas.Model(target).executor)
            try:
                return batched(inner, maas.Batching(8))
            except ValueError:
                return inner  # generators and coroutine functions are not batched

        return made


@contextlib.contextmanager
def held(model):
    """Has the model to itself, as a lone caller has, so that what comes meanwhile waits."""
    front = model.executor
    claimed = False
    while not claimed:  # an answer is there a moment before its run has ended
        with front._lock:
            claimed = front._queue.claim(time.monotonic())
    try:
        yield
    finally:
        front._free()


def asked_together(model, calls):
    """The jobs of calls that were there when the model became free, ended."""
    with held(model), torch.no_grad():
        jobs = [model.submit(*args) for args in calls]
    for job in jobs:
        with contextlib.suppress(Exception):
            job.result(PATIENCE)
    return jobs


def rows(count, width=WIDTH, seed=0):
    return list(torch.randn(count, 1, width, generator=torch.Generator().manual_seed(seed)))


class Net(nn.Module):
    """A small network that counts its runs and spoils those that hold a poisoned row."""

    def __init__(self, kind="", width=WIDTH):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 3))
        self.kind = kind
        self.runs = 0
        self.rows = 0
        self.opened = threading.Event()
        self.eval()

    def forward(self, x):
        self.runs += 1
        self.rows += len(x)
        poisoned = x[:, 0] == POISON
        y = self.layers(x)
        if not poisoned.any():
            return y
        if self.kind == "raises":
            raise ValueError("this row", int(x[poisoned][0, 1]))
        if self.kind == "exits":
            raise SystemExit(3)
        if self.kind == "too few rows":
            return y[~poisoned]
        if self.kind == "NaN":
            return torch.where(poisoned[:, None], torch.nan, y)
        self.opened.wait(PATIENCE)
        return y


def model_of(net, most=64, width=WIDTH, **how):
    return maas.Model(net, batching=maas.Batching(most, **how), example=rows(1, width)[0])


def poisoned(width=WIDTH):
    row = torch.ones(1, width)
    row[0, 0] = POISON
    return row


def alone(net, row):
    with torch.no_grad():
        return net(row)


def close(answer, wanted):
    torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-5)


def same(answer, wanted):
    assert difference(wanted, answer) is None


# Poison.

FAILURES = ["raises", "exits", "too few rows", "NaN"]


def check_poison(kind, invariant, size, places):
    net = Net(kind)
    model = model_of(net, invariant=invariant)
    mates = rows(size - 1, seed=size)
    wanted = [model(row) if invariant else alone(net, row) for row in mates]
    for place in places:
        calls = [*mates[:place], poisoned(), *mates[place:]]
        net.runs = 0
        jobs = asked_together(model, [(row,) for row in calls])
        extra = net.runs - 1
        culprit = jobs.pop(place)
        for job, want in zip(jobs, wanted, strict=True):
            (same if invariant else close)(job.result(), want)
        check_culprit(kind, culprit, net)
        # What fails under invariant=True is run once more as it came, for its own error.
        assert extra <= 2 * math.log2(size) + 1 + invariant


def check_culprit(kind, job, net):
    if kind == "raises":
        with pytest.raises(ValueError, match="this row") as raised:
            job.result()
        assert raised.value.args == ("this row", 1)
    elif kind == "exits":
        with pytest.raises(maas.ModelExit):
            job.result()
    else:
        same(job.result(), alone(net, poisoned()))


@pytest.mark.parametrize("size", [2, 3, 5, 8, 64])
@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("kind", FAILURES)
def test_poison(kind, invariant, size):
    """A call that spoils its run, at any place in it, gets what it gets alone; so do its mates,
    for at most 2 log2(B) + 1 runs more.
    """
    check_poison(kind, invariant, size, range(size) if size <= 8 else (0, 31, 63))


@pytest.mark.long
@pytest.mark.parametrize("size", range(2, 65))
@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("kind", FAILURES)
def test_poison_in_every_size(kind, invariant, size):
    """The same at every place in batches of every size from 2 to 64."""
    check_poison(kind, invariant, size, range(size))


def check_stall(invariant, size):
    for place in range(size):
        net = Net("stalls")
        model = model_of(net, invariant=invariant)
        mates = rows(size - 1, seed=size)
        wanted = [model(row) if invariant else alone(net, row) for row in mates]
        with held(model), torch.no_grad():
            jobs = [model.submit(row) for row in mates[:place]]
            culprit = model.with_options(timeout=0.2).submit(poisoned())
            jobs += [model.submit(row) for row in mates[place:]]
        with pytest.raises(maas.DeadlineExceeded):
            culprit.result(PATIENCE)
        net.opened.set()
        for job, want in zip(jobs, wanted, strict=True):
            (same if invariant else close)(job.result(PATIENCE), want)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("invariant", [False, True])
def test_poison_that_stalls(invariant, size):
    """A call that holds its run up is released at its deadline, and its mates get their answers."""
    check_stall(invariant, size)


@pytest.mark.long
@pytest.mark.parametrize("size", range(2, 65))
@pytest.mark.parametrize("invariant", [False, True])
def test_poison_that_stalls_in_every_size(invariant, size):
    """The same at every place in batches of every size from 2 to 64."""
    check_stall(invariant, size)


# Equal to what comes alone.


def test_sixty_four_callers(maas_connect):
    """Answers to 64 callers at once are each caller's own, in every place, and came from shared
    runs.
    """
    net = Net()
    model = maas_connect(net, batching=BATCHING)
    given = rows(256)
    sizes = []

    def ask(part):
        with torch.no_grad():
            for row in part:
                job = model.submit(row)
                close(job.result(PATIENCE), alone_of[id(row)])
                sizes.append(job.info.batch_size)

    alone_of = {id(row): alone(net, row) for row in given}
    threads = [threading.Thread(target=ask, args=(given[n::64],)) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(sizes) == len(given)
    assert max(sizes) > 1


BATCHING = maas.Batching(64)


@pytest.mark.parametrize("width", [7, 24, 784])
def test_invariant_answers_have_the_bits_they_have_alone(width):
    """With invariant=True the bits of an answer are those of the same call alone, in company of
    any size.
    """
    net = Net(width=width)
    model = model_of(net, width=width, invariant=True)
    given = rows(64, width)
    wanted = [model(row) for row in given]
    for size in (1, 2, 3, 7, 20, 64):
        jobs = asked_together(model, [(row,) for row in given[:size]])
        for job, want in zip(jobs, wanted, strict=False):
            same(job.result(), want)
    told = model.info.details["batching"]["__call__"]
    assert told["invariant"]
    assert bool(told["sizes"]) is not bool(told["alone"])


def test_where_bits_cannot_agree_calls_run_alone():
    """A model whose bits depend on the batch runs one call at a time, and says so."""

    class Uneven(nn.Module):
        def forward(self, x):
            return x * (1 + torch.arange(len(x))[:, None] * 1e-7)

    net = Uneven().eval()
    model = model_of(net, invariant=True)
    jobs = asked_together(model, [(row,) for row in rows(5)])
    for job, row in zip(jobs, rows(5), strict=True):
        same(job.result(), alone(net, row))
        assert (job.info.batch_size, "bits" in job.info.note) == (1, True)


MIXERS = {
    "softmax over the batch": lambda x: x.softmax(0),
    "mean of the batch": lambda x: x.mean(0),
    "rows reversed": lambda x: x.flip(0),
    "one number": lambda x: x.sum(),
    "a value that is no array": lambda x: float(x.sum()),
    "a list of as many as rows": lambda x: [x[0]] * len(x),
}


SHORTER = {"mean of the batch", "one number", "a list of as many as rows"}
"""Their examples show at once that the answer has no rows."""


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("tried", ["at load", "on calls"])
def test_a_model_that_mixes_rows_runs_alone(name, tried):
    """A model that is no function of each row gives everybody what he gets alone, and says why."""

    @maas.method(pure=True)
    def mixes(x):
        return MIXERS[name](x)

    example = rows(1)[0] if tried == "at load" else None
    if example is not None and name in SHORTER:
        with pytest.raises(ValueError, match="'batch' must stand first"):
            maas.Model(mixes, batching=maas.Batching(8), example=example)
        return
    model = maas.Model(mixes, batching=maas.Batching(8), example=example)
    for _ in range(3):
        jobs = asked_together(model, [(row,) for row in rows(6)])
        for job, row in zip(jobs, rows(6), strict=True):
            same(job.result(), mixes(row))
    assert jobs[0].info.note.startswith("ran alone")
    assert model.info.details["batching"]["__call__"]["alone"] == [jobs[0].info.note]


def test_the_first_batches_are_tried_on_real_calls():
    """Without an example the first batch of each size gives what came alone, and the next ones
    are shared.
    """
    net = Net()
    model = maas.Model(net, batching=maas.Batching(64))
    for shared in (1, 6):
        jobs = asked_together(model, [(row,) for row in rows(6)])
        assert {job.info.batch_size for job in jobs} == {shared}
        for job, row in zip(jobs, rows(6), strict=True):
            (same if shared == 1 else close)(job.result(), alone(net, row))


def test_a_model_in_train_mode_says_that_its_calls_share_no_runs():
    """Whoever forgot eval() reads in the model's details why nothing is batched."""
    net = Net().train()
    model = maas.Model(net, batching=maas.Batching(64))
    (why,) = model.info.details["batching"]["__call__"]["alone"]
    assert "eval()" in why
    assert {job.info.batch_size for job in asked_together(model, [(row,) for row in rows(6)])} <= {
        None,
        1,
    }
    net.eval()
    assert model.info.details["batching"]["__call__"]["alone"] == []


def test_the_tolerance_is_measured_at_load():
    """An example tells at load how far an answer in a batch is from the same alone."""
    told = model_of(Net()).info.details["batching"]["__call__"]
    assert (told["max_batch_size"], told["forms"], told["alone"]) == (64, 1, [])
    assert 0 <= told["tolerance"] < 1e-5


def test_a_demanded_tolerance_is_kept():
    """Where even rounding is too much, calls run alone."""
    model = model_of(Net(), tolerance=0.0)
    jobs = asked_together(model, [(row,) for row in rows(4)])
    for job, row in zip(jobs, rows(4), strict=True):
        same(job.result(), alone(Net(), row))


# What goes together.


@maas.method(pure=True)
def scaled(x, factor=1.0, *, shift=0):
    return x * factor + shift, len(x)


def test_calls_that_differ_are_not_mixed():
    """Each call gets its answer under its own dtype, shape, kind, parameters and context."""
    seen = []

    @maas.method(pure=True)
    def scaled(x, factor=1.0, *, shift=0):
        seen.append((len(x), factor, type(factor), shift, torch.is_grad_enabled()))
        return x * factor + shift

    model = maas.Model(scaled, batching=maas.Batching(64))
    calls = [
        (args, kwargs, grad)
        for x in (
            torch.ones(1, 3),
            torch.ones(1, 4),
            torch.ones(1, 3, dtype=torch.float64),
            np.ones((1, 3), np.float32),
            np.ones((2, 3), np.float32),
        )
        for args, kwargs in (
            ((x,), {}),
            ((x, 2), {}),
            ((x, 2.0), {}),
            ((x, True), {}),
            ((x, -0.0), {}),
            ((x, 0.0), {}),
            ((x,), {"shift": 1}),
            ((x,), {"shift": 1.0}),
        )
        for grad in (True, False)
    ]
    for _ in range(2):
        with held(model):
            jobs = []
            for args, kwargs, grad in calls + calls:
                with torch.set_grad_enabled(grad):
                    jobs.append(model.submit(*args, **kwargs))
        for job, (args, kwargs, _grad) in zip(jobs, calls + calls, strict=True):
            same(
                job.result(PATIENCE),
                args[0] * kwargs.get("factor", *args[1:] or (1.0,)) + kwargs.get("shift", 0),
            )
    assert max(job.info.batch_size for job in jobs) == 4  # twice the call, of one row and of two
    assert model.info.details["batching"]["__call__"]["alone"] == []


@pytest.mark.parametrize(
    "answer",
    [
        lambda x, y: {"sum": x + y, "parts": (x, y), "nothing": None},
        lambda x, y: (x * 2, {"deep": ({"er": y},)}),
        lambda x, y: [float(n) for n in x[:, 0]],
    ],
)
def test_containers_in_and_out(answer):
    """Tuples and dicts of arrays go in and come out row by row, and a list has a value a row."""

    @maas.method(pure=True)
    def combine(pair, named):
        return answer(pair[0], named["y"][0])

    model = maas.Model(combine, batching=maas.Batching(64))
    calls = [((torch.full((n, 2), float(n)), 3), {"y": [torch.ones(n, 1)]}) for n in (1, 2, 3)]
    for shared in (1, 3):
        jobs = asked_together(model, calls)
        assert {job.info.batch_size for job in jobs} == {shared}
        for job, call in zip(jobs, calls, strict=True):
            same(job.result(), combine(*call))


Rows = Annotated[Tensor, maas.TensorSpec("float32", ("batch", None))]
Table = Annotated[Tensor, maas.TensorSpec("float32", (2, None))]


def test_the_signature_tells_the_batch_axis():
    """An argument without "batch" is a parameter: calls with another one do not share a run."""

    @maas.method(pure=True)
    def add(x: Rows, table: Table) -> Rows:
        return x + table.sum()

    model = maas.Model(add, batching=maas.Batching(64))
    calls = [(torch.ones(1, 2), torch.full((2, 2), float(n % 2))) for n in range(8)]
    for shared in (1, 4):
        jobs = asked_together(model, calls)
        assert {job.info.batch_size for job in jobs} == {shared}
        for job, call in zip(jobs, calls, strict=True):
            same(job.result(), add(*call))


def test_lengths_that_differ_are_filled_up():
    """With padding calls of different lengths share a run, and nobody sees what was filled in."""
    tokens = maas.TensorSpec("int64", ("batch", "time"))
    signature = maas.Signature(
        [Parameter("tokens", annotation=tokens)],
        returns=maas.TensorSpec("float32", ("batch", "time", 2)),
    )

    @maas.method(pure=True)
    def embed(tokens):
        return torch.stack([tokens.float(), (tokens == 0).float()], -1)

    batching = maas.Batching(64, padding={"time": 0})
    model = maas.Model(embed, batching=batching, signature=signature)
    calls = [(torch.randint(1, 9, (1, length)),) for length in (1, 5, 3, 8, 8)]
    for shared in (1, 5):
        jobs = asked_together(model, calls)
        assert {job.info.batch_size for job in jobs} == {shared}
        for job, call in zip(jobs, calls, strict=True):
            same(job.result(), embed(*call))


def test_a_model_that_notices_padding_is_not_padded():
    """Where what was filled in changes answers, calls run alone."""
    spec = maas.TensorSpec("int64", ("batch", "time"))

    @maas.method(pure=True)
    def mean(
        tokens: Annotated[Tensor, spec],
    ) -> Annotated[Tensor, maas.TensorSpec("float32", ("batch",))]:
        return tokens.float().mean(1)

    model = maas.Model(mean, batching=maas.Batching(64, padding={"time": 0}))
    calls = [(torch.randint(1, 9, (1, length)),) for length in (1, 5, 3)]
    for _ in range(3):
        for job, call in zip(asked_together(model, calls), calls, strict=True):
            same(job.result(), mean(*call))


def test_a_call_larger_than_a_batch_runs_alone():
    """A call of more rows than a batch has is run as it is."""
    net = Net()
    model = model_of(net, most=4)
    calls = [(torch.randn(n, WIDTH),) for n in (5, 1, 3, 9)]
    jobs = asked_together(model, calls)
    assert [job.info.batch_size for job in jobs] == [1, 2, 2, 1]
    for job, call in zip(jobs, calls, strict=True):
        close(job.result(), alone(net, *call))


@pytest.mark.parametrize(
    "large",
    ["x" * 10_000, b"x" * 10_000, 2**80_000, list(range(1_000)), {"x" * 10_000: 1}],
    ids=["text", "bytes", "int", "list", "key"],
)
def test_what_is_large_is_not_compared(large):
    """Calls whose other arguments are large run alone, so that nothing keeps thousands of them."""

    @maas.method(pure=True)
    def beside(x, other):
        return x + 1

    model = maas.Model(beside, batching=maas.Batching(8))
    for _ in range(2):
        jobs = asked_together(model, [(torch.ones(1), large)] * 3)
        assert [job.info.batch_size for job in jobs] == [1] * 3
    assert len(model.executor._forms) == 0


# What goes past.


def test_a_lone_caller_runs_on_its_own_thread():
    """A free model runs on the thread of its caller, as without batching."""
    threads = []

    @maas.method(pure=True)
    def where(x):
        threads.append(threading.current_thread())
        return x

    maas.Model(where, batching=maas.Batching(8))(torch.ones(1))
    assert threads == [threading.current_thread()]


def test_draws_and_gradients_are_the_callers_own():
    """Train mode, seeds and gradients are never batched, and give what bare torch gives."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    model = maas.Model(net, batching=maas.Batching(8))
    x = torch.randn(2, 4)
    with held(model):
        jobs = [model.with_options(seed=n % 2).train().submit(x) for n in range(4)]
        answers = [job.result(PATIENCE) for job in jobs]  # although the queue stands still
        assert torch.equal(answers[0], answers[2])
        assert not torch.equal(answers[0], answers[1])
    x.requires_grad_()
    with held(model):
        jobs = [model.eval().submit(x) for _ in range(2)]
    for job in jobs:
        job.result(PATIENCE).sum().backward()
        assert job.info.batch_size == 1
    wanted = torch.autograd.grad(net(x).sum(), x)[0] * 2
    assert torch.equal(x.grad, wanted)


def test_a_model_may_ask_itself():
    """A call from inside the model's own run does not wait for that run."""

    @maas.method(pure=True)
    def countdown(x):
        return x if x.sum() <= 0 else model(x - 1)

    model = maas.Model(countdown, batching=maas.Batching(8))
    assert model(torch.ones(1)) == 0
    for job in asked_together(model, [(torch.full((1,), 3.0),)] * 3):
        assert job.result(PATIENCE) == 0


# Leaving, and being turned away.


@pytest.mark.parametrize("way", ["cancelled", "late"])
def test_who_left_the_queue_is_not_computed(way):
    """A call that was cancelled, or whose deadline passed, while it waited costs no row."""
    net = Net()
    model = model_of(net)
    kept = rows(3)
    net.rows = 0
    with held(model), torch.no_grad():
        jobs = [model.submit(row) for row in kept]
        if way == "cancelled":
            gone = [model.submit(row) for row in rows(5)]
            assert all(job.cancel() for job in gone)
        else:
            gone = [model.with_options(timeout=0.05).submit(row) for row in rows(5)]
            for job in gone:
                with pytest.raises(maas.DeadlineExceeded):
                    job.result(PATIENCE)
        assert model.executor._queue.calls == 3
    for job in jobs:
        job.result(PATIENCE)
    assert net.rows == 3


def test_a_full_queue_refuses():
    """One call more than may wait is told when to come back, here and there."""
    model = model_of(Net(), max_queue=2)
    with held(model), torch.no_grad():
        jobs = [model.submit(row) for row in rows(2)]
        with pytest.raises(maas.Overloaded, match="2 calls of 2 rows wait") as refused:
            model.submit(rows(1)[0]).result(PATIENCE)
        assert refused.value.retry_after > 0
        with maas.connect(maas.Server(model)) as there, pytest.raises(maas.Overloaded) as refused:
            there(rows(1)[0])
        assert refused.value.retry_after > 0
        urgent = model.with_options(priority=1).submit(rows(1)[0])
        with pytest.raises(maas.Overloaded, match="made room"):
            jobs[1].result(PATIENCE)
    for job in (jobs[0], urgent):
        job.result(PATIENCE)


def test_wrong_arguments_do_not_reach_a_batch():
    """A call that does not fit is refused before it waits, and spoils nobody's run."""
    net = Net()
    signature = maas.Signature(
        [Parameter("x", annotation=maas.TensorSpec("float32", ("batch", WIDTH)))]
    )
    model = maas.Model(net, signature=signature, batching=maas.Batching(8))
    with held(model):
        with pytest.raises(maas.SignatureError, match="'x' wants"):
            model.submit(torch.ones(1, 3)).result(PATIENCE)
        assert model.executor._queue.calls == 0


def test_closing_ends_those_who_wait():
    """A model that is closed leaves nobody waiting."""
    model = model_of(Net())
    with held(model):
        job = model.submit(rows(1)[0])
        model.close()
        with pytest.raises(RuntimeError, match="closed"):
            job.result(PATIENCE)


# Memory.


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_answers_share_no_memory(kind):
    """Writing to one answer, or to the memory under it, changes no other caller's."""

    @maas.method(pure=True)
    def same_again(x):
        return x

    model = maas.Model(same_again, batching=maas.Batching(8))
    given = [torch.full((1, 2), float(n)) for n in range(4)]
    given = [x.numpy() for x in given] if kind == "numpy" else given
    for _ in range(2):
        jobs = asked_together(model, [(x,) for x in given])
    assert jobs[0].info.batch_size == 4
    answers = [job.result() for job in jobs]
    answers[0][:] = 9
    if kind == "torch":
        assert answers[0].untyped_storage().nbytes() == 8
        answers[0].as_strided((2,), (1,)).fill_(9)
    else:
        assert answers[0].base is None
    for n, answer in enumerate(answers[1:], 1):
        assert (answer == n).all()
    for n, x in enumerate(given):
        assert (x == n).all()


def test_a_list_changed_after_the_call_is_nobodys():
    """What a caller does to its containers once it has asked reaches no run."""

    @maas.method(pure=True)
    def add(x, by):
        return x + by[0]

    model = maas.Model(add, batching=maas.Batching(8))
    for _ in range(2):
        with held(model):
            mine: list[int] = [1]
            jobs = [model.submit(torch.ones(1), mine), model.submit(torch.ones(1), [1])]
            mine[0] = 5
        assert jobs[1].result(PATIENCE) == 2


# Declaring.


def test_what_cannot_be_batched_is_refused():
    """Batching for what may not be run again, draws or streams is refused at wrapping."""

    def impure(x):
        return x

    @maas.method(pure=True, stochastic=True)
    def draws(x):
        return x

    @maas.method(pure=True)
    def streams(x):
        yield x

    for target, why in ((impure, "pure=True"), (draws, "draws"), (streams, "streams")):
        with pytest.raises(ValueError, match=why):
            maas.Model(target, batching=maas.Batching(8))


@pytest.mark.parametrize(
    ("shape", "returned", "why"),
    [
        ((1, 3), ("batch", 3), "fixes the first dimension"),
        (("n", "batch"), ("batch",), "must stand first"),
    ],
)
def test_a_signature_without_a_batch_axis_is_refused(shape, returned, why):
    """A signature that leaves nothing to put together along is refused at wrapping."""
    signature = maas.Signature(
        [Parameter("x", annotation=maas.TensorSpec("float32", shape))],
        returns=maas.TensorSpec("float32", returned) if "batch" in shape else None,
    )
    with pytest.raises(ValueError, match=why):
        maas.Model(Net(), signature=signature, batching=maas.Batching(8))
    with pytest.raises(ValueError, match="padding names 'time'"):
        maas.Model(Net(), batching=maas.Batching(8, padding={"time": 0}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch_size": 0},
        {"max_batch_size": True},
        {"max_wait": -1},
        {"max_wait": math.inf},
        {"tolerance": 2},
        {"invariant": 1},
        {"padding": {"time": "x"}},
        {"max_queue": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    """Each wrong value of a setting is named with what was given."""
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        maas.Batching(**{"max_batch_size": 8, **wrong})


def test_methods_are_batched_as_declared():
    """A method says for itself how it is batched; another one is not."""

    class Encoder:
        @maas.method(pure=True, batching=maas.Batching(4))
        def encode(self, x: Tensor) -> Tensor:
            return x * 2

        @maas.method
        def count(self) -> int:
            return 1

    model = maas.Model(Encoder())
    assert isinstance(model.executor, BatchingExecutor)
    assert list(model.info.details["batching"]) == ["encode"]
    assert model.count() == 1
    for _ in range(2):
        with held(model):
            jobs = [model.encode.submit(torch.ones(1)) for _ in range(3)]
        assert [job.result(PATIENCE).item() for job in jobs] == [2, 2, 2]
    assert jobs[0].info.batch_size == 3


def test_the_facts_reach_a_remote_caller():
    """Batch size, seconds and note cross the wire with the answer, the settings with `info`."""
    model = model_of(Net())
    with maas.connect(maas.Server(model)) as there, torch.no_grad():
        with held(model):
            jobs = [there.submit(row) for row in rows(4)]
            while model.executor._queue.calls < 4:
                pass
        for job in jobs:
            job.result(PATIENCE)
        assert [job.info.batch_size for job in jobs] == [4] * 4
        assert all(job.info.queue_seconds > 0 < job.info.compute_seconds for job in jobs)
        assert there.info.details["batching"]["__call__"]["max_batch_size"] == 64


def test_company_is_waited_for():
    """With max_wait a call is held back until the batch is full."""
    model = model_of(Net(), most=3, max_wait=PATIENCE)
    with torch.no_grad():
        jobs = [model.submit(row) for row in rows(3)]
    assert [job.result(PATIENCE).shape for job in jobs] == [(1, 3)] * 3
    assert jobs[0].info.batch_size == 3


def test_a_batched_model_is_saved(tmp_path):
    """What is in front of a model does not keep it from being saved."""
    net = nn.Linear(2, 2)
    maas.save(maas.Model(net, batching=maas.Batching(8)), tmp_path / "net")
    assert torch.equal(maas.load(tmp_path / "net")(torch.ones(1, 2)), net(torch.ones(1, 2)))
