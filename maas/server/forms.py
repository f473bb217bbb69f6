"""The two forms of our own that a call and its answer have: messages of the wire format, and JSON.

The caller's content type decides, once, and nothing in the body may choose another.
"""

import contextlib
import logging
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from maas import wire
from maas.buffers import Body, Buffer
from maas.calls import Call, Context, Info
from maas.errors import CodecError, Error, InternalError, NotFound, NotReady, Overloaded
from maas.executors.base import ModelInfo, Stream, no_method
from maas.failures import REMOTE_TRACEBACK
from maas.http import MSGPACK, PROBLEM, Headers, Response
from maas.likeness import Reader
from maas.limits import Limits
from maas.records import frozen
from maas.server import json_form
from maas.server.guard import Caller
from maas.wire import End, Failure, Item
from maas.writers import AnswerWriter

__all__ = [
    "JSON",
    "Form",
    "Packed",
    "Plain",
    "Route",
    "Served",
    "Serving",
    "internal",
    "json_response",
    "problem",
    "retry_after",
]

JSON = "application/json"
LINES = "application/x-ndjson"


@frozen
class Route:
    """What a request's head decided: who asks what of which model, and in which form.

    `version` is what the model's address meant when it was decided that the caller may ask it, and
    `slots` are that model's. `metered`: a quota is to be charged. `may_be_prompt`: a model is
    asked, and no service, with no key to keep the answer by.
    """

    caller: Caller
    model: str = ""
    method: str = ""
    page: str = ""
    packed: bool = False
    html: bool = False
    accept: str = ""
    base: str = ""
    deadline: float | None = None
    key: str | None = None
    trace: str | None = None
    version: object = None
    slots: object = None
    metered: bool = True
    may_be_prompt: bool = False


class Serving(Protocol):
    """What a form needs to know of the handler."""

    limits: Limits
    tracebacks: bool
    reader: Reader
    writer: AnswerWriter


class Served(Protocol):
    """What a form needs to know of the version that runs."""

    address: str
    headers: Headers

    @property
    def known(self) -> ModelInfo:
        """What it says about itself, which the handler has asked by then."""


class Form(Protocol):
    """How a call is read and its answer written; `served` is what runs it, once that is known."""

    route: Route
    served: Served | None

    @property
    def wish(self) -> bytes:
        """What the answer depends on beyond the call; told after `read`."""

    def read(self, body: Body) -> Call:
        """The call that the body holds."""

    def answer(self, answer: Any) -> Response:
        """A `Result` or `Failure`."""

    def failure(self, error: Exception) -> Response:
        """An error."""

    def stream(self, stream: Stream[Any]) -> Response:
        """Items as they come."""


class Packed:
    """Messages of the wire format, both ways."""

    wish = b""

    def __init__(self, serving: Serving, route: Route) -> None:
        self.route = route
        self.served: Served | None = None
        self._serving = serving
        self._limits = serving.limits

    @property
    def _headers(self) -> Headers:
        return (("content-type", MSGPACK),) if self.served is None else self.served.headers

    def read(self, body: Body) -> Call:
        """The call that the message holds."""
        route = self.route
        return self._serving.reader.read(body, model=route.model, method=route.method)

    def answer(self, answer: Any) -> Response:
        """The answer, whole."""
        if isinstance(answer, Failure):
            return self.failure(answer.error, answer.rng)
        try:
            return Response(200, self._headers, self._serving.writer.write(answer))
        except CodecError as error:
            return self.failure(error)

    def failure(self, error: Exception, rng: bytes | None = None) -> Response:
        """The error as a message."""
        status = error.status if isinstance(error, Error) else 500
        headers = self._headers + retry_after(error)
        return Response(status, headers, self._failure(error, rng))

    def _failure(self, error: Exception, rng: bytes | None = None) -> Sequence[Buffer]:
        if not self._serving.tracebacks:
            _hush(error)
        return wire.encode(Failure(error, rng), self._limits)

    def stream(self, stream: Stream[Any]) -> Response:
        """Items, and the end or the error, as messages."""
        return Response(200, self._headers, self._frames(stream))

    async def _frames(self, stream: Stream[Any]) -> AsyncIterator[Sequence[Buffer]]:
        async with contextlib.aclosing(stream):
            try:
                async for item in stream:
                    yield wire.encode(Item(item), self._limits)
                yield wire.encode(
                    End(stream.info or Info(), getattr(stream, "rng", None)), self._limits
                )
            except Exception as error:  # noqa: BLE001 - the model's, to be sent
                yield self._failure(error, getattr(stream, "rng", None))


