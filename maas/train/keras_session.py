"""A remote Keras model in training by one handle, on TensorFlow: the seed's other loop.

    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x) - y))
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

The first asking for the variables opens a private copy at the server (`keras_copies.py`) and
fetches them: from then on they are here, Keras's own, and what has changed in them goes there with
the next call, found by comparing bits. A call is one operation on the caller's tape, by
`tf.custom_gradient`; its gradient is one question to the tape that the server keeps behind it.
"""

import importlib
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import attrs

from maas.backends.keras_calls import array_of, in_numpy
from maas.calls import AMBIENT, Call, Context, Result
from maas.errors import ProtocolError, Unsupported
from maas.executors.base import finish
from maas.executors.local import LocalExecutor
from maas.executors.remote import RemoteExecutor
from maas.model import Model
from maas.train.handles import TrainingHandle
from maas.train.taped import floating, replaced, tensors_in

__all__ = ["KerasSession", "trainable_variables"]

TAPE = "_tape"

_BEGINNING = threading.Lock()


def _trainable_variables(model: Model[..., Any]) -> list[Any]:
    """The variables that `tape.gradient` and an optimizer of Keras's are given.

    Here they are the model's own. Elsewhere they are fetched at the first asking, which must come
    before the calls that are to be differentiated; they belong to this handle, and what changes in
    them is sent with the next call, to a copy that no other handle sees.

    Raises
    ------
    Forbidden
        The server does not grant "train".
    Unsupported
        It is no Keras model on TensorFlow, or one that cannot be copied.
    """
    with _BEGINNING:
        executor = model._executor
        if isinstance(executor, RemoteExecutor):
            executor = model._executor = KerasSession(executor)
        if isinstance(executor, KerasSession):
            return list(executor.variables)
        if isinstance(executor, LocalExecutor) and executor.backend.kind == "keras":
            own: list[Any] = executor.backend.target.trainable_variables
            return own
    raise Unsupported(f"model {model._name!r} is no Keras model, so it has no trainable_variables")


trainable_variables = property(_trainable_variables)
"""`model.trainable_variables`, which is no method, as Keras has it."""


class KerasSession(TrainingHandle[RemoteExecutor]):
    """Answers the calls of one handle by its private copy at the server."""

    def __init__(self, inner: RemoteExecutor) -> None:
        info = inner.describe()
        if info.kind != "keras":
            raise Unsupported(f"{inner.name} is a {info.kind}, so it has no trainable_variables")
        super().__init__(inner)
        keras = _keras()
        told = finish(inner.put(TAPE, ("open",), AMBIENT, repeatable=False)).value
        try:
            self._copy: str = told["copy"]
            self._variables = [
                keras.Variable(value, dtype=value.dtype.name, name=path.rpartition("/")[2])
                for path, value in told["variables"]
            ]
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ProtocolError(
                f"{self.where} does not say what it trains: {error!s:.200}", answered=True
            ) from None
        self._sent: list[Any] = [array_of(each) for each in self._variables]
        finalizer = weakref.finalize(self, inner.tell, TAPE, ("close", self._copy))
        finalizer.atexit = False

    @property
    def variables(self) -> Sequence[Any]:
        """The trainable variables, which are here."""
        return self._variables

    # As an executor.

    def _answer_later(self, call: Call) -> Result:
        """On no tape: one records what its own thread does."""
        return self._answered(call, self._values())[0]

    def run(self, call: Call) -> Result:
        """The answer of the private copy, an operation on the caller's tape where one records."""
        import tensorflow as tf

        if not tf.executing_eagerly():
            raise Unsupported(
                f"{self.name} runs at {self.where}, and a tf.function cannot be traced across; "
                "call it outside of one"
            )
        method = self.method(call.method, call.context)
        method.signature.check(call.args, call.kwargs, method.label)
        inputs, values = floating(tensors_in([list(call.args), dict(call.kwargs)])), self._values()
        answers: list[Result] = []

        def crossing(*_given: Any) -> Any:
            answer, tape = self._answered(call, values)
            answers.append(answer)
            outputs = tensors_in(answer.value)
            kept = _Kept(self, tape, call.context, len(inputs) + len(values))
            wanted = [number for number, each in enumerate(outputs) if each.dtype.is_floating]

            def backward(*gradients: Any) -> list[Any]:
                return kept.gradients([gradients[number] for number in wanted])

            return outputs, backward

        # What is read of a variable is on the tape, and so its gradient is that of the reading.
        outputs = tf.custom_gradient(crossing)(*inputs, *values)
        return attrs.evolve(answers[0], value=replaced(answers[0].value, outputs))

    # Questions.

    def _values(self) -> list[Any]:
        return [each.value.read_value() for each in self._variables]

    def _answered(self, call: Call, values: Sequence[Any]) -> tuple[Result, str | None]:
        """The answer, and the name of the tape that is kept behind it, if one is."""
        with self._lock:
            now = [in_numpy(each) for each in values]
            changes = {
                place: array
                for place, (array, sent) in enumerate(zip(now, self._sent, strict=True))
                if sent is None or array.tobytes() != sent.tobytes()
            }
            # Until it is answered, what is there is not known.
            for place in changes:
                self._sent[place] = None
            question = (changes, call.method, list(call.args), dict(call.kwargs))
            answer = self._put("call", question, call.context)
            self._sent = now
        told = answer.value
        if type(told) is not dict or told.keys() != {"value", "tape"}:
            raise ProtocolError(f"{self.where} gave no value and tape", answered=True)
        return attrs.evolve(answer, value=told["value"]), told["tape"]

    def back(self, tape: str, gradients: list[Any], context: Context) -> list[Any]:
        """The gradients of a call's inputs and of all variables."""
        found: list[Any] = self._put("backward", (tape, gradients), context).value
        return found

    def _put(self, operation: str, rest: tuple[Any, ...], context: Context) -> Result:
        with self._lock:
            self._number += 1
            question = (operation, self._copy, self._number, *rest)
            return finish(self.inner.put(TAPE, question, context, repeatable=True))


class _Kept:
    """A tape at the server, let go of when nothing here may ask it any more."""

    def __init__(
        self, session: KerasSession, name: str | None, context: Context, sources: int
    ) -> None:
        self._session = session
        self._name = name
        self._sources = sources
        # As the call was made, its backward step is as well.
        self._patience = context.remaining()
        self._context = Context(retries=context.retries, priority=context.priority)
        if name is not None:
            told = (TAPE, ("release", [name]))
            finalizer = weakref.finalize(self, session.inner.tell, *told)
            finalizer.atexit = False

    def gradients(self, gradients: Sequence[Any]) -> list[Any]:
        """Those of the inputs and the variables, given those of the outputs."""
        import tensorflow as tf

        if self._name is None:
            return [None] * self._sources
        context = self._context
        if self._patience is not None:
            context = attrs.evolve(context, deadline=time.monotonic() + self._patience)
        # Of a part of an output they are rows and their numbers.
        whole = [tf.convert_to_tensor(each) for each in gradients]
        found = self._session.back(self._name, whole, context)
        if type(found) is not list or len(found) != self._sources:
            raise ProtocolError("a tape gave another number of gradients", answered=True)
        return found


def _keras() -> Any:
    keras = importlib.import_module("keras")
    on = keras.backend.backend()
    if on != "tensorflow":
        raise Unsupported(
            f"Keras runs on {on} in this process, and trainable_variables are for "
            "tf.GradientTape: set KERAS_BACKEND=tensorflow before keras is first imported, "
            "or train by model.parameters() or fit"
        )
    return keras
