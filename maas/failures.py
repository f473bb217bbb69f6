"""An exception as data, and back: class from a closed table, arguments, notes, causes.

The sender names every class of the exception's method resolution order; the
receiver builds the first one it knows: builtins, maas, a few of NumPy, torch and
the standard library, and what `maas.register` added. So an unregistered class
arrives as its nearest known ancestor, and no name ever leads to an import.

Builtins are built by their constructor (their C-level slots have no other
way in), the rest by `__new__`, `args` and attributes, which also restores
classes that require keyword arguments, where pickling fails.
"""

import traceback
from collections.abc import Sequence
from typing import Any

import attrs

from maas.errors import CodecError, Error, ModelExit
from maas.exception_classes import known_class, wire_names
from maas.values import Field, Packer, Path, add_family, brief

__all__ = [
    "REMOTE_TRACEBACK",
    "bare",
    "from_data",
    "known_class",
    "pack",
    "presentable",
    "to_data",
    "wire_names",
]

REMOTE_TRACEBACK = "Traceback where the model runs:\n"
"""How the note begins that carries the remote traceback."""

_MAX_CHAIN = 16
_MAX_LINKED = 64
"""Exceptions in one failure, groups' members and causes together; those beyond it are left out.

Causes and contexts share ancestors, so that a chain of n may unfold into 2**n, and may be circular.
"""

_MAX_NOTES = 16
_MAX_TEXT = 16_384
_MAX_RETRY_AFTER = 1e9

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
    left = ModelExit(
        f"the model raised {type(error).__name__}({', '.join(map(_shown, error.args))})"
    )
    # What ends a process is not even kept as a cause: a cause is there to be raised again.
    left.__cause__ = error if isinstance(error, Exception) else None
    return left.with_traceback(error.__traceback__)


def _shown(value: Any) -> str:
    """`repr`, of a class that may have a broken one."""
    try:
        return repr(value)[:_MAX_TEXT]
    except Exception:  # noqa: BLE001 - anything, in a class not ours
        return f"<{type(value).__name__}>"


def _may_set(kind: type, name: str) -> bool:
    """Whether an attribute of that name is data: no dunder, no method, nothing maas relies on."""
    if not name.isidentifier() or name.startswith("__") or name == "args":
        return False
    ours = kind.__module__ == "maas.errors" and name in ("code", "status")
    return not ours and not callable(getattr(kind, name, None))


# To data.


def to_data(error: BaseException, *, traceback_text: bool = True) -> dict[str, Any]:
    """The exception as plain data, for `pack`."""
    data = _Describer().describe(presentable(error), _MAX_CHAIN)
    if traceback_text and error.__traceback__ is not None:
        data["traceback"] = "".join(traceback.format_exception(error))[-_MAX_TEXT:]
    return data


def bare(error: BaseException) -> dict[str, Any]:
    """The exception as little data: class and message, for when the whole is too large to send."""
    presented = presentable(error)
    try:
        text = str(presented)[:_MAX_TEXT]
    except Exception:  # noqa: BLE001 - a class's own broken __str__
        text = f"<{type(presented).__name__}>"
    return {"names": wire_names(type(presented)), "args": (text,), "attributes": {}}


class _Describer:
    def __init__(self) -> None:
        self.left = _MAX_LINKED

    def describe(self, error: Exception, chain: int) -> dict[str, Any]:
        self.left -= 1
        data: dict[str, Any] = {
            "names": wire_names(type(error)),
            "args": _args(error),
            "attributes": _attributes(error),
        }
        notes = [
            note[:_MAX_TEXT] for note in getattr(error, "__notes__", ()) if isinstance(note, str)
        ]
        if notes:
            data["notes"] = notes[:_MAX_NOTES]
        if error.__suppress_context__:
            data["suppress"] = True
        if chain > 0:
            data |= self._links(error, chain - 1)
        return data

    def _links(self, error: Exception, chain: int) -> dict[str, Any]:
        links: dict[str, Any] = {}
        if isinstance(error, ExceptionGroup):
            links["group"] = [
                self.describe(member, chain) for member in error.exceptions if self.left > 0
            ]
            links |= {} if links["group"] else {"group": [_Describer().describe(_last(error), 0)]}
        cause, context = error.__cause__, error.__context__
        if cause is not None and self.left > 0:
            links["cause"] = self.describe(_linked(cause), chain)
        if context is not None and context is cause:
            links |= {"context": True} if "cause" in links else {}
        elif context is not None and self.left > 0:
            links["context"] = self.describe(_linked(context), chain)
        return links


def _last(group: ExceptionGroup[Exception]) -> Exception:
    return RuntimeError(f"{len(group.exceptions)} exceptions were left out")


