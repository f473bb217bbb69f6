"""What somebody meant who wrote a name that nobody knows."""

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name that is written most like the given one; None where none is like it."""
    return next(iter(difflib.get_close_matches(given, list(known), n=1)), None)
