"""An exception as data, and back: class from a closed table, arguments, notes, causes.

The sender names every class of the exception's method resolution order; the
receiver builds the first one it knows: builtins, maas, a few of NumPy, torch and
the standard library, and what `maas.register` added. So an unregistered class
arrives as its nearest known ancestor, and no name ever leads to an import.

Builtins are built by their constructor (their C-level slots have no other
way in), the rest by `__new__`, `args` and attributes, which also restores
classes that require keyword arguments, where pickling fails.
"""

import builtins
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import attrs

from maas import errors
from maas.errors import CodecError, Error, ModelExit
from maas.values import Field, Packer, Path, add_family, registered, registered_name

__all__ = ["REMOTE_TRACEBACK", "from_data", "known_class", "pack", "presentable", "to_data", "wire_names"]

REMOTE_TRACEBACK = "Traceback where the model runs:\n"
"""How the note begins that carries the remote traceback."""

_MAX_CHAIN = 16
_MAX_GROUP = 64
_MAX_TEXT = 16_384

_BUILTINS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and kind.__name__ == name
}
_OURS = {f"maas.{name}": getattr(errors, name) for name in errors.__all__ if issubclass(getattr(errors, name), Error)}
_LIBRARIES = (
    "asyncio.InvalidStateError",
    "decimal.DivisionByZero",
    "decimal.InvalidOperation",
    "json.decoder.JSONDecodeError",
    "numpy.exceptions.AxisError",
    "numpy.exceptions.DTypePromotionError",
    "numpy.linalg.LinAlgError",
    "queue.Empty",
    "queue.Full",
    "struct.error",
    "torch.AcceleratorError",
    "torch.OutOfMemoryError",
    "torch._C._LinAlgError",
    "zlib.error",
)
"""Exceptions of libraries that cross by name, where the library is loaded already."""

# Attributes that live in C slots of builtins, and so are not in `vars`.
_SLOTS: dict[type, tuple[str, ...]] = {
    OSError: ("filename", "filename2"),
    ImportError: ("name", "path"),
    NameError: ("name",),
    AttributeError: ("name",),
    SyntaxError: ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset"),
}

_LEAVING = (StopIteration, StopAsyncIteration)


def presentable(error: BaseException) -> Exception:
    """The exception as a caller may see it: one that means "leave" becomes a `ModelExit`.

    `SystemExit`, `KeyboardInterrupt`, `GeneratorExit` and the two `StopIteration`s
    raised by a model must end neither a server nor the caller's own loop.
    """
    if isinstance(error, Exception) and not isinstance(error, _LEAVING):
        return error
    exit_ = ModelExit(f"the model raised {type(error).__name__}({', '.join(map(repr, error.args))})")
    exit_.__cause__ = error
    return exit_


def _wire_name(kind: type) -> str:
    name = registered_name(kind)
    if name is not None:
        return name
    if kind.__module__ == "builtins":
        return kind.__qualname__
    if kind.__module__ == "maas.errors":
        return f"maas.{kind.__qualname__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def wire_names(kind: type) -> list[str]:
    """The names a receiver tries in turn, the class itself first."""
    return [_wire_name(base) for base in kind.__mro__ if issubclass(base, Exception)]


def known_class(name: str) -> type[Exception] | None:
    """The exception class of that name in the closed table, or None."""
    entry = registered(name)
    if entry is not None:
        return entry.cls if issubclass(entry.cls, Exception) else None
    found = _BUILTINS.get(name) or _OURS.get(name)
    if found is None and name in _LIBRARIES:
        module, _, attribute = name.rpartition(".")
        found = getattr(sys.modules.get(module), attribute, None)
    return found


# To data.


def to_data(error: BaseException, *, traceback_text: bool = True) -> dict[str, Any]:
    """The exception as plain data; arguments that cannot cross are given by their `repr`."""
    data = _one(presentable(error), _MAX_CHAIN)
    if traceback_text and error.__traceback__ is not None:
        data["traceback"] = "".join(traceback.format_exception(error))[-_MAX_TEXT:]
    return data


