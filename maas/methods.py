"""The open table of things to ask of any model, whatever it is.

Calling and describing are methods of `Model` itself. Anything else is a function whose first
parameter is a Model, named by an entry point in the group `maas.methods`: installed, it is
`model.<name>(...)` for every model, here and there.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

__all__ = ["built_in"]


@functools.cache
def built_in(name: str) -> Callable[..., Any] | None:
    """The function behind `model.<name>`, or None; what is installed is read at the first."""
    found: Callable[..., Any] | None = importlib.import_module("maas.entry_points").load(
        "maas.methods", name
    )
    return found
