"""Requests to answers: the one front that every server has, without a socket.

A request is admitted by its head alone (who, where to, how large), then its body is
decoded, the model's executor is asked, and the answer is encoded. Nothing here runs a
model, and nothing here knows whether the executor behind it is local or a gateway's.

    POST /{model}            call it            GET /                who is here
    POST /{model}/{method}   call a method      GET /{model}         what it takes
    GET  /healthz            the process lives  GET /readyz          it takes calls
    GET  /metrics            for Prometheus     GET /{model}/readyz  this model does
    GET  /maas/status        the same, as JSON
    /v2/...                  the Open Inference Protocol; inference_protocol/addresses.py

Where a model stands, one of its versions may stand as well: `net@v2`.
"""

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs

from maas import tracing, wire
from maas.calls import CALL, Call, Result
from maas.errors import (
    Cancelled,
    CodecError,
    DeadlineExceeded,
    Error,
    NotFound,
    NotReady,
    SignatureError,
    Unsupported,
)
from maas.executors.base import ADDRESS, Job, ModelInfo, in_loop, late
from maas.http import MSGPACK, Response, header
from maas.limits import Leases, Limits
from maas.model import Model
from maas.server import head_fields
from maas.server.admission import MAX_PENDING, Quotas, Slots, rows_of
from maas.server.catalogue import Catalogue, Held, Version
from maas.server.compression import Inflater
from maas.server.descriptions import Descriptions
from maas.server.figures import figures
from maas.server.forms import JSON, Form, Packed, Plain, Route, internal, json_response, problem
from maas.server.front import Admission, Head
from maas.server.guard import DEFAULT_GRANTS, Caller, Guard
from maas.server.inference_protocol.addresses import is_under
from maas.server.inference_protocol.form import InferenceRoute
from maas.server.inference_protocol.routes import InferenceProtocol
from maas.server.keyed import KeyedAnswers
from maas.server.metrics import Metrics, Tally
from maas.server.observation import Observation, described, refused
from maas.server.services import Services
from maas.wire import Failure

__all__ = ["Handler"]

T = TypeVar("T")

_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MSGPACK = frozenset({MSGPACK, "application/msgpack", "application/x-msgpack"})
_READY_WAIT = 1.0
"""Seconds that a probe waits for a model that is elsewhere."""


