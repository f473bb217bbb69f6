"""What may be chosen, and the error for what may not: it lists them."""

from collections.abc import Iterable
from typing import Any

from maas.spelling import offered

__all__ = ["choice"]


def choice(given: Any, known: Iterable[str], what: str) -> str:
    """`given`, if it is one of `known`.

    Raises
    ------
    ValueError
        It is not.
    """
    names = list(known)
    if type(given) is not str or given not in names:
        raise ValueError(f"{what} cannot be {given!r:.60}; {offered(given, names)}")
    return given
