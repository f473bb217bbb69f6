"""Named inputs meet a method's parameters.

An input goes to the parameter of its name; those after `*` are named `args_0`, `args_1`, ...
A request's own parameters that are not reserved go to parameters too: so `lower=False`, which is
no tensor, can be said.

The protocol has tensors only, so the signature decides what one becomes:

    wanted                  given
    tensor, or nothing      the array; BYTES become lists of bytes
    int, float, bool        a tensor of one element
    str, bytes              BYTES of one element; str in UTF-8
    list, tuple, set        a tensor of as many dimensions as lists are nested
    datetime, UUID, ...     BYTES of one element, as in JSON calls

What becomes Python objects one by one is bounded by `Limits.nodes`.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from maas import tensors
from maas.backends.base import Method
from maas.errors import CodecError, LimitExceeded, SignatureError
from maas.limits import Limits
from maas.parameters import KINDS, Parameter
from maas.schema import Schema, mismatch
from maas.server.inference_protocol.datatypes import BYTES, DTYPES, split_strings
from maas.server.inference_protocol.requests import Inference, Input
from maas.server.json_form import Converter
from maas.server.number_lists import array, brief_kind, rectangle

__all__ = ["arguments", "starred"]

_RESERVED = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers")
"""Triton's own; with those that begin with `triton_` they are no arguments."""


