"""From a request under `/v2` to its answer; the handler's own rules hold here as everywhere."""

import re
from typing import Any, Protocol

import attrs

from maas.buffers import Body
from maas.errors import CodecError, Error, Forbidden, NotReady
from maas.executors.base import ModelInfo
from maas.http import Headers, Response, header
from maas.server import head_fields
from maas.server.compression import ACCEPTED, Inflater, UnknownCoding, coding
from maas.server.entrance import Entrance
from maas.server.forms import Form, Serving, internal, json_response
from maas.server.front import Admission, Head
from maas.server.guard import Caller, Guard
from maas.server.inference_protocol.addresses import Address, address
from maas.server.inference_protocol.form import (
    InferenceForm,
    InferenceRoute,
    failure,
    found_method,
)
from maas.server.inference_protocol.metadata import model_metadata, model_names, server_metadata
from maas.server.json_answers import line

__all__ = ["InferenceProtocol"]


class House(Serving, Protocol):
    """What is needed of the handler."""

    entrance: Entrance
    guard: Guard

    @property
    def inflater(self) -> Inflater:
        """Opens compressed bodies."""

    def check_ready(self) -> None:
        """Refuses when the server takes no calls."""

    async def meet(self, name: str) -> ModelInfo:
        """What the model says about itself."""

    async def converse(self, form: Form, body: Body) -> Response:
        """What the form makes of the answer to the call that it reads."""


class InferenceProtocol:
    """The protocol's pages, for one handler."""

    def __init__(self, house: House) -> None:
        self._house = house

    # Admission: by the head alone.

    def admit(self, head: Head) -> Admission | Response:
        """Leave to send a body, or the answer to a request that has none or may not have one."""
        try:
            self._house.entrance.check_host(head)
            place = address(head.path)
            _check_method(head, place)
            if place.page in ("live", "ready"):
                return self._health(ready=place.page == "ready")
            caller = self._house.guard.admit(head_fields.only(head, "authorization"))
            if place.page == "server":
                return json_response(200, server_metadata())
            route = InferenceRoute(caller, place.model, place.method, page=place.page)
            if place.page != "infer":
                return Admission(0, route, refused)
            return Admission(self._house.limits.body, self._call_route(head, route), refused)
        except Error as error:
            return _failure(error)

    def _health(self, *, ready: bool) -> Response:
        # Both keys: the specification says one, and clients read the other.
        try:
            if ready:
                self._house.check_ready()
        except NotReady as error:
            return _with(failure(error), {"error": str(error), "live": True, "ready": False})
        return json_response(200, {"live": True, "ready": True} if ready else {"live": True})

    def _call_route(self, head: Head, route: InferenceRoute) -> InferenceRoute:
        version = self._house.entrance.check_callable(route.caller, route.model, route.method)
        _check_origin(head)
        self._house.entrance.check_room(route.caller, version)
        return attrs.evolve(
            route,
            page="",
            deadline=head_fields.deadline(header(head.headers, "maas-timeout")),
            key=head_fields.key(head_fields.only(head, "idempotency-key")),
            trace=header(head.headers, "traceparent"),
            header_length=_length(head_fields.only(head, "inference-header-content-length")),
            coding=coding(head_fields.only(head, "content-encoding")),
        )

    # Answers.

    async def answer(self, route: InferenceRoute, body: Body) -> Response:
        """The answer to an admitted request."""
        try:
            if route.page:
                return await self._page(route)
            form = InferenceForm(self._house, route)
            if not route.coding:
                return await self._house.converse(form, body)
            async with self._house.inflater.opened(route.coding, body) as opened:
                return await self._house.converse(form, opened)
        except Error as error:
            return failure(error)
        except Exception as error:  # noqa: BLE001 - a fault of this server must not end it
            return failure(internal(error))

    async def _page(self, route: InferenceRoute) -> Response:
        if route.page == "models":
            return json_response(200, {"models": await self._names(route.caller)})
        self._house.entrance.check_seen(route.caller, route.model)
        if route.page == "model":
            route.caller.check("describe", route.model, route.method)
        info = await self._house.meet(route.model)
        method = found_method(info, route)
        if route.page == "model-ready":
            return self._model_ready(route)
        return json_response(200, model_metadata(info, method))

    async def _names(self, caller: Caller) -> list[str]:
        found: list[str] = []
        for name in self._house.entrance.names(caller):
            caller.check_grant("describe", name)
            found += model_names(await self._house.meet(name), caller)
        return found

    def _model_ready(self, route: InferenceRoute) -> Response:
        try:
            self._house.check_ready()
        except NotReady as error:
            data = {"error": str(error), "name": route.name, "ready": False}
            return _with(failure(error), data)
        return json_response(200, {"name": route.name, "ready": True})


def refused(status: int, detail: str) -> Response:
    """What the runner says of a body that may not come, in the protocol's words."""
    return json_response(status, {"error": detail})


# Parts.


class WrongMethod(Error):
    """A method that a page does not know; `allowed` are those it does."""

    code = "http-method"
    status = 405

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


def _failure(error: Error) -> Response:
    headers: Headers = ()
    if isinstance(error, UnknownCoding):
        headers = ACCEPTED
    if isinstance(error, WrongMethod):
        headers = (("allow", error.allowed),)
    return failure(error, headers)


def _with(response: Response, data: dict[str, Any]) -> Response:
    return attrs.evolve(response, body=(line(data),))


def _check_method(head: Head, place: Address) -> None:
    allowed = "POST" if place.page == "infer" else "GET, HEAD"
    if head.method not in allowed.split(", "):
        raise WrongMethod(f"{head.method:.20} is not understood here; use {allowed}", allowed)


def _check_origin(head: Head) -> None:
    """Refuses other sites' web pages: a browser asks nobody before it sends this kind of POST.

    Our own forms are safe by their content types, which this protocol's clients do not send.
    """
    origin = head_fields.only(head, "origin")
    if origin is not None and origin.partition("://")[2] != header(head.headers, "host"):
        raise Forbidden(f"a page of {origin!r:.80} may not call the models of this server")


def _length(text: str | None) -> int | None:
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,15}", text) is None:
        raise CodecError(f"inference-header-content-length is a number of bytes; got {text!r:.40}")
    return int(text)
