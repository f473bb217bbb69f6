"""Smaller models: steps that make a model of a model, and the report of what they cost."""

from typing import Any

from maas.compress.compile import Compile
from maas.compress.compressed import Compressed
from maas.compress.compression import compress
from maas.compress.distill import Distill
from maas.compress.factor import Factor
from maas.compress.figures import Figures
from maas.compress.gate import Agreement, RelativeError, ScoreDrop
from maas.compress.layers import around, copied
from maas.compress.prune import Prune
from maas.compress.quantize import Quantize
from maas.compress.report import Report
from maas.compress.search import Budget
from maas.compress.steps import known, stranger
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


def __getattr__(name: str) -> Any:
    if (found := stranger(name)) is not None:
        return found
    names = sorted({*__all__, *known()})
    raise AttributeError(f"maas.compress has no step {name!r}; {offered(name, names)}", name=name)
