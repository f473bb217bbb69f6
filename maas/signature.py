"""What a model's method takes and gives, and the check of a call against it.

A `Signature` is read from type hints, completed from one example call, or
written by hand. It is plain data (`schema.py` is its type language), so the
client of a model has the same one as the model, and `check` says the same
words here and there: it depends on the signature and the arguments alone.

Arguments meet parameters as CPython lets them meet, in the same order of
complaints and with the same words (`initialize_locals` in its ceval.c); the
test compares each message with that of the bare function. Counts leave out
`self`, which the caller of a model never writes.
"""

import contextlib
import difflib
import enum
import functools
import inspect
import itertools
import math
import re
import sys
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from maas import tensors, values
from maas.errors import CodecError, SignatureError
from maas.schema import (
    ANY,
    LEAVES,
    MAX_DEPTH,
    MAX_NODES,
    MAX_TEXT,
    PLAIN,
    SAMPLE,
    Mismatch,
    Schema,
    Sizes,
    TensorSpec,
    fields_of,
    mismatch,
    plain_text,
)

__all__ = ["BATCH", "KINDS", "Parameter", "Signature", "schema_like", "schema_of"]

BATCH = "batch"
"""The symbol of the dimension along which calls may be put together."""

KINDS = ("positional", "positional-or-keyword", "*", "keyword", "**")
"""How an argument may be given; a signature has them in this order."""

MAX_PARAMETERS = 255


# From a type hint to a schema.


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
_ARRAYS = {"torch.Tensor", "numpy.ndarray", "maas.tensors.RawTensor"}


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
        return _union(_read(item, above) for item in inside)
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


def _union(items: Iterable[Schema]) -> Schema:
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
    return _unify(_like(member, batch, depth - 1) for member in itertools.islice(members, SAMPLE))


def _unify(schemas: Iterable[Schema]) -> Schema:
    different = set(schemas)
    if len(different) == 1:
        return different.pop()
    return Schema("tensor") if {schema.kind for schema in different} == {"tensor"} else ANY


def _arrays(value: Any, depth: int = MAX_DEPTH) -> Iterator[tuple[int, ...]]:
    """The shapes of the arrays in a value, in order."""
    found = tensors.facts(value)
    if found is not None:
        yield found[1]
    elif depth and isinstance(value, dict | list | tuple):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _arrays(member, depth - 1)


# Parameters and signatures.


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


@attrs.frozen
class Binder:
    """How arguments meet parameters: worked out once for a signature.

    A call of `least` to `most` positional arguments and no others meets `slots`
    in order; a `trusting` signature then has nothing left to check.
    """

    parameters: tuple[Parameter, ...]
    positional: tuple[Parameter, ...]
    keywords: Mapping[str, Parameter]
    star: Parameter | None
    stars: Parameter | None
    slots: tuple[Slot, ...]
    least: float
    most: float
    trusting: bool

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
            trusting=all(each.annotation.kind == "any" for each in positional),
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
        close = difflib.get_close_matches(key, known, n=1)
        hint = f". Did you mean '{close[0]}'?" if close else ""
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


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _missing(names: list[str], word: str) -> str:
    *before, last = names
    comma = "," if len(names) > 2 else ""
    listed = f"{', '.join(before)}{comma} and {last}" if before else last
    return f"missing {len(names)} required {word} argument{_s(len(names))}: {listed}"


def _in_order(parameters: Iterable[Parameter]) -> tuple[Parameter, ...]:
    return tuple(parameters)


def _result(hint: Any) -> Schema:
    return ANY if hint is None else schema_of(hint)


