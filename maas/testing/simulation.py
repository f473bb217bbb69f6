"""Clients, network, servers and drains on a virtual clock, all drawn from one seed.

    maas.testing.simulate(seed)

What runs is what is shipped: the client's conversation with its retries and budget
(`executors/remote.py`, `retries.py`, `transports/connections.py`), the server's connections,
runner, handler, slots and idempotency keys, and the queue of the batching executor. Simulated are
the network, the time, and how long a model takes. A seed that broke a promise breaks it again.
"""

import asyncio
import contextlib
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any
from unittest import mock

import attrs

from maas.backends.base import method
from maas.batching import Batching
from maas.calls import AMBIENT, Call, Context, Result
from maas.errors import DeadlineExceeded, Error, NotReady, Overloaded, TransportError
from maas.executors.base import Job, ModelInfo, Stream, late
from maas.executors.local import LocalExecutor
from maas.executors.queue import Queue, Waiting
from maas.executors.remote import RemoteExecutor
from maas.model import Model
from maas.server import descriptions
from maas.server.front import Head
from maas.server.handler import Handler
from maas.server.patience import Patience
from maas.server.runner import Runner
from maas.testing.simulated_network import Network, Road, Weather
from maas.testing.virtual_time import virtual_loop, virtual_time
from maas.wire import Failure

__all__ = ["BrokenPromise", "Simulated", "simulate"]

KEYS = ("sim-key-of-anna-0123456789", "sim-key-of-ben-0123456789", "sim-key-of-cleo-0123456789")
_LONGEST = 900.0
"""Virtual seconds after which a call that has not ended hangs."""
_PROBE = 0.5
_TOLD = 12


class BrokenPromise(AssertionError):
    """Something happened that never may; the message has the seed, which makes it happen again."""


@attrs.define
class Simulated:
    """What came of one seed.

    Attributes
    ----------
    seed : it.
    calls : how many were made.
    ended : how they ended: "answered", "cancelled", or the class of the error.
    sent : requests that the clients sent for them.
    ran : calls that a model ran, over all servers.
    most_waiting : the most calls that waited at one model at once.
    seconds : virtual seconds that it took.
    digest : equal for two runs in which the same happened.
    """

    seed: int
    calls: int = 0
    ended: Counter[str] = attrs.field(factory=Counter)
    sent: int = 0
    ran: int = 0
    most_waiting: int = 0
    seconds: float = 0.0
    digest: int = 0


@attrs.frozen
class _Plan:
    """What a seed means."""

    callers: int
    calls: int
    retries: int
    timeouts: tuple[float | None, ...]
    pause: float
    cancels: float
    drains: tuple[float, ...]
    batching: Batching
    run: float
    row: float
    patience: Patience
    max_pending: int
    weather: Weather

    @classmethod
    def of(cls, dice: random.Random) -> "_Plan":
        calm = dice.random() < 0.4
        cuts = 0.0 if calm else dice.choice((0.002, 0.02, 0.1))
        return cls(
            callers=dice.randint(1, 8),
            calls=dice.choice((*range(2, 12), 60)),
            retries=dice.choice((0, 2, 5)),
            timeouts=dice.choice(((None,), (None, 0.05, 1.0), (0.02, 0.2, 3.0))),
            pause=dice.choice((0.0, 0.02, 0.3)),
            cancels=dice.choice((0.0, 0.1)),
            drains=tuple(dice.uniform(0.0, 2.0) for _ in range(dice.choice((0, 0, 1, 2)))),
            batching=Batching(
                dice.choice((1, 4, 16)),
                max_wait=dice.choice((0.0, 0.0, 0.01)),
                max_queue=dice.choice((2, 8, 64)),
                max_age=dice.choice((0.1, 5.0)),
            ),
            run=dice.choice((0.001, 0.02, 0.2, 1.0)),
            row=dice.choice((0.0, 0.002)),
            patience=Patience(delay=1.0, drain=60.0, idle=75.0 if calm else 0.4),
            max_pending=dice.choice((4, 64)),
            weather=Weather(cuts=cuts, stalls=0.0 if calm else dice.choice((0.0, 0.02))),
        )

    @property
    def calm(self) -> bool:
        """Nothing breaks, so nothing may seem to."""
        return not self.weather.cuts and not self.weather.stalls


