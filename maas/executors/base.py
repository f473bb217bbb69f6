"""The seam: an executor answers calls to one model, wherever that model runs.

Local, remote and (later) batching and Ray are executors. A server stands in
front of any of them, and a test executor is twenty lines. What users hold on to
(`Job`, `Stream`, `ModelInfo`) is defined here, so that it is one and the same class everywhere.
"""

import concurrent.futures
import importlib
import re
import threading
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
)
from typing import Any, Generic, Protocol, Self, TypeVar

import attrs

from maas.backends.base import Method
from maas.calls import AMBIENT, CALL, Call, Context, Info, Result
from maas.errors import Cancelled, CodecError, DeadlineExceeded
from maas.executors.awaiting import in_loop
from maas.records import frozen
from maas.signature import Signature
from maas.wire import Failure

__all__ = [
    "ADDRESS",
    "END",
    "NAME",
    "Executor",
    "Job",
    "ModelInfo",
    "Stream",
    "begun",
    "executor_for",
    "finish",
    "late",
    "no_method",
    "waited_for",
]

T = TypeVar("T")

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""What a model may be called: the name is part of an address."""

ADDRESS = re.compile(rf"({NAME.pattern})(?:@({NAME.pattern}))?")
"""Where a model is at a server: `net`, or one version of it, `net@v2`."""


@frozen(kw_only=True)
class ModelInfo:
    """What a model says about itself.

    Attributes
    ----------
    name : the model's name at the place where it runs.
    kind : kind of target: "torch", "function" or "object".
    where : the place, as `connect` was told it.
    version : which of the model's versions this is, None where it has none.
    methods : the methods callers may call.
    training : the target's own mode, None where the notion is void.
    device : torch device it lives on, None where the notion is void.
    versions : of maas, Python and the frameworks there.
    limits : what one message to it may hold; empty for a model that runs here.
    details : facts of the backend, such as a module's layers.
    """

    name: str
    kind: str
    where: str = "here"
    version: str | None = None
    methods: Mapping[str, Method]
    training: bool | None = None
    device: str | None = None
    versions: Mapping[str, str] = attrs.field(factory=dict)
    limits: Mapping[str, int] = attrs.field(factory=dict)
    details: Mapping[str, Any] = attrs.field(factory=dict)

    def to_data(self) -> dict[str, Any]:
        """As plain data, for the wire; the place is left out, for it depends on who asks."""
        methods = [
            attrs.asdict(method, recurse=False, filter=_travels)
            | {"signature": method.signature.to_data()}
            for method in self.methods.values()
        ]
        plain = attrs.asdict(
            self, recurse=False, filter=lambda field, _value: field.name not in ("where", "methods")
        )
        return plain | {"methods": methods}

    @classmethod
    def from_data(cls, data: Any, where: str) -> "ModelInfo":
        """From what `to_data` gave, strictly: it came from a stranger.

        Raises
        ------
        CodecError
            Data that describes no model.
        """
        wanted = {
            "name": str,
            "kind": str,
            "version": str | None,
            "methods": list,
            "training": bool | None,
            "device": str | None,
            "versions": dict,
            "limits": dict,
            "details": dict,
        }
        _check_fields("a model", data, wanted)
        methods = {method.name: method for method in map(_method_from, data["methods"])}
        return cls(**{**data, "methods": methods}, where=where)


def _travels(field: "attrs.Attribute[Any]", _value: object) -> bool:
    return field.name in _METHOD


_METHOD = {
    "name": str,
    "label": str,
    "signature": dict,
    "streams": bool,
    "pure": bool,
    "stochastic": bool,
    "exclusive": bool,
    "asynchronous": bool,
    "doc": str,
}


def _method_from(data: Any) -> Method:
    _check_fields("a method", data, _METHOD)
    return Method(**{**data, "signature": Signature.from_data(data["signature"])})


def _check_fields(what: str, data: Any, wanted: Mapping[str, Any]) -> None:
    if type(data) is not dict or data.keys() != wanted.keys():
        raise CodecError(f"{what} is described by the fields {', '.join(wanted)}; got {data!r:.80}")
    for name, kind in wanted.items():
        if not isinstance(data[name], kind):
            raise CodecError(f"{what}'s {name} is {data[name]!r:.60}")


_SETTLES, _WAITS, _RUNS, _ENDED = range(4)
"""Where a job's work is; of most, all that is known is that it settles."""


