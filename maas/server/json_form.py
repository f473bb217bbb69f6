"""JSON calls: for curl, for browsers, for a first look; programs speak the wire format.

A call is an object, whose members are arguments by name (of positional-only parameters too), or
an array, whose items are arguments in order. JSON has fewer types than Python, so the signature
fills in what it lacks:

    wanted                        written
    tensor, dtype and shape       [[1, 2], [3, 4]]; numbers that the dtype cannot hold are refused
    tensor, nothing more          the same, read as float32
    nothing, of a torch module    lists of numbers as above; everything else stays what it is
    tuple, set, frozenset         [1, 2]
    datetime, date, time          "2024-05-17T12:00:00" (ISO 8601)
    timedelta                     seconds
    Decimal, UUID                 "0.10", "7f1c..."
    complex                       [real, imaginary]

Where there is no signature, a tag says what is meant, by the names of the wire format:
`{"$bytes": "aGVsbG8="}` (base64), `{"$array": ["int64", [1, 2]]}`, `{"$tuple": [1, 2]}`,
`{"$map": [[1, "a"]]}`.

RFC 8259 has no NaN. It is read as Python's `json` writes it (`NaN`, `-Infinity`) and as protobuf's
JSON does (`"NaN"`, where a number is wanted). How answers are written: `json_answers.py`.
"""

import base64
import binascii
import datetime as dt
import decimal
import itertools
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from typing import Any

from maas import tensors, values
from maas.backends.base import Method
from maas.errors import CodecError, LimitExceeded
from maas.limits import Limits
from maas.parameters import KINDS, Parameter
from maas.schema import Schema, mismatch
from maas.server.json_answers import line, plain
from maas.server.json_text import parsed
from maas.server.number_lists import WORDS, array, brief_kind, numeric_lists

__all__ = ["Converter", "arguments", "line", "plain"]

_EXAMPLE = (
    'an object of arguments by name, such as {"x": [[1, 2, 3]]}, '
    'or an array of them in order, such as ["hello"]'
)


# Calls.


