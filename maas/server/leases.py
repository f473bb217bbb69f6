"""What a server keeps for its callers between two messages: by a name that cannot be guessed.

A thing belongs to the caller it was made for. To anybody else its name means as little as
one that never was, and the answer is the same. It goes when it is dropped, when it was not
used for its time, or when it gives way to a newer one; for a while the table remembers
which of these it was, since "gone" alone helps nobody.
"""

import secrets
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

import attrs

from maas.errors import Expired, LimitExceeded
from maas.limits import Leases
from maas.loops import call_at

__all__ = ["Bounds", "Table"]

T = TypeVar("T")

_REMEMBERED = 4_096
"""Names whose end is remembered, at 0.3 KB each."""


@attrs.frozen
class Bounds:
    """How much of one kind one caller may have, and the fields of `maas.Leases` that say so."""

    noun: str
    count: int
    nbytes: int
    seconds: float
    fields: tuple[str, str, str]
    gives_way: bool

    @classmethod
    def of(
        cls, leases: Leases, noun: str, fields: tuple[str, str, str], *, gives_way: bool
    ) -> "Bounds":
        """What those fields say."""
        count, nbytes, seconds = (getattr(leases, field) for field in fields)
        return cls(noun, count, nbytes, seconds, fields, gives_way)


@attrs.define
class _Held(Generic[T]):
    thing: T
    nbytes: int
    used: float


class Table(Generic[T]):
    """Things of one kind, by the caller who has them and their name."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._lock = threading.Lock()
        self._held: dict[str, OrderedDict[str, _Held[T]]] = {}
        self._ends: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._sweeping = False

    def add(self, owner: str, thing: T, nbytes: int) -> str:
        """Keeps a thing, and gives the name that it goes by.

        Raises
        ------
        LimitExceeded
            It does not fit what this caller may have.
        """
        count, most, _ = self._bounds.fields
        name = secrets.token_urlsafe(18)
        with self._lock:
            self._expire(owner)
            held = self._held.setdefault(owner, OrderedDict())
            while held and self._bounds.gives_way and self._is_full(held, nbytes):
                oldest = next(iter(held))
                self._end(owner, oldest, f"it gave way to newer ones ({self._told(count, most)})")
            if self._is_full(held, nbytes):
                raise LimitExceeded(
                    f"{self._bounds.noun} of {nbytes} bytes, beside {len(held)} that you have with "
                    f"{_sum(held)} bytes; this server allows {self._told(count, most)}"
                )
            held[name] = _Held(thing, nbytes, time.monotonic())
        self._sweep_later()
        return name

    def _is_full(self, held: "OrderedDict[str, _Held[T]]", nbytes: int) -> bool:
        return len(held) >= self._bounds.count or _sum(held) + nbytes > self._bounds.nbytes

    def _told(self, count: str, most: str) -> str:
        return f"Leases({count}={self._bounds.count}, {most}={self._bounds.nbytes})"

    def find(self, owner: str, name: str) -> T:
        """The thing of that name, used now.

        Raises
        ------
        Expired
            This caller has none of that name; the message says why, where it was known.
        """
        with self._lock:
            self._expire(owner)
            held = self._held.get(owner, OrderedDict())
            found = held.get(name)
            if found is None:
                raise self._gone(owner, name)
            found.used = time.monotonic()
            held.move_to_end(name)
            return found.thing

    def _gone(self, owner: str, name: str) -> Expired:
        why = self._ends.get((owner, name), "it was freed, or is not yours")
        return Expired(f"{self._bounds.noun} is not here: {why}")

    def take(self, owner: str, name: str) -> T:
        """The thing of that name, kept no longer; raises as `find` does."""
        thing = self.find(owner, name)
        self.drop(owner, [name])
        return thing

    def resize(self, owner: str, name: str, nbytes: int) -> None:
        """Charges another size for a thing; raises as `add` does, and then nothing has changed."""
        count, most, _ = self._bounds.fields
        with self._lock:
            held = self._held.get(owner, OrderedDict())
            found = held.get(name)
            if found is None:
                raise self._gone(owner, name)
            if _sum(held) - found.nbytes + nbytes > self._bounds.nbytes:
                raise LimitExceeded(
                    f"{self._bounds.noun} would take {nbytes} bytes; this server allows a caller "
                    f"{self._told(count, most)} in all"
                )
            found.nbytes = nbytes

    def drop(self, owner: str, names: Iterable[str]) -> None:
        """Lets go of things; names that mean nothing are passed by."""
        with self._lock:
            for name in names:
                if name in self._held.get(owner, {}):
                    self._end(owner, name, "it was freed")

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._held.values()))

    # The lock is held in what follows.

    def _end(self, owner: str, name: str, why: str) -> None:
        del self._held[owner][name]
        self._ends[owner, name] = why
        while len(self._ends) > _REMEMBERED:
            self._ends.popitem(last=False)

    def _expire(self, owner: str) -> None:
        oldest = time.monotonic() - self._bounds.seconds
        held = self._held.get(owner, OrderedDict())
        field = self._bounds.fields[2]
        # In the order of their use: behind the first that is young, all are.
        while held and next(iter(held.values())).used <= oldest:
            why = f"it was not used for {self._bounds.seconds:g} s (Leases({field}=...))"
            self._end(owner, next(iter(held)), why)

    # A timer, for what its caller has forgotten.

    def sweep(self) -> None:
        """Lets go of all that was not used for its time."""
        with self._lock:
            self._sweeping = False
            for owner in list(self._held):
                self._expire(owner)
                if not self._held[owner]:
                    del self._held[owner]
            waiting = bool(self._held)
        if waiting:
            self._sweep_later()

    def _sweep_later(self) -> None:
        with self._lock:
            if self._sweeping:
                return
            self._sweeping = True
        # The loop must not keep a server's table alive.
        table = weakref.ref(self)
        call_at(time.monotonic() + self._bounds.seconds, lambda: _sweep(table))


def _sweep(reference: "weakref.ref[Table[T]]") -> None:
    table = reference()
    if table is not None:
        table.sweep()


def _sum(held: "OrderedDict[str, _Held[T]]") -> int:
    return sum(each.nbytes for each in held.values())