@attrs.frozen
class Signature:
    """Parameters and result of one method.

    `returns` may be given as a type hint, a `TensorSpec` or a `Schema`; it is
    any where nobody said.
    """

    parameters: tuple[Parameter, ...] = attrs.field(default=(), converter=_in_order)
    returns: Schema = attrs.field(default=ANY, converter=_result)

    def __attrs_post_init__(self) -> None:
        names = {each.name for each in self.parameters}
        if len(self.parameters) > MAX_PARAMETERS or len(names) < len(self.parameters):
            raise ValueError(f"a signature has at most {MAX_PARAMETERS} parameters, no two alike")
        kinds = [each.kind for each in self.parameters]
        ordered = sorted(kinds, key=KINDS.index)
        if kinds != ordered or kinds.count("*") > 1 or kinds.count("**") > 1:
            raise ValueError(f"parameters stand in the order {KINDS}, with one of each star")
        required = [each.required for each in self.parameters if each.kind in KINDS[:2]]
        if required != sorted(required, reverse=True):
            raise ValueError("a parameter without a default follows one with a default")
        # What could not be read there is not made here.
        schemas = [self.returns, *(each.annotation for each in self.parameters)]
        if any(each.depth > MAX_DEPTH for each in schemas):
            raise ValueError(f"a type is nested deeper than {MAX_DEPTH} levels")
        size = sum(each.size for each in schemas)
        if size > MAX_NODES:
            raise ValueError(f"a signature has at most {MAX_NODES} types in it, got {size}")

    @classmethod
    def from_callable(cls, fn: Callable[..., Any], *, skip_self: bool = False) -> "Signature":
        """What the type hints of `fn` say; `skip_self` leaves out its first parameter.

        A callable of which Python knows no parameters, as many a builtin, takes anything.
        """
        try:
            found = _inspect(fn)
        except ValueError:
            stars = {"args": "*", "kwargs": "**"}.items()
            return cls(Parameter(name, kind, required=False) for name, kind in stars)
        hints = _hints(fn, found)
        parameters = list(found.parameters.values())[1 if skip_self else 0 :]
        return cls((_parameter(each, hints) for each in parameters), _returned(fn, hints))

    @classmethod
    def from_example(
        cls, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, base: "Signature"
    ) -> "Signature":
        """`base`, with what it leaves open filled in from one call and its result.

        Every first dimension as long as that of the first tensor is the symbol
        "batch"; all other dimensions are taken as fixed.

        Raises
        ------
        SignatureError
            The example does not fit `base`.
        """
        base.check(tuple(args), kwargs, "example")
        given: dict[str, list[Any]] = {}
        for (_label, parameter), value in base.binder.bind(tuple(args), kwargs, "example"):
            given.setdefault(parameter.name, []).append(value)
        first = next(_arrays(list(given.values())), ())
        batch = first[0] if first else None
        parameters = (
            attrs.evolve(each, annotation=_fill(each.annotation, given.get(each.name, ()), batch))
            for each in base.parameters
        )
        return cls(parameters, _fill(base.returns, (result,), batch))

    @functools.cached_property
    def binder(self) -> Binder:
        """What checks need of the parameters, worked out at the first one."""
        return Binder.of(self.parameters)

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str = "model") -> None:
        """Refuse arguments that do not fit; `name` is what the message calls the model.

        Raises
        ------
        SignatureError
            As CPython words a wrong number or name; for a wrong type, with the
            argument, what it should be and what it is.
        """
        binder = self.binder
        if not kwargs and binder.least <= len(args) <= binder.most:
            if binder.trusting:
                return
            bound = list(zip(binder.slots, args, strict=False))
        else:
            bound = binder.bind(args, kwargs, name)
        sizes: Sizes = {}
        for (label, parameter), value in bound:
            found = mismatch(parameter.annotation, value, sizes)
            if found is not None:
                raise SignatureError(f"{name}(): argument {_complaint(label, found, bound)}")

    @property
    def batch_symbol(self) -> str | None:
        """The symbol along which calls may be put together: "batch", or None for never.

        It stands first in some argument, first in every tensor of the result
        whose shape is known, and nowhere but first.
        """
        arguments = [shape for each in self.parameters for shape in _shapes(each.annotation)]
        results = list(_shapes(self.returns))
        taken = any(shape[:1] == (BATCH,) for shape in arguments)
        given = all(shape[:1] == (BATCH,) for shape in results)
        elsewhere = any(BATCH in shape[1:] for shape in (*arguments, *results))
        return BATCH if taken and given and not elsewhere else None

    def render(self, name: str) -> str:
        """As Python writes it: `tokens(text: str, *, lower: bool = True) -> list[int]`."""
        closed, free, star, named, stars = (
            [str(each) for each in self.parameters if each.kind == kind] for kind in KINDS
        )
        slash = ["/"] if closed else []
        bare = ["*"] if named and not star else []
        parts = [*closed, *slash, *free, *star, *bare, *named, *stars]
        returns = f" -> {self.returns}" if self.returns != ANY else ""
        return f"{name}({', '.join(parts)}){returns}"

    def __str__(self) -> str:
        return self.render("")

    def difference(self, other: "Signature") -> list[str]:
        """How `other`, there, differs from this one, here: a sentence each, none when equal."""
        here = {each.name: each for each in self.parameters}
        there = {each.name: each for each in other.parameters}
        both = [name for name in here if name in there]
        lines = [
            f"'{name}' is a parameter here but not there" for name in here if name not in there
        ]
        for name, each in there.items():
            if name not in here:
                needed = "a required" if each.required else "an optional"
                lines.append(f"'{name}' is {needed} parameter there but none here")
        for name in both:
            lines += _differences(here[name], there[name])
        moved = [name for name in there if name in here]
        if moved != both:
            lines.append(f"the order is {', '.join(both)} here and {', '.join(moved)} there")
        if self.returns != other.returns:
            lines.append(f"the result is {self.returns} here and {other.returns} there")
        return lines

    def to_data(self) -> dict[str, Any]:
        """Plain values for the wire."""
        parameters = [
            attrs.asdict(each, recurse=False) | {"annotation": each.annotation.to_data()}
            for each in self.parameters
        ]
        return {"parameters": parameters, "returns": self.returns.to_data()}

    @classmethod
    def from_data(cls, data: Any) -> "Signature":
        """What `to_data` gave, checked as a stranger's.

        Raises
        ------
        CodecError
            Anything that `to_data` could not have given.
        """
        known = {"parameters": list, "returns": object}
        fields = fields_of(data, known, known.keys(), "a signature")
        budget = iter(range(MAX_NODES))
        returns = Schema.from_data(fields["returns"], budget)
        parameters = [_load_parameter(each, budget) for each in fields["parameters"]]
        return _built(lambda: cls(parameters, returns))


