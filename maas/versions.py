"""Versions of what computes: maas, Python and the frameworks that are loaded."""

import functools
import importlib.metadata
import platform
import sys

__all__ = ["maas_version", "versions"]

_FRAMEWORKS = ("numpy", "torch", "keras", "tensorflow", "jax")


@functools.cache
def maas_version() -> str:
    """The installed version of this library; "0" in a tree that is not installed."""
    try:
        return importlib.metadata.version("maas-sdk")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def versions() -> dict[str, str]:
    """Name to version; a framework that is not loaded is not named."""
    found = {"maas": maas_version(), "python": platform.python_version()}
    for name in _FRAMEWORKS:
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = str(version)
    return found
