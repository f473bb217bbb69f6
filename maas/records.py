"""Frozen records for what every call makes.

`attrs.frozen` sets each field through `object.__setattr__`, at three times the cost of an
assignment, and a call makes ten such records here and ten there. Type checkers hold these
frozen; at run time nothing but this project's own discipline does. Most are never compared,
and the methods for that are a third of what it takes to make such a class at import.
"""

import functools
from typing import TYPE_CHECKING

__all__ = ["frozen"]

if TYPE_CHECKING:
    from attrs import frozen
else:
    import attrs

    frozen = functools.partial(attrs.define, eq=False)
