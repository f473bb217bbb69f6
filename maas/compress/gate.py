"""How far a compressed model may be from the original: what `keep=` is given.

A gate is a callable of `Figures` that gives a sentence where it is not met, and nothing where it
is; those of third parties too. Every step's result passes all gates, or the step is refused.
"""

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from maas.compress.figures import Figures
from maas.errors import TooLossy

__all__ = ["Agreement", "Gate", "RelativeError", "ScoreDrop", "check_gates", "gates_of"]

Gate = Callable[[Figures, Figures], str]
"""Of the result and of the original: why the result is not good enough, or the empty string."""


def _share(_: object, attribute: "attrs.Attribute[float]", value: object) -> None:
    if type(value) not in (int, float) or not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"{attribute.name} wants a number from 0 to 1, got {value!r:.40}")


def _positive(_: object, attribute: "attrs.Attribute[float]", value: object) -> None:
    if type(value) not in (int, float) or not 0 <= value < float("inf"):  # type: ignore[operator]
        raise ValueError(f"{attribute.name} wants a number from 0, got {value!r:.40}")


@attrs.frozen
class Agreement:
    """At least this share of the check rows get the class that the original gives."""

    at_least: float = attrs.field(validator=_share)

    def __call__(self, found: Figures, _original: Figures) -> str:
        """Why the figures are not good enough, or nothing."""
        if found.agreement is None:
            return "there are no classes to agree on; use RelativeError"
        if found.agreement >= self.at_least:
            return ""
        return f"agreement is {found.agreement:.4f}, at least {self.at_least:g} was asked"


@attrs.frozen
class RelativeError:
    """The outputs' relative error is at most this, and the largest error at most `largest`."""

    at_most: float = attrs.field(validator=_positive)
    largest: float = attrs.field(default=float("inf"), kw_only=True)

    def __call__(self, found: Figures, _original: Figures) -> str:
        """Why the figures are not good enough, or nothing."""
        # Written so that nan is not good enough.
        if not (found.error is not None and found.error <= self.at_most):
            return f"relative error is {found.error:.4g}, at most {self.at_most:g} was asked"
        if not (found.largest is not None and found.largest <= self.largest):
            return f"largest error is {found.largest:.4g}, at most {self.largest:g} was asked"
        return ""


@attrs.frozen
class ScoreDrop:
    """The task's own score falls by at most this; the check data has targets."""

    at_most: float = attrs.field(validator=_positive)

    def __call__(self, found: Figures, original: Figures) -> str:
        """Why the figures are not good enough, or nothing."""
        if found.score is None or original.score is None:
            return "there is no score without targets: give check=(inputs, targets)"
        if original.score - found.score <= self.at_most:
            return ""
        return (
            f"the score is {found.score:.4f} after {original.score:.4f}, "
            f"a fall of at most {self.at_most:g} was asked"
        )


def gates_of(keep: Any) -> tuple[Gate, ...]:
    """The gates that `keep=` names: one, several, or none.

    Raises
    ------
    TypeError
        Something that is no gate.
    """
    given = () if keep is None else keep if isinstance(keep, list | tuple) else (keep,)
    for gate in given:
        if not callable(gate) or isinstance(gate, type):
            raise TypeError(
                f"keep= wants Agreement(0.99), RelativeError(0.05), ScoreDrop(0.01) or several; "
                f"got {gate!r:.60}"
            )
    return tuple(given)


def check_gates(gates: Iterable[Gate], step: str, found: Figures, original: Figures) -> None:
    """Raises `TooLossy`, which has the figures, where a gate is not met."""
    reasons = [reason for gate in gates if (reason := gate(found, original))]
    if reasons:
        raise TooLossy(
            f"{step} was refused: {'; '.join(reasons)} ({_told(found)})", attrs.asdict(found)
        )


def _told(found: Figures) -> str:
    parts = {
        "relative error": found.error,
        "largest error": found.largest,
        "agreement": found.agreement,
        "score": found.score,
    }
    told = [f"{name} {value:.4g}" for name, value in parts.items() if value is not None]
    return ", ".join([*told, f"{found.disk} bytes"])
