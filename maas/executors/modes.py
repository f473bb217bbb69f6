"""Train and eval belong to the handle: calls of equal mode overlap, a change of mode is exclusive.

Two clients never flip each other: the mode travels with the call, is set on the target
before the first of the calls that share it, and is set back after the last.
"""

import threading
from collections.abc import Callable

from maas.backends.base import Backend
from maas.calls import Context

__all__ = ["ModeGate"]


class ModeGate:
    """Lets calls of one mode at a time to a backend; exclusive ones alone."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._mode: bool | None = None
        self._own: bool | None = None
        self._exclusive = False
        self._restore: Callable[[], None] | None = None

    def enter(self, context: Context, *, exclusive: bool) -> None:
        """Waits until this call may run, and puts its mode in force.

        Raises
        ------
        DeadlineExceeded
            The call's deadline passed while it waited.
        """
        with self._changed:
            while self._inside and (exclusive or self._exclusive or self._mode != self._wanted(context)):
                self._changed.wait(context.remaining())
            if not self._inside:
                self._begin(context.training)
                self._exclusive = exclusive
            self._inside += 1

    def _wanted(self, context: Context) -> bool | None:
        return self._own if context.training is None else context.training

    def _begin(self, training: bool | None) -> None:
        self._own = self._backend.training
        self._mode = self._own if training is None else training
        if self._mode != self._own and self._mode is not None and self._own is not None:
            self._restore = self._backend.set_training(self._mode)

    def leave(self) -> None:
        """The call has run; the last one out sets the target's own mode back."""
        with self._changed:
            self._inside -= 1
            if self._inside == 0:
                if self._restore is not None:
                    self._restore()
                    self._restore = None
                self._changed.notify_all()
