"""What tests of models need: the law of equality, and values to try it on.

Names are resolved on first use, so that importing this package loads neither
torch nor hypothesis.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maas.testing.equality import difference
    from maas.testing.strategies import tensors, values

__all__ = ["difference", "tensors", "values"]

_ROOMS = {
    "difference": "maas.testing.equality",
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
