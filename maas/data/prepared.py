"""A preprocessing in front of a model: callers send raw rows, wherever the model runs.

It is an executor in front of another one, so a prepared model is called, served, sent for and
saved as any other. The preprocessing runs where `prepared` was called: in front of a model in
this process it is served with it, and in front of a remote one only numbers travel.
"""

import importlib
from functools import partial
from typing import Any

import attrs
import numpy as np

from maas.backends.base import Method, admit, backend_for
from maas.calls import AMBIENT, CALL, Call, Context, Result
from maas.data.composition import of_data
from maas.data.mapped import for_models
from maas.data.rows import is_array
from maas.data.transformers import Transformer
from maas.errors import SignatureError, Unsupported
from maas.executors.base import Executor, Job, ModelInfo, Stream
from maas.executors.lanes import Lane
from maas.failures import presentable
from maas.model import Model
from maas.signature import Signature
from maas.wire import Failure

__all__ = ["PreparedExecutor", "prepared"]


def prepared(model: Any, preprocessing: Any) -> Model[..., Any]:
    """The model with a preprocessing in front of it, which takes rows as they were before.

    Rows are a dict of columns, a list of dicts, a list of rows, or an array of shape
    (rows, columns). The model gets the float32 or int64 array that the preprocessing makes of
    them: NumPy's, or a tensor where a tensor came.

    Parameters
    ----------
    model : a Model, or what one can be made of.
    preprocessing : a step of `maas.data` that was fitted, or what its `to_data` told.

    Raises
    ------
    DataError
        The preprocessing has not learned anything.
    TypeError
        It is none, or the model takes several arguments.
    """
    model = model if isinstance(model, Model) else Model(model)
    steps = of_data(preprocessing) if isinstance(preprocessing, dict) else preprocessing
    if not isinstance(steps, Transformer):
        raise TypeError(
            f"{type(preprocessing).__name__} is no preprocessing; "
            "give a step of maas.data, such as a Pipeline"
        )
    steps.check_fitted()
    return Model.over(PreparedExecutor(model.executor, steps), model.name)


def _taking(rows: Any) -> Any:
    """Whose hints are the signature of a prepared model."""


_BACKEND = backend_for(_taking)
_SIGNATURE = Signature.from_callable(_taking)
_THREADS = 2


class PreparedExecutor:
    """Answers calls with raw rows by the executor behind it."""

    def __init__(self, inner: Executor, preprocessing: Transformer) -> None:
        self.inner = inner
        self.name = inner.name
        self.where = inner.where
        self.preprocessing = preprocessing
        self._lane = Lane(_THREADS, "maas-preparing")

    def method(self, name: str, context: Context = AMBIENT) -> Method:
        """As the model has it; its own call takes rows."""
        found = self.inner.method(name, context)
        return self._taking_rows(found) if name == CALL else found

    def _taking_rows(self, method: Method) -> Method:
        signature = Signature(_SIGNATURE.parameters, method.signature.returns)
        return attrs.evolve(method, signature=signature)

    def describe(self, context: Context = AMBIENT) -> ModelInfo:
        """As the model itself says, and what rows must hold."""
        info = self.inner.describe(context)
        # What runs elsewhere may tell its name only now.
        self.name = info.name
        methods = {
            name: self._taking_rows(method) if name == CALL else method
            for name, method in info.methods.items()
        }
        columns = self.preprocessing.feature_names_in_ or self.preprocessing.n_features_in_
        details = {**info.details, "rows": {"columns": columns}}
        return attrs.evolve(info, methods=methods, details=details)

    def run(self, call: Call) -> Result:
        """The answer, waited for."""
        return self.inner.run(self._prepared(call))

    def stream(self, call: Call) -> Stream[Any]:
        """The items of a method that streams."""
        return self.inner.stream(self._prepared(call))

    def submit(self, call: Call) -> Job[Any]:
        """The answer, later; rows are prepared on a thread, for a server's loop must not wait."""
        if call.method != CALL:
            return self.inner.submit(call)
        behind: Job[Any] | None = None
        job: Job[Any] = Job(on_cancel=lambda: behind is not None and behind.cancel())
        job.begins_later()

        def work() -> None:
            nonlocal behind
            if job.done():
                return
            job.begin()
            try:
                behind = self.inner.submit(self._prepared(call))
            except BaseException as error:  # noqa: BLE001 - the rows', or the model's, whatever it is
                job.settle(Failure(presentable(error)))
                job.end()
                return
            if job.cancelled():
                behind.cancel()
            behind.add_done_callback(lambda _job: _passed_on(behind, job))
            behind.when_ended(job.end)

        self._lane.put(work, partial(_given_up, job))
        return job

    def _prepared(self, call: Call) -> Call:
        if call.method != CALL:
            return call
        method = self.method(CALL, call.context)
        method.signature.check(call.args, call.kwargs, method.label)
        # What could not cross to another place is refused here as well.
        _, args, kwargs = admit(_BACKEND, call)
        rows = args[0] if args else kwargs["rows"]
        if call.context.grad and getattr(rows, "requires_grad", False):
            raise Unsupported(
                "no gradient passes a preprocessing; ask the model behind it, with what it gives"
            )
        made = for_models(self.preprocessing.transform(rows))
        return attrs.evolve(call, args=(_as_it_came(made, rows),), kwargs={}, owned=True)

    def expect(self, signature: Signature, name: str) -> None:
        """What the caller takes the model to be; raises `SignatureError` where it is not."""
        differences = signature.difference(self.method(CALL).signature)
        if differences:
            raise SignatureError(f"{self.name} is not like {name}(): {'; '.join(differences)}")

    def ready(self, timeout: float | None) -> None:
        """As the model itself is."""
        self.inner.ready(timeout)

    def close(self) -> None:
        """Lets go of threads, the model's too."""
        self._lane.close()
        self.inner.close()


def _passed_on(behind: Any, job: Job[Any]) -> None:
    if behind.answer is not None:
        job.settle(behind.answer)


def _given_up(job: Job[Any], error: Exception) -> None:
    job.settle(Failure(error))
    job.end()


def _as_it_came(made: np.ndarray[Any, Any], rows: Any) -> Any:
    if is_array(rows) and not isinstance(rows, np.ndarray):
        return importlib.import_module("torch").from_numpy(made).to(rows.device)
    return made