def arguments(
    method: Method, kind: str, asked: Inference, limits: Limits
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for `method` of a model of that kind.

    Whether they fit the signature is not looked at here: the executor says that.

    Raises
    ------
    CodecError
        Data that do not fit their datatype and shape.
    LimitExceeded
        More Python objects than `limits.nodes`.
    SignatureError
        A name that no parameter has.
    """
    reader = _Reader("$tensor" if kind == "torch" else "$array", limits)
    schemas = _Names(method.signature.parameters)
    named: dict[str, Any] = {}
    for each in asked.inputs:
        named[each.name] = reader.value(each, schemas.of(each.name, "input"))
    for name, value in asked.parameters.items():
        if name in _RESERVED or name.startswith("triton_"):
            continue
        if name in named:
            raise CodecError(f"{name!r:.60} is an input and a parameter of the request; give one")
        schema = schemas.of(name, "parameter")
        if type(value) not in (str, int, float, bool):
            raise CodecError(
                f"the parameter {name!r:.60} is a string, a number, true or false; "
                f"got {brief_kind(value)}"
            )
        named[name] = Converter(guesses=False).convert(schema, value, name)
    return schemas.bound(named)


_INDEX = re.compile("0|[1-9][0-9]{0,3}")


def starred(parameter: Parameter, index: int) -> str:
    """The name of an input for `*args`."""
    return f"{parameter.name}_{index}"


class _Names:
    """The names that a signature takes, each with what it wants."""

    def __init__(self, parameters: tuple[Parameter, ...]) -> None:
        self._schemas = {each.name: each.annotation for each in parameters if "*" not in each.kind}
        self._positional = [each.name for each in parameters if each.kind in KINDS[:2]]
        self._star = next((each for each in parameters if each.kind == "*"), None)
        self._stars = next((each for each in parameters if each.kind == "**"), None)

    def of(self, name: str, what: str) -> Schema:
        """What the parameter of that name wants."""
        found = self._schemas.get(name)
        if found is not None:
            return found
        if self._star is not None and self._is_starred(name):
            return self._star.annotation
        if self._stars is not None:
            return self._stars.annotation
        known = list(self._schemas)
        if self._star is not None:
            known.append(starred(self._star, 0))
        raise SignatureError(
            f"the model takes no {what} {name!r:.60}; it takes: {', '.join(known) or 'none'}"
        )

    def _is_starred(self, name: str) -> bool:
        prefix, _, index = name.rpartition("_")
        return prefix == getattr(self._star, "name", "") and _INDEX.fullmatch(index) is not None

    def bound(self, named: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """By position what can be, in order; the rest by name."""
        rest = dict(named)
        given = [rest.pop(name) for name in itertools.takewhile(rest.__contains__, self._leading())]
        return tuple(given), rest

    def _leading(self) -> Iterator[str]:
        yield from self._positional
        if self._star is not None:
            yield from (starred(self._star, index) for index in itertools.count())


class _Reader:
    """Makes values of inputs; `tag` names the framework whose arrays the model wants."""

    def __init__(self, tag: str, limits: Limits) -> None:
        self._tag = tag
        self._limits = limits

    def value(self, given: Input, schema: Schema) -> Any:
        """The input as the schema has it; where nothing fits, the executor will say so."""
        content = self._strings(given) if given.datatype == BYTES else self._array(given)
        if schema.kind != "union":
            return self._made(given, content, schema)
        return self._choose(given, content, schema)

    def _choose(self, given: Input, content: Any, union: Schema) -> Any:
        """What the first alternative that fits makes of it."""
        errors, made = [], None
        for option in union.items:
            try:
                made = self._made(given, content, option)
            except CodecError as error:
                errors.append(error)
                continue
            if mismatch(option, made, {}) is None:
                return made
        if len(errors) == len(union.items):
            raise errors[0]
        return made

    def _made(self, given: Input, content: Any, schema: Schema) -> Any:
        if given.datatype == BYTES and schema.kind == "tensor":
            raise CodecError(f"{given.label} is {BYTES}; the model wants {schema}, of numbers")
        if schema.kind == "tensor" or (schema.kind == "any" and given.datatype != BYTES):
            return content
        listed = self._listed(given, content, schema)
        if schema.kind not in _MANY and schema.kind != "any" and given.count == 1:
            while type(listed) is list:
                listed = listed[0]
        return Converter(guesses=False).convert(schema, listed, given.label)

    # Numbers.

    def _array(self, given: Input) -> Any:
        dtype = DTYPES[given.datatype]
        if given.binary:
            return self._from_bytes(given, dtype)
        made = array(given.data, dtype, given.label)
        if made.size != given.count or (made.ndim > 1 and made.shape != given.shape):
            raise CodecError(
                f"{given.label} has the shape {list(given.shape)}, and its data "
                f"{list(made.shape)}; data are flat, or nested as the shape says"
            )
        return made.reshape(given.shape)

    def _from_bytes(self, given: Input, dtype: str) -> Any:
        size = tensors.DTYPES[dtype]
        if given.count * size != len(given.data):
            raise CodecError(
                f"{given.label}, {given.datatype}{list(given.shape)}, takes "
                f"{given.count * size} bytes; {len(given.data)} came"
            )
        return tensors.restore(self._tag, dtype, given.shape, (), _aligned(given.data, size))

    # Strings.

    def _strings(self, given: Input) -> list[bytes]:
        if given.binary:
            return split_strings(given.data, given.count, given.label, self._limits)
        shape, strings = rectangle(given.data, given.label)
        if len(strings) != given.count or (len(shape) > 1 and shape != given.shape):
            raise CodecError(
                f"{given.label} has the shape {list(given.shape)}, and its data {list(shape)}"
            )
        wrong = next((each for each in strings if type(each) is not str), None)
        if wrong is not None:
            raise CodecError(f"{given.label} is {BYTES}, strings in JSON; got {brief_kind(wrong)}")
        try:
            return [each.encode() for each in strings]
        except UnicodeEncodeError:
            raise CodecError(f"{given.label} holds half of a surrogate pair") from None

    def _listed(self, given: Input, content: Any, schema: Schema) -> Any:
        """Nested lists of Python's own numbers and strings."""
        # Empty lists count too: of [2**50, 0] there would be many.
        extent = math.prod(length or 1 for length in given.shape)
        if extent > self._limits.nodes:
            raise LimitExceeded(
                f"{given.label} makes a list of {extent} values, "
                f"more than Limits(nodes={self._limits.nodes})"
            )
        if given.datatype != BYTES:
            return content.tolist()
        strings = np.empty(len(content), object)
        strings[:] = _texts(content, given.label) if _wants_text(schema) else content
        return strings.reshape(given.shape).tolist()


_MANY = frozenset({"list", "set", "frozenset", "tuple", "tuple..."})
_NO_TEXT = frozenset({"any", "bytes", "bytearray", "literal"})


def _wants_text(schema: Schema) -> bool:
    """Whether strings are wanted as text; where nobody says, they stay the bytes they are."""
    leaves = [each for each in schema.walk() if not each.items]
    kinds = {each.kind for each in leaves}
    literals = any(type(value) is str for each in leaves for value in each.literals)
    return literals or bool(kinds - _NO_TEXT)


def _texts(strings: list[bytes], label: str) -> list[str]:
    try:
        return [each.decode() for each in strings]
    except UnicodeDecodeError:
        raise CodecError(f"{label} is text, and holds a string that is no UTF-8") from None


def _aligned(data: memoryview, size: int) -> memoryview:
    """The data where numbers of that size may lie: JSON of any length stands before them."""
    if len(data) and np.frombuffer(data, np.uint8).__array_interface__["data"][0] % size:
        return memoryview(bytearray(data))
    return data
