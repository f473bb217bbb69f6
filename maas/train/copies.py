"""Private copies of models in training, on the server: the service `_train`.

    open                                         a copy, which is the model itself until it changes
    call(method, args, kwargs, rung)             one call of it
    backward(graph, given, gradients, wanted, keep, run)
    pull(whole)                                  the buffers, or parameters and buffers
    optimizer(number)                            the state of an optimizer
    do()                                         nothing but what each question may bring along:

works (steps, zeroed gradients), changed tensors, and changed `requires_grad`, which are applied
first. The first change makes the copy real: its own weights, buffers and
optimizer states, charged against `maas.Leases`. Nobody else ever sees it.

    release(graphs), close()                     graphs, or the copy itself, that nobody wants;
                                                 no questions, so they come in any order

Of a model that runs behind this server the copy is there too, and is asked through `relay.py`.

A copy answers one question at a time, in the order of their numbers. One that comes
again (its answer was lost) is given the same answer; works have numbers of their own and are
each done once. A generator's state that is empty stands for the one after the copy's last call.
"""

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import torch

from maas.backends.base import backend_for
from maas.calls import NO_GRAD, Call, Context, Result
from maas.data.prepared import PreparedExecutor
from maas.errors import CodecError, Conflict, Expired, Unsupported
from maas.executors.base import Job
from maas.executors.batching import BatchingExecutor
from maas.executors.lanes import Lane
from maas.executors.local import LocalExecutor
from maas.failures import presentable
from maas.model import Model
from maas.server.guard import Caller
from maas.server.leases import Bounds, Table
from maas.server.services import Services, settle
from maas.train.elsewhere import AS_LEFT, Elsewhere
from maas.train.layout import layout_of, tensors_of
from maas.train.machine import keep_freed_memory
from maas.train.relay import RelayedCopy
from maas.train.works import Workshop
from maas.wire import Failure

__all__ = ["Copies", "PrivateCopy"]


