"""What a value must be, as data: the type language of signatures.

A type hint is a Python object; it cannot cross, and two processes need not
have the same ones. A `Schema` is its plain form: a closed set of kinds that
nest as a tree, so that it travels in `describe`, that both sides check with
the same code and the same words, and that a test can walk to draw values from.

    leaves        None bool int float complex str bytes bytearray datetime date
                  time timedelta Decimal UUID slice range
    containers    list set frozenset dict, tuple (a type for each place) and
                  tuple... (one type for all)
    choices       union, literal
    arrays        tensor, with a `TensorSpec` or without
    by name       object (a class given to `maas.register`)
    stream        what a generator yields
    any           everything else; its name is kept for the reader

A hint is a promise that Python does not enforce, so the check is no stricter
than a reader would be: an int passes for a float, a NumPy scalar for a number,
a tensor of any framework for a tensor, and what is not understood passes.
Which hint means which schema, and how arguments meet parameters, is `signature.py`.
"""

import datetime as dt
import decimal
import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import attrs
import numpy as np

from maas import tensors, values
from maas.errors import CodecError
from maas.records import frozen

__all__ = [
    "ANY",
    "ITEMS",
    "LEAVES",
    "MAX_DEPTH",
    "MAX_NODES",
    "MAX_TEXT",
    "PLAIN",
    "SAMPLE",
    "Mismatch",
    "Schema",
    "Sizes",
    "TensorSpec",
    "fields_of",
    "mismatch",
    "plain_text",
    "spend",
]

MAX_DEPTH = 32
MAX_NODES = 4_096
"""Types, literals and dimensions in one signature; torch's multi_head_attention_forward has 54."""
MAX_TEXT = 200
"""Characters of a name or of the text kept for an any."""
SAMPLE = 64
"""Members of one container that are checked: a list of a million ids is not walked for a hint."""

LEAVES: dict[str, type] = {
    "None": type(None),
    **{cls.__name__: cls for cls in (bool, int, float, complex, str, bytes, bytearray)},
    **{cls.__name__: cls for cls in (dt.datetime, dt.date, dt.time, dt.timedelta)},
    **{cls.__name__: cls for cls in (decimal.Decimal, uuid.UUID, slice, range)},
}
"""The kinds that hold nothing, each with its class."""

ITEMS = {"list": 1, "set": 1, "frozenset": 1, "tuple...": 1, "dict": 2, "stream": 1}
"""The kinds that hold a fixed number of types; all but stream are named as their class."""

PLAIN = (type(None), bool, int, float, str, bytes)
"""What a literal may be."""

_KINDS = {*LEAVES, *ITEMS, "tuple", "union", "literal", "tensor", "object", "any"}
_STREAMS = ("Iterator", "AsyncIterator")

Sizes = dict[str, int]
"""The lengths that symbolic dimensions have taken so far in one call."""


def _dimensions(shape: Iterable[int | str | None]) -> tuple[int | str | None, ...]:
    # "batch" is a sequence too, of five symbols that nobody meant.
    if isinstance(shape, str | int):
        raise ValueError(f"a shape is a tuple of dimensions, as (8, 'n'); got {plain_text(shape)}")
    return tuple(shape)


@attrs.frozen(repr=False)
class TensorSpec:
    """A tensor's dtype and shape: `TensorSpec("float32", ("batch", 1000))`.

    A dimension is a length, a symbol that has one length throughout a call, or
    None for any length.
    """

    dtype: str
    shape: tuple[int | str | None, ...] = attrs.field(converter=_dimensions)

    def __attrs_post_init__(self) -> None:
        if self.dtype not in tensors.DTYPES:
            known = ", ".join(tensors.DTYPES)
            raise ValueError(
                f"TensorSpec wants one of the dtypes {known}; got {plain_text(self.dtype)}"
            )
        if len(self.shape) > tensors.MAX_RANK:
            raise ValueError(
                f"TensorSpec wants at most {tensors.MAX_RANK} dimensions, got {len(self.shape)}"
            )
        for dimension in self.shape:
            if not _is_dimension(dimension):
                given = plain_text(dimension)
                raise ValueError(
                    f"a dimension is an int from 0, an identifier or None; got {given}"
                )

    def __repr__(self) -> str:
        shape = ("?" if dimension is None else str(dimension) for dimension in self.shape)
        return f"{self.dtype}[{', '.join(shape)}]"


def _is_dimension(dimension: object) -> bool:
    if type(dimension) is str:
        return dimension.isidentifier() and len(dimension) <= MAX_TEXT
    # By exact type, since bool is an int in Python.
    return dimension is None or (type(dimension) is int and 0 <= dimension < 2**63)


