"""The closed table of exception classes that cross by name.

No name leads to an import: a library's exceptions are known where it is loaded already.
"""

import builtins
import sys

from maas import errors
from maas.errors import Error, _ComeBack
from maas.registry import registered, registered_name

__all__ = ["known_class", "wire_names"]

_BUILTINS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and kind.__name__ == name
}
_OURS = {
    f"maas.{name}": getattr(errors, name)
    for name in errors.__all__
    if issubclass(getattr(errors, name), Error)
}
_LIBRARIES = (
    "_queue.Empty",
    "asyncio.exceptions.InvalidStateError",
    "asyncio.queues.QueueEmpty",
    "asyncio.queues.QueueFull",
    "decimal.DivisionByZero",
    "decimal.InvalidOperation",
    "json.decoder.JSONDecodeError",
    "numpy.exceptions.AxisError",
    "numpy.exceptions.DTypePromotionError",
    "numpy.linalg.LinAlgError",
    "queue.Full",
    "struct.error",
    "torch.AcceleratorError",
    "torch.OutOfMemoryError",
    "torch._C._LinAlgError",
    "zlib.error",
)
"""Exceptions of libraries that cross by name, where the library is loaded already."""


def _wire_name(kind: type) -> str:
    name = registered_name(kind)
    if name is not None:
        return name
    if kind.__module__ == "builtins":
        return kind.__qualname__
    if kind.__module__ == "maas.errors":
        return f"maas.{kind.__qualname__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def wire_names(kind: type) -> list[str]:
    """The names a receiver tries in turn, the class itself first."""
    return [
        _wire_name(base)
        for base in kind.__mro__
        if issubclass(base, Exception) and base is not _ComeBack
    ]


def known_class(name: str) -> type[Exception] | None:
    """The exception class of that name in the closed table, or None."""
    entry = registered(name)
    if entry is not None:
        return entry.cls if issubclass(entry.cls, Exception) else None
    found = _BUILTINS.get(name) or _OURS.get(name)
    if found is None and name in _LIBRARIES:
        module, _, attribute = name.rpartition(".")
        found = getattr(sys.modules.get(module), attribute, None)
    return found
