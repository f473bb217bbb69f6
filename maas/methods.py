"""The open table of things to ask of any model, whatever it is.

Calling and describing are methods of `Model` itself. Anything else is a function whose first
parameter is a Model, named by an entry point in the group `maas.methods`: installed, it is
`model.<name>(...)` for every model, here and there. A class that takes the model is made with it
when it is asked for, so that `model.fit.submit(...)` can stand beside `model.fit(...)`.
"""

import functools
import importlib
import types
from collections.abc import Callable
from typing import Any

__all__ = ["bound", "built_in"]


@functools.cache
def built_in(name: str) -> Callable[..., Any] | None:
    """The function behind `model.<name>`, or None; what is installed is read at the first."""
    found: Callable[..., Any] | None = importlib.import_module("maas.entry_points").load(
        "maas.methods", name
    )
    return found


def bound(function: Callable[..., Any], model: Any) -> Any:
    """What `model.<name>` is for the function, class or property behind it."""
    if isinstance(function, property):
        return function.__get__(model)
    return function(model) if isinstance(function, type) else types.MethodType(function, model)
