"""The model that a job has made, from its folder."""

import copy
from typing import Any

from maas.errors import Unsupported
from maas.jobs.folders import JobFolder
from maas.model import Model
from maas.store import load
from maas.train.here import local_executor

__all__ = ["made"]


def made(folder: JobFolder, model: Model[..., Any]) -> Model[..., Any]:
    """What a job has made of `model`: a model of its own.

    Raises
    ------
    Unsupported
        It is of a class that nobody in this process has an instance of.
    """
    result = folder.path / "result"
    if folder.record.module is None or folder.record.work != "fit":
        return load(result)
    executor = local_executor(model)
    if executor is None:
        raise Unsupported(
            f"{model.name} runs in worker processes, which import {folder.record.module} with the "
            "weights that it has there; build it of torch's standard layers to have results served"
        )
    with executor.alone():
        module = copy.deepcopy(executor.backend.target)
    return load(result, into=module)
