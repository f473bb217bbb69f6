"""Entry points: how rooms higher up, and strangers, make themselves known by name.

In a module of its own because `importlib.metadata` costs 30 ms, and is needed only at the first
unknown name.
"""

import functools
import importlib.metadata
from typing import Any

__all__ = ["load", "names"]


@functools.cache
def names(group: str) -> frozenset[str]:
    """The names that installed distributions offer in this group."""
    return frozenset(importlib.metadata.entry_points(group=group).names)


def load(group: str, name: str) -> Any:
    """What the entry point names, imported; None where no distribution offers it."""
    if name not in names(group):
        return None
    return importlib.metadata.entry_points(group=group)[name].load()
