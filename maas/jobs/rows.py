"""The rows of a job as plain values, which a sealed file holds, and the source of rows again."""

from typing import Any

from maas.errors import Unsupported
from maas.train.rows import Rows
from maas.train.rows import source_of as _source_of

__all__ = ["packed", "source_of"]


def packed(data: Any) -> dict[str, Any]:
    """The rows of what users give to `fit`.

    Raises
    ------
    Unsupported
        They are no arrays in memory, so that there is nothing to hand to another process.
    """
    source = _source_of(data)
    if not isinstance(source, Rows):
        raise Unsupported(
            f"a job takes its rows along, and {type(data).__name__} does not hold them; give "
            "(inputs, targets) as arrays"
        )
    return {"inputs": source.inputs, "targets": source.targets}


def source_of(rows: dict[str, Any]) -> Any:
    """The source that `packed` was given."""
    return Rows(rows["inputs"], rows["targets"])
