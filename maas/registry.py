"""`register`: classes of one's own that cross by name.

The name is looked up in a table of what this process registered itself; no name
that comes by wire leads to an import.
"""

import dataclasses
import enum
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

import attrs

from maas.errors import CodecError
from maas.kinds import (
    Field,
    Kind,
    Packer,
    Path,
    Rebuilder,
    Unpacker,
    add_loader,
    add_row,
    brief,
    render,
)
from maas.leaves import fields, plain_keys
from maas.records import frozen

__all__ = ["Registered", "register", "registered", "registered_name"]

C = TypeVar("C", bound=type)
ToFields = Callable[[Any], dict[str, Any]]
FromFields = Callable[[dict[str, Any]], Any]


@frozen
class Registered:
    """A class that crosses by name: how to take it apart into fields and to build it again."""

    cls: type
    name: str
    to_fields: ToFields
    from_fields: FromFields


_REGISTERED: dict[str, Registered] = {}
_NAMES: dict[type, str] = {}


def registered(name: str) -> Registered | None:
    """What `register` knows under that name."""
    return _REGISTERED.get(name)


def registered_name(cls: type) -> str | None:
    """The name under which exactly this class is registered."""
    return _NAMES.get(cls)


@overload
def register(
    cls: C,
    /,
    *,
    name: str | None = None,
    to_fields: ToFields | None = None,
    from_fields: FromFields | None = None,
) -> C: ...
@overload
def register(
    *,
    name: str | None = None,
    to_fields: ToFields | None = None,
    from_fields: FromFields | None = None,
) -> Callable[[C], C]: ...
def register(
    cls: type | None = None,
    /,
    *,
    name: str | None = None,
    to_fields: ToFields | None = None,
    from_fields: FromFields | None = None,
) -> Any:
    """Let a class cross: an attrs class, dataclass, named tuple, enum or exception.

    Both sides register it under the same name (its qualified name unless given).
    Any other class needs `to_fields` (object to a dict of plain values) and
    `from_fields` (the reverse). An object is built by the class's own
    constructor, so that its validators hold for what a stranger sends.

    Raises
    ------
    TypeError
        A class whose fields cannot be told.
    ValueError
        The name belongs to another class.
    """
    if cls is None:
        return lambda later: register(
            later, name=name, to_fields=to_fields, from_fields=from_fields
        )
    name = name or cls.__qualname__
    held = _REGISTERED.get(name)
    if held is not None and (held.cls.__module__, held.cls.__qualname__) != (
        cls.__module__,
        cls.__qualname__,
    ):
        raise ValueError(f"{name!r} is registered for {held.cls!r}; give {cls!r} another name=")
    if (to_fields is None) != (from_fields is None):
        raise TypeError(
            f"register({cls.__name__}) wants both to_fields= and from_fields=, or neither"
        )
    take, build = (to_fields, from_fields) if to_fields and from_fields else _parts(cls)
    entry = Registered(cls, name, take, build)
    _REGISTERED[name] = entry
    _NAMES[cls] = name
    if not issubclass(cls, BaseException):
        add_row(
            cls,
            Kind(
                lambda packer, value, path: _pack_object(packer, entry, value, path),
                None
                if issubclass(cls, enum.Enum)
                else lambda walk, value, path: _rebuild_object(walk, entry, value, path),
            ),
        )
    return cls


def _parts(cls: type) -> tuple[ToFields, FromFields]:
    if issubclass(cls, enum.Flag):
        # A combination of flags has no name of its own.
        return lambda value: {"value": value.value}, lambda given: cls(given["value"])
    if issubclass(cls, enum.Enum):
        return lambda value: {"name": value.name}, lambda given: cls[given["name"]]
    if issubclass(cls, BaseException):
        return vars, cls
    names = _constructor_names(cls)
    return (
        lambda value: {field: getattr(value, field) for field in names},
        lambda given: _build(cls, names, given),
    )


def _constructor_names(cls: type) -> dict[str, str | None]:
    """The fields of a class, each with the constructor's name for it, or None."""
    if attrs.has(cls):
        names = {field.name: field.alias if field.init else None for field in attrs.fields(cls)}
    elif dataclasses.is_dataclass(cls):
        names = {
            field.name: field.name if field.init else None for field in dataclasses.fields(cls)
        }
    elif issubclass(cls, tuple) and hasattr(cls, "_fields"):
        names = {field: field for field in cls._fields}
    else:
        raise TypeError(
            f"cannot tell the fields of {cls!r}; register an attrs class, dataclass, named tuple, "
            "enum or exception, or give to_fields= and from_fields="
        )
    wanted = [
        parameter.name
        for parameter in inspect.signature(cls).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in names.values()
    ]
    if wanted:
        raise TypeError(
            f"{cls!r} is built from {wanted}, which are no fields of it; "
            "give to_fields= and from_fields="
        )
    return names


def _build(cls: type, names: Mapping[str, str | None], given: dict[str, Any]) -> Any:
    if given.keys() != names.keys():
        raise TypeError(f"wanted the fields {list(names)}, got {sorted(given)}")
    built = cls(**{alias: given[field] for field, alias in names.items() if alias is not None})
    for field, alias in names.items():
        if alias is None:
            object.__setattr__(built, field, given[field])
    return built


def _fields_of(entry: Registered, value: Any, path: Path) -> dict[str, Any]:
    try:
        given = entry.to_fields(value)
    except Exception as error:
        raise CodecError(
            f"{render(path)}: the fields of {entry.name} cannot be read: {error!s:.200}"
        ) from error
    if type(given) is not dict or not plain_keys(given):
        raise CodecError(
            f"{render(path)}: to_fields of {entry.name} wants to give a dict "
            "whose keys are strings that do not begin with '$'"
        )
    return given


def _pack_object(packer: Packer, entry: Registered, value: Any, path: Path) -> dict[str, list[Any]]:
    given = _fields_of(entry, value, path)
    level = packer.enter(path, 2 * len(given), 3)
    packer.nodes += len(given)
    return {
        "$object": [
            entry.name,
            {
                field: packer.pack(item, (path, Field(field), level))
                for field, item in given.items()
            },
        ]
    }


def _rebuild_object(rebuilder: Rebuilder, entry: Registered, value: Any, path: Path) -> Any:
    given = _fields_of(entry, value, path)
    level = rebuilder.enter(path, 2 * len(given), 3)
    rebuilder.nodes += len(given)
    copied = {
        field: rebuilder.rebuild(item, (path, Field(field), level)) for field, item in given.items()
    }
    try:
        return entry.from_fields(copied)
    except Exception as error:
        raise CodecError(
            f"{render(path)}: {entry.name} cannot be built again: {error!s:.200}"
        ) from error


def _load_object(_unpacker: Unpacker, payload: Any) -> Any:
    name, given = fields(payload, "$object", str, dict)
    entry = _REGISTERED.get(name)
    if entry is None or issubclass(entry.cls, BaseException):
        raise CodecError(
            f"{brief(name)} is not registered here; import the module that does maas.register(...)"
        )
    return entry.from_fields(given)


add_loader("$object", _load_object)