class _Ledger:
    """Writes down whose call it ran."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[str, int]] = Counter()

    @method(pure=True)
    def read(self, owner: str, number: int) -> tuple[str, int]:
        self.runs[owner, number] += 1
        return owner, number

    @method
    def write(self, owner: str, number: int) -> tuple[str, int]:
        self.runs[owner, number] += 1
        return owner, number


class _Model:
    """An executor with the real queue, whose runs take virtual time."""

    def __init__(self, inner: LocalExecutor, plan: _Plan, world: "_World") -> None:
        self.where = inner.where
        self.name = inner.name
        self.method = inner.method
        self.expect = inner.expect
        self.ready = inner.ready
        self.close = inner.close
        self.inner = inner
        self.queue = Queue(plan.batching, self.name)
        self._plan = plan
        self._world = world
        self._timer: asyncio.TimerHandle | None = None

    def describe(self, context: Context = AMBIENT) -> ModelInfo:
        return self.inner.describe(context)

    def run(self, call: Call) -> Result:
        raise NotImplementedError

    def stream(self, call: Call) -> Stream[Any]:
        raise NotImplementedError

    def submit(self, call: Call) -> Job[Any]:
        now = self._world.clock()
        entry: Waiting | None = None
        job: Job[Any] = Job(on_cancel=lambda: entry is not None and self.queue.withdraw(entry))
        alone = call.method != "read"
        entry = Waiting(
            bucket=None if alone else call.method,
            rows=1,
            arrived=now,
            work=(call, job),
            deadline=call.context.deadline,
            priority=call.context.priority,
            owner=call.caller,
            most=self._plan.batching.max_batch_size,
            patience=self._plan.batching.max_wait,
        )
        try:
            evicted = self.queue.offer(entry, now)
        except Overloaded as error:
            job.settle(Failure(error))
            return job
        for other in evicted:
            other.work[1].settle(Failure(self.queue.overloaded("it made room", now)))
        self._world.crowded(self)
        self._go()
        return job

    def _go(self) -> None:
        """Begins what is due, or comes back when something will be."""
        now = self._world.clock()
        taken = self.queue.take(now)
        for entry in taken.late:
            entry.work[1].settle(Failure(late(self.name)))
        if taken.batch:
            self._world.begins(taken.batch, now)
            seconds = self._plan.run + self._plan.row * len(taken.batch)
            self._world.loop.call_later(seconds, self._done, taken.batch)
        elif (pause := self.queue.due(now)) is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._world.loop.call_later(pause, self._go)

    def _done(self, batch: list[Waiting]) -> None:
        for entry in batch:
            call, job = entry.work
            job.settle(self.inner.execute(call, self.inner.method(call.method), 0.0))
        self.queue.done(self._world.clock())
        self._go()


@attrs.define
class _House:
    """One server."""

    ledger: _Ledger
    model: _Model
    handler: Handler
    runner: Runner

    def ready(self) -> bool:
        head = Head("GET", "/readyz", "", (("host", "simulated"),), secure=False, loopback=True)
        answer = self.handler.admit(head)
        return getattr(answer, "status", 0) == 200


class _World:
    """Everything there is in one simulation."""

    def __init__(self, seed: int, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.seed = seed
        self.dice = random.Random(seed)  # noqa: S311 - to be repeated
        self.plan = _Plan.of(self.dice)
        self.network = Network(seed, self.plan.weather)
        self.houses: list[_House] = []
        self.told: deque[str] = deque(maxlen=_TOLD)
        self.outcome = Simulated(seed)
        self.broken: BrokenPromise | None = None

    # What happened.

    def happened(self, what: str) -> None:
        """One line of what is told where a promise breaks."""
        line = f"{self.clock() - 1000.0:.6f} {what}"
        self.told.append(line)
        self.outcome.digest = hash_of(self.outcome.digest, line)

    def check(self, kept: object, promise: str) -> None:
        """Raises `BrokenPromise` unless the promise was kept."""
        if not kept:
            told = "\n  ".join(self.told)
            broken = BrokenPromise(f"seed {self.seed}: {promise}\n  {told}\n  {self.plan}")
            # What is raised within a server becomes an answer, so the first is kept.
            self.broken = self.broken or broken
            raise broken

    def begins(self, batch: list[Waiting], now: float) -> None:
        """A model begins to run these."""
        for entry in batch:
            call, job = entry.work
            owner, number = call.args
            self.happened(f"runs {call.method} {owner} {number}")
            self.outcome.ran += 1
            in_time = entry.deadline is None or now < entry.deadline
            self.check(in_time, "a call whose deadline had passed was run")
            self.check(not job.cancelled(), "a call that had been given up was run")

    def crowded(self, model: _Model) -> None:
        """A call waits."""
        waiting = model.queue.calls
        self.outcome.most_waiting = max(self.outcome.most_waiting, waiting)
        self.check(waiting <= self.plan.batching.max_queue, "more calls wait than may")
        taken = next(each for each in self.houses if each.model is model).handler.entrance.slots(
            "ledger"
        )
        self.check(taken.total <= self.plan.max_pending, "more calls are in hand than may be")

    # Servers.

    async def open(self) -> None:
        """Starts another server, which takes new connections from now on."""
        ledger = _Ledger()
        target = Model(ledger, name="ledger")
        inner = target.executor
        assert isinstance(inner, LocalExecutor)  # noqa: S101 - it runs here
        model = _Model(inner, self.plan, self)
        handler = Handler(
            {"ledger": Model.over(model, "ledger")},
            auth=KEYS,
            max_pending=self.plan.max_pending,
        )
        runner = Runner(handler, port=1, patience=self.plan.patience)
        house = _House(ledger, model, handler, runner)
        self.houses.append(house)

        async def listen(factory: Any, *_: Any, **__: Any) -> Any:
            return self.network.listen(factory, house.ready)

        await handler.meet("ledger")
        with mock.patch.object(self.loop, "create_server", listen):
            await runner.start()
        self.happened("a server listens")

    async def probe(self) -> None:
        """The balancer."""
        while True:
            await asyncio.sleep(_PROBE)
            self.network.look()

    async def replace(self) -> None:
        """Now and then a server makes room for a new one."""
        for pause in self.plan.drains:
            await asyncio.sleep(pause)
            old = self.houses[-1]
            await self.open()
            self.network.look()
            self.happened("a server drains")
            await old.runner.drain()
            self.happened("a server has drained")

    # Clients.

    async def caller(self, number: int) -> None:
        """One client with its calls, one after the other."""
        dice = random.Random(f"{self.seed} {number}")  # noqa: S311 - to be repeated
        road = Road(self.network)
        owner = f"caller-{number}"
        key = KEYS[number % len(KEYS)]
        executor = RemoteExecutor(road, "/ledger", "simulated", auth=key)
        for each in range(self.plan.calls):
            await asyncio.sleep(dice.expovariate(1 / self.plan.pause) if self.plan.pause else 0)
            await self.call(executor, owner, each, dice)
        self.outcome.sent += road.sent
        # A tenth more than there are calls, ten saved up, and one for each connection that broke
        # as the call was on its way; asking what the model takes counts as a call.
        most = 1.1 * (self.plan.calls + 1) + 10 + road.broken
        self.check(road.sent <= most, f"{road.sent} requests for {self.plan.calls} calls")
        road.close()

    async def call(
        self, executor: RemoteExecutor, owner: str, number: int, dice: random.Random
    ) -> None:
        """One call, to its end."""
        kind = dice.choice(("read", "read", "once", "keyed"))
        timeout = dice.choice(self.plan.timeouts)
        context = Context(
            deadline=None if timeout is None else self.clock() + timeout,
            key=f"{owner}-{number}" if kind == "keyed" else None,
            priority=dice.choice((0, 0, 1)),
            retries=self.plan.retries,
        )
        name = "read" if kind == "read" else "write"
        asking = asyncio.ensure_future(
            executor.answered(Call("ledger", name, (f"{kind} {owner}", number), context=context))
        )
        if dice.random() < self.plan.cancels:
            self.loop.call_later(dice.uniform(0, 0.2), asking.cancel)
        how = await self.ended(asking, kind, owner, number, timeout)
        self.outcome.calls += 1
        self.outcome.ended[how] += 1
        self.happened(f"{kind} {owner} {number} {how}")

    async def ended(
        self, asking: "asyncio.Task[Any]", kind: str, owner: str, number: int, timeout: float | None
    ) -> str:
        """How a call ended."""
        began = self.clock()
        done, _ = await asyncio.wait([asking], timeout=_LONGEST)
        self.check(done, f"{kind} {owner} {number} never ended")
        if timeout is not None:
            took = self.clock() - began
            self.check(took < timeout + 0.01, f"a call of {timeout} s ended after {took:.3f} s")
        if asking.cancelled():
            return "cancelled"
        error = asking.exception()
        answer = None if error else asking.result()
        if isinstance(answer, Failure):
            error = answer.error
        if error is None:
            value = answer.value  # type: ignore[union-attr]
            self.check(value == (f"{kind} {owner}", number), f"{owner} {number} got {value}")
            return "answered"
        typed = isinstance(error, TransportError | Overloaded | NotReady | DeadlineExceeded)
        self.check(typed, f"{kind} {owner} {number} raised {error!r}")
        broke = isinstance(error, TransportError | NotReady)
        self.check(not (self.plan.calm and broke), f"{owner} {number} failed in calm: {error!r}")
        return type(error).__name__

    # The end.

    async def live(self) -> None:
        """From the first server to the last call, and what must hold then."""
        await self.open()
        began = self.clock()
        background = [asyncio.ensure_future(self.probe()), asyncio.ensure_future(self.replace())]
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self.plan.callers):
                    group.create_task(self.caller(number))
            await background[1]
        finally:
            background[0].cancel()
        for house in self.houses:
            await house.runner.drain(60.0)
        # What had been sent, and nobody waited for, may still run to its end.
        await asyncio.sleep(_LONGEST)
        self.outcome.seconds = self.clock() - began - _LONGEST
        for house in self.houses:
            self._check_rest(house)
            self._check_runs(house.ledger.runs)
        self._check_runs(sum((house.ledger.runs for house in self.houses), Counter()), all_in=True)

    def _check_rest(self, house: _House) -> None:
        shared, queue = house.runner._shared, house.model.queue
        for count, what in (
            (queue.calls, "calls wait"),
            (queue.rows, "rows wait"),
            (int(queue.running), "runs go on"),
            (house.handler.entrance.slots("ledger").total, "slots are taken"),
            (house.handler._answering._keyed._running, "keyed calls run"),
            (len(shared.connections), "connections are open"),
            (len(shared.tasks), "requests are being answered"),
            (shared.held, "bytes of bodies are held"),
        ):
            self.check(count == 0, f"after all is over {count} {what}")

    def _check_runs(self, runs: Counter[tuple[str, int]], *, all_in: bool = False) -> None:
        for (who, number), times in runs.items():
            kind = who.partition(" ")[0]
            # A key is remembered by the server that saw it, and lost with it.
            once = kind == "once" or (kind == "keyed" and not all_in)
            self.check(times == 1 or not once, f"{who} {number} ran {times} times")


def hash_of(digest: int, line: str) -> int:
    """A digest that does not depend on Python's salt."""
    for byte in line.encode():
        digest = (digest * 1_000_003 ^ byte) & (2**64 - 1)
    return digest


