"""How calls of a model may share one run: what `maas.Model(net, batching=...)` is given."""

from collections.abc import Mapping

import attrs

__all__ = ["Batching"]

Fill = float | Mapping[str, float]
"""A fill value for every argument, or one by argument."""


def _count(_: object, attribute: "attrs.Attribute[int]", value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"Batching({attribute.name}=...) wants a positive int, got {value!r}")


def _seconds(_: object, attribute: "attrs.Attribute[float]", value: object) -> None:
    if type(value) not in (int, float) or not 0 <= value < float("inf"):  # type: ignore[operator]
        raise ValueError(
            f"Batching({attribute.name}=...) wants a number of seconds from 0, got {value!r}"
        )


def _fraction(_: object, _attribute: object, value: float | None) -> None:
    if value is not None and (type(value) not in (int, float) or not 0 <= value < 1):
        raise ValueError(f"Batching(tolerance=...) wants a number from 0 to 1, got {value!r}")


def _fills(_: object, _attribute: object, value: object) -> None:
    good = isinstance(value, Mapping) and all(
        isinstance(symbol, str) and isinstance(fill, int | float | Mapping)
        for symbol, fill in value.items()
    )
    if not good:
        raise ValueError(
            "Batching(padding=...) wants the symbol of a dimension and what fills it up, "
            f"such as {{'time': 0}}; got {value!r}"
        )


@attrs.frozen
class Batching:
    """Calls that wait while the model runs go through it together afterwards.

    What goes together is equal in method, dtype, shape beyond the batch axis, other parameters
    and context. The batch axis is the first of every array, or where the signature has the
    symbol "batch". Nobody waits for company unless `max_wait` says so.

    Attributes
    ----------
    max_batch_size : rows in one run; a call of more rows runs alone.
    max_wait : seconds that a call may be held back for others to join it.
    invariant : an answer has the bits it would have alone, whatever it shared its run with. Sizes
        at which that holds are looked for at load, and batches are filled up to them; where
        there are none, calls run one at a time, and `job.info.note` says so.
    padding : symbol of a dimension in which calls may differ, and the value that fills up the
        shorter ones: `{"time": 0}`, or by argument `{"time": {"tokens": 0, "mask": 0}}`. The
        model must not notice it; whether it does is tried before it is relied on.
    tolerance : the largest difference between an answer in a batch and alone, as a share of the
        answer's largest magnitude; by default the square root of its dtype's precision
        (float32: 3.5e-4). A model that differs by more is not batched.
    max_queue : calls that may wait; one more is refused with `Overloaded`.
    max_queue_rows : rows that may wait.
    max_age : seconds after which the oldest waiting call shows that newcomers come too fast: they
        are refused until it is younger. A model whose single runs take longer has twice a run.
    """

    max_batch_size: int = attrs.field(validator=_count)
    max_wait: float = attrs.field(default=0.0, validator=_seconds, kw_only=True)
    invariant: bool = attrs.field(
        default=False, validator=attrs.validators.instance_of(bool), kw_only=True
    )
    padding: Mapping[str, Fill] = attrs.field(factory=dict, validator=_fills, kw_only=True)
    tolerance: float | None = attrs.field(default=None, validator=_fraction, kw_only=True)
    max_queue: int = attrs.field(default=1024, validator=_count, kw_only=True)
    max_queue_rows: int = attrs.field(default=65_536, validator=_count, kw_only=True)
    max_age: float = attrs.field(default=5.0, validator=_seconds, kw_only=True)
