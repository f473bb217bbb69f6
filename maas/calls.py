"""The two things that move through the house: a `Call` and a `Result`.

Frozen records without behaviour beyond their own fields. What they carry is
plain values (`values.py`); how they become bytes is `wire.py`.
"""

import time
from collections.abc import Mapping
from typing import Any

import attrs

from maas.errors import DeadlineExceeded
from maas.records import frozen

__all__ = [
    "AMBIENT",
    "BACKWARD",
    "CALL",
    "NO_GRAD",
    "RELEASE",
    "Autocast",
    "Call",
    "Context",
    "Info",
    "Result",
]


@attrs.frozen
class Autocast:
    """The state of `torch.autocast` for one device type."""

    device: str
    dtype: str
    enabled: bool


@frozen(kw_only=True, eq=True)
class Context:
    """What surrounds a call and travels with it.

    Attributes
    ----------
    grad : torch's grad mode at the caller.
    training : True for train mode, False for eval, None where the notion is void.
    autocast : the caller's autocast states that differ from torch's defaults.
    seed : run under a forked generator seeded so; the caller's own is untouched.
    rng : state of torch's CPU generator (its `get_rng_state()` bytes), for
        stochastic calls only; the result brings the advanced state back.
    deadline : `time.monotonic()` at which the caller stops waiting.
        Absolute here, remaining seconds on the wire: clocks differ, durations do not.
    key : idempotency key; equal keys mean one and the same call.
    priority : larger is sooner.
    retries : how often to try again; of the caller's side only, it does not travel.
    trace : W3C `traceparent` of the caller.
    parameters : the caller wants gradients of the model's own parameters as well; of this side
        only, it does not travel.
    """

    grad: bool = True
    training: bool | None = None
    autocast: tuple[Autocast, ...] = ()
    seed: int | None = None
    rng: bytes | None = None
    deadline: float | None = None
    key: str | None = None
    priority: int = 0
    retries: int = 0
    trace: str | None = None
    parameters: bool = False

    def remaining(self) -> float | None:
        """Seconds left, or None for no deadline; raises when none are left.

        Raises
        ------
        DeadlineExceeded
            The deadline has passed.
        """
        if self.deadline is None:
            return None
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the call could run")
        return left


AMBIENT = Context()
"""The context of a caller who set nothing: torch's defaults, no deadline."""

NO_GRAD = Context(grad=False)
"""The same under `torch.no_grad()`."""


CALL = "__call__"
"""The method that `model(x)` asks for."""

BACKWARD = "_backward"
"""Asks a place for gradients over a graph that it keeps; see `server/services.py`."""

RELEASE = "_release"
"""Tells a place that the results of some graphs were collected."""


@frozen
class Call:
    """One question to one model: a method, its arguments, and the context.

    `owned` arguments came in a message and belong to nobody else, so they need
    no guard against a model that changes them or returns them. `caller` is who asks, as the
    server that received the call knows it; it does not travel, and is empty for a call from here.
    `leaves` are the tensors in them that require grad, in the order in which they came; known of
    a message only. `likeness` is one and the same in calls that differ in what their arrays hold,
    and in nothing else but the deadline; known of some messages only.
    """

    model: str
    method: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    context: Context = AMBIENT
    owned: bool = False
    caller: str = ""
    leaves: tuple[Any, ...] = ()
    likeness: Any = attrs.field(default=None, eq=False, repr=False)


@frozen(eq=True)
class Info:
    """Facts about how an answer came to be.

    Attributes
    ----------
    where : the place that ran the model, as `model.where` names it.
    device : torch device the model ran on, None where the notion is void.
    batch_size : calls that shared the model's run.
    queue_seconds : time from arrival at the executor to the start of the run.
    compute_seconds : time the model itself ran.
    note : why it ran otherwise than asked, such as alone where batches were wanted.
    version : which version of the model ran, None where a model has none.
    request : the name of the call at a server that collects what it is asked, for `model.label`.
    """

    where: str = "here"
    device: str | None = None
    batch_size: int = 1
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    note: str = ""
    version: str | None = None
    request: str | None = None

    def seen_from(
        self, where: str, version: str | None = None, request: str | None = None
    ) -> "Info":
        """The same facts, told by someone for whom the model ran at `where`."""
        return Info(
            where,
            self.device,
            self.batch_size,
            self.queue_seconds,
            self.compute_seconds,
            self.note,
            version,
            request,
        )


@frozen
class Result:
    """The answer to a call; `rng` is the advanced generator state of a stochastic one.

    `graph` names the autograd graph that the place keeps behind the value, and `leaves` are
    the tensors in the value that are part of it, as `Call` has them.
    """

    value: Any
    info: Info = Info()
    rng: bytes | None = None
    graph: str | None = None
    leaves: tuple[Any, ...] = ()