def _typed_literals(literals: tuple[Any, ...]) -> tuple[Any, ...]:
    # Literal[True] is not Literal[1], though True == 1.
    return tuple((type(literal), literal) for literal in literals)


@attrs.frozen(repr=False)
class Schema:
    """One type; `kind` is a word of the module's table, `items` are the types inside.

    `spec` belongs to a tensor, `literals` to a literal. `name` is the class of
    an object, `Iterator` or `AsyncIterator` of a stream, and what the author
    wrote for an any.
    """

    kind: str
    items: tuple["Schema", ...] = ()
    spec: TensorSpec | None = None
    literals: tuple[Any, ...] = attrs.field(default=(), eq=_typed_literals)
    name: str = ""

    def __attrs_post_init__(self) -> None:
        kind = self.kind
        if kind not in _KINDS:
            known = ", ".join(sorted(_KINDS))
            raise ValueError(f"no type is called {plain_text(kind)}; known: {known}")
        if not _is_count(kind, len(self.items)):
            raise ValueError(f"{kind} cannot hold {len(self.items)} types")
        if self.spec is not None and kind != "tensor":
            raise ValueError(f"{kind} has no dtype and shape; only a tensor has")
        if bool(self.literals) != (kind == "literal"):
            raise ValueError("a literal has one value or more, and nothing else has any")
        if not all(type(literal) in PLAIN for literal in self.literals):
            raise ValueError("the values of a literal are None, bool, int, float, str or bytes")
        if not _is_name(kind, self.name):
            raise ValueError(f"{kind} cannot have the name {plain_text(self.name)}")

    def __str__(self) -> str:
        write = _WRITERS.get(self.kind)
        return write(self) if write else self.kind

    def __repr__(self) -> str:
        return f"<Schema {self}>"

    def walk(self) -> Iterator["Schema"]:
        """Itself and every type inside it, outermost first."""
        yield self
        for item in self.items:
            yield from item.walk()

    @property
    def depth(self) -> int:
        """Types inside each other, itself included."""
        return 1 + max((item.depth for item in self.items), default=0)

    @property
    def size(self) -> int:
        """Types, literals and dimensions in it."""
        parts = ((part.literals, part.spec.shape if part.spec else ()) for part in self.walk())
        return sum(1 + len(literals) + len(shape) for literals, shape in parts)

    def to_data(self) -> str | dict[str, Any]:
        """Plain values for the wire: the kind alone where there is no more to say."""
        data: dict[str, Any] = {"kind": self.kind}
        if self.items or self.kind == "tuple":
            data["items"] = [item.to_data() for item in self.items]
        if self.spec is not None:
            data |= {"dtype": self.spec.dtype, "shape": list(self.spec.shape)}
        if self.literals:
            data["literals"] = list(self.literals)
        if self.name:
            data["name"] = self.name
        return self.kind if len(data) == 1 else data

    @classmethod
    def from_data(cls, data: Any, budget: Iterator[int] | None = None) -> "Schema":
        """What `to_data` gave, checked as a stranger's; `budget` has an item for each node allowed.

        Raises
        ------
        CodecError
            Anything that `to_data` could not have given.
        """
        return _load(data, budget or iter(range(MAX_NODES)), MAX_DEPTH)


def _is_count(kind: str, held: int) -> bool:
    if kind == "tuple":
        return True
    return held >= 2 if kind == "union" else held == ITEMS.get(kind, 0)


def _is_name(kind: str, name: str) -> bool:
    if kind == "stream":
        return name in _STREAMS
    if kind == "object" and not name:
        return False
    # Printable, because a hostile server's names end up in a client's terminal.
    return not name or (kind in ("any", "object") and len(name) <= MAX_TEXT and name.isprintable())


ANY = Schema("any")
"""The type of what nobody said anything about."""


# As text.


def _bracketed(name: str, items: Iterable[Schema]) -> str:
    inside = [str(item) for item in items]
    return f"{name}[{', '.join(inside)}]"


def _write_container(schema: Schema) -> str:
    bare = all(item == ANY for item in schema.items)
    return schema.kind if bare else _bracketed(schema.kind, schema.items)


def _write_tuple(schema: Schema) -> str:
    return _bracketed("tuple", schema.items) if schema.items else "tuple[()]"


def _write_long_tuple(schema: Schema) -> str:
    return "tuple" if schema.items[0] == ANY else f"tuple[{schema.items[0]}, ...]"


