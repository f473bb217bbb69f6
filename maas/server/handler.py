"""Requests to answers: the one front that every server has, without a socket.

A request is admitted by its head alone (who, where to, how large), then its body is
decoded, the model's executor is asked, and the answer is encoded. Nothing here runs a
model, and nothing here knows whether the executor behind it is local or a gateway's.

    POST /{model}            call it            GET /                who is here
    POST /{model}/{method}   call a method      GET /{model}         what it takes
    GET  /healthz            the process lives  GET /readyz          it takes calls
                                                GET /{model}/readyz  this model does
"""

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from maas import values, wire
from maas.calls import CALL, Call, Context
from maas.errors import (
    Cancelled,
    CodecError,
    DeadlineExceeded,
    Error,
    LimitExceeded,
    NotFound,
    NotReady,
    Unsupported,
)
from maas.executors.base import ModelInfo, Stream, in_loop
from maas.http import MSGPACK, PROBLEM, Buffer, Headers, Request, Response, header
from maas.limits import Limits
from maas.model import NAME, Model
from maas.server import json_form, page
from maas.server.front import Admission, Head
from maas.server.guard import DEFAULT_GRANTS, Caller, Guard
from maas.server.keyed import KeyedAnswers
from maas.versions import versions
from maas.wire import Description, End, Failure, Item

__all__ = ["RESERVED", "Handler", "problem"]

RESERVED = frozenset({"healthz", "readyz", "metrics", "v2", "maas"})
"""Names no model may have, for these are addresses of the server itself."""

_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MSGPACK = frozenset({MSGPACK, "application/msgpack", "application/x-msgpack"})
_JSON = "application/json"
_LINES = "application/x-ndjson"


@attrs.frozen
class _Route:
    """What `admit` decided: who asks what of which model, and in which form."""

    caller: Caller
    model: str = ""
    method: str = ""
    page: str = ""
    packed: bool = False
    html: bool = False
    deadline: float | None = None
    key: str | None = None
    trace: str | None = None


