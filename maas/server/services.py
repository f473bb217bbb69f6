"""What a server does besides calling its models: each by a reserved method name.

A method that begins with an underscore is no model's own, so these names are free. Two
are here, over the graphs that differentiable calls leave behind:

    _backward(graph, given, gradients, wanted, keep)    gradients over a kept graph
    _release(graphs)                                    graphs whose results were collected

Others are entry points in the group `maas.services`: a class whose instance answers for one
server. Rooms further up the street, such as training, come in by that door, and so may strangers.
"""

import importlib
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from maas import tensors
from maas.calls import BACKWARD, RELEASE, Call, Result
from maas.errors import CodecError, Unsupported
from maas.executors.base import Job
from maas.executors.lanes import Lane
from maas.failures import presentable
from maas.limits import Leases
from maas.model import Model
from maas.server.admission import rows_in
from maas.server.catalogue import Catalogue
from maas.server.collectors import Collectors
from maas.server.guard import Caller
from maas.wire import Failure

__all__ = ["Service", "Services", "fields", "settle"]

_THREADS = 2


class Service(Protocol):
    """What answers the calls to one reserved method."""

    def __init__(self, services: "Services") -> None:
        """For one server; made at the first call."""

    def submit(self, caller: Caller, model: Model[..., Any], call: Call) -> Job[Any]:
        """The answer, later; what the caller is not granted is refused by `caller.check_grant`."""


class Services:
    """The services of one server.

    Attributes
    ----------
    leases : what is kept for one caller between messages.
    catalogue : the models that are here.
    jobs : folder of the jobs, None where none are kept.
    charge : counts rows of the model that a call makes run beside those that came with it.
    collectors : who keeps what the models are asked.
    """

    def __init__(
        self,
        leases: Leases,
        catalogue: Catalogue,
        jobs: Path | None,
        charge: Callable[[Caller, int], None],
        collectors: Collectors,
    ) -> None:
        self.leases = leases
        self.catalogue = catalogue
        self.jobs = jobs
        self.charge = charge
        self.collectors = collectors
        self._lock = threading.Lock()
        self._made: dict[str, Service] = {}
        self._graphs: Any = None
        self._lane = Lane(_THREADS, "maas-backward")

    @property
    def graphs(self) -> Any:
        """The graphs that are kept here; made at the first, as they need torch."""
        with self._lock:
            if self._graphs is None:
                if tensors.adapter("torch") is None:
                    raise Unsupported("this server has no torch, and so no gradients")
                made = importlib.import_module("maas.server.graphs")
                self._graphs = made.Graphs(self.leases)
            return self._graphs

    def submit(self, caller: Caller, model: Model[..., Any], call: Call) -> Job[Any]:
        """The answer to a call of a reserved method.

        Raises
        ------
        Unsupported
            There is no such service here.
        Forbidden
            The caller lacks its grant.
        """
        if call.method == BACKWARD:
            _check_differentiates(caller, call.model)
            return self.run(lambda: self._backward(caller, call))
        if call.method == RELEASE:
            return self.run(lambda: self._release(caller, call))
        return self._service(call.method).submit(caller, model, call)

    def kept(self, caller: Caller, call: Call, result: Result) -> Job[Any]:
        """The result of a differentiable call, its graph kept and named."""
        return self.run(lambda: self.graphs.kept(caller.id, call.leaves, result))

    def made(self, name: str) -> Any:
        """A service, for another one, or because it has something to do before anybody asks."""
        return self._service(name)

    def close(self) -> None:
        """Closes those that have something to close."""
        with self._lock:
            made = list(self._made.values())
        for service in made:
            getattr(service, "close", _nothing)()

    def run(self, work: Callable[[], Result]) -> Job[Any]:
        """What `work` gives, computed on a thread of its own kind; not on the loop."""
        job: Job[Any] = Job()
        self._lane.put(partial(settle, job, work), lambda error: job.settle(Failure(error)))
        return job

    def _service(self, name: str) -> Service:
        with self._lock:
            if name not in self._made:
                found = importlib.import_module("maas.entry_points").load("maas.services", name)
                if found is None:
                    raise Unsupported(f"this server does not know {name!r:.80}")
                self._made[name] = found(self)
            return self._made[name]

    def _backward(self, caller: Caller, call: Call) -> Result:
        graph, given, gradients, wanted, keep = fields(call, str, list, list, list, bool)
        # As many rows as the call before it, of which one was charged with the message.
        self.charge(caller, max((rows_in(each) for each in gradients), default=1) - 1)
        found = self.graphs.backward(
            caller.id, graph, given, gradients, wanted, keep=keep, context=call.context
        )
        return found.result  # type: ignore[no-any-return]

    def _release(self, caller: Caller, call: Call) -> Result:
        (names,) = fields(call, list)
        self.graphs.table.drop(caller.id, [name for name in names if type(name) is str])
        return Result(None)


def _nothing() -> None:
    """Most services hold nothing that must be closed."""


def settle(job: Job[Any], work: Callable[[], Result]) -> None:
    """Gives a job what `work` gives or raises; nothing where nobody waits any more."""
    if job.done():
        return
    try:
        job.settle(work())
    except BaseException as error:  # noqa: BLE001 - torch's, or the model's: whatever it is
        job.settle(Failure(presentable(error)))


def fields(call: Call, *kinds: type) -> tuple[Any, ...]:
    """The arguments of a service, which have exactly these types.

    Raises
    ------
    CodecError
        They have not.
    """
    if call.kwargs or [type(value) for value in call.args] != list(kinds):
        wanted = ", ".join(kind.__name__ for kind in kinds)
        raise CodecError(f"{call.method} wants [{wanted}]")
    return call.args


def _check_differentiates(caller: Caller, model: str) -> None:
    # Whoever may train may read the weights themselves; gradients tell no more.
    if "train" not in caller.allow:
        caller.check_grant("grad", model)