class Job(concurrent.futures.Future[T], Generic[T]):
    """A call on its way: a `concurrent.futures.Future` that can be awaited as well.

    `info` tells how the answer came to be once it is there. `cancel()` succeeds
    until then: waiting work is never begun, running work is asked to stop, and what it
    still gives is discarded, here as there.
    """

    def __init__(self, on_cancel: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._claim = threading.Lock()
        self._on_cancel = on_cancel
        self.answer: Result | Failure | None = None
        self._work = _SETTLES
        self._then: list[Callable[[], object]] = []

    @property
    def info(self) -> Info | None:
        """Batch size, queue and compute seconds, and where it ran; None until it has."""
        return self.answer.info if isinstance(self.answer, Result) else None

    def expire(self, failure: Failure) -> None:
        """Settles with a failure that came from outside, and asks the running work to stop."""
        self.settle(failure)
        if self.answer is failure:
            self._stop()

    def begins_later(self) -> None:
        """For an executor: the work has an end of its own, which `end` tells."""
        self._work = _WAITS

    def begin(self) -> bool:
        """For an executor: the work begins, and goes on whether or not its caller waits.

        False, and nothing begins, where nobody waits any more.
        """
        self._work = _RUNS
        if self.done():
            self.end()
            return False
        return True

    def end(self) -> None:
        """For an executor: the work has ended, or will never begin."""
        self._work = _ENDED
        while True:
            try:
                callback = self._then.pop()
            except IndexError:
                return
            callback()

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Calls it once the work itself has ended, which may be long after a caller has left."""
        if self._work == _SETTLES:
            self.add_done_callback(lambda _job: callback())
            return
        self._then.append(callback)
        if self._work == _ENDED:
            self.end()

    def settle(self, answer: Result | Failure) -> None:
        """Gives the answer to whoever waits; ignored after `cancel()`."""
        if not self._claim.acquire(blocking=False):
            return
        self.answer = answer
        self.set_running_or_notify_cancel()
        if isinstance(answer, Result):
            self.set_result(answer.value)
        else:
            self.set_exception(answer.error)

    def finish(self, answer: Result | Failure) -> None:
        """For an executor: the work has ended, or will never begin, and this is its answer."""
        self.end()  # first: by the time its caller asks again, its slot is free
        self._on_cancel = None  # as a prompt's
        self.settle(answer)

    def cancel(self) -> bool:
        """Gives the call up; True unless it had ended before."""
        if not self._claim.acquire(blocking=False):
            return self.cancelled()
        super().cancel()
        # Only this second step wakes `concurrent.futures.wait`.
        self.set_running_or_notify_cancel()
        self._stop()
        return True

    def _stop(self) -> None:
        on_cancel = self._on_cancel
        if on_cancel is not None:
            on_cancel()
        if self._work == _WAITS:
            self.end()

    def __await__(self) -> Generator[Any, None, T]:
        return in_loop(self).__await__()


def begun(
    start: Callable[[Coroutine[Any, Any, None]], Callable[[], object]],
    answer: Callable[[], Awaitable[Result | Failure]],
) -> Job[Any]:
    """A job for what a coroutine answers, begun by `start` on a loop, which gives what cancels it.

    What the coroutine raises is the job's failure.
    """

    def cancel() -> None:
        stop()

    job: Job[Any] = Job(on_cancel=cancel)

    async def settled() -> None:
        try:
            job.settle(await answer())
        except Exception as error:  # noqa: BLE001 - the job's to raise
            job.settle(Failure(error))

    stop = start(settled())
    return job


def waited_for(job: Job[Any], model: str) -> Result:
    """The job's result, or its error raised, waited for on this thread."""
    concurrent.futures.wait([job])
    if job.answer is None:
        raise Cancelled(f"the call to {model} was cancelled")
    return finish(job.answer)


def finish(answer: Result | Failure) -> Result:
    """The result, or the error raised."""
    if isinstance(answer, Result):
        return answer
    try:
        raise answer.error
    finally:
        # A traceback that holds its own error is a cycle, and keeps the model's arguments alive.
        del answer


def no_method(model: str, name: str, methods: Mapping[str, Method]) -> AttributeError:
    """What Python raises for a missing attribute, naming those there are."""
    known = ", ".join("the call itself" if known == CALL else known for known in methods)
    asked = "cannot be called itself" if name == CALL else f"has no method {name!r}"
    return AttributeError(f"model {model!r} {asked}; it has: {known}", name=name)


def late(model: str) -> DeadlineExceeded:
    """The deadline passed: the same words wherever the model runs."""
    return DeadlineExceeded(f"{model} did not answer in time; what it still gives is discarded")


class _End:
    def __repr__(self) -> str:
        return "END"


END = _End()
"""What a stream's step gives after the last item; `StopIteration` cannot pass a future."""


class Stream(Iterator[T], AsyncIterator[T]):
    """The items of a generator method, as they come: for `for` and for `async for`.

    Items are produced only as they are asked for. `close()` (or `with`) ends the
    generator where it runs. `info` is there after the last item.
    """

    info: Info | None = None

    def _step(self) -> Any:
        """The next item or END, on the caller's thread."""
        return self._pull().result()

    def _pull(self) -> concurrent.futures.Future[Any]:
        """The next item or END, elsewhere."""
        raise NotImplementedError

    def _stop(self) -> concurrent.futures.Future[None]:
        """Ends the generator, elsewhere."""
        raise NotImplementedError

    def __next__(self) -> T:
        item = self._step()
        if item is END:
            raise StopIteration
        return item  # type: ignore[no-any-return]

    async def __anext__(self) -> T:
        item = await in_loop(self._pull())
        if item is END:
            raise StopAsyncIteration
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the stream and the generator behind it."""
        self._stop().result()

    async def aclose(self) -> None:
        """Ends the stream and the generator behind it."""
        await in_loop(self._stop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Executor(Protocol):
    """Answers calls to one model."""

    where: str
    name: str

    def method(self, name: str, context: Context = AMBIENT) -> Method:
        """The method of that name; AttributeError where there is none.

        A remote model may have to be asked, within the deadline of the context.
        """

    def describe(self, context: Context = AMBIENT) -> ModelInfo:
        """What the model says about itself; a remote one is asked at the first use."""

    def run(self, call: Call) -> Result:
        """The answer, waited for on the caller's thread; raises what the model raised.

        The value of a method that streams is its `Stream`.
        """

    def submit(self, call: Call) -> Job[Any]:
        """The answer, later."""

    def stream(self, call: Call) -> Stream[Any]:
        """The items of a method that streams."""

    def expect(self, signature: Signature, name: str) -> None:
        """What the caller takes the model to be; raises `SignatureError` by the first use."""

    def ready(self, timeout: float | None) -> None:
        """Returns once calls will be taken; raises `NotReady` or `DeadlineExceeded`."""

    def close(self) -> None:
        """Lets go of threads and connections; later calls raise."""


_SCHEMES = {
    "http": "maas.executors.addresses:connect_url",
    "https": "maas.executors.addresses:connect_url",
    "http+unix": "maas.executors.addresses:connect_url",
    "workers": "maas.executors.spawning:connect_workers",
}


def executor_for(scheme: str) -> Callable[..., Executor]:
    """What makes the executor for URLs of that scheme; an entry point in `maas.executors` adds one.

    Raises
    ------
    ValueError
        Nobody knows the scheme.
    """
    entry = _SCHEMES.get(scheme)
    if entry is not None:
        module, _, name = entry.partition(":")
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    strangers = importlib.import_module("maas.entry_points")
    found = strangers.load("maas.executors", scheme)
    if found is None:
        known = ", ".join(sorted({*_SCHEMES, *strangers.names("maas.executors"), "local"}))
        raise ValueError(f"no executor for the scheme {scheme!r}; known: {known}")
    return found  # type: ignore[no-any-return]
