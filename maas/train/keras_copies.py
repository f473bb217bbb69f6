"""Private copies of Keras models on TensorFlow in training, on the server: the service `_tape`.

    open                                           a copy: its trainable variables
    call(number, changes, method, args, kwargs)    one call of it, on a tape that is kept
    backward(number, tape, gradients)              the gradients of its inputs and its variables
    close, release(tapes)                          a copy, or tapes, that nobody needs any more

`tf.GradientTape` records where the model computes, so it is here, under a lease, as torch's graphs
are (`server/graphs.py`): nothing is computed twice, and what a layer drew is what its gradient is
of. A copy answers one question at a time. One that comes again (its answer was lost) is given the
same answer.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from maas.backends.base import backend_for
from maas.calls import Call, Result
from maas.errors import CodecError, Conflict, Unsupported
from maas.executors.base import Job
from maas.executors.lanes import Lane
from maas.executors.local import LocalExecutor
from maas.failures import presentable
from maas.model import Model
from maas.server.guard import Caller
from maas.server.leases import Bounds, Table
from maas.server.services import Services, settle
from maas.store import weights_of
from maas.tensors import DTYPES
from maas.train.taped import floating, tensors_in
from maas.wire import Failure

__all__ = ["KerasCopies"]


@attrs.frozen(eq=False)
class _Tape:
    """What a caller may differentiate: these outputs by these inputs, and by the variables."""

    tape: Any
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    variables: Sequence[Any]


class KerasCopies:
    """The private copies of Keras models at one server, and the tapes of their calls."""

    def __init__(self, services: Services) -> None:
        copies = ("copies", "copy_bytes", "copy_seconds")
        tapes = ("graphs", "graph_bytes", "graph_seconds")
        self.copies: Table[_Copy] = Table(
            Bounds.of(services.leases, "this private copy of the model", copies, gives_way=False)
        )
        self.tapes: Table[_Tape] = Table(
            Bounds.of(services.leases, "the tape behind this result", tapes, gives_way=True)
        )
        self._lane = Lane(1, "maas-keras-copies")

    def submit(self, caller: Caller, model: Model[..., Any], call: Call) -> Job[Any]:
        """The answer, later; raises `Forbidden` where the caller may not train."""
        caller.check_grant("train", call.model)
        operation, *rest = call.args or ("",)
        if type(operation) is not str or call.kwargs:
            raise CodecError("_tape wants an operation, and what belongs to it")
        kinds = [type(each) for each in rest]
        job: Job[Any] = Job()
        if operation == "open" and not rest:
            self._lane.put(
                partial(settle, job, lambda: self._opened(caller.id, model)),
                lambda error: job.settle(Failure(error)),
            )
        elif operation == "close" and kinds == [str]:
            self.copies.drop(caller.id, rest)
            job.settle(Result(None))
        elif operation == "release" and kinds == [list]:
            self.tapes.drop(caller.id, [name for name in rest[0] if type(name) is str])
            job.settle(Result(None))
        elif operation in _QUESTIONS and kinds == [str, int, *_QUESTIONS[operation].kinds]:
            copy = self.copies.find(caller.id, rest[0])
            answer = partial(_QUESTIONS[operation].answer, copy, call, *rest[2:])
            copy.lane.put(
                lambda: job.settle(copy.once(rest[1], answer)),
                lambda error: job.settle(Failure(error)),
            )
        else:
            raise CodecError(
                f"_tape wants open, close, release or one of {', '.join(_QUESTIONS)}, "
                "and what belongs to it"
            )
        return job

    def _opened(self, owner: str, model: Model[..., Any]) -> Result:
        executor = _trainable(model)
        copy = _Copy(owner, self.tapes)
        # Its weights and their gradients.
        name = self.copies.add(owner, copy, 2 * weights_of("keras").nbytes(executor.backend.target))
        try:
            copy.begin(executor)
        except BaseException:
            self.copies.drop(owner, [name])
            raise
        # The very values: a tensor of TensorFlow's does not change under whoever reads it.
        told = [[each.path, each.value.read_value()] for each in copy.target.trainable_variables]
        return Result({"copy": name, "variables": told})


def _trainable(model: Model[..., Any]) -> LocalExecutor:
    executor = model.executor
    if not isinstance(executor, LocalExecutor):
        raise Unsupported(
            f"{model.name} does not run in this server's process ({executor.where}); "
            "connect to where it runs, and train it there"
        )
    on = sys.modules["keras"].backend.backend() if executor.backend.kind == "keras" else ""
    if on != "tensorflow":
        told = f"computes with {on}: use model.parameters()" if on else "is no Keras model"
        raise Unsupported(f"{model.name} {told}; trainable_variables are TensorFlow's")
    if not executor.backend.target.built:
        raise Unsupported(
            f"{model.name} has no weights yet; give it a keras.Input, or call it once"
        )
    return executor


class _Copy:
    """One model in training by one caller."""

    target: Any
    _executor: LocalExecutor

    def __init__(self, owner: str, tapes: Table[_Tape]) -> None:
        self._owner = owner
        self._tapes = tapes
        self.lane = Lane(1, "maas-keras-copy")
        self._number = 0
        self._answer: Result | Failure | None = None

    def begin(self, executor: LocalExecutor) -> None:
        """Takes the model as it is now; raises `Unsupported` where it cannot be copied."""
        with executor.alone():
            self.target = _cloned(executor.backend.target, executor.name)
        self._executor = LocalExecutor(backend_for(self.target), executor.name)

    def once(self, number: int, answer: Callable[[], Result]) -> Result | Failure:
        """The answer to the question of that number, which is found once."""
        if number == self._number and self._answer is not None:
            return self._answer
        if number <= self._number:
            return Failure(
                Conflict(
                    f"question {number} came after question {self._number}; "
                    "a copy of a model is trained by one handle"
                )
            )
        self._number = number
        try:
            self._answer = answer()
        except BaseException as error:  # noqa: BLE001 - the model's or TensorFlow's, whatever it is
            self._answer = Failure(presentable(error))
        return self._answer

    def call(
        self,
        asked: Call,
        changes: Mapping[Any, Any],
        method: str,
        args: list[Any],
        kwargs: Mapping[str, Any],
    ) -> Result:
        """What the model gives, and the name of the tape that recorded it, where one did."""
        import tensorflow as tf

        self._apply(changes)
        variables = list(self.target.trainable_variables)
        inputs = floating(tensors_in([args, kwargs]))
        context = attrs.evolve(asked.context, deadline=None, key=None)
        call = Call(self._executor.name, method, tuple(args), kwargs, context, owned=True)
        # More than once: whether the caller's tape is persistent is not known here.
        with tf.GradientTape(persistent=True) as tape:
            for each in inputs:
                tape.watch(each)
            answer = self._executor.answer(call)
        if isinstance(answer, Failure):
            raise answer.error
        outputs = floating(tensors_in(answer.value))
        name = None
        if outputs:
            held = _Tape(tape, inputs, outputs, variables)
            name = self._tapes.add(self._owner, held, _nbytes(self.target, inputs, outputs))
        return attrs.evolve(answer, value={"value": answer.value, "tape": name})

    def _apply(self, changes: Mapping[Any, Any]) -> None:
        variables = self.target.trainable_variables
        for place, value in changes.items():
            fits = (
                type(place) is int
                and 0 <= place < len(variables)
                and tuple(getattr(value, "shape", (None,))) == tuple(variables[place].shape)
                and value.dtype == variables[place].dtype
            )
            if not fits:
                raise CodecError(f"no trainable variable {place!r:.20} of this model can be so")
        for place, value in changes.items():
            variables[place].assign(value)

    def backward(self, _asked: Call, name: str, gradients: list[Any]) -> Result:
        """The gradients of the inputs and of the variables, None where nothing depends on one."""
        import tensorflow as tf

        held = self._tapes.find(self._owner, name)
        fits = [tuple(getattr(each, "shape", (None,))) for each in gradients]
        if fits != [tuple(each.shape) for each in held.outputs]:
            raise CodecError(f"the tape has {len(held.outputs)} outputs; give a gradient for each")
        sources = [*held.inputs, *held.variables]
        found = held.tape.gradient(held.outputs, sources, output_gradients=gradients)
        # Of an embedding they are rows and their numbers; the caller's tape adds up whole ones.
        return Result([None if each is None else tf.convert_to_tensor(each) for each in found])


@attrs.frozen
class _Question:
    """The types of its arguments, and what answers it."""

    kinds: tuple[type, ...]
    answer: Callable[..., Result]


_QUESTIONS: Mapping[str, _Question] = {
    "call": _Question((dict, str, list, dict), _Copy.call),
    "backward": _Question((str, list), _Copy.backward),
}


def _cloned(target: Any, name: str) -> Any:
    """A model of its own with the same layers, and the very values of all variables."""
    import keras

    try:
        made = keras.models.clone_model(target)
        pairs = list(zip(made.variables, target.variables, strict=True))
    except Exception as error:
        raise Unsupported(
            f"{name} cannot be copied, so it cannot be trained from elsewhere: {error!s:.200}"
        ) from error
    for one, other in pairs:
        one.assign(other)
    return made


def _nbytes(target: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Bytes that a tape holds, as far as is known: inputs, outputs, and what each layer gives."""
    rows = max((each.shape[0] for each in inputs if each.shape.rank), default=1)
    given = [
        tensor
        for operation in getattr(getattr(target, "_functional", target), "operations", [])
        for node in operation._inbound_nodes
        for tensor in node.output_tensors
    ]
    inner = sum(
        math.prod(rows if size is None else size for size in each.shape) * DTYPES[str(each.dtype)]
        for each in given
    )
    ends: int = sum(each.shape.num_elements() * each.dtype.size for each in (*inputs, *outputs))
    return inner + ends
