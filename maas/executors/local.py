"""In this process: the executor that runs a backend, and what every server stands in front of.

A plain call runs on the caller's own thread: a hop to another one makes a small
model 1.6 to 2 times slower. `submit`, streams in async code and calls with
a deadline run on the model's compute threads: one for calls whose order
matters, a few for the rest. Coroutine functions run on a loop of their own.
"""

import concurrent.futures
import contextlib
import copy
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, TypeVar

import attrs

from maas import ambient, tracing
from maas.backends.base import ITEM, RESULT, Backend, Border, Method, admit, release
from maas.calls import AMBIENT, CALL, Call, Context, Info, Result
from maas.errors import DeadlineExceeded, ForkError, SignatureError, Unsupported
from maas.executors.base import (
    END,
    Job,
    ModelInfo,
    Stream,
    begun,
    finish,
    late,
    no_method,
    waited_for,
)
from maas.executors.lanes import Lane
from maas.executors.meter import Meter
from maas.executors.modes import ModeGate
from maas.executors.placement import Placement
from maas.executors.prompt import Prompt, apart, is_apart
from maas.failures import presentable
from maas.loops import LoopThread
from maas.signature import Signature
from maas.versions import versions
from maas.wire import Failure

__all__ = ["LocalExecutor"]

T = TypeVar("T")

_THREADS = min(8, (os.cpu_count() or 1) + 4)
_MOST_PLACES = 1024
_UNTIMED = Info()
_NOTHING_DRAWN = ambient.Drawn()

_coroutines = LoopThread("maas-models")
"""Where every model's coroutines run; apart from the loop of connections, which they must not hold
up."""


