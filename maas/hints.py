"""From a type hint, or from a value, to a schema."""

import itertools
import re
import types
import typing
from collections import abc
from collections.abc import Iterable, Iterator
from typing import Any

from maas import tensors, values
from maas.schema import (
    ANY,
    LEAVES,
    MAX_DEPTH,
    MAX_TEXT,
    PLAIN,
    SAMPLE,
    Schema,
    TensorSpec,
)

__all__ = ["BATCH", "array_shapes", "schema_like", "schema_of", "unify", "union"]

BATCH = "batch"
"""The symbol of the dimension along which calls may be put together."""


def schema_of(hint: Any) -> Schema:
    """The schema of a type hint, a `TensorSpec` or a `Schema`; what is not understood is any."""
    return _read(hint, ())


_CLASSES: dict[Any, Schema] = {cls: Schema(kind) for kind, cls in LEAVES.items()} | {
    None: Schema("None"),
    list: Schema("list", (ANY,)),
    set: Schema("set", (ANY,)),
    frozenset: Schema("frozenset", (ANY,)),
    tuple: Schema("tuple...", (ANY,)),
    dict: Schema("dict", (ANY, ANY)),
}
_STREAMS: dict[Any, str] = {
    abc.Iterator: "Iterator",
    abc.Generator: "Iterator",
    abc.AsyncIterator: "AsyncIterator",
    abc.AsyncGenerator: "AsyncIterator",
}
_ARRAYS = {
    "torch.Tensor",
    "numpy.ndarray",
    "tensorflow.python.framework.tensor.Tensor",
    "maas.tensors.RawTensor",
}


def _read(hint: Any, above: tuple[Any, ...]) -> Schema:
    """`above` are the hints that hold this one: an alias may hold itself."""
    if isinstance(hint, Schema):
        return hint
    if isinstance(hint, TensorSpec):
        return Schema("tensor", spec=hint)
    # One level is kept for the union with None that a default of None asks for.
    if len(above) >= MAX_DEPTH - 2 or any(hint is outer for outer in above):
        return _unknown(hint)
    if hint is None or (isinstance(hint, type) and typing.get_origin(hint) is None):
        return _read_class(hint)
    return _read_special(hint, (*above, hint))


def _read_class(cls: Any) -> Schema:
    if cls in _CLASSES:
        return _CLASSES[cls]
    if cls in _STREAMS:
        return Schema("stream", (ANY,), name=_STREAMS[cls])
    # By name: a program without torch must not load it to read its hints.
    if any(f"{base.__module__}.{base.__qualname__}" in _ARRAYS for base in cls.__mro__):
        return Schema("tensor")
    name = values.registered_name(cls)
    return Schema("object", name=name) if name else _unknown(cls)


def _read_special(hint: Any, above: tuple[Any, ...]) -> Schema:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        specs = (extra for extra in hint.__metadata__ if isinstance(extra, TensorSpec | Schema))
        return _read(next(specs, inside[0]), above)
    if origin is typing.Literal:
        plain = all(type(literal) in PLAIN for literal in inside)
        return Schema("literal", literals=inside) if plain else _unknown(hint)
    if origin in (typing.Union, types.UnionType):
        return union(_read(item, above) for item in inside)
    if isinstance(origin, type):
        # typing.Tuple and typing.List are bare, tuple[()] is not.
        bare = not inside and not hasattr(hint, "__args__")
        return _read_class(origin) if bare else _read_generic(hint, origin, inside, above)
    for alias in ("__supertype__", "__value__", "__bound__"):  # NewType, `type X = ...`, TypeVar
        meant = getattr(hint, alias, None)
        if meant is not None:
            return _read(meant, above)
    return _unknown(hint)


def _read_generic(
    hint: Any, origin: type, inside: tuple[Any, ...], above: tuple[Any, ...]
) -> Schema:
    if origin is tuple and inside[1:] == (...,):
        return Schema("tuple...", (_read(inside[0], above),))
    if origin is tuple:
        return Schema("tuple", tuple(_read(item, above) for item in inside))
    if origin in _STREAMS:
        return Schema("stream", (_read(inside[0], above),), name=_STREAMS[origin])
    bare = _read_class(origin)
    if bare.items and len(bare.items) == len(inside):
        return Schema(bare.kind, tuple(_read(item, above) for item in inside))
    return _unknown(hint) if bare.kind == "any" else bare


def union(items: Iterable[Schema]) -> Schema:
    """What fits one of them."""
    flat = (item.items if item.kind == "union" else (item,) for item in items)
    different = tuple(dict.fromkeys(itertools.chain.from_iterable(flat)))
    return different[0] if len(different) == 1 else Schema("union", different)


def _unknown(hint: Any) -> Schema:
    if isinstance(hint, type):
        text = hint.__qualname__.rpartition("<locals>.")[2]
    else:
        text = hint if isinstance(hint, str) else getattr(hint, "__forward_arg__", repr(hint))
    # An address differs from run to run and tells a stranger where memory lies.
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", text).replace("typing.", "")
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return Schema("any", name=printable[:MAX_TEXT])


# From a value to a schema.


def schema_like(value: object, batch: int | None = None) -> Schema:
    """The schema of values like this one.

    A first dimension of length `batch` becomes the symbol "batch", every other
    dimension is taken as fixed. None says nothing, so it gives any.
    """
    return _like(value, batch, MAX_DEPTH - 1)


def _like(value: Any, batch: int | None, depth: int) -> Schema:
    found = tensors.facts(value)
    if found is not None:
        return _tensor_like(*found, batch)
    kind = type(value)
    if depth == 0 or value is None:
        return ANY
    if kind is dict:
        return Schema("dict", (_common(value, batch, depth), _common(value.values(), batch, depth)))
    if kind is tuple and len(value) <= SAMPLE:
        return Schema("tuple", tuple(_like(member, batch, depth - 1) for member in value))
    if kind in (list, tuple, set, frozenset):
        return Schema(_CLASSES[kind].kind, (_common(value, batch, depth),))
    schema = _read_class(kind)
    return ANY if schema.kind == "any" else schema


def _tensor_like(dtype: str, shape: tuple[int, ...], batch: int | None) -> Schema:
    if dtype not in tensors.DTYPES:
        return Schema("tensor")
    named: tuple[int | str, ...] = (BATCH, *shape[1:]) if shape and shape[0] == batch else shape
    return Schema("tensor", spec=TensorSpec(dtype, named))


def _common(members: Iterable[object], batch: int | None, depth: int) -> Schema:
    return unify(_like(member, batch, depth - 1) for member in itertools.islice(members, SAMPLE))


def unify(schemas: Iterable[Schema]) -> Schema:
    """What is common to all of them."""
    different = set(schemas)
    if len(different) == 1:
        return different.pop()
    return Schema("tensor") if {schema.kind for schema in different} == {"tensor"} else ANY


def array_shapes(value: Any, depth: int = MAX_DEPTH) -> Iterator[tuple[int, ...]]:
    """The shapes of the arrays in a value, in order."""
    found = tensors.facts(value)
    if found is not None:
        yield found[1]
    elif depth and isinstance(value, dict | list | tuple):
        for member in value.values() if isinstance(value, dict) else value:
            yield from array_shapes(member, depth - 1)


# Parameters and signatures.