def _at_once(question: Callable[[], Any]) -> "Future[Any]":
    """What asks a model about itself, without the thread that a real one may need."""
    future: Future[Any] = Future()
    try:
        future.set_result(question())
    except Error as error:
        future.set_exception(error)
    return future


@contextlib.contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """What draws from Python's own generator draws from the seed meanwhile."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def simulate(seed: int) -> Simulated:
    """Lives through what the seed draws: callers, their calls, network, servers and drains.

    It holds the whole process's `time.monotonic` meanwhile, so nothing else that looks at
    the time may run beside it.

    Raises
    ------
    BrokenPromise
        A call did not end once with its own answer or a typed error; ran twice that may run once;
        ran when it was late or given up; failed though nothing had broken; or something is still
        held when all is over.
    """

    async def world(clock: Callable[[], float]) -> Simulated:
        made = _World(seed, clock)
        try:
            await made.live()
        except BaseException as error:  # noqa: BLE001 - what broke first matters more
            raise made.broken or error from None
        if made.broken is not None:
            raise made.broken
        return made.outcome

    with (
        virtual_time() as clock,
        _drawn_from(seed),
        mock.patch.object(descriptions, "_asked", _at_once),
        asyncio.Runner(loop_factory=lambda: virtual_loop(clock)) as runner,
    ):
        return runner.run(world(clock))
