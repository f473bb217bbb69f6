"""Who comes in: what a request's head decides, before its body is read.

Who asks, for which model, in which form, and whether there is room. What is refused here has cost
nobody anything but its head.
"""

import re
from functools import lru_cache
from typing import Protocol, cast

import attrs

from maas.calls import CALL
from maas.errors import CodecError, Error, NotFound, Unsupported
from maas.executors.base import ADDRESS
from maas.http import MSGPACK, header
from maas.limits import Limits
from maas.records import frozen
from maas.server import head_fields
from maas.server.admission import Quotas, Slots
from maas.server.catalogue import Catalogue, Version
from maas.server.forms import JSON, Route
from maas.server.front import Admission, Head
from maas.server.guard import Caller, Guard, Key

__all__ = ["Entrance", "granted", "is_reserved"]

_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MSGPACK = frozenset({MSGPACK, "application/msgpack", "application/x-msgpack"})


class _House(Protocol):
    """What is needed of the handler."""

    catalogue: Catalogue
    guard: Guard
    limits: Limits
    hosts: frozenset[str] | None


@frozen
class _Cleared:
    """What a head may have; true while these keys hold and no address changes.

    `timeout` is what its sender will wait, as the head says it: each time until another deadline.
    """

    keys: tuple[Key, ...] | None
    changes: int
    caller: Caller
    slots: Slots
    metered: bool
    timeout: str | None
    admission: Admission


