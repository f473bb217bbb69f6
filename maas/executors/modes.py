"""Train and eval belong to the handle: calls of equal mode overlap, a change of mode is exclusive.

Two clients never flip each other: the mode travels with the call, is set on the target
before the first of the calls that share it, and is set back after the last.
"""

import threading
from collections.abc import Callable

from maas.backends.base import Backend, Method
from maas.calls import Context

__all__ = ["ModeGate"]


class ModeGate:
    """Lets calls of one mode at a time to a backend; exclusive ones alone."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        self._waiting: list[int] = []
        self._tickets = 0
        self._mode: bool | None = None
        self._exclusive = False
        self._own: bool | None = None
        self._restore: Callable[[], None] | None = None

    def own(self) -> bool | None:
        """The target's own mode, also while a call holds it in the other one."""
        return self._backend.training if self._own is None else self._own

    def enter(self, context: Context, method: Method) -> bool:
        """Waits until this call may run, and puts its mode in force; whether it may draw.

        A call draws from torch's generator in train mode, and where it is seeded or declared so.

        Raises
        ------
        DeadlineExceeded
            The call's deadline passed while it waited.
        """
        with self._lock:
            mode, draws = self._asked(context, method)
            exclusive = draws or method.exclusive
            if self._inside or self._waiting:
                self._wait(context, mode, exclusive=exclusive)
            self._go_in(mode, exclusive=exclusive)
            return draws

    def enter_at_once(self, context: Context, method: Method) -> bool:
        """As `enter` for a call that neither draws nor is exclusive; False where it had to wait."""
        with self._lock:
            mode, draws = self._asked(context, method)
            if draws or method.exclusive:
                return False
            if self._inside and (self._exclusive or self._mode is not mode):
                return False
            self._go_in(mode, exclusive=False)
            return True

    def _asked(self, context: Context, method: Method) -> tuple[bool | None, bool]:
        """The mode that the call wants, and whether it may draw."""
        mode = self.own() if context.training is None else context.training
        return mode, method.stochastic or mode is True or context.seed is not None

    def _go_in(self, mode: bool | None, *, exclusive: bool) -> None:
        if not self._inside:
            self._mode = mode
            self._exclusive = exclusive
            if mode is not self._backend.training:
                self._switch(mode)
        self._inside += 1

    def _wait(self, context: Context, mode: bool | None, *, exclusive: bool) -> None:
        """Returns once the call may run.

        Calls that want the target alone let those go first who waited before them, or a loop of
        such calls, as training is, would answer nobody else until its end. The others do not: a
        call may be made from within another one, which could not end before it.
        """
        self._tickets += 1
        ticket = self._tickets
        self._waiting.append(ticket)
        try:
            while (self._inside and (exclusive or self._exclusive or self._mode is not mode)) or (
                exclusive and self._waiting[0] != ticket
            ):
                self._changed.wait(context.remaining())
        except BaseException:
            self._changed.notify_all()
            raise
        finally:
            self._waiting.remove(ticket)

    def _switch(self, mode: bool | None) -> None:
        if mode is not None and self._backend.training is not None:
            self._own = self._backend.training
            self._restore = self._backend.set_training(mode)

    def leave(self) -> None:
        """The call has run; the last one out sets the target's own mode back."""
        with self._lock:
            self._inside -= 1
            if not self._inside:
                if self._restore is not None:
                    self._restore()
                    self._restore = self._own = None
                if self._waiting:
                    self._changed.notify_all()
