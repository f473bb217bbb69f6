"""What a call's arguments meet: parameters, and how Python binds the one to the other.

Arguments meet parameters as CPython lets them meet, in the same order of
complaints and with the same words (`initialize_locals` in its ceval.c); the
test compares each message with that of the bare function. Counts leave out
`self`, which the caller of a model never writes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from maas.errors import SignatureError
from maas.hints import schema_of
from maas.records import frozen
from maas.schema import (
    ANY,
    MAX_TEXT,
    Schema,
    plain_text,
)
from maas.spelling import nearest

__all__ = ["KINDS", "MAX_PARAMETERS", "Binder", "Parameter", "Slot", "in_order"]

KINDS = ("positional", "positional-or-keyword", "*", "keyword", "**")
"""How an argument may be given; a signature has them in this order."""

MAX_PARAMETERS = 255


@attrs.frozen
class Parameter:
    """One parameter; `annotation` may be given as a type hint, a `TensorSpec` or a `Schema`.

    `default` is how Python writes the default, for the reader: the side that
    runs the model fills it in.
    """

    name: str
    kind: str = "positional-or-keyword"
    annotation: Schema = attrs.field(default=ANY, converter=schema_of)
    required: bool = True
    default: str = ""

    def __attrs_post_init__(self) -> None:
        name = self.name
        if type(name) is not str or not name.isidentifier() or len(name) > MAX_TEXT:
            raise ValueError(f"a parameter's name is an identifier, got {plain_text(name)}")
        if self.kind not in KINDS:
            raise ValueError(f"{name!r} has the kind {plain_text(self.kind)}; kinds are {KINDS}")
        if self.required and (self.default or "*" in self.kind):
            raise ValueError(f"{name!r} has a default or is starred, so it is not required")
        if len(self.default) > MAX_TEXT or not self.default.isprintable():
            raise ValueError(f"the default of {name!r} is not one short printable line")

    def __str__(self) -> str:
        stars = self.kind if "*" in self.kind else ""
        typed = self.annotation != ANY
        text = f"{stars}{self.name}" + (f": {self.annotation}" if typed else "")
        if self.required or stars:
            return text
        return f"{text}{' = ' if typed else '='}{self.default or '...'}"


Slot = tuple[str, Parameter]
"""The name under which an argument is spoken of, and its parameter."""


@frozen
class Binder:
    """How arguments meet parameters: worked out once for a signature.

    A call of `least` to `most` positional arguments and no others meets `slots`
    in order, and fits if each of them that `wants_array` is an array of any kind, where the
    signature is `simple`: it asks for nothing more.
    """

    parameters: tuple[Parameter, ...]
    positional: tuple[Parameter, ...]
    keywords: Mapping[str, Parameter]
    star: Parameter | None
    stars: Parameter | None
    slots: tuple[Slot, ...]
    least: float
    most: float
    simple: bool
    wants_array: tuple[bool, ...]

    @classmethod
    def of(cls, parameters: tuple[Parameter, ...]) -> "Binder":
        """The binder of a signature's parameters."""
        positional = tuple(each for each in parameters if each.kind in KINDS[:2])
        star, stars = (
            next((each for each in parameters if each.kind == kind), None) for kind in ("*", "**")
        )
        demanding = any(each.required and each.kind == "keyword" for each in parameters)
        loose = star is not None and star.annotation.kind == "any"
        return cls(
            parameters,
            positional,
            {each.name: each for each in parameters if each.kind in (KINDS[1], KINDS[3])},
            star,
            stars,
            slots=tuple((each.name, each) for each in positional),
            least=math.inf if demanding else sum(each.required for each in positional),
            most=math.inf if loose else len(positional),
            simple=all(_is_simple(each.annotation) for each in positional),
            wants_array=tuple(each.annotation.kind == "tensor" for each in positional),
        )

    def bind(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
    ) -> list[tuple[Slot, Any]]:
        """Each argument with its slot, in the order of the signature; `name` is the function's."""
        given = dict(zip((each.name for each in self.positional), args, strict=False))
        extra = self._take_keywords(given, kwargs, name)
        if len(args) > len(self.positional) and self.star is None:
            raise SignatureError(f"{name}() {self._too_many(len(args), given)}")
        for kinds, word in ((KINDS[:2], "positional"), (KINDS[3:4], "keyword-only")):
            wanted = (each for each in self.parameters if each.kind in kinds and each.required)
            missing = [repr(each.name) for each in wanted if each.name not in given]
            if missing:
                raise SignatureError(f"{name}() {_missing(missing, word)}")
        return list(self._bound(given, args[len(self.positional) :], extra))

    def _bound(
        self, given: Mapping[str, Any], rest: tuple[Any, ...], extra: Mapping[str, Any]
    ) -> Iterator[tuple[Slot, Any]]:
        for each in self.parameters:
            if each.kind == "*":
                for index, value in enumerate(rest):
                    yield (f"{each.name}[{index}]", each), value
            elif each.kind == "**":
                for key, value in extra.items():
                    yield (key[:MAX_TEXT], each), value
            elif each.name in given:
                yield (each.name, each), given[each.name]

    def _take_keywords(
        self, given: dict[str, Any], kwargs: Mapping[str, Any], name: str
    ) -> dict[str, Any]:
        """Move what has a parameter into `given`; what remains is for `**`."""
        extra = {}
        for key, value in kwargs.items():
            if not isinstance(key, str):
                raise SignatureError(f"{name}() keywords must be strings")
            if key in self.keywords and key in given:
                raise SignatureError(f"{name}() got multiple values for argument '{key}'")
            if key in self.keywords:
                given[key] = value
            elif self.stars is not None:
                extra[key] = value
            else:
                raise SignatureError(f"{name}() got {self._unexpected(key, kwargs)}")
        return extra

    def _unexpected(self, key: str, kwargs: Mapping[str, Any]) -> str:
        closed = (each.name for each in self.parameters if each.kind == "positional")
        meant = ", ".join(name for name in closed if name in kwargs)
        if meant:
            return f"some positional-only arguments passed as keyword arguments: '{meant}'"
        # CPython too suggests nothing beyond 40 characters: the search is quadratic in them.
        known = list(self.keywords) if len(key) <= 40 else []
        close = nearest(key, known)
        hint = f". Did you mean '{close}'?" if close else ""
        return f"an unexpected keyword argument '{key[:MAX_TEXT]}'{hint}"

    def _too_many(self, count: int, given: Mapping[str, Any]) -> str:
        most = len(self.positional)
        least = sum(each.required for each in self.positional)
        takes = f"from {least} to {most}" if least < most else f"{most}"
        named = sum(each.kind == "keyword" and each.name in given for each in self.parameters)
        also = f"{count}"
        if named:
            also += (
                f" positional argument{_s(count)} (and {named} keyword-only argument{_s(named)})"
            )
        verb = "was" if count == 1 and not named else "were"
        plural = "s" if least < most else _s(most)
        return f"takes {takes} positional argument{plural} but {also} {verb} given"


def _is_simple(annotation: Schema) -> bool:
    return annotation.kind == "any" or (annotation.kind == "tensor" and annotation.spec is None)


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _missing(names: list[str], word: str) -> str:
    *before, last = names
    comma = "," if len(names) > 2 else ""
    listed = f"{', '.join(before)}{comma} and {last}" if before else last
    return f"missing {len(names)} required {word} argument{_s(len(names))}: {listed}"


def in_order(parameters: Iterable[Parameter]) -> tuple[Parameter, ...]:
    """The parameters as a record holds them."""
    return tuple(parameters)
