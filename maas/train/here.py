"""What runs a model in this process, and what its rows pass before they reach it."""

from typing import Any

from maas.data import Data, prepared
from maas.data.prepared import PreparedExecutor
from maas.executors.batching import BatchingExecutor
from maas.executors.local import LocalExecutor
from maas.model import Model

__all__ = ["as_prepared", "local_executor", "rows_for"]


def local_executor(model: Model[..., Any]) -> LocalExecutor | None:
    """What runs the model in this process, behind a queue or a preprocessing; None elsewhere."""
    executor = model.executor
    while isinstance(executor, BatchingExecutor | PreparedExecutor):
        executor = executor.inner
    return executor if isinstance(executor, LocalExecutor) else None


def rows_for(model: Model[..., Any], data: Any) -> Data:
    """The data as the target itself takes them: through the preprocessing that stands before it."""
    rows, executor = Data.of(data), model.executor
    while isinstance(executor, PreparedExecutor):
        rows, executor = rows.transformed(executor.preprocessing), executor.inner
    return rows


def as_prepared(like: Model[..., Any], model: Model[..., Any]) -> Model[..., Any]:
    """The model, behind the same preprocessing as another one."""
    executor, steps = like.executor, []
    while isinstance(executor, PreparedExecutor):
        steps.append(executor.preprocessing)
        executor = executor.inner
    for step in reversed(steps):
        model = prepared(model, step)
    return model
