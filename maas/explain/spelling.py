"""What is said to a name that nobody knows: the nearest one, and all there are."""

from collections.abc import Iterable

from maas.spelling import nearest

__all__ = ["unknown"]

_MOST_LISTED = 40


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """The message for an unknown name of `what`."""
    names = sorted(known)
    near = nearest(str(name), names)
    hint = f"did you mean {near!r}? There are:" if near else "there are:"
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    listed = ", ".join(names[:_MOST_LISTED])
    return f"no {what} {name!r:.80}; {hint} {listed}{more}"
