"""What stands in front of a model elsewhere once a handle trains it: what it passes on.

A session (of torch in `session.py`, of Keras in `keras_session.py`) answers the calls of one
handle by a private copy, and says of the model what the model says of itself.
"""

import threading
from functools import partial
from typing import Any, Generic, TypeVar

from maas.backends.base import Method
from maas.calls import AMBIENT, Call, Context, Result
from maas.executors.base import Executor, Job, ModelInfo, Stream
from maas.executors.lanes import Lane
from maas.signature import Signature
from maas.wire import Failure

__all__ = ["TrainingHandle"]

E = TypeVar("E", bound=Executor)


class TrainingHandle(Generic[E]):
    """Answers the calls of one handle by its private copy at the server.

    Its questions are numbered, so a retried one is not done twice.

    Attributes
    ----------
    inner : what asks the model that others see.
    """

    exactly_once = True

    def __init__(self, inner: E) -> None:
        self.inner = inner
        self.name = inner.name
        self.where = inner.where
        self._lock = threading.RLock()
        self._number = 0
        self._lane = Lane(1, f"maas-{inner.name}-training")

    def method(self, name: str, context: Context = AMBIENT) -> Method:
        """As the model itself has it."""
        return self.inner.method(name, context)

    def describe(self, context: Context = AMBIENT) -> ModelInfo:
        """As the model itself says."""
        return self.inner.describe(context)

    def expect(self, signature: Signature, name: str) -> None:
        """As of the model itself."""
        self.inner.expect(signature, name)

    def ready(self, timeout: float | None) -> None:
        """As the model itself is."""
        self.inner.ready(timeout)

    def stream(self, call: Call) -> Stream[Any]:
        """As of the model itself: what is trained gives one value."""
        return self.inner.stream(call)

    def run(self, call: Call) -> Result:
        """The answer of the private copy."""
        raise NotImplementedError

    def submit(self, call: Call) -> Job[Any]:
        """The answer, later; questions to one copy follow one another."""
        job: Job[Any] = Job()
        self._lane.put(partial(self._settle, job, call), lambda error: job.settle(Failure(error)))
        return job

    def _settle(self, job: Job[Any], call: Call) -> None:
        if job.done():
            return
        try:
            job.settle(self._answer_later(call))
        except Exception as error:  # noqa: BLE001 - the job's to raise
            job.settle(Failure(error))

    def _answer_later(self, call: Call) -> Result:
        """The answer, on another thread than its caller's."""
        return self.run(call)

    def close(self) -> None:
        """Lets go of connections; the copy goes with this object."""
        self._lane.close()
        self.inner.close()