_WRITERS: dict[str, Callable[[Schema], str]] = {
    **dict.fromkeys(("list", "set", "frozenset", "dict"), _write_container),
    "tuple": _write_tuple,
    "tuple...": _write_long_tuple,
    "stream": lambda schema: _bracketed(schema.name, schema.items),
    "union": lambda schema: " | ".join(map(str, schema.items)),
    "literal": lambda schema: f"Literal[{', '.join(map(plain_text, schema.literals))}]",
    "tensor": lambda schema: repr(schema.spec) if schema.spec else "tensor",
    "object": lambda schema: schema.name,
    "any": lambda schema: schema.name or "Any",
}


def plain_text(value: object) -> str:
    """A plain value as Python writes it, cut to 60 characters; of anything else its type."""
    if type(value) in (str, bytes):
        return repr(value) if len(value) <= 60 else f"{value[:57]!r}..."  # type: ignore[arg-type, index]
    # Python refuses to write an int of more than 4,300 digits at all.
    short = type(value) is not int or value.bit_length() <= 128
    return repr(value) if type(value) in PLAIN and short else type(value).__name__


# The check.


@frozen
class Mismatch:
    """Why a value does not fit: where inside it, what was wanted there and what was given.

    `clash` is a symbol with the length it had and the one it would have now.
    """

    wanted: str
    given: str
    path: str = ""
    clash: tuple[str, int, int] | None = None

    def under(self, step: str) -> "Mismatch":
        """The same, seen from one container further out."""
        return attrs.evolve(self, path=step + self.path)


def mismatch(schema: Schema, value: object, sizes: Sizes) -> Mismatch | None:
    """The first thing about `value` that does not fit, or None; `sizes` learns its symbols."""
    check = _CHECKS.get(schema.kind)
    return check(schema, value, sizes) if check else _leaf(schema, value, sizes)


def _miss(schema: Schema, value: object) -> Mismatch:
    return Mismatch(str(schema), _given(value))


def _given(value: object) -> str:
    found = tensors.facts(value)
    if found is not None:
        return f"{found[0]}[{', '.join(map(str, found[1]))}]"
    name = type(value).__name__
    if value is None:
        return "None"
    if isinstance(value, np.generic):
        return f"numpy.{name}"
    if isinstance(value, list | tuple | dict | set | frozenset):
        return f"{name} of {len(value)}"
    return name


_SCALARS = {
    "bool": ("bool",),
    "int": ("int", "uint"),
    "float": ("int", "uint", "float", "bfloat"),
    "complex": ("int", "uint", "float", "bfloat", "complex"),
}
_WIDER = {"float": (int, float), "complex": (int, float, complex)}


def _leaf(schema: Schema, value: object, _sizes: Sizes) -> Mismatch | None:
    kind = schema.kind
    if isinstance(value, _WIDER.get(kind, LEAVES[kind])):
        return None
    # By the dtype's name: bfloat16 is no np.floating, and np.timedelta64 is an np.integer.
    if isinstance(value, np.generic) and value.dtype.name.startswith(_SCALARS.get(kind, ())):
        return None
    return _miss(schema, value)


def _tensor(schema: Schema, value: object, sizes: Sizes) -> Mismatch | None:
    found = tensors.facts(value)
    spec = schema.spec
    if found is None or spec is None:
        return None if found is not None else _miss(schema, value)
    dtype, shape = found
    if dtype != spec.dtype or len(shape) != len(spec.shape):
        return _miss(schema, value)
    for wanted, length in zip(spec.shape, shape, strict=True):
        if wanted == length or wanted is None:
            continue
        if type(wanted) is not str:
            return _miss(schema, value)
        if sizes.setdefault(wanted, length) != length:
            clash = (wanted, sizes[wanted], length)
            return attrs.evolve(_miss(schema, value), clash=clash)
    return None


def _sequence(schema: Schema, value: object, sizes: Sizes) -> Mismatch | None:
    if not isinstance(value, list if schema.kind == "list" else tuple):
        return _miss(schema, value)
    if schema.items[0].kind == "any":
        return None
    return _members(schema.items * min(len(value), SAMPLE), value, sizes)


def _tuple(schema: Schema, value: object, sizes: Sizes) -> Mismatch | None:
    if not isinstance(value, tuple) or len(value) != len(schema.items):
        return _miss(schema, value)
    return _members(schema.items, value, sizes)


def _members(schemas: Iterable[Schema], members: Iterable[object], sizes: Sizes) -> Mismatch | None:
    for index, (schema, member) in enumerate(zip(schemas, members, strict=False)):
        found = mismatch(schema, member, sizes)
        if found is not None:
            return found.under(f"[{index}]")
    return None


def _dict(schema: Schema, value: object, sizes: Sizes) -> Mismatch | None:
    if not isinstance(value, dict):
        return _miss(schema, value)
    keys, members = schema.items
    if keys.kind == members.kind == "any":
        return None
    for key, member in itertools.islice(value.items(), SAMPLE):
        found = mismatch(keys, key, sizes)
        if found is not None:
            return found.under(".keys()")
        found = mismatch(members, member, sizes)
        if found is not None:
            return found.under(f'["{key[:60]}"]' if type(key) is str else f"[{plain_text(key)}]")
    return None


