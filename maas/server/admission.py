"""How much may be asked: quotas by key, and slots at each model, shared among callers.

A quota is written as the library `limits` reads it: `"100/second"`, `"10/second; 5000/hour"`.
It counts requests, rows (the first dimension of the first array) and bytes of bodies. What
is above it is refused with `Overloaded`, before the model hears of it, and costs its caller
nothing. It reads the wall clock, as its windows are those of people.

A slot at a model is held from a call's admission until its work has really ended, which
may be long after its caller has left. Where callers have keys, nobody takes more than a fair
part of the slots once half of them are taken.
"""

import importlib
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import attrs

from maas import tensors
from maas.calls import Call
from maas.errors import LimitExceeded, Overloaded

__all__ = ["KINDS", "MAX_PENDING", "Quota", "Quotas", "Slots", "rows_in", "rows_of"]

KINDS = ("requests", "rows", "bytes")

MAX_PENDING = 1024
"""Calls that one model may have in hand, where nobody said."""

_LONGEST_RETRY = 60.0
_UNMEASURED = 1.0
_SMOOTHING = 0.1


@attrs.frozen
class Quota:
    """What one key may ask: for each of `KINDS` the limits that all have to be kept."""

    limits: Mapping[str, tuple[Any, ...]] = attrs.field(factory=dict)

    @classmethod
    def of(cls, told: object, whose: str) -> "Quota":
        """From text by kind, such as `{"requests": "100/second"}`.

        Raises
        ------
        ValueError
            Another kind, or text that is no limit.
        ImportError
            The package `limits` is not installed.
        """
        if not isinstance(told, Mapping) or set(told) - set(KINDS):
            raise ValueError(f"the quota of {whose} wants limits of {', '.join(KINDS)}; got {told}")
        return cls({kind: _parsed(text, whose) for kind, text in told.items()})


def _parsed(text: object, whose: str) -> tuple[Any, ...]:
    try:
        return tuple(_library().parse_many(text))
    except ValueError:
        raise ValueError(
            f"the quota of {whose} wants limits such as '100/second; 5000/hour', got {text!r}"
        ) from None


def _library() -> Any:
    try:
        return importlib.import_module("limits")
    except ImportError as error:
        raise ImportError("quotas need the package limits: pip install maas-sdk[quotas]") from error


class Quotas:
    """Counts what keys ask, against their own quota or the one for everybody."""

    def __init__(self, default: Mapping[str, str] | None = None) -> None:
        self._default = None if default is None else Quota.of(default, "every key")
        self._limiter: Any = None

    def bind(self, own: Quota | None) -> bool:
        """Whether a caller with this quota of its own has any."""
        return own is not None or self._default is not None

    def charge(self, caller: str, own: Quota | None, kind: str, amount: int) -> None:
        """Counts so much of a kind.

        Raises
        ------
        Overloaded
            The quota is used up; nothing was counted.
        LimitExceeded
            One call asks for more than the quota ever allows.
        """
        quota = own or self._default
        limits = () if quota is None else quota.limits.get(kind, ())
        if not limits or not amount:
            return
        limiter = self._limiter = self._limiter or _limiter()
        for limit in limits:
            if amount > limit.amount:
                raise LimitExceeded(
                    f"one call of {amount} {kind} is above the quota of {limit.amount} {kind} "
                    f"in {limit.get_expiry()} s"
                )
            if not limiter.test(limit, caller, kind, cost=amount):
                reset = limiter.get_window_stats(limit, caller, kind).reset_time
                wait = round(max(reset - time.time(), 0.01), 3)
                raise Overloaded(
                    f"the quota of {limit.amount} {kind} in {limit.get_expiry()} s is used up; "
                    f"ask again in {math.ceil(wait)} s",
                    retry_after=wait,
                )
        for limit in limits:
            limiter.hit(limit, caller, kind, cost=amount)


def _limiter() -> Any:
    library = _library()
    strategies = importlib.import_module("limits.strategies")
    return strategies.SlidingWindowCounterRateLimiter(library.storage.MemoryStorage())


def rows_of(call: Call) -> int:
    """The first dimension of the call's first array; 1 where there is none."""
    for value in (*call.args, *call.kwargs.values()):
        for each in value.values() if type(value) is dict else (value,):
            facts = tensors.facts(each)
            if facts is not None and facts[1]:
                return facts[1][0]
    return 1


def rows_in(array: Any) -> int:
    """The first dimension of one array; 1 where it has none."""
    facts = tensors.facts(array)
    return facts[1][0] if facts is not None and facts[1] else 1


class Slots:
    """The calls that one model has in hand, waiting and running; `shared` if callers have keys."""

    def __init__(self, most: int, name: str, *, shared: bool) -> None:
        self._most = most
        self._name = name
        self._shared = shared
        self._held: Counter[str] = Counter()
        self._total = 0
        self._lock = threading.Lock()
        self._left_at = 0.0
        self._seconds = 0.0

    @property
    def total(self) -> int:
        """Calls in hand."""
        return self._total

    def check(self, caller: str) -> None:
        """Raises `Overloaded` where a call of this caller would be refused now."""
        if self._total >= self._most:
            raise self._overloaded(f"{self._total} calls are in hand")
        if self._shared and 2 * self._total >= self._most:
            # One slot more than there are callers: for whoever comes next.
            share = max(1, self._most // (len(self._held) + 1))
            if self._held[caller] >= share:
                raise self._overloaded(f"{self._held[caller]} of your calls are in hand")

    def enter(self, caller: str) -> None:
        """Takes a slot, or raises as `check` does."""
        with self._lock:
            self.check(caller)
            if not self._total:
                self._left_at = time.monotonic()
            self._total += 1
            self._held[caller] += 1

    def leave(self, caller: str) -> None:
        """Gives the slot back: the work has ended."""
        now = time.monotonic()
        with self._lock:
            self._total -= 1
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]
            self._seconds += _SMOOTHING * (now - self._left_at - self._seconds)
            self._left_at = now

    def _wait(self) -> float:
        return self._total * self._seconds

    def _overloaded(self, why: str) -> Overloaded:
        seconds = self._wait() if self._seconds else _UNMEASURED
        return Overloaded(
            f"{self._name} has more work than it can do: {why}; come back later",
            retry_after=round(min(max(seconds, 1e-3), _LONGEST_RETRY), 3),
        )
