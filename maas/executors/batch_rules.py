"""Which methods of a model are batched, and how."""

from collections.abc import Mapping

import attrs

from maas.backends.base import Method
from maas.batching import Batching
from maas.calls import CALL
from maas.executors.rows import Axes

__all__ = ["Rule", "rules_for"]


@attrs.frozen
class Rule:
    """One method that is batched; `plain` if a caller who finds the model free runs it as it is."""

    method: Method
    axes: Axes
    batching: Batching
    plain: bool

    @classmethod
    def of(cls, method: Method, batching: Batching) -> "Rule":
        """The rule of a method that is batched so."""
        plain = not batching.invariant and not batching.max_wait
        return cls(method, Axes(method, batching), batching, plain)


def rules_for(methods: Mapping[str, Method], batching: Batching | None) -> dict[str, Batching]:
    """Which methods are batched, and how: as each one's author declared, or as the model's.

    Raises
    ------
    ValueError
        A method that cannot be batched was to be, or nothing can.
    """
    rules: dict[str, Batching] = {}
    refused: list[str] = []
    for name, method in methods.items():
        told = method.batching or batching
        if told is None:
            continue
        why = _unfit(method)
        if not why:
            rules[name] = told
        elif method.batching is not None or name == CALL:
            raise ValueError(f"{method.label} cannot be batched: {why}")
        else:
            refused.append(f"{method.label} {why}")
    if batching is not None and not rules:
        raise ValueError(f"nothing here can be batched: {'; '.join(refused) or 'no methods'}")
    return rules


def _unfit(method: Method) -> str:
    if method.streams or method.asynchronous:
        return "it streams or is asynchronous"
    if method.stochastic:
        return "it draws, so its answer depends on which calls ran before"
    if not method.pure:
        return (
            "a batch that fails is run again in parts; if it may be, declare it "
            "@maas.method(pure=True)"
        )
    return ""
