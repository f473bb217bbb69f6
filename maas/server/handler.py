"""Requests to answers: the one front that every server has, without a socket.

A request is admitted by its head alone (who, where to, how large), then its body is
decoded, the model's executor is asked, and the answer is encoded. Nothing here runs a
model, and nothing here knows whether the executor behind it is local or a gateway's.

    POST /{model}            call it            GET /                who is here
    POST /{model}/{method}   call a method      GET /{model}         what it takes
    GET  /healthz            the process lives  GET /readyz          it takes calls
                                                GET /{model}/readyz  this model does
    /v2/...                  the Open Inference Protocol; inference_protocol/addresses.py
"""

import asyncio
import concurrent.futures
import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from maas import tensors, values, wire
from maas.calls import CALL, Call
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
from maas.executors.base import NAME, Executor, Job, ModelInfo, in_loop, late
from maas.http import MSGPACK, Headers, Response, header
from maas.limits import Limits
from maas.model import Model
from maas.server import head_fields, json_form, page
from maas.server.admission import MAX_PENDING, Quotas, Slots, rows_of
from maas.server.compression import Inflater
from maas.server.forms import JSON, Form, Packed, Plain, Route, internal, json_response, problem
from maas.server.front import Admission, Head
from maas.server.guard import DEFAULT_GRANTS, Caller, Guard
from maas.server.inference_protocol.addresses import is_under
from maas.server.inference_protocol.form import InferenceRoute
from maas.server.inference_protocol.routes import InferenceProtocol
from maas.server.keyed import KeyedAnswers
from maas.versions import versions
from maas.wire import Description, Failure

__all__ = ["RESERVED", "Handler"]

RESERVED = frozenset({"healthz", "readyz", "metrics", "v2", "maas"})
"""Names no model may have, for these are addresses of the server itself."""

_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MSGPACK = frozenset({MSGPACK, "application/msgpack", "application/x-msgpack"})


