"""Nested lists of numbers as arrays: the one thing JSON says at length and Python in a word.

A number is taken only where the dtype holds it: 1.5 is no int64, 300 no uint8, true no number.
What is wrong is told with its place, as `x[0][3]`.
"""

import math
import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np

from maas import tensors, values
from maas.errors import CodecError

__all__ = ["WORDS", "array", "brief_kind", "numeric_lists", "rectangle"]

WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How protobuf's JSON, and ours, writes what JSON has no number for."""


def numeric_lists(data: list[Any]) -> set[int]:
    """The `id` of each list, in `data` or itself, that holds numbers and lists of them only.

    Told of all in one pass: asked anew at each level, 128 levels would be walked 128 times.
    """
    found: set[int] = set()
    _look(data, found)
    return found


def _look(data: list[Any], found: set[int]) -> bool:
    inner = [_look(item, found) for item in data if type(item) is list]
    numeric = set(map(type, data)) <= {int, float, list} and all(inner)
    if numeric:
        found.add(id(data))
    return numeric


def array(data: Any, dtype: str, label: str) -> Any:
    """Nested lists of numbers as an array of exactly that dtype."""
    shape, numbers = rectangle(data, label)
    allowed = _LEAVES[re.match("[a-z]+", dtype)[0]]  # type: ignore[index]
    if not set(map(type, numbers)) <= allowed:
        numbers = _numbers(numbers, allowed, shape, f"{label} wants {dtype}")
    try:
        with np.errstate(over="raise"):
            return _typed(numbers, dtype, label).reshape(shape)
    except (OverflowError, FloatingPointError):
        raise CodecError(f"{label} holds a number that {dtype} cannot hold") from None


_LEAVES: dict[str, set[type]] = {
    "bool": {bool},
    "int": {int},
    "uint": {int},
    "float": {int, float},
    "bfloat": {int, float},
    "complex": {int, float},
}


def rectangle(data: Any, label: str) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of nested lists, and what is in them, in order."""
    shape: list[int] = []
    level = [data]
    while level and type(level[0]) is list:
        length = len(level[0])
        for index, item in enumerate(level):
            if type(item) is not list or len(item) != length:
                raise CodecError(
                    f"{label} is an array, whose lists are all of one length; "
                    f"{_place(label, 0, shape)} has {length} items, "
                    f"and {_place(label, index, shape)} is {brief_kind(item)}"
                )
        if len(shape) == tensors.MAX_RANK:
            raise CodecError(f"{label} has more than {tensors.MAX_RANK} dimensions")
        shape.append(length)
        level = list(chain.from_iterable(level))
    return tuple(shape), level


def _place(label: str, index: int, shape: Iterable[int]) -> str:
    """The item of that number, counted through, as Python would write it."""
    return label + "".join(f"[{step}]" for step in np.unravel_index(index, tuple(shape)))


def _numbers(
    leaves: list[Any], allowed: set[type], shape: tuple[int, ...], wanted: str
) -> list[Any]:
    """The leaves, with numbers for the words `NaN` and `Infinity`."""
    made = [
        WORDS.get(leaf, leaf) if type(leaf) is str and float in allowed else leaf for leaf in leaves
    ]
    wrong = next((index for index, leaf in enumerate(made) if type(leaf) not in allowed), None)
    if wrong is not None:
        label = wanted.partition(" ")[0]
        raise CodecError(f"{wanted}; {_place(label, wrong, shape)} is {brief_kind(made[wrong])}")
    return made


def _typed(numbers: list[Any], dtype: str, label: str) -> Any:
    # An empty array tells which NumPy dtype there is here for the name, if any.
    empty = tensors.restore("$array", dtype, (0,), (), memoryview(bytearray()))
    if type(empty) is not np.ndarray:
        raise CodecError(
            f"{label} wants {dtype}, which JSON cannot hold here; use maas.connect(url)"
        )
    return np.array(numbers, empty.dtype)


_KINDS = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "true or false",
    type(None): "null",
}


def brief_kind(data: Any) -> str:
    """What the JSON was, in JSON's words."""
    if type(data) is list:
        return f"a list of {len(data)}"
    return _KINDS.get(type(data)) or values.brief(data)
