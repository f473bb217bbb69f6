"""Frozen records for what every call makes.

`attrs.frozen` sets each field through `object.__setattr__`, at three times the cost of an
assignment, and a call makes ten such records here and ten there. Type checkers hold these
frozen; at run time nothing but this project's own discipline does. Most are never compared,
and one representation serves all: the methods that attrs compiles for both are half of what it
takes to make such a class at import.
"""

from typing import TYPE_CHECKING, Any

__all__ = ["frozen"]

if TYPE_CHECKING:
    from attrs import frozen
else:
    import attrs

    def frozen(cls: Any = None, /, *, eq: bool = False, kw_only: bool = False) -> Any:
        """Makes the class a record; with `eq`, compared by its fields."""
        if cls is None:
            return lambda cls: frozen(cls, eq=eq, kw_only=kw_only)
        record = attrs.define(cls, eq=eq, kw_only=kw_only, repr=False)
        record.__repr__ = _shown
        return record

    def _shown(record: Any) -> str:
        names = [field.name for field in record.__attrs_attrs__ if field.repr]
        fields = ", ".join(f"{name}={getattr(record, name)!r}" for name in names)
        return f"{type(record).__qualname__}({fields})"
