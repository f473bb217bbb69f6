"""What an answer rests on: explanation as a method of every Model.

`model.explain(...)` gives an `Explanation`, and `check` says whether that can be trusted. A method
of one's own is an `Algorithm` that an entry point in the group `maas.explanations` names.
"""

import importlib

# Not from typing, as in maas/__init__.py.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from maas.explain.algorithms import Algorithm as Algorithm
    from maas.explain.algorithms import Option as Option
    from maas.explain.algorithms import Problem as Problem
    from maas.explain.algorithms import table as table
    from maas.explain.checks import Check as Check
    from maas.explain.checks import check as check
    from maas.explain.explanation import Explanation as Explanation

# Whoever asks a server needs neither torch nor Captum.
_NAMES = {
    "Explanation": "maas.explain.explanation",
    "check": "maas.explain.checks",
    "Check": "maas.explain.checks",
    "table": "maas.explain.algorithms",
    "Algorithm": "maas.explain.algorithms",
    "Option": "maas.explain.algorithms",
    "Problem": "maas.explain.algorithms",
}

__all__ = [*_NAMES]  # noqa: PLE0604 - all are strings


def __getattr__(name: str) -> object:
    module = _NAMES.get(name)
    if module is None:
        raise AttributeError(f"module 'maas.explain' has no attribute {name!r}", name=name)
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
