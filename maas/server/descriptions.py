"""What models say about themselves, and whether they take calls.

Both are asked on a thread of their own, never on the loop that answers calls: a gateway's model
is asked elsewhere, and a worker may be starting.
"""

import asyncio
import concurrent.futures
import hashlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import attrs

from maas import wire
from maas.errors import NotReady
from maas.executors.base import ModelInfo
from maas.http import MSGPACK, Headers, Response
from maas.limits import Limits
from maas.server import json_form, page
from maas.server.catalogue import Catalogue, Version
from maas.server.entrance import Entrance
from maas.server.figures import words
from maas.server.forms import Route, json_response
from maas.server.guard import Caller, Guard
from maas.server.metrics import Metrics
from maas.versions import versions
from maas.wire import Description

__all__ = ["Described", "Descriptions"]

T = TypeVar("T")

_READY_WAIT = 1.0
"""Seconds that a probe waits for a model that is elsewhere."""


class Described(Protocol):
    """What is needed of the handler."""

    catalogue: Catalogue
    guard: Guard
    entrance: Entrance
    limits: Limits
    metrics: Metrics


class Descriptions:
    """Describes the models of one handler."""

    def __init__(self, house: Described) -> None:
        self._house = house
        self._asking: dict[Version, concurrent.futures.Future[ModelInfo]] = {}
        self._readying: dict[Version, concurrent.futures.Future[None]] = {}

    async def learned(self, version: Version) -> ModelInfo:
        """What the model says about itself; not on this loop, as a gateway's asks elsewhere."""
        asking = self._asking.get(version)
        if asking is None or asking.done():
            # One question at a time: a place that does not answer holds one thread, not all.
            asking = self._asking[version] = _asked(version.executor.describe)
        try:
            info = await asyncio.shield(asyncio.wrap_future(asking))
        finally:
            if asking.done():
                self._asking.pop(version, None)
        info = attrs.evolve(
            info,
            name=version.name,
            version=version.version,
            where="here",
            limits=attrs.asdict(self._house.limits),
        )
        # All that a client acts on: it must ask again when any of it is another.
        text = repr((info.version, info.training, [*info.methods.values()]))
        version.headers = version.described_by(hashlib.sha256(text.encode()).hexdigest()[:16])
        version.info = info
        return info

    async def page(self, route: Route) -> Response:
        """One model, or all that the caller may see, in the form that the route wants."""
        caller = route.caller
        if route.model:
            here = {route.model: self._house.entrance.check_seen(caller, route.model)}
        else:
            visible = self._house.catalogue.visible(caller)
            here = {name: version for name, version in visible.items() if version.ready}
        for name, version in here.items():
            caller.check_grant("describe", name)
            version.check_ready()
        infos = {
            name: _shown(await self.learned(version), caller, name)
            for name, version in sorted(here.items())
        }
        if route.html:
            told = await words(self._house.metrics, route, list(infos))
            text = page.index(infos, route.base, self._house.guard.locked, told)
            kind: Headers = (("content-type", "text/html; charset=utf-8"),)
            return Response(200, kind + page.SECURITY, (text,))
        data = {
            "protocol": [wire.VERSION, wire.VERSION],
            "versions": versions(),
            "limits": attrs.asdict(self._house.limits),
            "model": route.model,
            "models": {name: info.to_data() for name, info in infos.items()},
            **self._house.catalogue.listed(caller),
        }
        if not route.packed:
            return json_response(200, json_form.plain(data))
        (only,) = here.values() if len(here) == 1 else (None,)
        headers = only.headers if only is not None else (("content-type", MSGPACK),)
        return Response(200, headers, wire.encode(Description(data), self._house.limits))

    async def check_ready(self, route: Route) -> None:
        """Raises `NotReady` where the model does not take calls."""
        version = self._house.entrance.check_seen(route.caller, route.model)
        version.check_ready()
        asking = self._readying.get(version)
        if asking is None or asking.done():
            asking = self._readying[version] = _asked(partial(version.executor.ready, _READY_WAIT))
        try:
            await asyncio.shield(asyncio.wrap_future(asking))
        except Exception:  # noqa: BLE001 - whatever it is that keeps it from being ready
            raise NotReady(f"{route.model} is not ready", retry_after=1.0) from None
        finally:
            if asking.done():
                self._readying.pop(version, None)


def _shown(info: ModelInfo, caller: Caller, address: str) -> ModelInfo:
    """What the caller may know of a model: the methods that its key may ask."""
    known_as = (info.name, f"{info.name}@{info.version}")
    methods = {
        name: method
        for name, method in info.methods.items()
        if caller.may_ask(address, name, known_as=known_as)
    }
    return attrs.evolve(info, methods=methods)


def _asked(question: Callable[[], T]) -> "concurrent.futures.Future[T]":
    """The answer, from a thread of its own, which nobody waits for when the process ends."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def ask() -> None:
        try:
            future.set_result(question())
        except BaseException as error:  # noqa: BLE001 - for those who wait
            future.set_exception(error)

    threading.Thread(target=ask, name="maas-ask", daemon=True).start()
    return future
