"""What may be chosen, and the error for what may not: it lists them and the nearest spelling."""

from collections.abc import Iterable
from typing import Any

from maas import spelling

__all__ = ["choice", "nearest"]


def nearest(given: Any, known: Iterable[str]) -> str:
    """The known names, and the one that was probably meant; the end of a message."""
    names = list(known)
    close = spelling.nearest(str(given).lower(), names) or spelling.nearest(str(given), names)
    hint = f"; did you mean {close!r}?" if close else ""
    return f"known: {', '.join(names)}{hint}"


def choice(given: Any, known: Iterable[str], what: str) -> str:
    """`given`, if it is one of `known`.

    Raises
    ------
    ValueError
        It is not.
    """
    names = list(known)
    if type(given) is not str or given not in names:
        raise ValueError(f"{what} cannot be {given!r:.60}; {nearest(given, names)}")
    return given