def _one(error: BaseException, chain: int) -> dict[str, Any]:
    data: dict[str, Any] = {"names": wire_names(type(error)), "args": _args(error), "attributes": _attributes(error)}
    notes = [note[:_MAX_TEXT] for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
    if notes:
        data["notes"] = notes
    if error.__suppress_context__:
        data["suppress"] = True
    if chain > 0:
        for name, linked in (("cause", error.__cause__), ("context", error.__context__)):
            if linked is not None:
                data[name] = _one(presentable(linked) if name == "cause" else linked, chain - 1)
        if isinstance(error, BaseExceptionGroup):
            data["group"] = [_one(presentable(member), chain - 1) for member in error.exceptions[:_MAX_GROUP]]
    return data


def _args(error: BaseException) -> tuple[Any, ...]:
    return (error.message,) if isinstance(error, BaseExceptionGroup) else error.args


def _attributes(error: BaseException) -> dict[str, Any]:
    found = {name: value for name, value in vars(error).items() if name != "__notes__"}
    if attrs.has(type(error)):
        found |= {field.name: getattr(error, field.name) for field in attrs.fields(type(error))}
    for kind, slots in _SLOTS.items():
        if isinstance(error, kind):
            found |= {name: value for name in slots if (value := getattr(error, name)) is not None}
    return found


def pack(packer: Packer, data: dict[str, Any], path: Path) -> dict[str, Any]:
    """The tree of what `to_data` gave; what cannot cross inside it is replaced by its `repr`."""
    depth = packer.enter(path)
    tree: dict[str, Any] = {}
    for name, item in data.items():
        step = (path, Field(name), depth)
        if name == "args":
            tree[name] = [_pack_or_repr(packer, value, (step, index, depth)) for index, value in enumerate(item)]
        elif name == "attributes":
            tree[name] = {key: _pack_or_repr(packer, value, (step, key, depth)) for key, value in item.items()}
        elif name in ("cause", "context"):
            tree[name] = pack(packer, item, step)
        elif name == "group":
            tree[name] = [pack(packer, member, step) for member in item]
        else:
            tree[name] = packer.pack(item, step)
    return tree


def _pack_or_repr(packer: Packer, value: Any, path: Path) -> Any:
    buffers, nbytes = len(packer.buffers), packer.bytes
    try:
        return packer.pack(value, path)
    except CodecError:
        # Half of a container may have put buffers aside before it met what cannot cross.
        del packer.buffers[buffers:]
        packer.bytes = nbytes
        return repr(value)[:_MAX_TEXT]


# From data.


def from_data(data: Any) -> Exception:
    """The exception again, with the remote traceback as its last note.

    Raises
    ------
    CodecError
        Data that describes no exception.
    """
    error = _build(data, _MAX_CHAIN + 1)
    text = data.get("traceback")
    if type(text) is str:
        error.add_note(REMOTE_TRACEBACK + text)
    return error


def _build(data: Any, chain: int) -> Exception:
    names, args, attributes = _parts(data)
    if chain <= 0:
        raise CodecError(f"an exception has more than {_MAX_CHAIN} causes")
    group = data.get("group")
    if group is not None:
        if type(group) is not list or not 0 < len(group) <= _MAX_GROUP:
            raise CodecError(f"an exception group wants 1 to {_MAX_GROUP} members")
        members = [_build(member, chain - 1) for member in group]
        error: Exception = ExceptionGroup(str(args[0]) if args else "", members)
    else:
        kind = next((known for name in names if (known := known_class(name)) is not None), Exception)
        error = _construct(kind, args, attributes)
    _attach(error, attributes)
    for note in data.get("notes") or ():
        error.add_note(str(note))
    if "cause" in data:
        error.__cause__ = _build(data["cause"], chain - 1)
    if "context" in data:
        error.__context__ = _build(data["context"], chain - 1)
    error.__suppress_context__ = data.get("suppress") is True
    return error


def _parts(data: Any) -> tuple[list[str], tuple[Any, ...], dict[str, Any]]:
    if type(data) is not dict:
        raise CodecError(f"an exception wants a map, got {data!r:.60}")
    names, args, attributes = data.get("names"), data.get("args"), data.get("attributes")
    if type(names) is not list or not all(type(name) is str for name in names):
        raise CodecError("an exception wants the names of its classes")
    if type(args) is not list or type(attributes) is not dict:
        raise CodecError("an exception wants args as a list and attributes as a map")
    return names, tuple(args), attributes


def _construct(kind: type[Exception], args: Sequence[Any], attributes: dict[str, Any]) -> Exception:
    if issubclass(kind, ExceptionGroup):
        return Exception(*args)
    try:
        if kind.__module__ == "builtins":
            if issubclass(kind, OSError) and len(args) == 2 and "filename" in attributes:
                return kind(*args, attributes["filename"], None, attributes.get("filename2"))
            return kind(*args)
        error = kind.__new__(kind, *args)
        error.args = tuple(args)
    except Exception as refusal:  # noqa: BLE001 - a stranger's arguments
        raise CodecError(f"{kind.__name__} cannot be built from what came: {refusal!s:.200}") from None
    return error


def _attach(error: Exception, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        if name.startswith("__"):
            raise CodecError(f"an exception brings the attribute {name!r:.60}; those with two underscores do not cross")
        try:
            object.__setattr__(error, name, value)
        except (AttributeError, TypeError) as refusal:
            raise CodecError(f"{type(error).__name__}.{name:.60} cannot be set: {refusal}") from None


add_family(
    BaseException,
    "$exception",
    lambda packer, value, path: pack(packer, to_data(value, traceback_text=False), path),
    lambda _unpacker, payload: from_data(payload),
)

