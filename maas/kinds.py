"""The table of what may cross, and the three walks that consult it.

A value crosses exactly or not at all. One row a type (`Kind`) says how:

- `Packer` turns a value into a *tree* that any msgpack library can write
  (None, bool, int, float, str, bytes, list, map with string keys) and puts
  arrays and long strings aside as *buffers*. What has no plain form becomes a map
  with one key that begins with `$`: `{"$tuple": [1, 2]}`.
- `Unpacker.pairs` is the `object_pairs_hook` that turns such maps back, from the
  leaves up, while msgpack decodes. Nothing decodes inside a hook: nested
  decoding crashes the interpreter at 190-odd levels.
- `Rebuilder` copies containers without making a tree: the local executor uses it
  to refuse what could not cross, here as there.

Types are matched exactly: a subclass of `dict` or `int` is another type, and
either registered or refused with the path that leads to it (`args[0]["a"][2]`).
The rows themselves: `leaves.py` and `values.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from maas.buffers import Buffer
from maas.errors import CodecError, LimitExceeded
from maas.limits import Limits
from maas.records import frozen

__all__ = [
    "Field",
    "Kind",
    "Packer",
    "Path",
    "Rebuilder",
    "Unpacker",
    "add_family",
    "add_finder",
    "add_kind",
    "add_loader",
    "add_row",
    "brief",
    "render",
]

# Where a value stands.

Path = tuple[Any, ...]
"""`(parent path, step, level)`; linked, so that a step costs one tuple. Levels are msgpack's."""


class Field(str):
    """A step of a path that is an attribute, not a key."""

    __slots__ = ()


def render(path: Path) -> str:
    """A path as Python would write it: `args[0]["a"].field`; a very long one without its middle."""
    steps: list[str] = []
    parent, step, _level = path
    while parent is not None:
        steps.append(_written(step))
        parent, step, _level = parent
    text = str(step) + "".join(reversed(steps))
    return text if len(text) <= 80 else f"{text[:60]}...{text[-17:]}"


def _written(step: Any) -> str:
    if isinstance(step, Field):
        return f".{step}"
    return f'["{step[:40]}"]' if isinstance(step, str) else f"[{brief(step)}]"


def brief(value: Any) -> str:
    """A few characters that show `value`, at a cost that does not grow with it.

    Never `repr` of what a stranger sent: an int of 4,301 digits raises there, and
    the text of a container may be many times its size.
    """
    if type(value) is int and value.bit_length() > 128:
        return f"an int of {value.bit_length()} bits"
    if type(value) in (str, bytes):
        return repr(value[:40])
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    return f"a {type(value).__name__}"


# The table: a row a type.


@frozen
class Kind:
    """How one type crosses.

    `pack(packer, value, path)` gives the tree. `rebuild(rebuilder, value, path)` gives a
    copy with its own containers; None for what cannot change.
    """

    pack: Callable[["Packer", Any, Path], Any]
    rebuild: Callable[["Rebuilder", Any, Path], Any] | None = None


Load = Callable[["Unpacker", Any], Any]

_KINDS: dict[type, Kind] = {}
_FINDERS: list[Callable[[type], Kind | None]] = []
_LOADERS: dict[str, Load] = {}


def add_row(cls: type, kind: Kind) -> None:
    """Add or replace the row of exactly this type."""
    _KINDS[cls] = kind


def add_loader(tag: str, load: Load) -> None:
    """Let `{tag: payload}` be read: `load(unpacker, payload)` gives the value or raises."""
    _LOADERS[tag] = load


def add_kind(
    cls: type,
    tag: str,
    pack: Callable[["Packer", Any, Path], Any],
    load: Load,
    rebuild: Callable[["Rebuilder", Any, Path], Any] | None = None,
) -> None:
    """Add a type to the closed set: `{tag: pack(value)}` on the wire, `load(payload)` back."""
    add_row(cls, Kind(lambda packer, value, path: {tag: pack(packer, value, path)}, rebuild))
    add_loader(tag, load)


def add_finder(find: Callable[[type], Kind | None]) -> None:
    """Add a function that is asked for the row of a type met for the first time."""
    _FINDERS.append(find)


def add_family(
    base: type, tag: str, pack: Callable[["Packer", Any, Path], Any], load: Load
) -> None:
    """Add a type whose subclasses cross as well; `pack` keeps apart what differs between them."""
    kind = Kind(lambda packer, value, path: {tag: pack(packer, value, path)})
    add_finder(lambda cls: kind if issubclass(cls, base) else None)
    add_loader(tag, load)


def _kind_of(cls: type) -> Kind | None:
    found = _KINDS.get(cls)
    if found is None:
        found = next((kind for find in _FINDERS if (kind := find(cls)) is not None), None)
        if found is not None:
            _KINDS[cls] = found
    return found


def _refusal(value: Any, path: Path) -> CodecError:
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    base = next((base for base in kind.__mro__[1:] if _kind_of(base) is not None), None)
    if base is None:
        return CodecError(
            f"{render(path)} is a {name}, which cannot cross; "
            f"send plain values, or maas.register({kind.__name__})"
        )
    return CodecError(
        f"{render(path)} is a {name}, a subclass of {base.__name__}, and would arrive as a bare "
        f"{base.__name__}; convert it, or maas.register({kind.__name__})"
    )


# The walks.