class Handler:
    """Answers for some models.

    Parameters
    ----------
    models : by the name in their address.
    auth, allow : see `Guard`.
    limits : what one message may hold, both ways.
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
        tracebacks: bool = True,
        hosts: frozenset[str] | None = None,
        quotas: Mapping[str, str] | None = None,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self.models = dict(models)
        for name in self.models:
            if NAME.fullmatch(name) is None or name in RESERVED:
                raise ValueError(
                    f"a served model's name matches {NAME.pattern} "
                    f"and is none of {sorted(RESERVED)}; got {name!r}"
                )
        self.guard = Guard(auth, allow)
        self.limits = limits or Limits()
        self.hosts = hosts
        self.tracebacks = tracebacks
        self._quotas = Quotas(quotas)
        self._max_pending = max_pending
        self._slots: dict[str, Slots] = {}
        self._draining = False
        self._keyed = KeyedAnswers()
        self._asking: dict[str, concurrent.futures.Future[ModelInfo]] = {}
        self._met: dict[str, ModelInfo] = {}
        self._digests: dict[str, str] = {}
        self.inflater = Inflater(self.limits.body)
        self._inference = InferenceProtocol(self)

    def draining(self) -> None:
        """From now on tell callers that this server is not ready."""
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
            if route.page == "readyz":
                return self._ready()
        except Error as error:
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
        caller.check("call", model, name)
        self.check_seen(caller, model)
        content = (header(head.headers, "content-type") or "").partition(";")[0].strip().lower()
        if content not in _MSGPACK and content != JSON:
            raise UnknownContent(
                f"content type {content!r:.60}; this server reads {MSGPACK} and {JSON}"
            )
        self.check_ready()
        self.check_room(caller, model)
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

    def check_seen(self, caller: Caller, name: str) -> None:
        """Refuses a model that is not here for this caller."""
        if name not in self.models or not caller.sees(name):
            here = ", ".join(self.names(caller)) or "none"
            raise NotFound(f"no model {name!r:.80} here; there are: {here}")

    def names(self, caller: Caller) -> list[str]:
        """The models that are here for this caller."""
        return sorted(filter(caller.sees, self.models))

    def check_ready(self) -> None:
        """Refuses when the server takes no calls."""
        if self._draining:
            raise NotReady("the server is shutting down", retry_after=1.0)

    def check_room(self, caller: Caller, model: str) -> None:
        """Refuses a caller beyond its quota, or while the model has as much in hand as it may."""
        self.slots(model).check(caller.id)
        self._quotas.charge(caller.id, caller.quota, "requests", 1)

    # Answers that need no model.

    def _health(self) -> Response:
        return json_response(200, {"status": "alive"})

    def _ready(self) -> Response:
        self.check_ready()
        return json_response(200, {"status": "ready"})

    # Descriptions.

    async def _describe(self, route: Route) -> Response:
        caller = route.caller
        if route.model:
            self.check_seen(caller, route.model)
        names = [route.model] if route.model else self.names(caller)
        for name in names:
            caller.check_grant("describe", name)
        infos = {name: _shown(await self.meet(name), caller) for name in names}
        if route.html:
            text = page.index(infos, base=route.base, locked=self.guard.locked)
            kind: Headers = (("content-type", "text/html; charset=utf-8"),)
            return Response(200, kind + page.SECURITY, (text,))
        data = {
            "protocol": [wire.VERSION, wire.VERSION],
            "versions": versions(),
            "limits": attrs.asdict(self.limits),
            "model": route.model,
            "models": {name: info.to_data() for name, info in infos.items()},
        }
        if not route.packed:
            return json_response(200, json_form.plain(data))
        headers: Headers = (("content-type", MSGPACK),)
        if len(names) == 1:
            headers += (("maas-digest", self.digest(names[0])),)
        return Response(200, headers, wire.encode(Description(data), self.limits))

    async def meet(self, name: str) -> ModelInfo:
        """What the model says about itself; not on this loop, as a gateway's asks elsewhere."""
        asking = self._asking.get(name)
        if asking is None or asking.done():
            # One question at a time: a place that does not answer holds one thread, not all.
            asking = self._asking[name] = _asked(self.models[name]._executor.describe)
        info = await asyncio.shield(asyncio.wrap_future(asking))
        info = attrs.evolve(info, name=name, where="here", limits=attrs.asdict(self.limits))
        text = repr([(method.name, method.signature) for method in info.methods.values()])
        self._met[name] = info
        self._digests[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return info

    def info(self, name: str) -> ModelInfo:
        """What was last learned of the model."""
        return self._met[name]

    def digest(self, name: str) -> str:
        """Changes when what the model takes changes, so that clients know to ask again."""
        return self._digests.get(name, "")

    def slots(self, model: str) -> Slots:
        """What the model has in hand."""
        found = self._slots.get(model)
        if found is None:
            shared = self.guard.locked
            found = self._slots[model] = Slots(self._max_pending, model, shared=shared)
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
        try:
            if form.route.page:
                return await self._describe(form.route)
            caller = form.route.caller
            self._quotas.charge(caller.id, caller.quota, "bytes", len(body))
            call = await self._read(form, body)
            self._quotas.charge(caller.id, caller.quota, "rows", rows_of(call))
            if call.context.key is not None:
                return await self._answer_keyed(call, form)
            return await self._answer(call, form)
        except Error as error:
            # Raised here and not by the model, so its traceback tells callers nothing.
            return form.failure(error.with_traceback(None))
        except Exception as error:  # noqa: BLE001 - a fault of this server must not end it
            return form.failure(internal(error))

    async def _read(self, form: Form, body: bytearray) -> Call:
        """The call; what its model takes is known afterwards."""
        route = form.route
        if route.packed:
            call = form.read(body)
            await self._acquaint(route.model, call.context.deadline)
            return call
        # JSON has no types of its own: only the model's signature says what it means.
        await self._acquaint(route.model, route.deadline)
        return form.read(body)

    async def _acquaint(self, name: str, deadline: float | None) -> None:
        if name in self._met:
            return
        left = None if deadline is None else deadline - time.monotonic()
        try:
            await asyncio.wait_for(self.meet(name), left)
        except TimeoutError:
            raise late(name) from None

    async def _answer(self, call: Call, form: Form) -> Response:
        executor = self.models[call.model]._executor
        if _wants_gradient(call, self.limits):
            form.route.caller.check("grad", call.model, call.method)
            raise Unsupported(
                "this server cannot send gradients back; "
                "call under torch.no_grad(), or detach the input"
            )
        try:
            method = self._met[call.model].methods.get(call.method)
            if method is not None and method.streams:
                return form.stream(executor.stream(call))
            job = self._submitted(executor, call, form.route.caller.id)
        except Exception as error:  # noqa: BLE001 - wrong arguments, or no such method
            return form.failure(error)
        try:
            await asyncio.wait_for(in_loop(job), call.context.remaining())
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
            await self._look_again(call)
        return form.answer(job.answer)

    def _submitted(self, executor: Executor, call: Call, caller: str) -> Job[Any]:
        """The call's job, which holds a slot until its work has really ended."""
        slots = self.slots(call.model)
        slots.enter(caller)
        try:
            job = executor.submit(attrs.evolve(call, caller=caller) if self.guard.locked else call)
        except BaseException:
            slots.leave(caller)
            raise
        job.when_ended(lambda: slots.leave(caller))
        return job

    async def _look_again(self, call: Call) -> None:
        """A call that its model refused: behind a gateway, it may be another one by now.

        The answer's `maas-digest` then tells callers to ask anew as well.
        """
        if self.models[call.model].where != "here":
            with contextlib.suppress(Error, TimeoutError):
                await asyncio.wait_for(self.meet(call.model), call.context.remaining())

    async def _answer_keyed(self, call: Call, form: Form) -> Response:
        # Another attempt has another deadline and trace, and is the same call.
        bare = attrs.evolve(call, context=attrs.evolve(call.context, deadline=None, trace=None))
        message = wire.encode_call(bare, self.limits)
        digest = hashlib.sha256(b"".join([*message, form.wish])).digest()
        kind = type(form).__name__
        key = (form.route.caller.id, call.model, call.method, str(call.context.key), kind)
        left = call.context.remaining()
        try:
            return await self._keyed.answer(key, digest, lambda: self._answer(bare, form), left)
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


def _shown(info: ModelInfo, caller: Caller) -> ModelInfo:
    """What the caller may know of a model: the methods that its key may ask."""
    methods = {
        name: method for name, method in info.methods.items() if caller.may_ask(info.name, name)
    }
    return attrs.evolve(info, methods=methods)


def _asked(describe: Callable[[], ModelInfo]) -> "concurrent.futures.Future[ModelInfo]":
    """The answer, from a thread of its own, which nobody waits for when the process ends."""
    future: concurrent.futures.Future[ModelInfo] = concurrent.futures.Future()

    def ask() -> None:
        try:
            future.set_result(describe())
        except BaseException as error:  # noqa: BLE001 - for those who wait
            future.set_exception(error)

    threading.Thread(target=ask, name="maas-describe", daemon=True).start()
    return future


def _segments(path: str) -> tuple[str, str]:
    """Model and method of a path, either may be empty; an odd path is not found, never repaired."""
    first, _, second = path.removeprefix("/").partition("/")
    if not path.startswith("/") or (NAME.fullmatch(first) is None and (first or second)):
        raise NotFound(f"nothing is at {path!r:.80}")
    if second and _METHOD.fullmatch(second) is None:
        raise NotFound(f"nothing is at {path!r:.80}")
    return first, second


def _base(head: Head) -> str:
    scheme = "https" if head.secure else "http"
    return f"{scheme}://{header(head.headers, 'host') or 'localhost'}{head.root}"


def _wants_gradient(call: Call, limits: Limits) -> bool:
    if not call.context.grad:
        return False
    return any(_requires_grad(value, limits) for value in (*call.args, *call.kwargs.values()))


def _requires_grad(value: Any, limits: Limits) -> bool:
    if type(value) in tensors.CLAIMED or type(value) in _SCALARS:
        return bool(getattr(value, "requires_grad", False))
    found: list[bool] = []

    def look(array: Any, _path: values.Path) -> Any:
        found.append(_requires_grad(array, limits))
        return array

    values.rebuild(value, (None, "argument", 1), look, limits)
    return any(found)


_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})
