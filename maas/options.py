"""How a call is made, apart from what is asked: never mixed with the model's own arguments."""

from collections.abc import Iterable

import attrs

from maas.spelling import offered

__all__ = ["DEFAULTS", "Options", "misplaced"]


@attrs.frozen(kw_only=True)
class Options:
    """What `model.with_options(...)` sets.

    Attributes
    ----------
    timeout : seconds for the whole call, over all attempts.
    retries : how often to try again after a failure of the way there, not of the model.
    seed : draw from a fork of the generator, seeded so; the caller's own is untouched.
    priority : larger is sooner where work waits.
    key : idempotency key; a call with the same key and content is run once.
    """

    timeout: float | None = attrs.field(default=None)
    retries: int = attrs.field(default=0)
    seed: int | None = attrs.field(default=None)
    priority: int = attrs.field(default=0)
    key: str | None = attrs.field(default=None)

    @timeout.validator
    def _check_timeout(self, _attribute: object, value: object) -> None:
        if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
            raise ValueError(f"timeout wants a positive number of seconds or None, got {value!r}")

    @retries.validator
    def _check_retries(self, _attribute: object, value: object) -> None:
        if type(value) is not int or not 0 <= value <= 100:
            raise ValueError(f"retries wants an int from 0 to 100, got {value!r}")

    @seed.validator
    def _check_seed(self, _attribute: object, value: object) -> None:
        if value is not None and not (type(value) is int and 0 <= value < 2**63):
            raise ValueError(f"seed wants an int from 0 to 2**63 - 1 or None, got {value!r}")

    @priority.validator
    def _check_priority(self, _attribute: object, value: object) -> None:
        if type(value) is not int:
            raise ValueError(f"priority wants an int, got {value!r}")

    @key.validator
    def _check_key(self, _attribute: object, value: object) -> None:
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= 256):
            raise ValueError(f"key wants a string of 1 to 256 characters or None, got {value!r}")


DEFAULTS = Options()


def misplaced(given: Iterable[str], known: Iterable[str], place: str) -> TypeError:
    """The error of options that a place does not take: where they belong, or what was meant."""
    name = min(given)
    if name in {field.name for field in attrs.fields(Options)}:
        also = "; a server's key is auth=" if name == "key" else ""
        return TypeError(
            f"{name}= is an option of calls: connect(...).with_options({name}=...){also}"
        )
    names = sorted(known)
    rest = offered(f"{name}=", [f"{each}=" for each in names]) if names else "drop it"
    return TypeError(f"{name}= makes no sense for {place}; {rest}")