class _Walk:
    """What packing and rebuilding have in common: they count, and refuse at the same place."""

    __slots__ = ("limits", "nodes")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.nodes = 0

    def enter(self, path: Path, members: int, levels: int = 1) -> int:
        """The level of the members of the container at `path`, which takes so many of msgpack's.

        Raises
        ------
        LimitExceeded
            Too deep, or more members than may come; noticed before one is looked at.
        """
        level: int = path[2] + levels
        # A tag costs the map around it and its key.
        self.nodes += 2 * (levels - 1)
        if level > self.limits.depth:
            raise LimitExceeded(
                f"{render(path)} is nested deeper than {self.limits.depth} levels, "
                "where a tag counts as one or two; does it contain itself?"
            )
        if self.nodes + members > self.limits.nodes:
            raise LimitExceeded(
                f"more than {self.limits.nodes} values by {render(path)}; "
                "send numbers as an array, or raise Limits(nodes=...)"
            )
        return level


def _too_deep(path: Path) -> LimitExceeded:
    return LimitExceeded(
        f"{render(path)} is nested deeper than Python's stack is; does it contain itself?"
    )


class Packer(_Walk):
    """Turns values into trees and buffers, charging `limits` before anything is copied."""

    __slots__ = ("buffers", "bytes", "text")

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.buffers: list[Buffer] = []
        self.bytes = 0
        self.text = 0

    def tree(self, value: Any, path: Path) -> Any:
        """What `pack` gives, for a value that stands in no other."""
        try:
            return self.pack(value, path)
        except RecursionError:
            raise _too_deep(path) from None

    def pack(self, value: Any, path: Path) -> Any:
        """The tree of `value`, which stands at `path`.

        Raises
        ------
        CodecError
            A value outside the closed set; the message names its path.
        LimitExceeded
            More than the limits allow.
        """
        self.nodes += 1
        kind = _KINDS.get(type(value)) or _kind_of(type(value))
        if kind is None:
            raise _refusal(value, path)
        return kind.pack(self, value, path)

    def reserve(self, nbytes: int, path: Path) -> int:
        """Charges a buffer and gives its index; the caller then appends it."""
        self.bytes += nbytes
        if self.bytes > self.limits.body:
            raise LimitExceeded(
                f"{render(path)} brings the message to {self.bytes} bytes; "
                f"Limits(body={self.limits.body}) allow no more"
            )
        if len(self.buffers) >= self.limits.tensors:
            raise LimitExceeded(
                f"{render(path)} is one buffer more than Limits(tensors={self.limits.tensors})"
            )
        return len(self.buffers)

    def aside(self, data: Buffer, path: Path) -> int:
        """Puts bytes aside as a buffer and gives its index."""
        index = self.reserve(len(data), path)
        self.buffers.append(data)
        return index


class Rebuilder(_Walk):
    """Gives values back with their own containers, and `array` applied to every array in them."""

    __slots__ = ("array",)

    def __init__(self, array: Callable[[Any, Path], Any], limits: Limits) -> None:
        super().__init__(limits)
        self.array = array

    def copy(self, value: Any, path: Path) -> Any:
        """What `rebuild` gives, for a value that stands in no other."""
        try:
            return self.rebuild(value, path)
        except RecursionError:
            raise _too_deep(path) from None

    def rebuild(self, value: Any, path: Path) -> Any:
        """The copy of `value`; raises what `Packer.pack` would, at the same path."""
        self.nodes += 1
        kind = _KINDS.get(type(value)) or _kind_of(type(value))
        if kind is None:
            raise _refusal(value, path)
        return value if kind.rebuild is None else kind.rebuild(self, value, path)


class Unpacker:
    """Turns trees back into values, over the buffers that came with them.

    `leaves` are the tensors among them that require grad, in the order of the message.
    """

    __slots__ = ("buffers", "leaves", "limits", "taken", "text")

    def __init__(self, buffers: Sequence[memoryview], limits: Limits) -> None:
        self.buffers = buffers
        self.limits = limits
        self.taken = [False] * len(buffers)
        self.text = 0
        self.leaves: list[Any] = []

    def pairs(self, pairs: list[tuple[Any, Any]]) -> Any:
        """The `object_pairs_hook`: a tagged map to its value, any other to a dict."""
        if len(pairs) == 1:
            key, payload = pairs[0]
            if type(key) is str and key[:1] == "$":
                return self._load(key, payload)
        if not pairs:
            return {}
        plain = dict(pairs)
        if len(plain) != len(pairs):
            raise CodecError("a map holds the same key twice")
        for key in plain:
            if type(key) is not str or key[:1] == "$":
                raise CodecError(
                    f"a plain map holds the key {brief(key)}; "
                    "keys are strings that do not begin with '$'"
                )
        return plain

    def _load(self, tag: str, payload: Any) -> Any:
        load = _LOADERS.get(tag)
        if load is None:
            raise CodecError(f"unknown tag {brief(tag)}; known: {', '.join(sorted(_LOADERS))}")
        try:
            return load(self, payload)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(f"{tag}: {error!s:.200}") from error

    def take(self, index: Any) -> memoryview:
        """The buffer of that index, once."""
        if type(index) is not int or not 0 <= index < len(self.buffers) or self.taken[index]:
            raise CodecError(
                f"buffer {brief(index)} is not there, or was used before; {len(self.buffers)} came"
            )
        self.taken[index] = True
        return self.buffers[index]
