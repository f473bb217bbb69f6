"""Whether a model runs in this process."""

from typing import Any

from maas.executors.local import LocalExecutor
from maas.model import Model

__all__ = ["local_executor"]


def local_executor(model: Model[..., Any]) -> LocalExecutor | None:
    """What runs the model in this process, behind a queue or not; None for one elsewhere."""
    executor = getattr(model.executor, "inner", model.executor)
    return executor if isinstance(executor, LocalExecutor) else None