class Handler:
    """Answers for some models.

    Parameters
    ----------
    models : by their address: `net`, or `net@v2`.
    auth, allow : see `Guard`.
    limits : what one message may hold, both ways.
    leases : what is kept for one caller between messages.
    tracebacks : whether callers are told where in the model an error arose.
    hosts : the only hosts a request may name, against DNS rebinding; None for any.
    quotas : what a key may ask that has no quota of its own; see `Quota`.
    max_pending : calls that one model may have in hand, waiting and running.
    """

    def __init__(
        self,
        models: Mapping[str, Model[..., Any]],
        *,
        auth: str | Iterable[str] | Path | None = None,
        allow: Iterable[str] = DEFAULT_GRANTS,
        limits: Limits | None = None,
        leases: Leases | None = None,
        tracebacks: bool = True,
        hosts: frozenset[str] | None = None,
        quotas: Mapping[str, str] | None = None,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self.catalogue = Catalogue()
        for address, model in models.items():
            self.catalogue.add(address, model, owned=False)
        self.guard = Guard(auth, allow)
        self.limits = limits or Limits()
        self.hosts = hosts
        self.tracebacks = tracebacks
        self.metrics = Metrics()
        self._quotas = Quotas(quotas)
        self._max_pending = max_pending
        self._slots: dict[str, Slots] = {}
        self._draining = False
        self._keyed = KeyedAnswers()
        self._services = Services(leases or Leases())
        self._descriptions = Descriptions(self)
        self.inflater = Inflater(self.limits.body)
        self._inference = InferenceProtocol(self)

    @property
    def models(self) -> dict[str, Model[..., Any]]:
        """What each model's name means now."""
        found = {name: self.catalogue.find(name) for name in self.catalogue.names}
        return {name: version.model for name, version in found.items() if version is not None}

    def draining(self) -> None:
        """From now on tell who asks that this server is not ready.

        Calls are taken as before: whoever sends them may not have asked yet, and it is the runner
        that stops listening once they had the time to.
        """
        self._draining = True

    # Admission: by the head alone.

    def admit(self, head: Head) -> Admission | Response:
        """Leave to send a body, or the answer to a request that has none or may not have one."""
        if is_under(head.path):
            return self._inference.admit(head)
        try:
            route = self._route(head)
            if route.page == "healthz":
                return self._health()
            if route.page == "readyz" and not route.model:
                return self._ready()
        except Error as error:
            refused(head, error, self._tally, self.metrics)
            return problem(error)
        return Admission(0 if route.page else self.limits.body, route)

    def _route(self, head: Head) -> Route:
        self.check_host(head)
        first, second = _segments(head.path)
        if first in ("healthz", "readyz"):
            if second:
                raise NotFound(f"nothing is at {head.path!r:.80}")
            return Route(_ANYONE, page=first)
        caller = self.guard.admit(head_fields.only(head, "authorization"))
        if second == "readyz":
            self.check_seen(caller, first)
            return Route(caller, model=first, page="readyz")
        if head.method in ("GET", "HEAD"):
            if (first, second) in (("metrics", ""), ("maas", "status")):
                accept = header(head.headers, "accept") or ""
                return Route(caller, page=second or first, accept=accept)
            if second:
                raise NotFound(f"nothing is at {head.path!r:.80}; GET /{first} describes the model")
            accept = header(head.headers, "accept") or ""
            packed = any(kind in accept for kind in _MSGPACK)
            return Route(
                caller,
                model=first,
                page="describe",
                packed=packed,
                html="text/html" in accept,
                base=_base(head),
            )
        if head.method != "POST":
            raise Unsupported(f"{head.method} is not understood; GET describes, POST calls")
        return self._call_route(head, caller, first, second)

    def _call_route(self, head: Head, caller: Caller, model: str, method: str) -> Route:
        name = method or CALL
        version = self.check_callable(caller, model, name)
        content = (header(head.headers, "content-type") or "").partition(";")[0].strip().lower()
        if content not in _MSGPACK and content != JSON:
            raise UnknownContent(
                f"content type {content!r:.60}; this server reads {MSGPACK} and {JSON}"
            )
        self.check_room(caller, version)
        return Route(
            caller,
            model,
            name,
            packed=content in _MSGPACK,
            deadline=head_fields.deadline(header(head.headers, "maas-timeout")),
            key=head_fields.key(head_fields.only(head, "idempotency-key")),
            trace=header(head.headers, "traceparent"),
        )

    def check_host(self, head: Head) -> None:
        """Refuses a host that is not this server's."""
        if self.hosts is None:
            return
        host = (head_fields.only(head, "host") or "").lower()
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        if name not in self.hosts:
            raise Misdirected(
                f"this server answers for {', '.join(sorted(self.hosts))}, "
                f"not for the host {name!r:.80}"
            )

    def check_callable(self, caller: Caller, address: str, method: str) -> Version:
        """What the address means; refuses what is not here for this caller, not his, or loading."""
        found = self.catalogue.find(address)
        # First what the key may do: to one that may not, a model that is not here looks as one is.
        known_as = () if found is None else found.names
        caller.check("call", address, _granted(method), known_as=known_as)
        version = self._seen(caller, address, found)
        version.check_ready()
        return version

    def check_seen(self, caller: Caller, address: str) -> Version:
        """What the address means; refuses a model that is not here for this caller."""
        return self._seen(caller, address, self.catalogue.find(address))

    def _seen(self, caller: Caller, address: str, found: Version | None) -> Version:
        if found is None or not caller.sees(address, known_as=found.names):
            raise self._unseen(caller, address)
        return found

    def _entered(self, route: Route) -> Version:
        """What the call will run on, held for it: admission was another moment."""
        found = self.catalogue.enter(route.model)
        if found is None:
            raise self._unseen(route.caller, route.model)
        try:
            method = _granted(route.method)
            route.caller.check("call", route.model, method, known_as=found.names)
            found.check_ready()
        except Error:
            self.catalogue.leave(found)
            raise
        return found

    def _unseen(self, caller: Caller, address: str) -> NotFound:
        here = ", ".join(self.names(caller)) or "none"
        return NotFound(f"no model {address!r:.80} here; there are: {here}")

    def names(self, caller: Caller) -> list[str]:
        """The models that are here for this caller."""
        return sorted(self.catalogue.visible(caller))

    def check_ready(self) -> None:
        """Refuses when the server takes no calls."""
        if self._draining:
            raise NotReady("the server is shutting down", retry_after=1.0)

    def check_room(self, caller: Caller, version: Version) -> None:
        """Refuses a caller beyond its quota, or while the model has as much in hand as it may."""
        self.slots(version.name).check(caller.id)
        self._quotas.charge(caller.id, caller.quota, "requests", 1)

    # Answers that need no model.

    def _health(self) -> Response:
        return json_response(200, {"status": "alive"})

    def _ready(self) -> Response:
        self.check_ready()
        return json_response(200, {"status": "ready"})

    async def meet(self, name: str) -> ModelInfo:
        """What the model of that name says about itself."""
        version = self.catalogue.find(name)
        if version is None:
            raise NotFound(f"no model {name!r:.80} here")
        version.check_ready()
        return await self._descriptions.learned(version)

    def slots(self, name: str) -> Slots:
        """What the model, in all its versions, has in hand."""
        found = self._slots.get(name)
        if found is None:
            shared = self.guard.locked
            found = self._slots[name] = Slots(self._max_pending, name, shared=shared)
        return found

    # Calls.

    async def answer(self, admission: Admission, body: bytearray) -> Response:
        """The answer to an admitted request; failures are answers too."""
        route: Any = admission.route
        if isinstance(route, InferenceRoute):
            return await self._inference.answer(route, body)
        return await self.converse(
            Packed(self, route) if route.packed else Plain(self, route), body
        )

    async def converse(self, form: Form, body: bytearray) -> Response:
        """What the form makes of the answer to the call that it reads."""
        if form.route.page:
            return await self._page(form.route, form)
        seen = Observation(self.metrics, self._tally, form.route, len(body))
        version: Version | None = None
        try:
            version = form.served = self._entered(form.route)
            caller = form.route.caller
            self._quotas.charge(caller.id, caller.quota, "bytes", len(body))
            call = seen.asks(await self._read(form, version, body))
            self._quotas.charge(caller.id, caller.quota, "rows", rows_of(call))
            if call.context.key is not None:
                response = await self._answer_keyed(call, form, seen, version)
            else:
                response = await self._answer(call, form, seen, version)
        except Exception as error:  # noqa: BLE001 - a fault of this server must not end it
            response = form.failure(seen.fails(_presentable(error)))
        except BaseException:
            seen.leaves()
            raise
        finally:
            if version is not None:
                self.catalogue.leave(version)
        return seen.answers(response)

    def _tally(self, address: str, method: str) -> Tally:
        """What counts these calls; names that are not known here become no labels."""
        version = self.catalogue.find(address)
        if version is None:
            return self.metrics.tally("", "", "")
        known = version.info is not None and method in version.info.methods
        return self.metrics.tally(version.name, version.version, method if known else "")

    async def _page(self, route: Route, form: Form) -> Response:
        began = self.metrics.clock()
        try:
            if route.page == "readyz":
                await self._descriptions.check_ready(route)
                return self._ready()
            if route.page != "describe":
                return await figures(self.metrics, route, self.names(route.caller))
            response = await self._descriptions.page(route)
        except Exception as error:  # noqa: BLE001 - as in `converse`
            response = form.failure(_presentable(error))
        if route.page == "describe":
            described(route, response.status, self.metrics.clock() - began)
        return response

    async def _read(self, form: Form, version: Version, body: bytearray) -> Call:
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
            await asyncio.wait_for(self._descriptions.learned(version), left)
        except TimeoutError:
            raise late(version.name) from None

    async def _answer(
        self, call: Call, form: Form, seen: Observation, version: Version
    ) -> Response:
        executor, caller = version.executor, form.route.caller
        if _is_reserved(call.method):
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
        try:
            # Asked first: of a deadline that has passed, a future would be left to nobody.
            left = call.context.remaining()
            await asyncio.wait_for(in_loop(job), left)
        except TimeoutError:
            if job.answer is None:
                job.cancel()
                raise late(call.model) from None
        except asyncio.CancelledError:
            job.cancel()
            raise
        except Exception:  # noqa: BLE001, S110 - the model's own error is in job.answer
            pass
        if job.answer is None:
            raise Cancelled("the call was cancelled")
        if isinstance(job.answer, Failure) and isinstance(job.answer.error, SignatureError):
            await self._look_again(call, version)
        return job.answer

    def _submitted(self, version: Version, call: Call, caller: str) -> Job[Any]:
        """The call's job, which holds a slot until its work has really ended."""
        slots = self.slots(version.name)
        slots.enter(caller)
        try:
            asked = attrs.evolve(call, caller=caller) if self.guard.locked else call
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
                    self._descriptions.learned(version), call.context.remaining()
                )

    def _streamed(self, response: Response, version: Version) -> Response:
        """The response, whose stream holds the version until it has ended."""
        self.catalogue.hold(version)
        frames: Any = response.body
        return attrs.evolve(response, body=Held(frames, partial(self.catalogue.leave, version)))

    async def _answer_keyed(
        self, call: Call, form: Form, seen: Observation, version: Version
    ) -> Response:
        # Another attempt has another deadline and trace, and is the same call.
        bare = attrs.evolve(call, context=attrs.evolve(call.context, deadline=None, trace=None))
        message = wire.encode_call(bare, self.limits)
        digest = hashlib.sha256(b"".join([*message, form.wish])).digest()
        kind = type(form).__name__
        key = (form.route.caller.id, call.model, call.method, str(call.context.key), kind)
        once = tracing.continued(bare, call.context.trace)
        left = call.context.remaining()

        async def run() -> Response:
            # It goes on after its caller has left.
            self.catalogue.hold(version)
            try:
                return await self._answer(once, form, seen, version)
            finally:
                self.catalogue.leave(version)

        try:
            return await self._keyed.answer(key, digest, run, left)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{call.model} did not answer in time; ask again with the same key"
            ) from None


