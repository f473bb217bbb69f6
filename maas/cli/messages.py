"""What commands say to people, and how they say that a command makes no sense."""

import sys
from collections.abc import Iterable

from maas import spelling

__all__ = ["Mistake", "complain", "nearest", "say"]


class Mistake(Exception):
    """The command itself is wrong; the message says how to write it. Exit code 2."""


def say(text: str = "") -> None:
    """Writes a line that was asked for."""
    sys.stdout.write(f"{text}\n")
    # A stream's items are wanted as they come, by a pipe too.
    sys.stdout.flush()


def complain(text: str) -> None:
    """Writes a line about how things went."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def nearest(given: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing where nothing is near."""
    found = spelling.nearest(given, sorted(set(known)))
    return f"; did you mean {found!r}?" if found else ""
