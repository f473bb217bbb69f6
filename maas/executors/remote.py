"""Elsewhere: Call -> bytes -> HTTP -> bytes -> Result, the mirror image of the server's handler.

What is said to the server, and when again, is a plain generator (`_conversation`): it
yields requests and pauses, and is given replies and errors. Two drivers of ten
lines run it, one on the caller's thread, one on the I/O loop, so there are no two
versions of anything. The first use learns what the server offers; the same
`maas-digest` in every reply tells whether that still holds.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import importlib
import threading
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import attrs

from maas import ambient, tracing, wire
from maas.backends.base import Method
from maas.calls import AMBIENT, CALL, Call, Context, Info, Result
from maas.errors import (
    DeadlineExceeded,
    NotReady,
    Overloaded,
    ProtocolError,
    SignatureError,
    TransportError,
    Unsupported,
)
from maas.executors.base import Job, ModelInfo, Stream, begun, finish, late, no_method
from maas.executors.places import Place, body_of, check_expected, learned, problem
from maas.executors.remote_streams import RemoteStream
from maas.executors.retries import Attempts, Budget
from maas.http import MSGPACK, Headers, Request, Response, header
from maas.likeness import AnswerReader
from maas.limits import Limits
from maas.loops import Home, begin, run
from maas.signature import Signature
from maas.transports.base import StreamedResponse, Transport
from maas.wire import End, Failure, Item

__all__ = ["RemoteExecutor", "remote_behind"]

_Conversation = Generator[Request | float, Response | None, Any]

_DRAWING = threading.Lock()
"""Held while torch's generator is on its way to a server and back: nobody may draw from it
twice."""

_READY_PAUSE = 0.05
_INTRODUCTION = 30.0
"""Seconds for a server to describe itself where nobody set a deadline; no model runs for that."""


def remote_behind(executor: Any) -> "RemoteExecutor | None":
    """What asks elsewhere, behind all that stands before it here; None where nothing does."""
    while executor is not None and not isinstance(executor, RemoteExecutor):
        executor = getattr(executor, "inner", None)
    return executor


class RemoteExecutor:
    """Asks a model that a server answers for.

    Parameters
    ----------
    transport : how requests get there.
    path : path of the model, or of a server with a single model.
    where : the place, for people.
    auth : the key to show.
    limits : what one message may hold, both ways; the server's own count as well.
    """

    def __init__(
        self,
        transport: Transport,
        path: str,
        where: str,
        *,
        auth: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.where = where
        self.name = path.rstrip("/").rpartition("/")[2] or "model"
        self._transport = transport
        self._path = path.rstrip("/")
        self._limits = limits or Limits()
        self._reader = AnswerReader(self._limits)
        key: Headers = () if auth is None else (("authorization", f"Bearer {auth}"),)
        self._ask_headers: Headers = (("accept", MSGPACK), *key)
        self._call_headers: Headers = (*self._ask_headers, ("content-type", MSGPACK))
        self._budget = Budget()
        self._home = Home()
        self._place: Place | None = None
        self._digest: str | None = None
        self._expected: tuple[Signature, str] | None = None
        self._negotiating: asyncio.Lock | None = None
        self._serial: concurrent.futures.ThreadPoolExecutor | None = None
        self._origin: RemoteExecutor | None = None

    def beside(self, address: str) -> "RemoteExecutor":
        """Asks another version, or another model, of the same server, over the same connections.

        These stay those of the `origin`, which closes them.
        """
        parent = self._known().address.rpartition("/")[0]
        root = self.where.removesuffix(self._path) if "://" in self.where else None
        where = self.where if root is None else f"{root}{parent}/{address}"
        other = RemoteExecutor(self._transport, f"{parent}/{address}", where, limits=self._limits)
        other._ask_headers, other._call_headers = self._ask_headers, self._call_headers
        other._origin = self.origin
        return other

    @property
    def origin(self) -> "RemoteExecutor":
        """The executor whose connections these are."""
        return self._origin or self

    # The conversation: no I/O in it.

    def _conversation(self, call: Call) -> _Conversation:
        place = yield from self._fitting(call)
        method = place.info.methods[call.method]
        self._check_answers(method)
        repeatable = call.context.key is not None or self._runs_twice_as_once(place, method, call)
        return (yield from self._delivered(place, call, repeatable))

    def _question(self, call: Call, repeatable: bool) -> _Conversation:
        """A call to one of the place's own methods, which no model describes."""
        place = yield from self._introduced(call.context)
        return (yield from self._delivered(place, call, repeatable))

    def _delivered(self, place: Place, call: Call, repeatable: bool) -> _Conversation:
        self._budget.earn()
        # Written anew for each attempt: what is left of the deadline travels in the message.
        return (
            yield from self._attempted(
                lambda: self._request(place, call), self._read, call.context, repeatable
            )
        )

    def _runs_twice_as_once(self, place: Place, method: Method, call: Call) -> bool:
        own, asked = place.info.training, call.context.training
        training = own if asked is None else asked
        return method.pure and not method.stochastic and not training

    def _attempted(
        self,
        request: Callable[[], Request],
        read: Callable[[Response | None], Any],
        context: Context,
        repeatable: bool,
    ) -> _Conversation:
        """What `read` makes of the reply to the first attempt that is not worth another."""
        attempts = Attempts(context.retries, repeatable, context.deadline, self._budget)
        while True:
            try:
                answer = read((yield request()))
                error = answer.error if isinstance(answer, Failure) else None
            except TransportError as broken:
                error = broken
            if error is None or not isinstance(error, TransportError | Overloaded | NotReady):
                return answer
            pause = attempts.pause_after(error)
            if pause is None:
                raise error
            yield pause

    def _introduced(self, context: Context = AMBIENT) -> _Conversation:
        if self._place is not None:
            return self._place
        request = Request("GET", f"{self._path}/", self._ask_headers)
        message = yield from self._attempted(
            lambda: request, self._message, context, repeatable=True
        )
        self._place = learned(
            message, self._path, self.where, limits=self._limits, expected=self._expected
        )
        self.name = self._place.model
        return self._place

    def _fitting(self, call: Call) -> _Conversation:
        """The place, where the call fits what the server now says that the model takes."""
        known = self._place
        if known is not None:
            try:
                self._checked(known, call)
            except (SignatureError, AttributeError):
                # It may be another version's by now, and a call that never leaves would not hear.
                self._place = None
            else:
                return known
        place = yield from self._introduced(call.context)
        self._checked(place, call)
        return place

    def _checked(self, place: Place, call: Call) -> Method:
        method = place.info.methods.get(call.method)
        if method is None:
            raise no_method(self.name, call.method, place.info.methods)
        method.signature.check(call.args, call.kwargs, method.label)
        return method

    def _request(self, place: Place, call: Call) -> Request:
        address = place.address if call.method == CALL else f"{place.address}/{call.method}"
        headers = self._call_headers
        if call.context.trace is not None:
            # What stands between understands the header, and may write a span of its own into it.
            headers += (("traceparent", call.context.trace),)
        return Request("POST", address, headers, place.writer.write(call))

    def _read(self, reply: Response | None) -> Result | Failure:
        message = self._message(reply)
        if not isinstance(message, Result | Failure):
            raise ProtocolError(f"{self.where} answered a call with something else", answered=True)
        if isinstance(message, Result):
            assert reply is not None  # noqa: S101 - as above
            info = self.located(message.info, reply.headers)
            return Result(message.value, info, message.rng, message.graph, message.leaves)
        return message

    def located(self, info: Info, headers: Headers) -> Info:
        """The facts, with the place as it is known here, and what the server names in headers."""
        told = _told(headers)
        return info.seen_from(self.where, told.version, told.request)

    def _message(self, reply: Response | None) -> Any:
        assert reply is not None  # noqa: S101 - pauses are answered by None, requests never
        told = _told(reply.headers)
        self._notice(told.digest)
        if told.packed:
            return self._reader.read(body_of(reply))
        return Failure(problem(reply, self.where))

    def _notice(self, digest: str | None) -> None:
        if digest is not None and digest != self._digest:
            if self._digest is not None:
                # The server was replaced by another one: ask it anew before the next call.
                self._place = None
            self._digest = digest

    # The two drivers.

    def _here(self, conversation: _Conversation, deadline: float | None) -> Any:
        self._home.check(self.where)
        outcome: Response | Exception | None = None
        while True:
            try:
                step = (
                    conversation.throw(outcome)
                    if isinstance(outcome, Exception)
                    else conversation.send(outcome)
                )
            except StopIteration as stop:
                return stop.value
            try:
                outcome = (
                    self._transport.send(step, deadline, self._limits.body)
                    if isinstance(step, Request)
                    else None
                )
                if outcome is None:
                    time.sleep(step)  # type: ignore[arg-type]
            except TransportError as error:
                outcome = error
            except DeadlineExceeded as error:
                raise late(self.name) from error

    async def _there(self, conversation: _Conversation, deadline: float | None) -> Any:
        outcome: Response | Exception | None = None
        while True:
            try:
                step = (
                    conversation.throw(outcome)
                    if isinstance(outcome, Exception)
                    else conversation.send(outcome)
                )
            except StopIteration as stop:
                return stop.value
            try:
                if isinstance(step, Request):
                    outcome = await self._transport.asend(step, deadline, self._limits.body)
                else:
                    await asyncio.sleep(step)
                    outcome = None
            except TransportError as error:
                outcome = error
            except DeadlineExceeded as error:
                raise late(self.name) from error

    # What users ask.

    def describe(self, context: Context = AMBIENT) -> ModelInfo:
        """What the server says about the model; asked once."""
        return self._known(context).info

    def _known(self, context: Context = AMBIENT) -> Place:
        place = self._place
        if place is None:
            place = self._here(self._introduced(context), _patience(context))
        return place

    def method(self, name: str, context: Context = AMBIENT) -> Method:
        """The method of that name; AttributeError where the server has none."""
        methods = self._known(context).info.methods
        found = methods.get(name)
        if found is None:
            raise no_method(self.name, name, methods)
        return found

    def expect(self, signature: Signature, name: str) -> None:
        """What `connect(url, like=...)` wants to find there."""
        self._expected = (signature, name)
        if self._place is not None:
            check_expected(self._place.info, self._expected, self.where)

    def run(self, call: Call) -> Result:
        """The answer, waited for on this thread."""
        if self.method(call.method, call.context).streams:
            return Result(self.stream(call))
        if not tracing.pending():
            return self._run(call)
        call, hop = tracing.outgoing(call, self.name)
        with hop:
            return self._run(call)

    def _run(self, call: Call) -> Result:
        context = call.context
        if context.grad and ambient.transforming():
            transformed: Result = _gradients().transformed(self, call, self._answered)
            return transformed
        patience = context.remaining()
        answer = self._answered(call)
        return answer if answer.graph is None else self._attached(call, answer, patience)

    def _attached(self, call: Call, answer: Result, patience: float | None) -> Result:
        """The answer, part of the caller's autograd graph: the place keeps one behind it."""
        gradients, asked = _gradients(), call.context
        manner = gradients.Manner(patience, asked.retries, asked.priority)
        attached: Result = gradients.attached(self, call, answer, manner)
        return attached

    def _answered(self, call: Call) -> Result:
        return self.lend(
            call, lambda lent: self._here(self._conversation(lent), lent.context.deadline)
        )

    def lend(self, call: Call, answer: Callable[[Call], Result | Failure]) -> Result:
        """What `answer` gives, with this process's generator lent to a call that draws."""
        if not self._draws(call, self.method(call.method, call.context)):
            return finish(answer(call))
        with self._with_generator(call) as lent:
            given = answer(lent)
            ambient.take_back(given.rng)
        return finish(given)

    def _draws(self, call: Call, method: Method) -> bool:
        if call.context.seed is not None or call.context.rng is not None:
            return False
        info = self._known().info
        training = info.training if call.context.training is None else call.context.training
        return bool(method.stochastic or (training and info.training is not None))

    @contextlib.contextmanager
    def _with_generator(self, call: Call) -> Iterator[Call]:
        with _DRAWING:
            yield attrs.evolve(
                call, context=attrs.evolve(call.context, rng=ambient.generator_state())
            )

    def ask(self, method: str, args: tuple[Any, ...], context: Context) -> Result:
        """The answer to a question for the place itself; see `server/services.py`."""
        return finish(self.put(method, args, context, repeatable=False))

    def put(
        self, method: str, args: tuple[Any, ...], context: Context, *, repeatable: bool
    ) -> Result | Failure:
        """As `ask`, with an error given and not raised; `repeatable` may be asked again."""
        call = Call(self.name, method, args, context=context)
        answer: Result | Failure = self._here(self._question(call, repeatable), context.deadline)
        return answer

    async def aput(
        self, method: str, args: tuple[Any, ...], context: Context, *, repeatable: bool
    ) -> Result | Failure:
        """As `put`, waited for on the I/O loop."""
        call = Call(self.name, method, args, context=context)
        answer: Result | Failure = await self._there(
            self._question(call, repeatable), context.deadline
        )
        return answer

    def tell(self, method: str, args: tuple[Any, ...]) -> None:
        """Tells the place itself something; not now, and not for sure."""
        with contextlib.suppress(Exception):
            self._home.check(self.where)
            run(self._told(method, args))

    def later(self, args: tuple[Any, ...]) -> None:
        """Of no use here: whoever asks for a gradient wants it."""
        raise NotImplementedError

    async def _told(self, method: str, args: tuple[Any, ...]) -> None:
        context = Context(deadline=time.monotonic() + _INTRODUCTION)
        with contextlib.suppress(Exception):
            await self.aput(method, args, context, repeatable=True)

    def submit(self, call: Call) -> Job[Any]:
        """The answer, later, from the I/O loop."""
        self._home.check(self.where)
        if self._place is not None:
            self._check_answers(self.method(call.method))
        call, hop = tracing.outgoing(call, self.name)
        job = begun(begin, partial(self.answered, call))
        if hop.recorded:
            job.add_done_callback(hop.follow)
        return job

    async def answered(self, call: Call) -> Result | Failure:
        """The answer, waited for on the I/O loop; raises where none came."""
        await self._introduce(call.context)
        if self._draws(call, self.method(call.method)):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._one_thread(), self._settled, call)
        patience = call.context.remaining()
        answer: Result | Failure = await self._there(
            self._conversation(call), call.context.deadline
        )
        if isinstance(answer, Result) and answer.graph is not None:
            return self._attached(call, answer, patience)
        return answer

    async def _introduce(self, context: Context) -> None:
        if self._place is None:
            # One at a time and in order: draws of the first calls keep the order of their
            # submission.
            self._negotiating = self._negotiating or asyncio.Lock()
            until = _patience(context)
            try:
                async with asyncio.timeout(until - time.monotonic()), self._negotiating:
                    await self._there(self._introduced(context), until)
            except TimeoutError as error:
                raise late(self.name) from error

    def _one_thread(self) -> concurrent.futures.ThreadPoolExecutor:
        self._serial = self._serial or concurrent.futures.ThreadPoolExecutor(
            1, f"maas-{self.name}-drawing"
        )
        return self._serial

    def _settled(self, call: Call) -> Result | Failure:
        try:
            return self._run(call)
        except Exception as error:  # noqa: BLE001 - the job's to raise
            return Failure(error)

    def stream(self, call: Call) -> Stream[Any]:
        """The items of a generator method."""
        self._home.check(self.where)
        if self._place is not None:
            place = self._here(self._fitting(call), _patience(call.context))
            self._check_streams(place.info.methods[call.method])
        return RemoteStream(self, *tracing.outgoing(call, self.name))

    def _check_answers(self, method: Method) -> None:
        if method.streams:
            raise Unsupported(f"{self.name} streams its items; use .stream(...) or a for loop")

    def _check_streams(self, method: Method) -> None:
        if not method.streams:
            raise SignatureError(f"{self.name} gives one value, not a stream; call it")

    async def open(self, call: Call) -> StreamedResponse:
        """The reply to a call that streams, its head received."""
        await self._introduce(call.context)
        place = self._place or await self._there(
            self._introduced(call.context), call.context.deadline
        )
        method = self._checked(place, call)
        self._check_streams(method)
        if self._draws(call, method):
            call = attrs.evolve(
                call, context=attrs.evolve(call.context, rng=ambient.generator_state())
            )
        reply = await self._transport.stream(
            self._request(place, call), call.context.deadline, self._limits.body
        )
        if isinstance(reply, StreamedResponse):
            self._notice(_told(reply.headers).digest)
            return reply
        finish(self._read(reply))
        raise ProtocolError(f"{self.where} answered a stream with one value", answered=True)

    async def next(self, reply: StreamedResponse) -> Item | End | Failure:
        """The next message of a stream."""
        start = await reply.frames.read(wire.PREFIX)
        prefix = wire.read_prefix(start, self._limits)
        rest = await reply.frames.read(prefix.total - wire.PREFIX)
        message = wire.decode(start + rest, self._limits)
        if not isinstance(message, Item | End | Failure):
            raise ProtocolError(f"{self.where} sent something else amid a stream", answered=True)
        return message

    def ready(self, timeout: float | None) -> None:
        """Asks the server until it takes calls for this model."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._here(self._until_ready(deadline), deadline)

    def _until_ready(self, deadline: float | None) -> _Conversation:
        last: Exception = NotReady(f"{self.where} is not ready")
        while deadline is None or time.monotonic() < deadline:
            try:
                place = yield from self._introduced()
                reply = yield Request("GET", f"{place.address}/readyz", self._ask_headers)
                assert reply is not None  # noqa: S101 - pauses are answered by None, requests never
                if reply.status == 200:
                    return
                last = problem(reply, self.where)
                if not isinstance(last, NotReady | Overloaded):
                    raise last
            except (TransportError, NotReady, Overloaded) as error:
                last = error
            yield _READY_PAUSE
        raise DeadlineExceeded(f"{self.where} was not ready in time: {last}")

    def close(self) -> None:
        """Closes idle connections; later calls raise."""
        self._home.close()
        self._let_go()

    def _let_go(self) -> None:
        if self._origin is None:
            self._transport.close()
        if self._serial is not None:
            self._serial.shutdown(wait=False)


@attrs.frozen
class _Told:
    """What a reply's headers say of the answer."""

    packed: bool
    digest: str | None
    version: str | None
    request: str | None


@functools.lru_cache(256)  # a transport gives replies of equal heads the same headers
def _told(headers: Headers) -> _Told:
    content = (header(headers, "content-type") or "").partition(";")[0]
    _, _, version = (header(headers, "maas-model") or "").partition("@")
    digest, request = header(headers, "maas-digest"), header(headers, "maas-request")
    return _Told(content == MSGPACK, digest, version or None, request)


def _gradients() -> Any:
    """What makes an answer part of autograd's graph; it needs torch, which its callers have."""
    return importlib.import_module("maas.executors.gradients")


def _patience(context: Context) -> float:
    """Until when a server may take to describe itself."""
    return time.monotonic() + _INTRODUCTION if context.deadline is None else context.deadline
