"""What tests of models need: the law of equality, values and calls to try it on, and every place.

Names are resolved on first use, so that importing this package loads neither
torch nor hypothesis.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maas.testing.arguments import Arguments, calls, invalid_calls, register_strategy
    from maas.testing.conformance import ExecutorConformance
    from maas.testing.congruence import assert_congruent
    from maas.testing.equality import difference
    from maas.testing.faulting_proxy import Fault, FaultingProxy
    from maas.testing.processes import Processes
    from maas.testing.simulation import BrokenPromise, Simulated, simulate
    from maas.testing.strategies import tensors, values

__all__ = [
    "Arguments",
    "BrokenPromise",
    "ExecutorConformance",
    "Fault",
    "FaultingProxy",
    "Processes",
    "Simulated",
    "assert_congruent",
    "calls",
    "difference",
    "invalid_calls",
    "register_strategy",
    "simulate",
    "tensors",
    "values",
]

_ROOMS = {
    "BrokenPromise": "maas.testing.simulation",
    "Processes": "maas.testing.processes",
    "Simulated": "maas.testing.simulation",
    "simulate": "maas.testing.simulation",
    "Arguments": "maas.testing.arguments",
    "ExecutorConformance": "maas.testing.conformance",
    "Fault": "maas.testing.faulting_proxy",
    "FaultingProxy": "maas.testing.faulting_proxy",
    "assert_congruent": "maas.testing.congruence",
    "calls": "maas.testing.arguments",
    "difference": "maas.testing.equality",
    "invalid_calls": "maas.testing.arguments",
    "register_strategy": "maas.testing.arguments",
    "tensors": "maas.testing.strategies",
    "values": "maas.testing.strategies",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_ROOMS[name]), name)
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