class Plain:
    """JSON, for people with curl and for small inputs."""

    wish = b""

    def __init__(self, serving: Serving, route: Route) -> None:
        self.route = route
        self.served: Served | None = None
        self._serving = serving

    @property
    def _headers(self) -> Headers:
        return () if self.served is None else (("maas-model", self.served.address),)

    def read(self, body: Body) -> Call:
        """The call that the JSON text holds."""
        route = self.route
        assert self.served is not None  # noqa: S101 - only what runs is read
        info = self.served.known
        method = info.methods.get(route.method)
        if method is None:
            raise NotFound(str(no_method(route.model, route.method, info.methods)))
        args, kwargs = json_form.arguments(bytes(body), method, info.kind, self._serving.limits)
        context = Context(grad=False, deadline=route.deadline, key=route.key, trace=route.trace)
        return Call(route.model, route.method, args, kwargs, context, owned=True)

    def answer(self, answer: Any) -> Response:
        """The answer as JSON."""
        if isinstance(answer, Failure):
            return self.failure(answer.error)
        return json_response(200, {"result": json_form.plain(answer.value)}, headers=self._headers)

    def failure(self, error: Exception) -> Response:
        """The error as problem details."""
        return problem(error, self._headers)

    def stream(self, stream: Stream[Any]) -> Response:
        """Items as lines of JSON."""
        return Response(200, (("content-type", LINES), *self._headers), self._lines(stream))

    async def _lines(self, stream: Stream[Any]) -> AsyncIterator[Sequence[Buffer]]:
        async with contextlib.aclosing(stream):
            try:
                async for item in stream:
                    yield (json_form.line({"item": json_form.plain(item)}),)
                yield (json_form.line({"end": True}),)
            except Exception as error:  # noqa: BLE001 - the model's, to be sent
                yield (json_form.line({"error": _details(error)}),)


def _hush(error: BaseException) -> None:
    """Takes the tracebacks off an error and all it is linked with, a gateway's notes included."""
    waiting, seen = [error], set()
    while waiting:
        error = waiting.pop()
        seen.add(id(error))
        error.__traceback__ = None
        if hasattr(error, "__notes__"):
            error.__notes__ = [
                note for note in error.__notes__ if not str(note).startswith(REMOTE_TRACEBACK)
            ]
        linked = (error.__cause__, error.__context__, *getattr(error, "exceptions", ()))
        waiting += [
            other for other in linked if isinstance(other, BaseException) and id(other) not in seen
        ]


def retry_after(error: Exception) -> Headers:
    """The header that says when to come back, for the errors that know."""
    if not isinstance(error, Overloaded | NotReady):
        return ()
    seconds: Any = error.retry_after  # the model's own error may say anything
    known = isinstance(seconds, int | float) and 0 <= seconds <= _LONGEST_RETRY
    return (("retry-after", str(max(1, math.ceil(seconds)) if known else 1)),)


_LONGEST_RETRY = 86_400


def json_response(
    status: int, data: Any, content_type: str = JSON, headers: Headers = ()
) -> Response:
    """A reply whose body is one JSON text."""
    return Response(status, (("content-type", content_type), *headers), (json_form.line(data),))


def _details(error: Exception) -> dict[str, Any]:
    code, status = ("model", 500)
    if isinstance(error, Error):
        code, status = error.code, error.status
    return {
        "type": f"urn:maas:{code}",
        "title": type(error).__name__,
        "status": status,
        "detail": str(error),
    }


def problem(error: Exception, headers: Headers = ()) -> Response:
    """The error as problem details (RFC 9457)."""
    details = _details(error)
    headers += retry_after(error)
    if details["status"] == 401:
        headers += (("www-authenticate", "Bearer"),)
    return json_response(details["status"], details, PROBLEM, headers)


def internal(error: Exception) -> Error:
    """What callers are told of a fault of this server; its log is told the rest."""
    _LOG.exception("a request failed", exc_info=error)
    return InternalError("the server failed to answer; its log tells why")


_LOG = logging.getLogger("maas")
