"""What a request's head says about a call, each field read in one way."""

import re
import time

from maas.errors import CodecError
from maas.server.front import Head

__all__ = ["deadline", "key", "only"]


def only(head: Head, name: str) -> str | None:
    """The value of a field that may be there once: of two, each reader would choose another.

    Raises
    ------
    CodecError
        It is there twice.
    """
    found = [value for field, value in head.headers if field == name]
    if len(found) > 1:
        raise CodecError(f"the header {name} came {len(found)} times; send it once")
    return found[0] if found else None


def key(text: str | None) -> str | None:
    """An idempotency key, as `wire.py` has it for keys that come in a message."""
    if text is not None and not (0 < len(text) <= 256 and text.isascii() and text.isprintable()):
        raise CodecError("idempotency-key wants 1 to 256 printable ASCII characters")
    return text


def deadline(seconds: str | None) -> float | None:
    """The time at which so many seconds have passed, by `time.monotonic()`."""
    if seconds is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", seconds) is None:
        raise CodecError(f"maas-timeout wants seconds, such as 2.5; got {seconds!r:.40}")
    return time.monotonic() + float(seconds)
