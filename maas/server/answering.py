"""One call from its body's arrival to its answer: read, asked of an executor, written.

The executor decides where the model runs, and whether it is a gateway's; nothing here knows.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import attrs

from maas import tracing, wire
from maas.buffers import Body, Buffer
from maas.calls import Call, Result
from maas.errors import Cancelled, DeadlineExceeded, Error, SignatureError
from maas.executors.awaiting import in_loop
from maas.executors.base import Job, late
from maas.http import Response
from maas.limits import Limits
from maas.server.admission import rows_of
from maas.server.catalogue import Catalogue, Held, Version
from maas.server.collectors import REQUEST
from maas.server.descriptions import Descriptions
from maas.server.entrance import Entrance, is_reserved
from maas.server.forms import Form, internal
from maas.server.guard import Guard
from maas.server.keyed import KeyedAnswers
from maas.server.metrics import Metrics, Tally
from maas.server.observation import Observation
from maas.server.replies import size
from maas.server.services import Services
from maas.wire import Failure

__all__ = ["Answering", "presentable"]

_HASHED_AT_ONCE = 256 * 2**10
"""Bytes; half a millisecond, about what a thread costs a busy server."""


class _House(Protocol):
    """What is needed of the handler."""

    catalogue: Catalogue
    guard: Guard
    limits: Limits
    metrics: Metrics
    entrance: Entrance
    descriptions: Descriptions

    def tally(self, address: str, method: str) -> Tally:
        """What counts the calls of this method of a model."""


class Answering:
    """Answers the calls of one handler."""

    def __init__(self, house: _House, services: Services) -> None:
        self._house = house
        self._entrance = house.entrance
        self._catalogue = house.catalogue
        self._keyed = KeyedAnswers()
        self._services = services
        self._collectors = services.collectors

    async def converse(self, form: Form, body: Body, read: Call | None = None) -> Response:
        """What the form makes of the answer to the call that it reads, if it was not `read` yet.

        One that was has been charged for.
        """
        seen = Observation(self._house.metrics, self._house.tally, form.route, len(body))
        version: Version | None = None
        try:
            version = form.served = self._entrance.entered(form.route)
            caller = form.route.caller
            if read is None:
                self._entrance.quotas.charge(caller.id, caller.quota, "bytes", len(body))
                read = await self._read(form, version, body)
                self._entrance.charge_rows(caller, rows_of(read))
            else:
                # The name may mean another version by now than when the call was read.
                await self._acquaint(version, read.context.deadline)
            call = seen.asks(read)
            if call.context.key is not None:
                response = await self._answer_keyed(call, form, seen, version)
            else:
                response = await self._answer_once(call, form, seen, version)
        except Exception as error:  # noqa: BLE001 - a fault of this server must not end it
            response = form.failure(seen.fails(presentable(error)))
        except BaseException:
            seen.leaves()
            raise
        finally:
            if version is not None:
                self._catalogue.leave(version)
        return seen.answers(response)

    async def _read(self, form: Form, version: Version, body: Body) -> Call:
        """The call; what its model takes is known afterwards."""
        route = form.route
        if route.packed:
            call = form.read(body)
            await self._acquaint(version, call.context.deadline)
            return call
        # JSON has no types of its own: only the model's signature says what it means.
        await self._acquaint(version, route.deadline)
        return form.read(body)

    async def _acquaint(self, version: Version, deadline: float | None) -> None:
        if version.info is not None:
            return
        left = None if deadline is None else deadline - time.monotonic()
        try:
            await asyncio.wait_for(self._house.descriptions.learned(version), left)
        except TimeoutError:
            raise late(version.name) from None

    async def _answer_once(
        self, call: Call, form: Form, seen: Observation, version: Version
    ) -> Response:
        """The answer, which names the request where that is kept."""
        collector = self._collectors.of(version.name)
        method = version.known.methods.get(call.method)
        if collector is None or method is None:
            return await self._answer(call, form, seen, version)
        inputs = await collector.copied(call, method, seen.received)
        response = await self._answer(call, form, seen, version)
        if inputs is None or response.status != 200:
            return response
        named = (REQUEST, collector.keep(version.name, inputs, seen.received))
        return attrs.evolve(response, headers=(*response.headers, named))

    async def _answer(
        self, call: Call, form: Form, seen: Observation, version: Version
    ) -> Response:
        executor, caller = version.executor, form.route.caller
        if is_reserved(call.method):
            served = self._services.submit(caller, version.model, call)
            return form.answer(await self._finished(served, call, version))
        differentiable = bool(call.leaves) and call.context.grad
        if differentiable:
            caller.check("grad", call.model, call.method, known_as=version.names)
        try:
            method = version.known.methods.get(call.method)
            if method is not None and method.streams:
                return self._streamed(form.stream(seen.items(executor.stream(call))), version)
            job = self._submitted(version, call, caller.id)
        except Exception as error:  # noqa: BLE001 - wrong arguments, or no such method
            return form.failure(seen.fails(error))
        answer = await self._finished(job, call, version)
        if differentiable and isinstance(answer, Result):
            kept = self._services.kept(caller, call, answer)
            answer = await self._finished(kept, call, version)
        seen.ran(answer)
        return form.answer(answer)

    async def _finished(self, job: Job[Any], call: Call, version: Version) -> Any:
        """The job's answer, waited for as long as the call may take."""
        if job.answer is None:  # whoever was refused has it by now
            try:
                await _settled(job, call.context.remaining())
            except TimeoutError:
                job.cancel()
                raise late(call.model) from None
            except asyncio.CancelledError:
                job.cancel()
                raise
        if job.answer is None:
            raise Cancelled("the call was cancelled")
        if isinstance(job.answer, Failure) and isinstance(job.answer.error, SignatureError):
            await self._look_again(call, version)
        return job.answer

    def _submitted(self, version: Version, call: Call, caller: str) -> Job[Any]:
        """The call's job, which holds a slot until its work has really ended."""
        slots = self._entrance.slots(version.name)
        slots.enter(caller)
        try:
            asked = attrs.evolve(call, caller=caller) if self._house.guard.locked else call
            job = version.executor.submit(asked)
        except BaseException:
            slots.leave(caller)
            raise
        job.when_ended(lambda: slots.leave(caller))
        return job

    async def _look_again(self, call: Call, version: Version) -> None:
        """A call that its model refused: behind a gateway, it may be another one by now.

        The answer's `maas-digest` then tells callers to ask anew as well.
        """
        if version.model.where != "here":
            with contextlib.suppress(Error, TimeoutError):
                await asyncio.wait_for(
                    self._house.descriptions.learned(version), call.context.remaining()
                )

    def _streamed(self, response: Response, version: Version) -> Response:
        """The response, whose stream holds the version until it has ended."""
        self._catalogue.hold(version)
        frames: Any = response.body
        return attrs.evolve(response, body=Held(frames, partial(self._catalogue.leave, version)))

    async def _answer_keyed(
        self, call: Call, form: Form, seen: Observation, version: Version
    ) -> Response:
        # Another attempt has another deadline and trace, and is the same call.
        bare = attrs.evolve(call, context=attrs.evolve(call.context, deadline=None, trace=None))
        digest = await _digest([*wire.encode_call(bare, self._house.limits), form.wish])
        kind = type(form).__name__
        key = (form.route.caller.id, call.model, call.method, str(call.context.key), kind)
        once = tracing.continued(bare, call.context.trace)
        left = call.context.remaining()

        async def run() -> Response:
            # It goes on after its caller has left.
            self._catalogue.hold(version)
            try:
                return await self._answer_once(once, form, seen, version)
            finally:
                self._catalogue.leave(version)

        try:
            return await self._keyed.answer(key, digest, run, left)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{call.model} did not answer in time; ask again with the same key"
            ) from None


async def _settled(job: Job[Any], timeout: float | None) -> None:
    """Waits for the job, whose error is not raised: it would hold all that stands here.

    Raises
    ------
    TimeoutError
        The job has no answer by then.
    """
    waiter = asyncio.ensure_future(in_loop(job))
    try:
        done, _ = await asyncio.wait((waiter,), timeout=timeout)
    finally:
        if not waiter.cancel() and not waiter.cancelled():
            waiter.exception()  # seen, so that nobody logs it
    if not done and job.answer is None:
        raise TimeoutError


async def _digest(parts: Sequence[Buffer]) -> bytes:
    """What tells one call from another; 64 MB take a tenth of a second, so not on the loop."""
    if size(parts) <= _HASHED_AT_ONCE:
        return _hashed(parts)
    return await asyncio.to_thread(_hashed, parts)


def _hashed(parts: Sequence[Buffer]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def presentable(error: Exception) -> Error:
    """Raised here and not by the model: its traceback tells callers nothing."""
    return error.with_traceback(None) if isinstance(error, Error) else internal(error)
