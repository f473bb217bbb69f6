"""A stranger's JSON text, bounded before it is parsed."""

import json
import re
from collections.abc import Callable
from typing import Any

from maas.errors import CodecError, LimitExceeded
from maas.limits import Limits

__all__ = ["Pairs", "parsed"]

Pairs = Callable[[list[tuple[str, Any]]], Any]
"""What makes an object of its members, duplicates included."""

_BRACKET = re.compile(r'"(?:\\.|[^"\\])*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
"""A string, which may hold brackets, or a bracket; a string without an end reaches to the end,
for else every quote in it would be tried anew."""


def parsed(body: bytes, limits: Limits, pairs: Pairs, *, wanted: str) -> Any:
    """What the text says; `wanted` ends the message about a body that says nothing.

    Raises
    ------
    CodecError
        No JSON in UTF-8.
    LimitExceeded
        Deeper than `limits.depth`. How many bytes are read is for the caller to say.
    """
    try:
        text = body.decode()
        _check_depth(text, limits.depth)
        return json.loads(text, object_pairs_hook=pairs)
    except CodecError:
        raise
    except UnicodeDecodeError as error:
        raise CodecError(f"JSON is UTF-8, and byte {error.start} of the body is not") from None
    except ValueError as error:  # JSONDecodeError, and an int of more than 4,300 digits
        raise CodecError(f"the body is no JSON: {error}; {wanted}") from None


def _check_depth(text: str, depth: int) -> None:
    # Before the parser, which recurses on the C stack of whichever thread this is.
    if text.count("[") + text.count("{") <= depth:
        return
    level = 0
    for found in _BRACKET.finditer(text):
        level += _STEPS.get(found[0], 0)
        if level > depth:
            raise LimitExceeded(
                f"the JSON is nested deeper than {depth} levels at character {found.start()}"
            )


_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}
