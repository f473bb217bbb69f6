"""Answers as JSON: for the reader, not to be turned back.

Arrays become lists, numbers exactly as they are; bytes `{"$bytes": base64}`; dates ISO 8601 text;
a timedelta seconds; Decimals and UUIDs text; complex numbers pairs; tuples and sets lists;
registered objects their fields. NaN and the infinities become text, as in protobuf's JSON:
a bare `NaN` would make the whole answer unreadable to every strict reader.
"""

import base64
import datetime as dt
import decimal
import json
import math
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from maas import tensors, values
from maas.errors import CodecError, LimitExceeded

__all__ = ["MAX_VALUES", "line", "plain"]

MAX_VALUES = 2**18
"""Numbers and other values in one JSON answer: an image of 3 x 224 x 224 passes, in 3 MB of text.
Text and bytes count as one value for every eight of them."""


def plain(value: Any) -> Any:
    """Any value that may cross, as JSON can say it; for the reader, not to be turned back.

    Raises
    ------
    LimitExceeded
        More than `MAX_VALUES` values.
    CodecError
        A value that has no JSON form.
    """
    return _Writer().write(value)


class _Writer:
    """Writes one answer, counting its values."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def write(self, value: Any) -> Any:
        """The value in JSON's types."""
        kind = type(value)
        self._spend(len(value) // 8 + 1 if kind in _LONG else 1)
        if kind in _PLAIN:
            return _PLAIN[kind](value)
        if kind in (list, tuple, set, frozenset, range) or kind.__name__ == "Size":
            return [self.write(item) for item in value]
        if isinstance(value, dict):
            return self._mapping(value)
        return self._rest(value)

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise LimitExceeded(
                f"the answer holds more than {MAX_VALUES} values, too many for JSON; ask in the "
                "binary form: maas.connect(url)(x), or `maas call URL x.npy --output y.npy`"
            )

    def _mapping(self, value: dict[Any, Any]) -> dict[str, Any]:
        texts = {key: str(key) if type(key) in (str, int) else "$" for key in value}
        tagged = any(text.startswith("$") for text in texts.values())
        if tagged or len(set(texts.values())) < len(value):
            return {"$map": [[self.write(key), self.write(item)] for key, item in value.items()]}
        return {texts[key]: self.write(item) for key, item in value.items()}

    def _rest(self, value: Any) -> Any:
        facts = tensors.facts(value)
        if facts is not None:
            self._spend(math.prod(facts[1]))
            return _lists(value, facts[0])
        if isinstance(value, np.generic):
            return self.write(value.item())
        entry = values.registered(values.registered_name(type(value)) or "")
        if entry is not None:
            return self.write(entry.to_fields(value))
        raise CodecError(
            f"the answer holds a {type(value).__name__}, which has no JSON form; "
            "use maas.connect(url)"
        )


_LONG = (str, bytes, bytearray)


def _float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _int(value: int) -> int:
    # Python refuses to write an int of more than 4,300 digits.
    if value.bit_length() > 14_000:
        raise LimitExceeded(
            f"the answer holds an int of {value.bit_length()} bits, too long for JSON"
        )
    return value


def _bytes(value: bytes | bytearray) -> dict[str, str]:
    return {"$bytes": base64.b64encode(value).decode()}


def _same(value: Any) -> Any:
    return value


_PLAIN: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((type(None), bool, str), _same),
    int: _int,
    float: _float,
    complex: lambda value: [_float(value.real), _float(value.imag)],
    **dict.fromkeys((bytes, bytearray), _bytes),
    **dict.fromkeys((dt.datetime, dt.date, dt.time), lambda value: value.isoformat()),
    dt.timedelta: lambda value: value.total_seconds(),
    **dict.fromkeys((decimal.Decimal, uuid.UUID), str),
    slice: lambda value: [value.start, value.stop, value.step],
    type(Ellipsis): lambda _value: "...",
}


def _lists(array: Any, dtype: str) -> Any:
    """An array as nested lists of numbers."""
    if not hasattr(array, "tolist") or dtype.startswith(("float4", "complex32")):
        raise CodecError(
            f"the answer holds a {dtype} array, which has no JSON form; use maas.connect(url)"
        )
    listed = array.tolist()
    return listed if dtype.startswith(("bool", "int", "uint")) else _finite(listed)


def _finite(listed: Any) -> Any:
    if type(listed) is list:
        return [_finite(item) for item in listed]
    return _PLAIN[type(listed)](listed)


def line(data: Any) -> bytes:
    """One JSON text and the end of the line; `data` is what `plain` gave."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        return text.encode()
    except (
        UnicodeEncodeError
    ):  # half of a surrogate pair, which Python's text may hold and UTF-8 may not
        return (json.dumps(data, allow_nan=False) + "\n").encode()