class LocalExecutor:
    """Runs one backend; see the module's docstring for where."""

    where = "here"

    path: str | None = None
    """Import path of the target, where somebody named it by one."""

    def __init__(self, backend: Backend, name: str) -> None:
        self._backend = backend
        self.name = name
        self._methods = dict(backend.methods)
        self._gate = ModeGate(backend)
        self._lanes: dict[str, Lane] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False
        self._trained = False
        self._places: dict[Any, Placement] = {}

    def trained(self) -> "LocalExecutor":
        """The same, for a caller who trains: results are part of the parameters' graph too."""
        other = self if self._trained else copy.copy(self)
        other._trained = True
        return other

    def refine(self, signature: Signature | None, example: Any) -> None:
        """Sets the signature of the model's own call, or learns it from one real call.

        The example runs in eval mode under a forked generator, so that it leaves no trace in a
        module.
        """
        if signature is None and example is None:
            return
        method = self.method(CALL)
        if example is not None:
            args = example if type(example) is tuple else (example,)
            context = Context(
                grad=False, training=False if self._backend.training is not None else None, seed=0
            )
            result = self.run(Call(self.name, CALL, args, context=context))
            signature = Signature.from_example(
                args, {}, result.value, signature or method.signature
            )
        if signature is not None:
            self._methods[CALL] = attrs.evolve(method, signature=signature)

    @property
    def backend(self) -> Backend:
        """What runs the target."""
        return self._backend

    def describe(self, _context: Context = AMBIENT) -> ModelInfo:
        """What the model says about itself."""
        return ModelInfo(
            name=self.name,
            kind=self._backend.kind,
            methods=self._methods,
            training=self._backend.training,
            device=self._backend.device,
            versions=versions(),
            details=self._backend.details(),
        )

    def method(self, name: str, context: Context = AMBIENT) -> Method:  # noqa: ARG002 - nobody is asked
        """The method of that name; AttributeError, as Python has it, where there is none."""
        found = self._methods.get(name)
        if found is None:
            raise no_method(self.name, name, self._methods)
        return found

    def expect(self, signature: Signature, name: str) -> None:
        """Raises `SignatureError` where this model is not like `name`."""
        differences = signature.difference(self.method(CALL).signature)
        if differences:
            raise SignatureError(f"{self.name} is not like {name}(): {'; '.join(differences)}")

    def ready(self, timeout: float | None) -> None:  # noqa: ARG002 - nothing is waited for
        """A model in this process is ready, unless it was closed."""
        self._check_open()

    def close(self) -> None:
        """Gives up the calls that have not begun, and ends the compute threads after the others."""
        self._closed = True
        with self._lock:
            for lane in self._lanes.values():
                lane.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"model {self.name!r} was closed; wrap it anew")

    # Answers.

    def run(self, call: Call) -> Result:
        """The answer, computed on this thread unless a deadline is to release it."""
        method = self._methods.get(call.method) or self.method(call.method)
        self._check_open()
        if method.streams:
            return Result(self.stream(call))
        if method.asynchronous or call.context.deadline is not None:
            return waited_for(self.submit(call), self.name)
        answer = self.execute(call, method)
        return answer if type(answer) is Result else finish(answer)

    def answer(self, call: Call) -> Result | Failure:
        """As `run`, on this thread however long it takes, and an error is given, not raised."""
        return self.execute(call, self.method(call.method))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing runs on the target meanwhile."""
        self._gate.enter(AMBIENT, attrs.evolve(self.method(CALL), exclusive=True))
        try:
            yield
        finally:
            self._gate.leave()

    def submit(self, call: Call) -> Job[Any]:
        """The answer, from a compute thread; a call that is cancelled or late is never begun."""
        self._check_open()
        method = self.method(call.method)
        if method.streams:
            raise Unsupported(f"{self.name} streams its items; use .stream(...) or a for loop")
        call = tracing.captured(call)
        if method.asynchronous:
            job = begun(_coroutines.begin, partial(self._awaited, call, method))
        else:
            job = Job()
            job.begins_later()
            work = partial(self._work, job, call, method, time.monotonic())
            self.lane(call, method).put(work, partial(self._drop, job))
        if call.context.deadline is not None:
            self.release_at(call.context.deadline, job)
        return job

    # On the loop.

    def _place(self, call: Call) -> Placement:
        found = self._places.get(call.likeness)
        if found is None:
            if len(self._places) >= _MOST_PLACES:
                self._places.clear()
            found = self._places[call.likeness] = Placement()
        return found

    def prompt(self, call: Call, prompt: Prompt) -> bool:
        """Answers a call on this thread; False, and nothing was done, where a loop may not ask.

        That is: where it would have to wait, and where its like is not known to be short.
        """
        place = self._places.get(call.likeness)
        if place is None or not place.here or self._closed:
            return False
        method = self.method(call.method)
        if not self.hold(call.context, method):
            return False
        with apart():
            meter = Meter()
            try:
                call.context.remaining()
                answer = self.execute(call, method, 0.0, held=True)
            except DeadlineExceeded as error:
                answer = Failure(error)
            finally:
                self._gate.leave()
            place.ran(meter.cost())
            prompt.settle(answer)
        return True

    def hold(self, context: Context, method: Method) -> bool:
        """Sees to it that calls like this one need not wait for others until `let_go`, if it can.

        False where it would have to wait now, or the call draws, or must not overlap others.
        """
        return not method.asynchronous and self._gate.enter_at_once(context, method)

    def let_go(self) -> None:
        """Ends what `hold` began."""
        self._gate.leave()

    def release_at(self, deadline: float, job: Job[Any]) -> None:
        """Releases the caller at the deadline; a module that runs goes on for nothing."""
        _coroutines.call_at(deadline, lambda: job.expire(Failure(late(self.name))))

    def _drop(self, job: Job[Any], error: Exception) -> None:
        job.settle(Failure(error))
        job.end()

    def _work(self, job: Job[Any], call: Call, method: Method, arrived: float) -> None:
        if not job.begin():
            return
        try:
            call.context.remaining()
            meter = Meter()
            answer = self.execute(call, method, time.monotonic() - arrived)
            if call.likeness is not None and not method.exclusive:
                self._place(call).ran(meter.cost())
            job.settle(answer)
        except DeadlineExceeded as error:
            # Its traceback would hold the job that holds it, until a collector finds them.
            job.settle(Failure(error.with_traceback(None)))
        finally:
            job.end()

    def execute(
        self, call: Call, method: Method, queued: float | None = None, *, held: bool = False
    ) -> Result | Failure:
        """Runs the call on this thread; timed only if queued, as nobody else can ask.

        `held`: this thread has seen to it by `hold` that the call need not wait.
        """
        context = call.context
        if self._trained and not call.owned:
            context = attrs.evolve(context, parameters=True)
            call = attrs.evolve(call, context=context)
        drawn = _NOTHING_DRAWN
        started = 0.0
        if queued is not None:
            ambient.adopt_threads()
            started = time.perf_counter()
        try:
            method.signature.check(call.args, call.kwargs, method.label)
            draws = False if held else self._gate.enter(context, method)
            try:
                if draws or context.trace is not None:
                    drawn = ambient.Drawn()
                    with self._surroundings(context, draws, drawn):
                        value = self._backend.perform(call)
                elif ambient.in_force(context):
                    value = self._backend.perform(call)
                else:
                    with ambient.applied(context):
                        value = self._backend.perform(call)
            finally:
                if not held:
                    self._gate.leave()
        except BaseException as error:  # noqa: BLE001 - the model's, whatever it is
            return Failure(self.presentable(error), drawn.state)
        return Result(
            value, _UNTIMED if queued is None else self._timed(queued, started), drawn.state
        )

    def _timed(self, queued: float, started: float) -> Info:
        seconds = time.perf_counter() - started
        return Info(device=self._backend.device, queue_seconds=queued, compute_seconds=seconds)

    @contextlib.contextmanager
    def _surroundings(self, context: Context, draws: bool, drawn: ambient.Drawn) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(ambient.applied(context))
            stack.enter_context(tracing.applied(context.trace))
            if draws:
                stack.enter_context(ambient.stochastic(context, drawn))
            yield

    def presentable(self, error: BaseException) -> Exception:
        """The error as callers see it; see `failures.presentable`."""
        if (
            isinstance(error, KeyboardInterrupt)
            and not is_apart()
            and threading.current_thread() is threading.main_thread()
        ):
            # A person pressed Ctrl-C during a call on the main thread; a loop is told of it.
            raise error
        return presentable(error)

    def step(
        self, context: Context, method: Method, drawn: ambient.Drawn, work: Callable[[], T]
    ) -> T:
        """What one step of a generator gives, with the call's mode and context in force."""
        draws = self._gate.enter(context, method)
        try:
            with self._surroundings(context, draws, drawn):
                return work()
        finally:
            self._gate.leave()

    def draws(self, context: Context, method: Method) -> bool:
        """Whether the call draws from the generator, as its method, its seed or train mode says."""
        mode = self.trains() if context.training is None else context.training
        return method.stochastic or context.seed is not None or mode is True

    def trains(self) -> bool:
        """Whether the model itself is in train mode."""
        return self._gate.own() is True

    # Threads.

    def lane(self, call: Call, method: Method) -> Lane:
        """The threads for this call: one where the order of calls decides what they give."""
        if method.exclusive or self.draws(call.context, method):
            return self.pool("serial", 1)
        return self.pool("parallel", _THREADS)

    def pool(self, name: str, width: int) -> Lane:
        """Threads of this model under a name; the first asking decides how many."""
        if self._pid != os.getpid():
            raise ForkError(
                f"model {self.name!r} was used before fork(), and its threads stayed behind; "
                "wrap it anew"
            )
        with self._lock:
            if name not in self._lanes:
                self._lanes[name] = Lane(width, f"maas-{self.name}-{name}")
            return self._lanes[name]

    # Coroutines.

    async def _awaited(self, call: Call, method: Method) -> Result | Failure:
        started = time.perf_counter()
        try:
            method.signature.check(call.args, call.kwargs, method.label)
            border, args, kwargs = admit(self._backend, call)
            running: Coroutine[Any, Any, Any] = self._backend.run(call.method, args, kwargs)
            with tracing.applied(call.context.trace):
                value = await ambient.stepwise(running, call.context)
            border.settle()
            value = release(value, RESULT, border)
        except BaseException as error:  # noqa: BLE001 - the model's, whatever it is
            return Failure(presentable(error))
        return Result(value, self._timed(0.0, started))

    # Streams.

    def stream(self, call: Call) -> Stream[Any]:
        """The items of a generator method, each produced when it is asked for."""
        self._check_open()
        method = self.method(call.method)
        if not method.streams:
            raise SignatureError(f"{self.name} gives one value, not a stream; call it")
        method.signature.check(call.args, call.kwargs, method.label)
        call = tracing.captured(call)
        border, args, kwargs = admit(self._backend, call)
        source = self._backend.run(call.method, args, kwargs)
        kind = _AsyncGeneratorStream if method.asynchronous else _GeneratorStream
        return kind(self, call, method, source, border)


