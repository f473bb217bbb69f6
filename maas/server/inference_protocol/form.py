"""Calls and answers in the protocol's words; every error is a JSON object with its text."""

import time
from collections.abc import Mapping
from typing import Any

from maas.backends.base import Method
from maas.buffers import Body
from maas.calls import Call, Context
from maas.errors import CodecError, Error, NotFound, Unsupported
from maas.executors.base import ModelInfo, Stream, no_method
from maas.http import Headers, Response
from maas.records import frozen
from maas.server.forms import JSON, Route, Served, Serving, json_response, retry_after
from maas.server.inference_protocol.addresses import VERSION, protocol_name
from maas.server.inference_protocol.arguments import arguments
from maas.server.inference_protocol.outputs import outputs, written
from maas.server.inference_protocol.requests import Inference, inference
from maas.server.json_answers import line
from maas.server.number_lists import brief_kind
from maas.server.replies import size
from maas.wire import Failure

__all__ = ["InferenceForm", "InferenceRoute", "failure", "found_method"]

_HIGHEST = 100
"""Our priority for the protocol's 1; its 2 is 99, and so on down to 1, above the default 0."""


@frozen
class InferenceRoute(Route):
    """A route under `/v2`.

    `header_length` is how much of the body is JSON, None for all; `coding` how it is compressed.
    """

    header_length: int | None = None
    coding: str = ""

    @property
    def name(self) -> str:
        """The model's name in the protocol's words."""
        return protocol_name(self.model, self.method)


class InferenceForm:
    """One inference."""

    def __init__(self, serving: Serving, route: InferenceRoute) -> None:
        self.route: Route = route
        self.served: Served | None = None
        self._route = route
        self._serving = serving
        self._asked = Inference(None, (), (), {}, binary=False)

    @property
    def wish(self) -> bytes:
        """What the answer depends on beyond the call."""
        asked = self._asked
        return repr((asked.id, asked.outputs, asked.binary)).encode("utf-8", "surrogatepass")

    def read(self, body: Body) -> Call:
        """The call that the request asks for."""
        route, limits = self._route, self._serving.limits
        info = self._known
        method = found_method(info, route)
        if method.streams:
            raise self._no_stream()
        self._asked = inference(body, route.header_length, limits)
        args, kwargs = arguments(method, info.kind, self._asked, limits)
        return Call(route.model, route.method, args, kwargs, self._context(), owned=True)

    @property
    def _known(self) -> ModelInfo:
        assert self.served is not None  # noqa: S101 - only what runs is read
        return self.served.known

    def _context(self) -> Context:
        given, route = self._asked.parameters, self._route
        if given.get("sequence_id") not in (None, 0, ""):
            raise Unsupported("sequences keep state between calls, which this server does not")
        return Context(
            grad=False,
            deadline=_sooner(route.deadline, _whole(given, "timeout")),
            key=route.key,
            trace=route.trace,
            priority=_priority(_whole(given, "priority")),
        )

    def answer(self, answer: Any) -> Response:
        """The outputs, or the error."""
        if isinstance(answer, Failure):
            return failure(answer.error)
        limits, route = self._serving.limits, self._route
        returns = found_method(self._known, route).signature.returns
        described, buffers = written(outputs(answer.value, returns), self._asked, limits)
        data: dict[str, Any] = {"model_name": route.name, "model_version": VERSION}
        if self._asked.id is not None:
            data["id"] = self._asked.id
        text = line(data | {"outputs": described})
        if not any("parameters" in each for each in described):
            return Response(200, (("content-type", JSON),), (text,))
        headers: Headers = (
            ("content-type", "application/octet-stream"),
            ("inference-header-content-length", str(size((text,)))),
        )
        return Response(200, headers, (text, *buffers))

    def failure(self, error: Exception) -> Response:
        """The error as the protocol has it."""
        return failure(error)

    def stream(self, _stream: Stream[Any]) -> Response:
        """An error: an inference has one answer. `read` has said so before anything ran."""
        return failure(self._no_stream())

    def _no_stream(self) -> Unsupported:
        route = self._route
        return Unsupported(
            f"{route.name} gives a stream, and an inference has one answer; "
            f"use maas.connect(url), or POST /{route.model}/{route.method}"
        )


def found_method(info: ModelInfo, route: Route) -> Method:
    """The method of that route; raises `NotFound`, naming those there are."""
    method = info.methods.get(route.method)
    if method is None:
        raise NotFound(str(no_method(route.model, route.method, info.methods)))
    return method


def failure(error: Exception, headers: Headers = ()) -> Response:
    """An error: its text in JSON, whatever it is, for clients read nothing else."""
    status = error.status if isinstance(error, Error) else 500
    text = str(error) if isinstance(error, Error) else f"{type(error).__name__}: {error}"
    headers += retry_after(error)
    if status == 401:
        headers += (("www-authenticate", "Bearer"),)
    return json_response(status, {"error": text}, headers=headers)


# Parameters of the schedule.


def _whole(given: Mapping[str, Any], name: str) -> int:
    found = given.get(name)
    if found is None:
        return 0
    if type(found) is not int or not 0 <= found < 2**64:
        raise CodecError(f"the parameter {name} is an int from 0; got {brief_kind(found)}")
    return found


def _priority(level: int) -> int:
    """Ours is larger for sooner; the protocol's 1 is the soonest, and 0 says nothing."""
    return max(1, _HIGHEST + 1 - level) if level else 0


def _sooner(deadline: float | None, microseconds: int) -> float | None:
    if microseconds == 0:
        return deadline
    asked = time.monotonic() + microseconds / 1e6
    return asked if deadline is None else min(deadline, asked)