def _set(schema: Schema, value: object, sizes: Sizes) -> Mismatch | None:
    if not isinstance(value, set if schema.kind == "set" else frozenset):
        return _miss(schema, value)
    # The order of a set differs between processes: so all members are looked at or none,
    # and the complaint is the first by the alphabet.
    item = schema.items[0]
    if item.kind == "any" or len(value) > SAMPLE:
        return None
    tried = [mismatch(item, member, sizes) for member in value]
    given = [miss.given for miss in tried if miss is not None]
    return Mismatch(str(schema), f"{_given(value)} with {min(given)}") if given else None


def _alternatives(schema: Schema, value: object, sizes: Sizes) -> Mismatch | None:
    misses = []
    for item in schema.items:
        tried = dict(sizes)
        found = mismatch(item, value, tried)
        if found is None:
            sizes.update(tried)
            return None
        misses.append(found)
    # Of an optional the reader wants to know what is wrong with the value, not that it is not None.
    real = [miss for item, miss in zip(schema.items, misses, strict=True) if item.kind != "None"]
    return real[0] if len(real) == 1 else _miss(schema, value)


def _literal(schema: Schema, value: object, _sizes: Sizes) -> Mismatch | None:
    if any(type(value) is type(literal) and value == literal for literal in schema.literals):
        return None
    return Mismatch(str(schema), plain_text(value) if type(value) in PLAIN else _given(value))


def _object(schema: Schema, value: object, _sizes: Sizes) -> Mismatch | None:
    entry = values.registered(schema.name)
    return None if entry is None or isinstance(value, entry.cls) else _miss(schema, value)


_CHECKS: dict[str, Callable[[Schema, Any, Sizes], Mismatch | None]] = {
    "any": lambda _schema, _value, _sizes: None,
    "stream": lambda _schema, _value, _sizes: None,
    "tensor": _tensor,
    "list": _sequence,
    "tuple...": _sequence,
    "tuple": _tuple,
    "dict": _dict,
    "set": _set,
    "frozenset": _set,
    "union": _alternatives,
    "literal": _literal,
    "object": _object,
}


# From a stranger.

_TEXTS = dict.fromkeys(("kind", "dtype", "name"), str)
_FIELDS: dict[str, type] = {**_TEXTS, **dict.fromkeys(("items", "shape", "literals"), list)}


def _load(data: Any, budget: Iterator[int], depth: int) -> Schema:
    if depth == 0:
        raise CodecError(f"a type in the signature is nested deeper than {MAX_DEPTH} levels")
    fields = fields_of({"kind": data} if type(data) is str else data, _FIELDS, {"kind"}, "a type")
    if ("dtype" in fields) != ("shape" in fields):
        raise CodecError("that is no signature: a tensor has both dtype and shape, or neither")
    literals, shape = fields.get("literals", []), fields.get("shape", [])
    spend(budget, 1 + len(literals) + len(shape))
    items = tuple(_load(item, budget, depth - 1) for item in fields.get("items", []))
    try:
        spec = TensorSpec(fields["dtype"], shape) if "dtype" in fields else None
        return Schema(fields["kind"], items, spec, tuple(literals), fields.get("name", ""))
    except ValueError as error:
        raise CodecError(f"that is no signature: {error}") from None


def fields_of(
    data: Any, known: Mapping[str, type], needed: AbstractSet[str], what: str
) -> dict[str, Any]:
    """A stranger's `data`, which is a dict of no other fields than `known`, of exactly those types.

    `object` stands for any type.

    Raises
    ------
    CodecError
        Anything else.
    """
    if type(data) is not dict or not needed <= data.keys() <= known.keys():
        given = sorted(map(plain_text, data))[:10] if type(data) is dict else plain_text(data)
        raise CodecError(
            f"that is no signature: {what} has the fields {sorted(needed)} and perhaps "
            f"{sorted(known.keys() - needed)}; got {given}"
        )
    for field, value in data.items():
        if known[field] is not object and type(value) is not known[field]:
            raise CodecError(
                f"that is no signature: {field!r} of {what} is a {known[field].__name__}, "
                f"got {plain_text(value)}"
            )
    return data


def spend(budget: Iterator[int], nodes: int) -> None:
    """Take `nodes` from a budget.

    Raises
    ------
    CodecError
        So many are not left.
    """
    if len(list(itertools.islice(budget, nodes))) < nodes:
        raise CodecError(f"a signature has at most {MAX_NODES} types, literals and dimensions")