class Copies:
    """The private copies at one server."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.table: Table[PrivateCopy | RelayedCopy] = Table(
            Bounds.of(
                services.leases,
                "this private copy of the model",
                ("copies", "copy_bytes", "copy_seconds"),
                gives_way=False,
            )
        )

    def submit(self, caller: Caller, model: Model[..., Any], call: Call) -> Job[Any]:
        """The answer, later; raises `Forbidden` where the caller may not train."""
        caller.check_grant("train", call.model)
        operation, name, *rest = _started(call)
        if operation == "open":
            return self._open(caller.id, model, call.context)
        if operation in ("close", "release"):
            self._let_go(caller.id, name, None if operation == "close" else _names(rest))
            return _done(Result(None))
        return self.table.find(caller.id, name).submit(operation, rest, call)

    def _let_go(self, owner: str, name: str, graphs: list[str] | None) -> None:
        """Of graphs, or of a copy and all graphs that are left behind its results."""
        try:
            found = self.table.find(owner, name)
        except Expired:
            # What it left goes when a message about that comes, which may be later than its end.
            self._services.graphs.table.drop(owner, graphs or ())
            return
        found.release(graphs)
        if graphs is None:
            self.table.drop(owner, [name])

    def _open(self, owner: str, model: Model[..., Any], context: Context) -> Job[Any]:
        if isinstance(model.executor, Elsewhere):
            return self._relayed(owner, RelayedCopy(model.executor), context)
        job: Job[Any] = Job()
        settle(job, lambda: self._opened(owner, model))
        return job

    def _relayed(self, owner: str, made: RelayedCopy, context: Context) -> Job[Any]:
        name = self.table.add(owner, made, 0)
        job = made.open(name, context)

        def opened(_job: Any) -> None:
            if not isinstance(job.answer, Result):
                self.table.drop(owner, [name])

        job.add_done_callback(opened)
        return job

    def _opened(self, owner: str, model: Model[..., Any]) -> Result:
        executor = _trainable(model)
        made = PrivateCopy(self, self._services, owner, executor)
        made.name = self.table.add(owner, made, 0)
        module = executor.backend.target
        facts = {
            name: [each.requires_grad, list(each.shape), str(each.dtype).removeprefix("torch.")]
            for name, each in module.named_parameters()
        }
        return Result({"copy": made.name, "layout": layout_of(module), "parameters": facts})


def _started(call: Call) -> tuple[Any, ...]:
    args = call.args
    if call.kwargs or len(args) < 2 or type(args[0]) is not str or type(args[1]) is not str:
        raise CodecError("_train wants an operation, the name of a copy, and what belongs to these")
    return args


def _done(result: Result) -> Job[Any]:
    job: Job[Any] = Job()
    job.settle(result)
    return job


def _names(rest: Sequence[Any]) -> list[str]:
    if len(rest) != 1 or type(rest[0]) is not list:
        raise CodecError("release wants a list of graphs")
    return [name for name in rest[0] if type(name) is str]


def _trainable(model: Model[..., Any]) -> LocalExecutor:
    executor = model.executor
    if isinstance(executor, BatchingExecutor):
        executor = executor.inner  # a private copy has one caller, and nobody to wait for
    if isinstance(executor, PreparedExecutor):
        raise Unsupported(
            f"{model.name} prepares its rows before its module sees them, and a private copy would "
            "not; train it with fit"
        )
    if isinstance(executor, LocalExecutor):
        target = executor.backend.target
        if isinstance(target, torch.nn.Module):
            return executor
        raise Unsupported(f"{model.name} is no torch module; only these have parameters to train")
    raise Unsupported(
        f"{model.name} does not run in this server's process ({executor.where}); "
        "connect to where it runs, and train it there"
    )


class PrivateCopy:
    """One model in training by one caller."""

    def __init__(
        self, copies: Copies, services: Services, owner: str, executor: LocalExecutor
    ) -> None:
        self.name = ""
        # A copy that its table has dropped is gone, whatever still runs.
        self._copies = weakref.ref(copies)
        self._services = services
        self._owner = owner
        self._executor = executor
        self._workshop: Workshop | None = None
        self._lane = Lane(1, "maas-train")
        self._number = 0
        self._answer: Result | Failure | None = None
        self._graphs: set[str] = set()
        self._done = 0
        self._charged = 0
        self._generator: bytes | None = None

    @property
    def executor(self) -> LocalExecutor:
        """What answers its calls."""
        return self._executor

    def release(self, graphs: list[str] | None) -> None:
        """Lets go of graphs behind its results; of all, by None."""
        gone = list(self._graphs) if graphs is None else graphs
        self._services.graphs.table.drop(self._owner, gone)
        self._graphs.difference_update(gone)

    def submit(self, operation: str, arguments: Sequence[Any], call: Call) -> Job[Any]:
        """The answer to one question, after those before it."""
        job: Job[Any] = Job()
        self._lane.put(
            partial(self._settle, job, operation, arguments, call),
            lambda error: job.settle(Failure(error)),
        )
        return job

    def _settle(self, job: Job[Any], operation: str, arguments: Sequence[Any], call: Call) -> None:
        try:
            answer = self._once(operation, arguments, call)
        except BaseException as error:  # noqa: BLE001 - the model's or torch's, whatever it is
            answer = Failure(presentable(error))
        job.settle(answer)

    def _once(self, operation: str, arguments: Sequence[Any], call: Call) -> Result | Failure:
        wanted = _OPERATIONS.get(operation)
        kinds = (int, list, dict, dict, *(wanted.kinds if wanted else ()))
        if wanted is None or [type(argument) for argument in arguments] != list(kinds):
            raise CodecError(f"{operation!r:.40} is none of {', '.join(_OPERATIONS)}, or not so")
        number, works, changes, flags, *rest = arguments
        if number == self._number and self._answer is not None:
            return self._answer
        if number <= self._number:
            raise Conflict(
                f"question {number} came after question {self._number}; "
                "a copy of a model is trained by one handle"
            )
        self._number = number
        try:
            self._apply(changes, flags)
            self._answer = wanted.answer(self, rest, call, self._work(works))
        except Exception as error:  # noqa: BLE001 - as above; the next attempt gets the same
            self._answer = Failure(presentable(error))
        return self._answer

    # Changes.

    def _own(self) -> Workshop:
        """The copy, real from now on: the first change has come."""
        if self._workshop is None:
            module = self._executor.backend.target
            weights = sum(each.nbytes for each in module.parameters())
            # Weights and their gradients; whatever else is held is charged where it is made.
            self._charge(2 * weights + sum(each.nbytes for each in module.buffers()))
            with self._executor.alone():
                try:
                    module = copy.deepcopy(module)
                except Exception as error:
                    raise Unsupported(
                        f"{self._executor.name} cannot be copied, so it cannot be trained from "
                        f"elsewhere: {error!s:.200}"
                    ) from error
            for parameter in module.parameters():
                parameter.grad = None
            self._executor = LocalExecutor(backend_for(module), self._executor.name)
            self._workshop = Workshop(module, self._charge)
            keep_freed_memory()
        return self._workshop

    def _charge(self, nbytes: int) -> None:
        copies = self._copies()
        if copies is not None:
            copies.table.resize(self._owner, self.name, self._charged + nbytes)
            self._charged += nbytes

    @property
    def _module(self) -> torch.nn.Module:
        module: torch.nn.Module = self._executor.backend.target
        return module

    def _apply(self, changes: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
        if not changes and not flags:
            return
        self._own()
        held = tensors_of(self._module)
        for name, value in changes.items():
            _check_fits(name, held.get(name), value)
        with torch.no_grad():
            for name, value in changes.items():
                held[name].copy_(value)
        for name, flag in flags.items():
            if type(flag) is not bool or not isinstance(held.get(name), torch.nn.Parameter):
                raise CodecError(f"no parameter {name!r:.80} can require grad so: {flag!r:.40}")
            held[name].requires_grad_(flag)

    def _work(self, works: list[Any]) -> list[Any]:
        if not all(type(work) is list and work and type(work[0]) is int for work in works):
            raise CodecError("a work is a list that its number leads")
        new = [work for work in works if work[0] > self._done]
        numbers = [work[0] for work in new]
        if numbers != list(range(self._done + 1, self._done + 1 + len(new))):
            raise Conflict(f"works {numbers[:8]} came where {self._done + 1} is next")
        # As in one process, nothing is done that stands after what has failed.
        self._done += len(new)
        return [self._worked(work) for _, *work in new]

    def _worked(self, work: list[Any]) -> Any:
        if work[:1] != ["backward"]:
            return self._own().do(work)
        # A backward run that its caller did not wait for.
        kinds = (str, list, list, list, bool, int)
        if [type(argument) for argument in work[1:]] != list(kinds):
            raise CodecError("the work 'backward' wants what the operation wants")
        self._differentiated(work[1:], NO_GRAD)
        return None

    # Questions.

    def call(self, rest: Sequence[Any], call: Call, _done: list[Any]) -> Result | Failure:
        """One call of the model, its graph kept if the caller is in grad mode."""
        method, args, kwargs, rung = rest
        rng = call.context.rng
        context = attrs.evolve(
            call.context,
            deadline=None,
            key=None,
            parameters=rung in ("mirror", "resident"),
            rng=(self._generator or rng) if rng == AS_LEFT else rng,
        )
        own_mode = self._executor.backend.training
        if rung == "resident" or (own_mode if context.training is None else context.training):
            self._own()
        inner = Call(self._executor.name, method, tuple(args), kwargs, context, owned=True)
        answer = self._executor.answer(inner)
        self._generator = answer.rng or context.rng or self._generator
        if isinstance(answer, Failure) or not context.grad:
            return answer
        workshop = self._workshop
        every = self._module.parameters() if workshop is None else workshop.parameters
        trained = [each for each in every if each.requires_grad]
        inputs: list[torch.Tensor | None] = [*call.leaves]
        if rung == "mirror":
            inputs += trained
        elif rung == "resident":
            inputs.append(None)
        return self._remembered(self._services.graphs.kept(self._owner, inputs, answer, trained))

    def _remembered(self, result: Result) -> Result:
        if result.graph is not None:
            self._graphs.add(result.graph)
        return result

    def backward(self, rest: Sequence[Any], call: Call, _done: list[Any]) -> Result:
        """Gradients over a kept graph."""
        return self._differentiated(rest, call.context)

    def _differentiated(self, rest: Sequence[Any], context: Context) -> Result:
        graph, given, gradients, wanted, keep, run = rest
        found = self._services.graphs.backward(
            self._owner, graph, given, gradients, wanted, keep=keep, context=context
        )
        if not keep:
            self._graphs.discard(graph)
        if found.staying:
            self._own().gather(run, found.staying)
        return self._remembered(found.result)

    def pull(self, rest: Sequence[Any], _call: Call, _done: list[Any]) -> Result:
        """The buffers, with or without the parameters."""
        (whole,) = rest
        held = tensors_of(self._module) if whole else dict(self._module.named_buffers())
        # Copies: the answer is kept, and what it shows must not move on.
        return Result({name: each.detach().clone() for name, each in held.items()})

    def optimizer(self, rest: Sequence[Any], _call: Call, _done: list[Any]) -> Result:
        """The state of an optimizer, as its `state_dict` has it."""
        (number,) = rest
        return Result(copy.deepcopy(self._own().optimizer(number).state_dict()))

    def do(self, _rest: Sequence[Any], _call: Call, done: list[Any]) -> Result:
        """What the works gave."""
        return Result(done)


def _check_fits(name: str, held: torch.Tensor | None, value: Any) -> None:
    if not isinstance(value, torch.Tensor) or held is None:
        raise CodecError(f"{name!r:.80} names no tensor of this model, or brings none")
    if value.shape != held.shape or value.dtype != held.dtype:
        raise CodecError(
            f"{name!r:.80} is {held.dtype}{list(held.shape)}, "
            f"and cannot become {value.dtype}{list(value.shape)}"
        )


@attrs.frozen
class _Operation:
    """A question: the types of its arguments, and what answers it."""

    kinds: tuple[type, ...]
    answer: Callable[[PrivateCopy, Sequence[Any], Call, list[Any]], Result | Failure]


_OPERATIONS: Mapping[str, _Operation] = {
    "call": _Operation((str, list, dict, str), PrivateCopy.call),
    "backward": _Operation((str, list, list, list, bool, int), PrivateCopy.backward),
    "pull": _Operation((bool,), PrivateCopy.pull),
    "optimizer": _Operation((int,), PrivateCopy.optimizer),
    "do": _Operation((), PrivateCopy.do),
}