def _linked(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else presentable(error)


def _args(error: BaseException) -> tuple[Any, ...]:
    return (error.message,) if isinstance(error, BaseExceptionGroup) else error.args


def _attributes(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    found = dict(vars(error))
    if attrs.has(kind):
        found |= {field.name: getattr(error, field.name, None) for field in attrs.fields(kind)}
    for base in kind.__mro__:
        slots = _SLOTS.get(base) or vars(base).get("__slots__", ())
        named = (slots,) if isinstance(slots, str) else slots
        found |= {
            name: value for name in named if (value := getattr(error, name, None)) is not None
        }
    return {name: value for name, value in found.items() if _may_set(kind, name)}


def pack(packer: Packer, data: dict[str, Any], path: Path) -> dict[str, Any]:
    """The tree of what `to_data` gave; what cannot cross inside it is replaced by its `repr`."""
    # A map at the path, and in it a list of arguments or a map of attributes.
    level = packer.enter(path, 2 * len(data), 2)
    tree: dict[str, Any] = {}
    for name, item in data.items():
        step = (path, Field(name), level)
        if name == "args":
            tree[name] = [
                _pack_or_repr(packer, value, (step, index, level))
                for index, value in enumerate(item)
            ]
        elif name == "attributes":
            tree[name] = {
                key: _pack_or_repr(packer, value, (step, key, level)) for key, value in item.items()
            }
        elif name in ("cause", "context") and item is not True:
            tree[name] = pack(packer, item, step)
        elif name == "group":
            tree[name] = [pack(packer, member, step) for member in item]
        else:
            tree[name] = packer.pack(item, step)
    return tree


def _pack_or_repr(packer: Packer, value: Any, path: Path) -> Any:
    buffers, nbytes, nodes, text = len(packer.buffers), packer.bytes, packer.nodes, packer.text
    try:
        return packer.pack(value, path)
    except (CodecError, RecursionError):
        # Half of a container may have put buffers aside before it met what cannot cross.
        del packer.buffers[buffers:]
        packer.bytes, packer.nodes, packer.text = nbytes, nodes, text
        return packer.pack(_shown(value), path)


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
    if text is not None:
        BaseException.add_note(error, REMOTE_TRACEBACK + _text(text, "traceback"))
    return error


def _text(value: Any, what: str) -> str:
    if type(value) is not str:
        raise CodecError(f"an exception wants its {what} as text, got {brief(value)}")
    return value


def _build(data: Any, chain: int) -> Exception:
    names, args, attributes = _parts(data)
    if chain <= 0:
        raise CodecError(f"an exception has more than {_MAX_CHAIN} causes")
    if "group" in data:
        error: Exception = _build_group(names, args, data["group"], chain)
    else:
        error = _construct(names, args, attributes)
    _attach(error, attributes)
    for note in _list(data.get("notes", []), "notes"):
        BaseException.add_note(error, _text(note, "notes"))
    if "cause" in data:
        error.__cause__ = _build(data["cause"], chain - 1)
    if "context" in data:
        shared = data["context"] is True and "cause" in data
        error.__context__ = error.__cause__ if shared else _build(data["context"], chain - 1)
    error.__suppress_context__ = data.get("suppress") is True
    return error


def _list(value: Any, what: str) -> list[Any]:
    if type(value) is not list:
        raise CodecError(f"an exception wants its {what} as a list, got {brief(value)}")
    return value


def _parts(data: Any) -> tuple[list[str], tuple[Any, ...], dict[str, Any]]:
    if type(data) is not dict:
        raise CodecError(f"an exception wants a map, got {brief(data)}")
    attributes = data.get("attributes")
    if type(attributes) is not dict:
        raise CodecError(f"an exception wants its attributes as a map, got {brief(attributes)}")
    names = [_text(name, "classes' names") for name in _list(data.get("names"), "names")]
    return names, tuple(_list(data.get("args"), "args")), attributes


def _build_group(names: list[str], args: tuple[Any, ...], group: Any, chain: int) -> Exception:
    members = [_build(member, chain - 1) for member in _list(group, "group")]
    if not 0 < len(members) <= _MAX_LINKED or len(args) != 1:
        raise CodecError(f"an exception group wants a message and 1 to {_MAX_LINKED} members")
    message = _text(args[0], "message")
    for kind in map(known_class, names):
        if kind is not None and issubclass(kind, ExceptionGroup):
            return kind(message, members)
    return ExceptionGroup(message, members)


def _construct(
    names: Sequence[str], args: tuple[Any, ...], attributes: dict[str, Any]
) -> Exception:
    for kind in map(known_class, names):
        if kind is not None and not issubclass(kind, ExceptionGroup):
            try:
                return _instance(kind, args, attributes)
            except Exception:  # noqa: BLE001, S112 - this class refuses such arguments; its ancestor may not
                continue
    return Exception(*args)


def _instance(
    kind: type[Exception], args: tuple[Any, ...], attributes: dict[str, Any]
) -> Exception:
    if kind.__module__ == "builtins":
        if issubclass(kind, OSError) and len(args) == 2 and "filename" in attributes:
            return kind(*args, attributes["filename"], None, attributes.get("filename2"))
        return kind(*args)
    error = kind.__new__(kind, *args)
    error.args = args
    return error


def _attach(error: Exception, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        _check_attribute(error, name, value)
        try:
            object.__setattr__(error, name, value)
        except (AttributeError, TypeError) as refusal:
            raise CodecError(
                f"{type(error).__name__}.{name:.60} cannot be set: {refusal}"
            ) from None


def _check_attribute(error: Exception, name: Any, value: Any) -> None:
    if type(name) is not str or not _may_set(type(error), name):
        kind = type(error).__name__
        raise CodecError(f"an exception brings {brief(name)}, which is no data attribute of {kind}")
    # maas itself acts on these: a client sleeps as long as `retry_after` says.
    if isinstance(error, Error):
        if name == "retry_after" and value is not None:
            good = type(value) in (int, float) and 0 <= value < _MAX_RETRY_AFTER
        else:
            good = name not in ("sent", "answered") or type(value) is bool
        if not good:
            raise CodecError(f"{type(error).__name__}.{name} cannot be {brief(value)}")


add_family(
    Exception,
    "$exception",
    lambda packer, value, path: pack(packer, _as_value(value), (path[0], path[1], path[2] + 1)),
    lambda _unpacker, payload: from_data(payload),
)


def _as_value(error: Exception) -> dict[str, Any]:
    """The exception as data: a value is not raised, so `StopIteration` may stay what it is."""
    return _Describer().describe(error, _MAX_CHAIN)
