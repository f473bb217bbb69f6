"""A model folder's tensor file, whatever framework its tensors are for.

The reference library reads and writes the safetensors format; here is what it does not check.
All names, shapes and dtypes are known, and the file is the one that model.json was
written for, before a tensor is read.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError, safe_open

from maas.errors import CodecError, LimitExceeded
from maas.store.folders import Opened
from maas.store.manifest import Weights
from maas.tensors import DTYPES, MAX_RANK

__all__ = ["NAMES", "Spec", "TensorFile", "check_alike", "some", "written"]

MAX_HEADER = 8 * 2**20
"""Bytes of a tensor file's header: 80,000 tensors.
safetensors itself allows 100 MB, which parse to a gigabyte."""

NAMES = {
    "BOOL": "bool",
    **{
        f"{letter}{bits}": f"{word}{bits}"
        for letter, word in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""safetensors' names of dtypes to ours, of those that every version of it knows."""


@attrs.frozen
class Spec:
    """What is compared of a tensor before it is read."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def written(path: Path) -> tuple[str, int]:
    """The sha256 and the size of a tensor file that was just written."""
    # The library makes the file for its owner alone; the folder has the rights that were asked for.
    path.chmod(path.parent.stat().st_mode & 0o666)
    with path.open("rb") as file:
        _check_header(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


class TensorFile:
    """The tensor file, hashed and listed; `specs` tells of every tensor in it.

    Parameters
    ----------
    native : safetensors' names of the dtypes that are stored as what they are.
    knows : whether a dtype that is packed as bytes exists here.

    Raises
    ------
    CodecError
        It is not the file that model.json was written for, or no tensor file.
    LimitExceeded
        Its header is longer than may be.
    """

    def __init__(
        self,
        files: Opened,
        weights: Weights,
        framework: str,
        native: Mapping[str, str],
        knows: Callable[[str], bool],
    ) -> None:
        self._path = files.weights
        self._weights = weights
        self._framework = framework
        self._native = native
        self._knows = knows
        with open(files.file, "rb", closefd=False) as file:
            if (
                files.size != weights.bytes
                or hashlib.file_digest(file, "sha256").hexdigest() != weights.sha256
            ):
                raise CodecError(
                    "the tensor file is not the one that model.json was written for: "
                    "its sha256 differs"
                )
        _check_header(files.file)
        try:
            with safe_open(self._path, framework) as opened:
                names = list(opened.keys())
                listed = {name: opened.get_slice(name) for name in names}
                self.specs = {
                    name: self._spec(name, part.get_dtype(), part.get_shape())
                    for name, part in listed.items()
                }
        except SafetensorError as error:
            raise CodecError(
                f"the tensor file is not of the safetensors format: {error!s:.200}"
            ) from error

    def _spec(self, name: str, dtype: str, shape: list[int]) -> Spec:
        if name in self._weights.packed:
            return self._unpacked(name, self._weights.packed[name], dtype, shape)
        if dtype not in self._native:
            raise CodecError(f"{name} is of the dtype {dtype}, which model.json does not explain")
        return Spec(self._native[dtype], tuple(shape))

    def _unpacked(self, name: str, packed: list[Any], dtype: str, shape: list[int]) -> Spec:
        match packed:
            case [str(real), list(sizes)] if len(sizes) <= MAX_RANK and self._knows(real):
                exact = real not in self._native.values() and all(
                    type(size) is int and 0 <= size < 2**63 for size in sizes
                )
                if exact and dtype == "U8" and shape == [math.prod(sizes) * DTYPES[real]]:
                    return Spec(real, tuple(sizes))
        raise CodecError(
            f"{name} is {dtype}{shape} in the tensor file and packed as {packed!r:.80} in "
            "model.json"
        )


def _check_header(file: int) -> None:
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if length > MAX_HEADER:
        raise LimitExceeded(
            f"the tensor file's header takes {length} bytes; {MAX_HEADER} are allowed"
        )


def check_alike(given: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Raises `CodecError` unless two sets of tensors have the same names and descriptions."""
    lacking, extra = wanted.keys() - given.keys(), given.keys() - wanted.keys()
    if lacking or extra:
        raise CodecError(
            f"the tensors are not those of {where}; "
            f"missing: {some(lacking)}; not wanted: {some(extra)}"
        )
    for name, spec in wanted.items():
        if given[name] != spec:
            raise CodecError(f"{name} is {given[name]} in the tensor file and {spec} in {where}")


def some(names: Iterable[str]) -> str:
    """A few of the names, for a message."""
    first = sorted(names)[:5]
    return ", ".join(f"{name!r:.60}" for name in first) or "none"
