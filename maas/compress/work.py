"""Compression as the work of a job, in its process: the entry point `compress` in `maas.works`."""

from collections.abc import Callable, Mapping
from typing import Any

from maas.compress.compression import compressed
from maas.compress.layers import module_of
from maas.compress.question import Question
from maas.errors import Unsupported
from maas.model import Model
from maas.store.torch_weights import architecture

__all__ = ["carried_out"]


def carried_out(
    model: Model[..., Any],
    recipe: dict[str, Any],
    rows: Mapping[str, Any],
    tell: Callable[[dict[str, Any]], object],
) -> Model[..., Any]:
    """The smaller model. Each row of its report is told as it is found, and at last the report.

    Raises
    ------
    Unsupported
        The result could not be opened by the server: it is of a class of its own.
    """
    question = Question.from_data(recipe, rows)
    small = compressed(model, question, None, lambda row: tell({"row": row.name}))
    described, reason = architecture(module_of(small))
    if described is None:
        raise Unsupported(
            f"{model.name} was compressed, and cannot be served so: it is more than standard "
            f"layers ({reason}); end with Compile(), which makes a model whole, or compress it "
            "where its class is"
        )
    told = small.report.to_data()
    for row in told["rows"]:
        row["latency"] = {str(size): share for size, share in row["latency"].items()}
    tell({"report": told})
    return small
