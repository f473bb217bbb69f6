"""The tensors of TensorFlow's in a value, which is what a tape is about."""

from collections.abc import Sequence
from typing import Any

from maas import tensors
from maas.limits import Limits
from maas.values import Path, rebuild

__all__ = ["floating", "replaced", "tensors_in"]

_VALUE: Path = (None, "value", 1)
_LIMITS = Limits()


def tensors_in(value: Any) -> list[Any]:
    """Every one of them, in the order of the message that held the value."""
    found: list[Any] = []
    kinds = _kinds()

    def look(array: Any, _path: Path) -> Any:
        if isinstance(array, kinds):
            found.append(array)
        return array

    rebuild(value, _VALUE, look, _LIMITS)
    return found


def floating(every: Sequence[Any]) -> list[Any]:
    """Those of them that have gradients."""
    return [each for each in every if each.dtype.is_floating]


def replaced(value: Any, others: Sequence[Any]) -> Any:
    """The value with other tensors in place of its own, in the order of `tensors_in`."""
    rest, kinds = iter(others), _kinds()
    return rebuild(
        value,
        _VALUE,
        lambda array, _path: next(rest) if isinstance(array, kinds) else array,
        _LIMITS,
    )


def _kinds() -> tuple[type, ...]:
    found = tensors.adapter("tensorflow")
    kinds: tuple[type, ...] = () if found is None else found.TYPES
    return kinds