# Parts.


class UnknownContent(CodecError):
    code = "content-type"
    status = 415


class Misdirected(Error):
    code = "misdirected"
    status = 421


_ANYONE = Caller("anyone", frozenset())


def _segments(path: str) -> tuple[str, str]:
    """Model and method of a path, either may be empty; an odd path is not found, never repaired."""
    first, _, second = path.removeprefix("/").partition("/")
    if not path.startswith("/") or (ADDRESS.fullmatch(first) is None and (first or second)):
        raise NotFound(f"nothing is at {path!r:.80}")
    if second and _METHOD.fullmatch(second) is None:
        raise NotFound(f"nothing is at {path!r:.80}")
    return first, second


def _base(head: Head) -> str:
    scheme = "https" if head.secure else "http"
    return f"{scheme}://{header(head.headers, 'host') or 'localhost'}{head.root}"


def _is_reserved(method: str) -> bool:
    """Whether a service answers, and no model: their own methods' names begin otherwise."""
    return method[:1] == "_" and method != CALL


def _granted(method: str) -> str:
    """The method that a key must be granted; what a service needs beyond, it asks for itself."""
    return CALL if _is_reserved(method) else method


def _presentable(error: Exception) -> Error:
    """Raised here and not by the model: its traceback tells callers nothing."""
    return error.with_traceback(None) if isinstance(error, Error) else internal(error)