class _LocalStream(Stream[Any]):
    def __init__(
        self, executor: LocalExecutor, call: Call, method: Method, source: Any, border: Border
    ) -> None:
        self._executor = executor
        self._call = call
        self._method = method
        self._source = source
        self._border = border
        self._seconds = 0.0
        self._ended = False
        self.rng: bytes | None = None

    def _pass(self, item: Any) -> Any:
        return release(item, ITEM, self._border)

    def _finish(self) -> Any:
        self._ended = True
        self._border.settle()
        self.info = Info(compute_seconds=self._seconds)
        return END

    def _fail(self, error: BaseException) -> Exception:
        self._ended = True
        return self._executor.presentable(error)


class _GeneratorStream(_LocalStream):
    """Over a generator: its steps run on the caller's thread, for async code on another."""

    def __init__(
        self, executor: LocalExecutor, call: Call, method: Method, source: Any, border: Border
    ) -> None:
        super().__init__(executor, call, method, source, border)
        self._stepping = threading.Lock()

    def _step(self) -> Any:
        left = self._call.context.remaining()
        if left is None or self._ended:
            return self._advance()
        stepping = self._pull()
        if not concurrent.futures.wait([stepping], left).done:
            raise late(self._executor.name)
        return stepping.result()

    def _advance(self) -> Any:
        with self._stepping:
            if self._ended:
                return END
            try:
                self._call.context.remaining()
                item = self._surrounded(lambda: next(self._source, END))
                return self._finish() if item is END else self._pass(item)
            except BaseException as error:  # noqa: BLE001 - the model's, whatever it is
                self._source.close()
                raise self._fail(error)  # noqa: B904 - it may be the same error

    def _surrounded(self, work: Callable[[], Any]) -> Any:
        drawn = ambient.Drawn(self.rng)
        started = time.perf_counter()
        try:
            return self._executor.step(self._call.context, self._method, drawn, work)
        finally:
            self._seconds += time.perf_counter() - started
            if drawn.state is not None:
                # The next step goes on drawing where this one stopped.
                self.rng = drawn.state
                self._call = attrs.evolve(
                    self._call, context=attrs.evolve(self._call.context, rng=drawn.state)
                )

    def _pull(self) -> concurrent.futures.Future[Any]:
        return self._executor.lane(self._call, self._method).ask(self._advance)

    def close(self) -> None:
        """Ends the generator, on this thread."""
        with self._stepping:
            if not self._ended:
                self._ended = True
                self._surrounded(self._source.close)

    def _stop(self) -> concurrent.futures.Future[None]:
        return self._executor.lane(self._call, self._method).ask(self.close)


class _AsyncGeneratorStream(_LocalStream):
    """Over an asynchronous generator, which lives on the models' own loop."""

    async def _next(self) -> Any:
        if self._ended:
            return END
        started = time.perf_counter()
        try:
            self._call.context.remaining()
            with tracing.applied(self._call.context.trace):
                item = await ambient.stepwise(self._source.__anext__(), self._call.context)
        except StopAsyncIteration:
            return self._finish()
        except BaseException as error:  # noqa: BLE001 - the model's, whatever it is
            raise self._fail(error)  # noqa: B904 - it may be the same error
        finally:
            self._seconds += time.perf_counter() - started
        return self._pass(item)

    def _pull(self) -> concurrent.futures.Future[Any]:
        return _coroutines.run(self._next())

    async def _end(self) -> None:
        self._ended = True
        await self._source.aclose()

    def _stop(self) -> concurrent.futures.Future[None]:
        return _coroutines.run(self._end())