class Handler:
    """Answers for some models.

    Parameters
    ----------
    models : by the name in their address.
    auth, allow : see `Guard`.
    limits : what one message may hold, both ways.
    tracebacks : whether callers are told where in the model an error arose.
    hosts : the only hosts a request may name, against DNS rebinding; None for any.
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
    ) -> None:
        self.models = dict(models)
        for name in self.models:
            if NAME.fullmatch(name) is None or name in RESERVED:
                raise ValueError(
                    f"a served model's name matches {NAME.pattern} and is none of {sorted(RESERVED)}; got {name!r}"
                )
        self.guard = Guard(auth, allow)
        self.limits = limits or Limits()
        self.hosts = hosts
        self._tracebacks = tracebacks
        self._draining = False
        self._keyed = KeyedAnswers()
        self._digests: dict[str, str] = {}

    def draining(self) -> None:
        """From now on tell callers that this server is not ready."""
        self._draining = True

    # Admission: by the head alone.

    def admit(self, head: Head) -> Admission | Response:
        """Leave to send a body, or the answer to a request that has none or may not have one."""
        try:
            route = self._route(head)
        except Error as error:
            return problem(error)
        if route.page:
            return self._page(head, route)
        return Admission(self.limits.body, route)

    def _route(self, head: Head) -> _Route:
        self._check_host(head)
        first, second = _segments(head.path)
        if first in ("healthz", "readyz") or second == "readyz":
            return _Route(
                Caller("anyone", frozenset()),
                model="" if first in ("healthz", "readyz") else first,
                page=second or first,
            )
        caller = self.guard.admit(header(head.headers, "authorization"))
        if head.method in ("GET", "HEAD"):
            accept = header(head.headers, "accept") or ""
            packed = any(kind in accept for kind in _MSGPACK)
            return _Route(
                caller, model=first, page="describe", packed=packed, html="text/html" in accept
            )
        if head.method != "POST":
            raise Unsupported(f"{head.method} is not understood; GET describes, POST calls")
        return self._call_route(head, caller, first, second)

    def _call_route(self, head: Head, caller: Caller, model: str, method: str) -> _Route:
        name = method or CALL
        caller.check("call", model, name)
        self._model(caller, model)
        content = (header(head.headers, "content-type") or "").partition(";")[0].strip().lower()
        if content not in _MSGPACK and content != _JSON:
            raise _UnknownContent(
                f"content type {content!r:.60}; this server reads {MSGPACK} and {_JSON}"
            )
        if self._draining:
            raise NotReady(
                "the server is shutting down; another one will take the call", retry_after=1.0
            )
        return _Route(
            caller,
            model,
            name,
            packed=content in _MSGPACK,
            deadline=_deadline(header(head.headers, "maas-timeout")),
            key=header(head.headers, "idempotency-key"),
            trace=header(head.headers, "traceparent"),
        )

    def _check_host(self, head: Head) -> None:
        if self.hosts is None:
            return
        host = (header(head.headers, "host") or "").lower()
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        if name not in self.hosts:
            raise _Misdirected(
                f"this server answers for {', '.join(sorted(self.hosts))}, not for the host {name!r:.80}"
            )

    def _model(self, caller: Caller, name: str) -> Model[..., Any]:
        found = self.models.get(name) if caller.sees(name) else None
        if found is None:
            here = ", ".join(sorted(filter(caller.sees, self.models))) or "none"
            raise NotFound(f"no model {name!r:.80} here; there are: {here}")
        return found

    # Pages: what has an answer without a body.

    def _page(self, head: Head, route: _Route) -> Response:
        try:
            return _PAGES[route.page](self, head, route)
        except Error as error:
            return problem(error)

    def _health(self, _head: Head, _route: _Route) -> Response:
        return _json(200, {"status": "alive"})

    def _ready(self, _head: Head, route: _Route) -> Response:
        if self._draining:
            raise NotReady("the server is shutting down", retry_after=1.0)
        if route.model and route.model not in self.models:
            raise NotFound(f"no model {route.model!r:.80} here")
        return _json(200, {"status": "ready"})

    def _describe(self, head: Head, route: _Route) -> Response:
        if route.model:
            self._model(route.caller, route.model)
        names = [route.model] if route.model else sorted(filter(route.caller.sees, self.models))
        for name in names:
            route.caller.check("describe", name)
        infos = {name: self._info(name) for name in names}
        if route.packed:
            data = self.description(infos) | {"model": route.model}
            return Response(
                200, (("content-type", MSGPACK),), wire.encode(Description(data), self.limits)
            )
        if route.html:
            text = page.index(infos, base=_base(head), locked=self.guard.locked)
            return Response(
                200, (("content-type", "text/html; charset=utf-8"), *page.SECURITY), (text,)
            )
        return _json(200, json_form.plain(self.description(infos)))

    def _info(self, name: str) -> ModelInfo:
        return attrs.evolve(self.models[name].info, name=name, limits=attrs.asdict(self.limits))

    def description(self, infos: Mapping[str, ModelInfo]) -> dict[str, Any]:
        """What a client learns at its first use."""
        return {
            "protocol": [wire.VERSION, wire.VERSION],
            "versions": versions(),
            "limits": attrs.asdict(self.limits),
            "models": {name: info.to_data() for name, info in infos.items()},
        }

    def digest(self, name: str) -> str:
        """Changes when what the model takes changes, so that clients know to ask again."""
        found = self._digests.get(name)
        if found is None:
            text = repr(
                [
                    (method.name, method.signature)
                    for method in self.models[name].info.methods.values()
                ]
            )
            found = self._digests[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return found

    # Calls.

    async def answer(self, admission: Admission, body: bytearray) -> Response:
        """The answer to an admitted call; failures are answers too."""
        route: Any = admission.route
        reply = _Packed(self, route) if route.packed else _Plain(self, route)
        try:
            call = reply.read(body)
            if call.context.key is not None:
                return await self._answer_keyed(call, route, reply)
            return await self._answer(call, reply)
        except Error as error:
            return reply.failure(error)
        except Exception as error:  # noqa: BLE001 - a fault of this server must not end it
            return reply.failure(_internal(error))

    async def _answer(self, call: Call, reply: "_Packed | _Plain") -> Response:
        model = self.models[call.model]
        if call.context.grad and _wants_gradient(call):
            reply.route.caller.check("grad", call.model, call.method)
            raise Unsupported(
                "this server cannot send gradients back; call under torch.no_grad(), or detach the input"
            )
        try:
            if model._executor.method(call.method).streams:
                return reply.stream(model._executor.stream(call))
            job = model._executor.submit(call)
        except Exception as error:  # noqa: BLE001 - wrong arguments, or no such method
            return reply.failure(error)
        try:
            await asyncio.wait_for(in_loop(job), call.context.remaining())
        except TimeoutError:
            if job.answer is None:
                job.cancel()
                raise DeadlineExceeded(
                    f"{call.model} did not answer in time; what it still gives is discarded"
                ) from None
        except asyncio.CancelledError:
            job.cancel()
            raise
        except Exception:  # noqa: BLE001, S110 - the model's own error is in job.answer
            pass
        if job.answer is None:
            raise Cancelled("the call was cancelled")
        return reply.answer(job.answer)

    async def _answer_keyed(self, call: Call, route: _Route, reply: "_Packed | _Plain") -> Response:
        # Another attempt has another deadline and trace, and is the same call.
        bare = attrs.evolve(call, context=attrs.evolve(call.context, deadline=None, trace=None))
        digest = hashlib.sha256(b"".join(wire.encode_call(bare, self.limits))).digest()
        key = (route.caller.id, call.model, call.method, str(call.context.key), str(route.packed))
        try:
            return await self._keyed.answer(
                key, digest, lambda: self._answer(bare, reply), call.context.remaining()
            )
        except TimeoutError:
            raise DeadlineExceeded(
                f"{call.model} did not answer in time; ask again with the same key"
            ) from None


_PAGES: dict[str, Callable[[Handler, Head, _Route], Response]] = {
    "healthz": Handler._health,
    "readyz": Handler._ready,
    "describe": Handler._describe,
}


class _Packed:
    """Messages of the wire format, both ways."""

    def __init__(self, handler: Handler, route: _Route) -> None:
        self.route = route
        self._handler = handler
        self._limits = handler.limits
        self._headers: Headers = (
            ("content-type", MSGPACK),
            ("maas-digest", handler.digest(route.model)),
        )

    def read(self, body: bytearray) -> Call:
        call = wire.decode(body, self._limits, model=self.route.model, method=self.route.method)
        if not isinstance(call, Call):
            raise CodecError("this address takes a call, and another kind of message came")
        return call

    def answer(self, answer: Any) -> Response:
        if isinstance(answer, Failure):
            return self.failure(answer.error, answer.rng)
        try:
            return Response(200, self._headers, wire.encode(answer, self._limits))
        except CodecError as error:
            return self.failure(error)

    def failure(self, error: Exception, rng: bytes | None = None) -> Response:
        status = error.status if isinstance(error, Error) else 500
        headers = self._headers + _retry_after(error)
        return Response(status, headers, self._failure(error, rng))

    def _failure(self, error: Exception, rng: bytes | None = None) -> Sequence[Buffer]:
        if not self._handler._tracebacks:
            error = error.with_traceback(None)
        return wire.encode(Failure(error, rng), self._limits)

    def stream(self, stream: Stream[Any]) -> Response:
        return Response(200, self._headers, self._frames(stream))

    async def _frames(self, stream: Stream[Any]) -> AsyncIterator[Sequence[Buffer]]:
        async with contextlib.aclosing(stream):
            try:
                async for item in stream:
                    yield wire.encode(Item(item), self._limits)
                yield wire.encode(
                    End(stream.info or _NOTHING, getattr(stream, "rng", None)), self._limits
                )
            except Exception as error:  # noqa: BLE001 - the model's, to be sent
                yield self._failure(error, getattr(stream, "rng", None))


class _Plain:
    """JSON, for people with curl and for small inputs."""

    def __init__(self, handler: Handler, route: _Route) -> None:
        self.route = route
        self._handler = handler

    def read(self, body: bytearray) -> Call:
        route = self.route
        model = self._handler.models[route.model]
        method = model._executor.method(route.method)
        args, kwargs = json_form.arguments(
            bytes(body), method, model.info.kind, self._handler.limits
        )
        context = Context(grad=False, deadline=route.deadline, key=route.key, trace=route.trace)
        return Call(route.model, route.method, args, kwargs, context, owned=True)

    def answer(self, answer: Any) -> Response:
        if isinstance(answer, Failure):
            return self.failure(answer.error)
        return _json(200, {"result": json_form.plain(answer.value)})

    def failure(self, error: Exception) -> Response:
        return problem(error)

    def stream(self, stream: Stream[Any]) -> Response:
        return Response(200, (("content-type", _LINES),), self._lines(stream))

    async def _lines(self, stream: Stream[Any]) -> AsyncIterator[Sequence[Buffer]]:
        async with contextlib.aclosing(stream):
            try:
                async for item in stream:
                    yield (json_form.line({"item": json_form.plain(item)}),)
                yield (json_form.line({"end": True}),)
            except Exception as error:  # noqa: BLE001 - the model's, to be sent
                yield (json_form.line({"error": _details(error)}),)


# Parts.


class _UnknownContent(CodecError):
    code = "content-type"
    status = 415


class _Misdirected(Error):
    code = "misdirected"
    status = 421


_NOTHING = wire.Info()


def _segments(path: str) -> tuple[str, str]:
    """Model and method of a path, either may be empty; anything odd is not found, never repaired."""
    first, _, second = path.removeprefix("/").partition("/")
    if not path.startswith("/") or (first and NAME.fullmatch(first) is None):
        raise NotFound(f"nothing is at {path!r:.80}")
    if second and _METHOD.fullmatch(second) is None:
        raise NotFound(f"nothing is at {path!r:.80}")
    return first, second


def _deadline(seconds: str | None) -> float | None:
    if seconds is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", seconds) is None:
        raise CodecError(f"maas-timeout wants seconds, such as 2.5; got {seconds!r:.40}")
    return time.monotonic() + float(seconds)


def _base(head: Head) -> str:
    return f"{'https' if head.secure else 'http'}://{header(head.headers, 'host') or 'localhost'}"


def _wants_gradient(call: Call) -> bool:
    found = False

    def look(array: Any, _path: values.Path) -> Any:
        nonlocal found
        found = found or bool(getattr(array, "requires_grad", False))
        return array

    limits = Limits()
    for value in (*call.args, *call.kwargs.values()):
        values.rebuild(value, (None, "argument", 1), look, limits)
    return found


def _internal(error: Exception) -> Exception:
    import logging

    logging.getLogger("maas").exception("a request failed", exc_info=error)
    return Error("the server failed to answer; its log tells why")


def _retry_after(error: Exception) -> Headers:
    seconds = getattr(error, "retry_after", None) if isinstance(error, Error) else None
    return () if seconds is None else (("retry-after", str(max(1, round(seconds)))),)


def _json(status: int, data: Any, content_type: str = _JSON, headers: Headers = ()) -> Response:
    return Response(status, (("content-type", content_type), *headers), (json_form.line(data),))


def _details(error: Exception) -> dict[str, Any]:
    known = isinstance(error, Error)
    return {
        "type": "about:blank" if not known else f"urn:maas:{error.code}",
        "title": type(error).__name__,
        "status": error.status if known else 500,
        "detail": str(error),
    }


def problem(error: Exception) -> Response:
    """The error as problem details (RFC 9457)."""
    details = _details(error)
    headers = _retry_after(error)
    if details["status"] == 401:
        headers += (("www-authenticate", "Bearer"),)
    return _json(details["status"], details, PROBLEM, headers)
