"""What somebody meant who wrote a name that nobody knows."""

import difflib
from collections.abc import Iterable

__all__ = ["nearest", "offered"]

_MOST_LISTED = 40


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name that is written most like the given one; None where none is like it."""
    return next(iter(difflib.get_close_matches(given, list(known), n=1)), None)


def offered(given: object, known: Iterable[str]) -> str:
    """The end of a message about a name that is none: what was meant, and what there is.

    Upper and lower case are alike here, and at most forty names are listed.
    """
    names = list(known)
    found = nearest(str(given), names) or nearest(str(given).lower(), names)
    meant = f"did you mean {found!r}? There are" if found else "there are"
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"{meant}: {', '.join(names[:_MOST_LISTED])}{more}"
