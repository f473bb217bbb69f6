"""One line for each request in the logger `maas.access`: who asked what, and how it went.

Never what was asked with or answered: no arguments, keys, headers or query strings. The message
is one line whatever strangers write into a path; the figures are in the record's `fields`.
"""

import json
import logging
import re
from typing import Any

__all__ = ["quoted", "tell", "wanted"]

_LOG = logging.getLogger("maas.access")
_PLAIN = re.compile(r"[!#-\[\]-~]{1,200}")
"""Printable ASCII without space, quote and backslash."""

_LONGEST = 200


def wanted() -> bool:
    """Whether anybody reads the lines."""
    return _LOG.isEnabledFor(logging.INFO)


def tell(verb: str, path: str, status: int, seconds: float, fields: dict[str, Any]) -> None:
    """Writes the line; of `fields`, those that are None are left out."""
    message = f"{quoted(verb)} {quoted(path)} {status} in {seconds * 1e3:.3f} ms"
    known = {name: value for name, value in fields.items() if value is not None}
    _LOG.info("%s", message, extra={"fields": known | {"status": status, "seconds": seconds}})


def quoted(text: str) -> str:
    """A text as one word of one line: quoted, with all that is odd escaped, if need be."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text[:_LONGEST])
