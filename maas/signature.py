"""What a model's method takes and gives, and the check of a call against it.

A `Signature` is read from type hints, completed from one example call, or
written by hand. It is plain data (`schema.py` is its type language), so the
client of a model has the same one as the model, and `check` says the same
words here and there: it depends on the signature and the arguments alone.
"""

import contextlib
import enum
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from maas.errors import CodecError, SignatureError
from maas.hints import BATCH, array_shapes, schema_like, schema_of, unify, union
from maas.parameters import KINDS, MAX_PARAMETERS, Binder, Parameter, Slot, in_order
from maas.schema import (
    ANY,
    MAX_DEPTH,
    MAX_NODES,
    MAX_TEXT,
    PLAIN,
    SAMPLE,
    Mismatch,
    Schema,
    Sizes,
    fields_of,
    mismatch,
)
from maas.tensors import CLAIMED

__all__ = ["Signature"]


def _result(hint: Any) -> Schema:
    return ANY if hint is None else schema_of(hint)


@attrs.frozen
class Signature:
    """Parameters and result of one method.

    `returns` may be given as a type hint, a `TensorSpec` or a `Schema`; it is
    any where nobody said.
    """

    parameters: tuple[Parameter, ...] = attrs.field(default=(), converter=in_order)
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
        first = next(array_shapes(list(given.values())), ())
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
            if binder.simple:
                for value, wants_array in zip(args, binder.wants_array, strict=False):
                    if wants_array and type(value) not in CLAIMED:
                        break
                else:
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
        annotation = union((annotation, schema_of(None)))
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
    seen = unify(schema_like(value, batch) for value in given)
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
