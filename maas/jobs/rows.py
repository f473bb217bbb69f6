"""The rows of a job as plain values, which travel and are kept, and what `fit` is given again."""

from typing import Any

from maas.data import Data
from maas.data.rows import sent
from maas.errors import Unsupported

__all__ = ["given", "packed", "size"]


def packed(value: Any) -> dict[str, Any] | None:
    """All rows of what users give to `fit`; None of None.

    Raises
    ------
    Unsupported
        Rows that are not all here, or come in batches of their own: a job that goes on after a
        crash must find the same ones again.
    """
    if value is None:
        return None
    data = Data.of(value)
    if data.name is not None:
        # It is where the job will be.
        return {"dataset": data.name}
    if data.rows is None or data.own_batches or not data.repeatable:
        raise Unsupported(
            f"a job takes its rows along, and this gives them once, or batch by batch: {data!r}; "
            "give (inputs, targets) as arrays"
        )
    ((inputs, targets),) = data.batches(max(1, data.rows))
    return {"inputs": sent(inputs), "targets": sent(targets)}


def size(rows: Any) -> int:
    """Bytes of what `packed` gave, nearly: of text its characters."""
    if isinstance(rows, dict | list | tuple):
        return sum(map(size, rows.values() if isinstance(rows, dict) else rows))
    return len(rows) if isinstance(rows, str) else getattr(rows, "nbytes", 0)


def given(rows: dict[str, Any] | None) -> Any:
    """What `packed` was given."""
    return None if rows is None else (rows["inputs"], rows["targets"])