def arguments(
    body: bytes, method: Method, kind: str, limits: Limits
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that a JSON body holds for `method` of a model of that kind.

    Whether they fit the signature is not looked at here: the executor says that, in the same
    words for every caller.

    Raises
    ------
    CodecError
        No JSON, no call, or a value that cannot become what the signature wants.
    LimitExceeded
        More than `limits.header` bytes, or deeper than `limits.depth`.
    """
    data = _parsed(body, limits)
    parameters = method.signature.parameters
    reader = Converter(guesses=kind == "torch")
    if type(data) is list:
        pairs = zip(_slots(data, parameters), data, strict=True)
        return tuple(reader.convert(schema, item, label) for (label, schema), item in pairs), {}
    if type(data) is dict:
        by_name = _named(parameters)
        rest = next((each.annotation for each in parameters if each.kind == "**"), _ANY)
        named = {
            name: reader.convert(by_name.get(name, rest), item, name) for name, item in data.items()
        }
        return tuple(named.pop(name) for name in _leading(named, parameters)), named
    raise CodecError(f"a JSON call is {_EXAMPLE}; got {brief_kind(data)}")


_ANY = Schema("any")


def _slots(data: list[Any], parameters: Iterable[Parameter]) -> Iterator[tuple[str, Schema]]:
    """Name and schema for each of the positional arguments."""
    positional = [each for each in parameters if each.kind in KINDS[:2]]
    star = next((each for each in parameters if each.kind == "*"), None)
    if star is None and len(data) > len(positional):
        names = ", ".join(each.name for each in positional) or "none"
        raise CodecError(
            f"the array holds {len(data)} arguments, and the model takes {len(positional)} in "
            f"order ({names}); an argument that is a list itself stands in brackets of its own, "
            "such as [[1, 2, 3]]"
        )
    for index in range(len(data)):
        if index < len(positional):
            yield positional[index].name, positional[index].annotation
        elif star is not None:
            yield f"{star.name}[{index - len(positional)}]", star.annotation


def _leading(named: Collection[str], parameters: Iterable[Parameter]) -> list[str]:
    """The positional-only parameters that were given by name; of an object there is no other way.

    None where `**` makes such a name one of the caller's own.
    """
    kinds = {each.name: each.kind for each in parameters}
    if "**" in kinds.values():
        return []
    return [
        name
        for name in itertools.takewhile(named.__contains__, kinds)
        if kinds[name] == "positional"
    ]


def _named(parameters: Iterable[Parameter]) -> dict[str, Schema]:
    return {each.name: each.annotation for each in parameters if "*" not in each.kind}


# JSON, bounded.


def _parsed(body: bytes, limits: Limits) -> Any:
    if len(body) > limits.header:
        raise LimitExceeded(
            f"a JSON call of {len(body)} bytes, and at most {limits.header} are read; "
            "send arrays in their binary form: maas.connect(url)(x), or `maas call URL x.npy`"
        )
    if not body.strip():
        raise CodecError(f"the body is empty; a JSON call is {_EXAMPLE}, or {{}} for no arguments")
    return parsed(body, limits, _Reader((), limits).pairs, wanted=f"a JSON call is {_EXAMPLE}")


class _Reader(values.Unpacker):
    """The wire format's tags, but for the two whose contents lie beside the header there."""

    def pairs(self, pairs: list[tuple[Any, Any]]) -> Any:
        if len(pairs) == 1 and pairs[0][0] in _TAGS:
            return _TAGS[pairs[0][0]](pairs[0][1])
        return super().pairs(pairs)


def _from_base64(payload: Any) -> bytes:
    try:
        return base64.b64decode(payload, validate=True)
    except (TypeError, ValueError, binascii.Error):
        wanted = '{"$bytes": "aGVsbG8="}'
        raise CodecError(
            f"$bytes wants base64 text, as {wanted}; got {values.brief(payload)}"
        ) from None


def _from_lists(payload: Any) -> Any:
    known = type(payload) is list and len(payload) == 2 and type(payload[0]) is str
    if not known or payload[0] not in tensors.DTYPES:
        wanted = '{"$array": ["float32", [1, 2]]}'
        raise CodecError(
            f"$array wants a dtype and its numbers, as {wanted}; got {brief_kind(payload)}"
        )
    return array(payload[1], payload[0], "$array")


_TAGS: dict[str, Callable[[Any], Any]] = {"$bytes": _from_base64, "$array": _from_lists}


# What the signature fills in.


class Converter:
    """Brings JSON's few types to those that a schema wants.

    `guesses`: where nothing is wanted, lists of numbers become arrays.
    """

    def __init__(self, *, guesses: bool) -> None:
        self._guesses = guesses

    def convert(self, schema: Schema, data: Any, label: str) -> Any:
        """`data` as the schema has it; unchanged where nothing is to be done or nothing fits."""
        if schema.kind == "union":
            return self._choose(schema, data, label)
        if schema.kind == "any":
            return self._guess(data, label) if self._guesses else data
        if schema.kind == "tensor" and type(data) in (list, int, float, str):
            return array(data, schema.spec.dtype if schema.spec else "float32", label)
        if schema.kind in _SEQUENCES and type(data) is list:
            return self._sequence(schema, data, label)
        if schema.kind == "dict" and type(data) is dict:
            item = schema.items[1]
            return {
                key: self.convert(item, each, f'{label}["{key[:40]}"]')
                for key, each in data.items()
            }
        return _scalar(schema.kind, data, label)

    def _choose(self, schema: Schema, data: Any, label: str) -> Any:
        """What the first alternative that fits makes of it."""
        errors = []
        for item in schema.items:
            try:
                made = self.convert(item, data, label)
            except CodecError as error:
                errors.append(error)
                continue
            if mismatch(item, made, {}) is None:
                return made
        if errors:
            raise errors[0]
        return data

    def _sequence(self, schema: Schema, data: list[Any], label: str) -> Any:
        items: Iterable[Schema] = schema.items
        if schema.kind != "tuple":
            items = schema.items * len(data)
        elif len(schema.items) != len(data):
            return tuple(data)
        made = [
            self.convert(item, each, f"{label}[{index}]")
            for index, (item, each) in enumerate(zip(items, data, strict=True))
        ]
        try:
            return _SEQUENCES[schema.kind](made)
        except TypeError:
            raise CodecError(
                f"{label} is a {schema.kind}, and a list cannot be a member of one"
            ) from None

    def _guess(self, data: Any, label: str) -> Any:
        if type(data) is dict:
            return {key: self._guess(item, f'{label}["{key[:40]}"]') for key, item in data.items()}
        return self._with_arrays(data, label, numeric_lists(data)) if type(data) is list else data

    def _with_arrays(self, data: list[Any], label: str, numeric: Set[int]) -> Any:
        if id(data) in numeric:
            return array(data, "float32", label)
        return [
            self._with_arrays(item, place, numeric)
            if type(item) is list
            else self._guess(item, place)
            for item, place in ((item, f"{label}[{index}]") for index, item in enumerate(data))
        ]


_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "tuple...": tuple,
    "set": set,
    "frozenset": frozenset,
}

_SCALARS: dict[str, tuple[tuple[type, ...], Callable[[Any], Any], str]] = {
    "datetime": ((str,), dt.datetime.fromisoformat, '"2024-05-17T12:00:00"'),
    "date": ((str,), dt.date.fromisoformat, '"2024-05-17"'),
    "time": ((str,), dt.time.fromisoformat, '"12:00:00"'),
    "timedelta": ((int, float), lambda seconds: dt.timedelta(seconds=seconds), "seconds, as 2.5"),
    "Decimal": ((str, int), decimal.Decimal, '"0.10"'),
    "UUID": ((str,), uuid.UUID, '"12345678-1234-5678-1234-567812345678"'),
    "complex": ((list,), lambda parts: complex(*parts), "[real, imaginary]"),
    "bytearray": ((bytes,), bytearray, '{"$bytes": "aGVsbG8="}'),
}


def _scalar(kind: str, data: Any, label: str) -> Any:
    if kind in ("float", "complex") and type(data) is str:
        return WORDS.get(data, data)
    types, make, wanted = _SCALARS.get(kind, ((), None, ""))
    if make is None or type(data) not in types:
        return data
    try:
        return make(data)
    except (ValueError, TypeError, ArithmeticError):
        raise CodecError(
            f"{label} is a {kind} and wants {wanted}; got {values.brief(data)}"
        ) from None
