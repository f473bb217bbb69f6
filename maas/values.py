"""The closed set of values that may cross, and `register` to widen it.

Here are the containers. What holds no other value is in `leaves.py` and `dates.py`,
classes that users register in `registry.py`, and the table they all stand in,
with the walks that consult it, in `kinds.py`. Import from here: then the table is complete.
"""

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from maas import dates  # noqa: F401 - adds its rows
from maas.errors import CodecError
from maas.kinds import (
    Field,
    Kind,
    Packer,
    Path,
    Rebuilder,
    Unpacker,
    add_family,
    add_kind,
    add_loader,
    add_row,
    brief,
    render,
)
from maas.leaves import fields, plain_keys, typed
from maas.limits import Limits
from maas.registry import Registered, register, registered, registered_name

__all__ = [
    "Field",
    "Packer",
    "Path",
    "Registered",
    "Unpacker",
    "add_family",
    "add_kind",
    "brief",
    "rebuild",
    "register",
    "registered",
    "registered_name",
    "render",
]


def rebuild(value: Any, path: Path, array: Callable[[Any, Path], Any], limits: Limits) -> Any:
    """A copy of `value` with its own containers, `array` applied to every array in it.

    Raises
    ------
    CodecError
        The same error, at the same path, as sending the value would raise.
        Only what depends on bytes (body, header, memory) is left to the wire.
    """
    return Rebuilder(array, limits).copy(value, path)


# Containers. A tagged one takes two levels of msgpack, one of pairs three.


def _pack_list(packer: Packer, value: list[Any], path: Path) -> list[Any]:
    level = packer.enter(path, len(value))
    return [packer.pack(item, (path, step, level)) for step, item in enumerate(value)]


def _rebuild_list(rebuilder: Rebuilder, value: list[Any], path: Path) -> list[Any]:
    level = rebuilder.enter(path, len(value))
    return [rebuilder.rebuild(item, (path, step, level)) for step, item in enumerate(value)]


def _pack_members(packer: Packer, value: Iterable[Any], path: Path) -> list[Any]:
    members = list(value)
    level = packer.enter(path, len(members), 2)
    return [packer.pack(item, (path, step, level)) for step, item in enumerate(members)]


def _rebuild_members(rebuilder: Rebuilder, value: Iterable[Any], path: Path) -> list[Any]:
    members = list(value)
    level = rebuilder.enter(path, len(members), 2)
    return [rebuilder.rebuild(item, (path, step, level)) for step, item in enumerate(members)]


def _pack_dict(packer: Packer, value: dict[Any, Any], path: Path) -> Any:
    if not plain_keys(value):
        return {"$map": _pack_items(packer, value, path)}
    level = packer.enter(path, 2 * len(value))
    packer.nodes += len(value)
    return {key: packer.pack(item, (path, key, level)) for key, item in value.items()}


def _rebuild_dict(rebuilder: Rebuilder, value: dict[Any, Any], path: Path) -> Any:
    if not plain_keys(value):
        return dict(_rebuild_items(rebuilder, value, path))
    level = rebuilder.enter(path, 2 * len(value))
    rebuilder.nodes += len(value)
    return {key: rebuilder.rebuild(item, (path, key, level)) for key, item in value.items()}


def _pack_items(packer: Packer, value: Mapping[Any, Any], path: Path) -> list[list[Any]]:
    level = packer.enter(path, 3 * len(value), 3)
    packer.nodes += len(value)
    return [
        [packer.pack(key, (path, key, level)), packer.pack(item, (path, key, level))]
        for key, item in value.items()
    ]


def _rebuild_items(
    rebuilder: Rebuilder, value: Mapping[Any, Any], path: Path
) -> list[tuple[Any, Any]]:
    level = rebuilder.enter(path, 3 * len(value), 3)
    rebuilder.nodes += len(value)
    return [
        (rebuilder.rebuild(key, (path, key, level)), rebuilder.rebuild(item, (path, key, level)))
        for key, item in value.items()
    ]


_MAX_COLLISIONS = 64


def _check_hashes(keys: Iterable[Any], tag: str) -> None:
    # Python seeds the hash of text only. 20,000 integers, UUIDs or complex numbers chosen to
    # share one hash take seconds to minutes to insert; those that come by chance do not share it.
    hashes = sorted(map(hash, keys))
    if any(map(operator.eq, hashes, hashes[_MAX_COLLISIONS:])):
        raise CodecError(f"{tag} holds more than {_MAX_COLLISIONS} keys of one hash")


def _load_items(payload: Any, tag: str) -> dict[Any, Any]:
    items = typed(payload, list, tag)
    if any(type(item) is not list or len(item) != 2 for item in items):
        raise CodecError(f"{tag} wants a list of [key, value] pairs")
    _check_hashes((key for key, _ in items), tag)
    loaded = dict(items)
    if len(loaded) != len(items):
        raise CodecError(f"{tag} holds the same key twice")
    return loaded


def _load_set(kind: type, tag: str) -> Callable[[Unpacker, Any], Any]:
    def load(_unpacker: Unpacker, payload: Any) -> Any:
        items = typed(payload, list, tag)
        _check_hashes(items, tag)
        loaded = kind(items)
        if len(loaded) != len(items):
            raise CodecError(f"{tag} holds the same member twice")
        return loaded

    return load


def _ends(value: slice | range) -> tuple[Any, Any, Any]:
    return value.start, value.stop, value.step


def _load_slice(_unpacker: Unpacker, payload: Any) -> slice:
    start, stop, step = typed(payload, list, "$slice")
    return slice(start, stop, step)


add_row(list, Kind(_pack_list, _rebuild_list))
add_row(dict, Kind(_pack_dict, _rebuild_dict))
add_loader("$map", lambda _unpacker, payload: _load_items(payload, "$map"))
add_kind(
    OrderedDict,
    "$ordered",
    _pack_items,
    lambda _unpacker, payload: OrderedDict(_load_items(payload, "$ordered")),
    lambda rebuilder, value, path: OrderedDict(_rebuild_items(rebuilder, value, path)),
)
add_kind(
    tuple,
    "$tuple",
    _pack_members,
    lambda _unpacker, payload: tuple(typed(payload, list, "$tuple")),
    lambda rebuilder, value, path: tuple(_rebuild_members(rebuilder, value, path)),
)
for _set, _tag in ((set, "$set"), (frozenset, "$frozenset")):
    add_kind(
        _set,
        _tag,
        _pack_members,
        _load_set(_set, _tag),
        lambda rebuilder, value, path: type(value)(_rebuild_members(rebuilder, value, path)),
    )
add_kind(
    slice,
    "$slice",
    lambda packer, value, path: _pack_members(packer, _ends(value), path),
    _load_slice,
    lambda rebuilder, value, path: slice(*_rebuild_members(rebuilder, _ends(value), path)),
)
add_kind(
    range,
    "$range",
    lambda packer, value, path: _pack_members(packer, _ends(value), path),
    lambda _unpacker, payload: range(*fields(payload, "$range", int, int, int)),
    lambda rebuilder, value, path: range(*_rebuild_members(rebuilder, _ends(value), path)),
)