class Entrance:
    """The door of one handler.

    Parameters
    ----------
    house : the handler.
    quotas : what keys may ask.
    max_pending : calls that one model may have in hand.
    """

    def __init__(self, house: _House, quotas: Quotas, max_pending: int) -> None:
        self.quotas = quotas
        self._house = house
        self._guard = house.guard
        self._catalogue = house.catalogue
        self._max_pending = max_pending
        self._slots: dict[str, Slots] = {}

    def admit(self, head: Head) -> Admission:
        """Leave for what the head asks; a page is asked without a body.

        Raises
        ------
        Error
            It may not have it.
        """
        known: _Cleared | None = head.memory.get("cleared")
        changes = self._catalogue.changes
        if known is None or known.changes != changes or known.keys is not self._guard.keys:
            self.check_host(head)
            first, second = _segments(head.path)
            if first in ("healthz", "readyz"):
                if second:
                    raise NotFound(f"nothing is at {head.path!r:.80}")
                return Admission(0, Route(_ANYONE, page=first))
            keys = self._guard.keys  # before they are asked: they may change meanwhile
            caller = self._guard.admit(head_fields.only(head, "authorization"))
            if second == "readyz" or head.method != "POST":
                return Admission(0, self._page(head, caller, first, second))
            known = self._cleared(head, caller, first, second or CALL, (keys, changes))
            head.memory["cleared"] = known
        known.slots.check(known.caller.id)
        if known.timeout is None and not known.metered:
            return known.admission
        return self._once(known)

    def _once(self, known: _Cleared) -> Admission:
        """Leave that one request has, since it is counted or has a deadline of its own."""
        caller, admission, route = known.caller, known.admission, known.admission.route
        self.quotas.charge(caller.id, caller.quota, "requests", 1)
        deadline = head_fields.deadline(known.timeout)
        return Admission(admission.body_cap, attrs.evolve(cast("Route", route), deadline=deadline))

    def _page(self, head: Head, caller: Caller, first: str, second: str) -> Route:
        if second == "readyz":
            self.check_seen(caller, first)
            return Route(caller, model=first, page="readyz")
        if head.method not in ("GET", "HEAD"):
            raise Unsupported(f"{head.method} is not understood; GET describes, POST calls")
        accept = header(head.headers, "accept") or ""
        if (first, second) in (("metrics", ""), ("maas", "status")):
            return Route(caller, page=second or first, accept=accept)
        if second:
            raise NotFound(f"nothing is at {head.path!r:.80}; GET /{first} describes the model")
        return Route(
            caller,
            model=first,
            page="describe",
            packed=any(kind in accept for kind in _MSGPACK),
            html="text/html" in accept,
            base=_base(head),
        )

    def _cleared(
        self,
        head: Head,
        caller: Caller,
        model: str,
        method: str,
        at: tuple[tuple[Key, ...] | None, int],
    ) -> _Cleared:
        version = self.check_callable(caller, model, method)
        content = (header(head.headers, "content-type") or "").partition(";")[0].strip().lower()
        packed = content in _MSGPACK
        if not packed and content != JSON:
            raise UnknownContent(
                f"content type {content!r:.60}; this server reads {MSGPACK} and {JSON}; "
                f"curl says it by -H 'content-type: {JSON}'"
            )
        timeout = header(head.headers, "maas-timeout")
        head_fields.deadline(timeout)
        key = head_fields.key(head_fields.only(head, "idempotency-key"))
        slots, metered = self.slots(version.name), self.quotas.bind(caller.quota)
        route = Route(
            caller,
            model,
            method,
            packed=packed,
            key=key,
            trace=header(head.headers, "traceparent"),
            version=version,
            slots=slots,
            metered=metered,
            may_be_prompt=packed and key is None and not is_reserved(method),
        )
        admission = Admission(self._house.limits.body, route)
        return _Cleared(*at, caller, slots, metered, timeout, admission)

    def check_host(self, head: Head) -> None:
        """Refuses a host that is not this server's."""
        hosts = self._house.hosts
        if hosts is None:
            return
        host = (head_fields.only(head, "host") or "").lower()
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        if name not in hosts:
            raise Misdirected(
                f"this server answers for {', '.join(sorted(hosts))}, not for the host {name!r:.80}"
            )

    def check_callable(self, caller: Caller, address: str, method: str) -> Version:
        """What the address means; refuses what is not here for this caller, not his, or loading."""
        found = self._catalogue.find(address)
        # First what the key may do: to one that may not, a model that is not here looks as one is.
        known_as = () if found is None else found.names
        caller.check("call", address, granted(method), known_as=known_as)
        version = self._seen(caller, address, found)
        version.check_ready()
        return version

    def check_seen(self, caller: Caller, address: str) -> Version:
        """What the address means; refuses a model that is not here for this caller."""
        return self._seen(caller, address, self._catalogue.find(address))

    def _seen(self, caller: Caller, address: str, found: Version | None) -> Version:
        if found is None or not caller.sees(address, known_as=found.names):
            raise self._unseen(caller, address)
        return found

    def entered(self, route: Route) -> Version:
        """What the call will run on, held for it: admission was another moment."""
        found = self._catalogue.enter(route.model)
        if found is None:
            raise self._unseen(route.caller, route.model)
        if found is route.version:
            return found
        try:
            route.caller.check("call", route.model, granted(route.method), known_as=found.names)
            found.check_ready()
        except Error:
            self._catalogue.leave(found)
            raise
        return found

    def _unseen(self, caller: Caller, address: str) -> NotFound:
        here = ", ".join(self.names(caller)) or "none"
        return NotFound(f"no model {address!r:.80} here; there are: {here}")

    def names(self, caller: Caller) -> list[str]:
        """The models that are here for this caller."""
        return sorted(self._catalogue.visible(caller))

    def check_room(self, caller: Caller, version: Version) -> None:
        """Refuses a caller beyond its quota, or while the model has as much in hand as it may."""
        self.slots(version.name).check(caller.id)
        self.quotas.charge(caller.id, caller.quota, "requests", 1)

    def charge_rows(self, caller: Caller, rows: int) -> None:
        """Counts rows of a model against the caller's quota."""
        self.quotas.charge(caller.id, caller.quota, "rows", rows)

    def slots(self, name: str) -> Slots:
        """What the model, in all its versions, has in hand."""
        found = self._slots.get(name)
        if found is None:
            shared = self._house.guard.locked
            found = self._slots[name] = Slots(self._max_pending, name, shared=shared)
        return found


class UnknownContent(CodecError):
    code = "content-type"
    status = 415


class Misdirected(Error):
    code = "misdirected"
    status = 421


_ANYONE = Caller("anyone", frozenset())


@lru_cache(256)
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


def is_reserved(method: str) -> bool:
    """Whether a service answers, and no model: their own methods' names begin otherwise."""
    return method[:1] == "_" and method != CALL


def granted(method: str) -> str:
    """The method that a key must be granted; what a service needs beyond, it asks for itself."""
    return CALL if is_reserved(method) else method