# A callable's own account of itself.

# Before 3.14 annotations are there already; since then they are made when asked for, and one
# name that exists for type checkers only would spoil all of them.
_LENIENT: dict[str, Any] = {}
if sys.version_info >= (3, 14):
    import annotationlib

    _LENIENT["annotation_format"] = annotationlib.Format.FORWARDREF


def _inspect(fn: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(fn, **_LENIENT)


def _annotated(fn: Any) -> Any:
    """The function that carries the hints of `fn`."""
    fn = inspect.unwrap(fn)
    while isinstance(fn, functools.partial):
        fn = inspect.unwrap(fn.func)
    if inspect.isroutine(fn):
        return fn
    owner, method = (fn, "__init__") if isinstance(fn, type) else (type(fn), "__call__")
    return getattr(owner, method)


def _hints(fn: Callable[..., Any], found: inspect.Signature) -> dict[str, Any]:
    """The hints under their parameters' names, and "return"; text where it means nothing here."""
    source = _annotated(fn)
    resolved: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # a hint is any expression, and may fail in any way
        resolved = typing.get_type_hints(source, include_extras=True)
    hints = {each.name: each.annotation for each in found.parameters.values()}
    hints["return"] = found.return_annotation
    return {
        name: resolved[name] if name in resolved else _alone(source, hint)
        for name, hint in hints.items()
        if hint is not _EMPTY
    }


def _alone(source: Any, hint: Any) -> Any:
    holder = types.SimpleNamespace(__annotations__={"hint": hint})
    with contextlib.suppress(Exception):
        names = getattr(source, "__globals__", {})
        return typing.get_type_hints(holder, names, include_extras=True)["hint"]
    return hint


_EMPTY = inspect.Parameter.empty


def _parameter(found: inspect.Parameter, hints: Mapping[str, Any]) -> Parameter:
    annotation = schema_of(hints[found.name]) if found.name in hints else ANY
    if found.default is None and annotation.kind != "any":
        # `x: int = None` is wrong and everywhere; what may be left out may be given.
        annotation = _union((annotation, schema_of(None)))
    kind = KINDS[found.kind]
    if found.default is _EMPTY:
        return Parameter(found.name, kind, annotation, required="*" not in kind)
    text = _default_text(found.default)
    return Parameter(found.name, kind, annotation, required=False, default=text)


def _default_text(default: object) -> str:
    """A default as Python writes it; `...` where that would be long or show an address."""
    if isinstance(default, enum.Enum):
        return f"{type(default).__name__}.{default.name}"
    members = default if isinstance(default, list | tuple) else (default,)
    text = "..."
    if len(members) <= SAMPLE and all(type(member) in PLAIN for member in members):
        with contextlib.suppress(ValueError):  # an int of more than 4,300 digits
            text = repr(default)
    return text if len(text) <= 60 and text.isprintable() else "..."


def _returned(fn: Any, hints: Mapping[str, Any]) -> Schema:
    if isinstance(fn, type):
        return schema_of(fn)
    if "return" in hints:
        return schema_of(hints["return"])
    source = _annotated(fn)
    names = [name for generates, name in _GENERATORS if generates(source)]
    return Schema("stream", (ANY,), name=names[0]) if names else ANY


_GENERATORS = (
    (inspect.isgeneratorfunction, "Iterator"),
    (inspect.isasyncgenfunction, "AsyncIterator"),
)


def _fill(schema: Schema, given: Sequence[Any], batch: int | None) -> Schema:
    """`schema`, or what the values given show where it says no more than any or tensor."""
    if not given or schema.kind not in ("any", "tensor") or schema.spec is not None:
        return schema
    seen = _unify(schema_like(value, batch) for value in given)
    return schema if seen.kind == "any" else seen


# What is said of a call, and of another signature.


def _complaint(label: str, found: Mismatch, bound: Sequence[tuple[Slot, Any]]) -> str:
    text = f"'{label}{found.path}' wants {found.wanted[:MAX_TEXT]}, got {found.given}"
    if found.clash is None:
        return text
    symbol, before, now = found.clash
    where = _first_use(symbol, label, bound)
    if where == label:
        return f"{text}; {symbol} is both {before} and {now}"
    return f"{text}; {symbol} is {before} in '{where}' but {now} in '{label}'"


def _first_use(symbol: str, last: str, bound: Sequence[tuple[Slot, Any]]) -> str:
    """The argument that gave the symbol its length: one before `last`, or `last` itself."""
    sizes: Sizes = {}
    for (label, parameter), value in bound:
        mismatch(parameter.annotation, value, sizes)
        if symbol in sizes or label == last:
            return label
    return last


def _shapes(schema: Schema) -> Iterator[tuple[int | str | None, ...]]:
    return (each.spec.shape for each in schema.walk() if each.spec is not None)


def _differences(here: Parameter, there: Parameter) -> Iterator[str]:
    name = f"'{here.name}'"
    if here.annotation != there.annotation:
        yield f"{name} is {here.annotation} here and {there.annotation} there"
    if here.kind != there.kind:
        yield f"{name} is {_KIND_WORDS[here.kind]} here and {_KIND_WORDS[there.kind]} there"
    if here.required != there.required:
        words = {True: "required", False: "optional"}
        yield f"{name} is {words[here.required]} here and {words[there.required]} there"
    elif here.default != there.default:
        yield f"{name} is {here.default} by default here and {there.default} there"


_KIND_WORDS = {kind: kind if "*" not in kind else f"a {kind} parameter" for kind in KINDS}


# From a stranger.

_FIELDS: dict[str, type] = {
    "name": str,
    "kind": str,
    "annotation": object,
    "required": bool,
    "default": str,
}


def _load_parameter(data: Any, budget: Iterator[int]) -> Parameter:
    fields = fields_of(data, _FIELDS, _FIELDS.keys(), "a parameter")
    annotation = Schema.from_data(fields["annotation"], budget)
    return _built(lambda: Parameter(**(fields | {"annotation": annotation})))


T = TypeVar("T")


def _built(build: Callable[[], T]) -> T:
    try:
        return build()
    except ValueError as error:
        raise CodecError(f"that is no signature: {error}") from None
