"""Log records as lines: for people, and as JSON for programs.

Two formatters for `logging`, to be used with any handler. Whatever strangers get into a message,
a record stays one record: control characters are escaped, and the further lines of a traceback
are indented, which a record's first line never is.
"""

import datetime as dt
import json
import logging
from typing import Any

from maas.server.access import quoted

__all__ = ["JSONLines", "TextLines", "configure"]


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO maas.access POST /net 200 in 1.200 ms model=net ...`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, and its traceback below."""
        words = [_time(record), record.levelname, record.name, _visible(record.getMessage())]
        words += [f"{name}={_word(value)}" for name, value in _fields(record).items()]
        below = [f"\n  {_visible(line)}" for line in _traceback(self, record).splitlines()]
        return " ".join(words) + "".join(below)


class JSONLines(logging.Formatter):
    """`{"time": ..., "level": ..., "logger": ..., "message": ..., ...}`, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        told: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        told |= {name: value for name, value in _fields(record).items() if name not in told}
        if traceback := _traceback(self, record):
            told["traceback"] = traceback
        return json.dumps(told, default=str)


def configure(form: str, *, access: bool) -> None:
    """Sends this process's log to standard error as `form` ("text" or "json") has it."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONLines() if form == "json" else TextLines())
    logging.getLogger().addHandler(handler)
    if access:
        logging.getLogger("maas.access").setLevel(logging.INFO)


def _time(record: logging.LogRecord) -> str:
    when = dt.datetime.fromtimestamp(record.created, dt.UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def _word(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else quoted(str(value))


def _visible(text: str) -> str:
    """The text with what would move the cursor, end the line or turn it around escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
