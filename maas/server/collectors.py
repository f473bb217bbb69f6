"""Who keeps what the models of a server are asked; nobody, unless its owner says so.

`maas.data.Collect` is one.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from maas.backends.base import Method
from maas.calls import Call

__all__ = ["REQUEST", "Collector", "Collectors"]

REQUEST = "maas-request"
"""The header by which an answer names the request that was kept."""


class Collector(Protocol):
    """Keeps calls that were answered."""

    async def copied(self, call: Call, method: Method, nbytes: int) -> Any:
        """What is to be kept of a call of so many bytes, before it is run; None for nothing."""

    def keep(self, model: str, inputs: Any, nbytes: int) -> str:
        """Keeps that, later, and gives the name of the request."""

    def ask(self, model: str, question: Callable[[Any], Any]) -> Any:
        """The answer of what keeps the requests of this model."""

    def close(self) -> None:
        """Returns once all is kept."""


class Collectors:
    """The collectors of one server.

    Parameters
    ----------
    given : one for all models, one for some by their names, or None.

    Raises
    ------
    TypeError
        Something else.
    """

    def __init__(self, given: Collector | Mapping[str, Collector] | None) -> None:
        self._named: Mapping[str, Collector] = given if isinstance(given, Mapping) else {}
        self._all = None if isinstance(given, Mapping) else given
        for each in (self._all, *self._named.values()):
            if each is not None and not hasattr(each, "keep"):
                raise TypeError(f"collect wants a maas.data.Collect, got {each!r:.80}")

    def __bool__(self) -> bool:
        return self._all is not None or bool(self._named)

    def of(self, model: str) -> Any:
        """Who collects what this model is asked, in all its versions; None for nobody."""
        return self._named.get(model) if self._named else self._all

    def close(self) -> None:
        """Returns once all is kept."""
        for each in (self._all, *self._named.values()):
            if each is not None:
                each.close()
