"""When a failed call may be sent again, and after what pause.

Again only if the call cannot have been run (nothing was sent, or the server said
that it did not), or if running it twice is running it once (a pure method, an idempotency
key), and never after a byte of the reply. Pauses grow and are jittered over their whole
length ("full jitter", AWS Architecture Blog, 2015), a server's Retry-After is honoured, the
deadline is the sum of all attempts, and a budget keeps retries under a tenth of the calls
(Google SRE book, chapter 21), so that they cannot bring down a server that is merely slow.
"""

import random
import threading
import time

import attrs

from maas.errors import NotReady, Overloaded, TransportError

__all__ = ["Attempts", "Budget"]

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
_LONGEST_ASKED = 60.0
"""A server that wants to be left alone for longer is given up: its word must not hold a caller."""


class Budget:
    """Tokens for retries: a tenth of one a call, at most ten saved up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = 10.0

    def earn(self) -> None:
        """A call was made."""
        with self._lock:
            self._tokens = min(10.0, self._tokens + 0.1)

    def spend(self) -> bool:
        """Takes a token for a retry; False when there is none."""
        with self._lock:
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


@attrs.define
class Attempts:
    """The attempts of one call."""

    retries: int
    repeatable: bool
    deadline: float | None
    budget: Budget
    made: int = 0
    _reconnected: bool = False

    def pause_after(self, error: Exception) -> float | None:
        """Seconds to wait before the next attempt; None to give up."""
        if self._is_stale(error):
            # A kept-alive connection may close while the call is on its way: one new try is free.
            self._reconnected = True
            return 0.0
        if self.made >= self.retries or not self._may_repeat(error):
            return None
        asked = getattr(error, "retry_after", None) or 0.0
        most = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self.made + 1))
        pause = max(asked, random.uniform(0, most))  # noqa: S311 - no secret
        late = self.deadline is not None and time.monotonic() + pause >= self.deadline
        if late or asked > _LONGEST_ASKED or not self.budget.spend():
            return None
        self.made += 1
        return pause

    def _is_stale(self, error: Exception) -> bool:
        cut = isinstance(error, TransportError) and error.sent and not error.answered
        return cut and self.repeatable and not self._reconnected

    def _may_repeat(self, error: Exception) -> bool:
        if isinstance(error, Overloaded | NotReady):
            return True
        if not isinstance(error, TransportError) or error.answered:
            return False
        return self.repeatable or not error.sent
