"""Smaller models: steps that make a model of a model, and the report of what they cost."""

from typing import NoReturn

from maas.compress.compile import Compile
from maas.compress.compression import Compressed, compress
from maas.compress.distill import Distill
from maas.compress.factor import Factor
from maas.compress.figures import Figures
from maas.compress.gate import Agreement, RelativeError, ScoreDrop
from maas.compress.layers import around, copied
from maas.compress.prune import Prune
from maas.compress.quantize import Quantize
from maas.compress.report import Report
from maas.compress.search import Budget
from maas.compress.trial import Check, Step, Trial
from maas.spelling import offered

__all__ = [
    "Agreement",
    "Budget",
    "Check",
    "Compile",
    "Compressed",
    "Distill",
    "Factor",
    "Figures",
    "Prune",
    "Quantize",
    "RelativeError",
    "Report",
    "ScoreDrop",
    "Step",
    "Trial",
    "around",
    "compress",
    "copied",
]


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(f"maas.compress has no step {name!r}; {offered(name, __all__)}", name=name)
