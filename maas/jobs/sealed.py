"""A tree of plain values and tensors as one file with a checksum: msgpack, then safetensors.

    "maas-sealed" version, lengths, SHA-256    64 bytes, fixed
    structure    the tree without its tensors, a message of the wire format (msgpack)
    tensors      a safetensors file: each under its path in the tree

There is no pickle in it, and nothing that names code. What is read is compared with the checksum
before any of it is decoded.
"""

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from maas import wire
from maas.buffers import Buffer
from maas.calls import Result
from maas.errors import CodecError
from maas.limits import Limits
from maas.tensors import CHANNELS_LAST, torch_tensors

__all__ = ["digest_of", "sealed", "unsealed"]

_HEAD = struct.Struct(">15sBQQ32s")
_MAGIC = b"maas-sealed\0\0\0\0"
_VERSION = 1

_LIMITS = Limits(body=2**40, header=2**26, nodes=2**22, memory=2**30, tensors=2**16)
"""Of our own files: a history of a million steps is more than a stranger may send at once."""

_NATIVE = frozenset(
    {"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32"}
    | {"float64", "float8_e4m3fn", "float8_e5m2"}
)
"""Dtypes that each version of safetensors has; others are stored as their bytes."""
_DENSE = {4: torch.channels_last, 5: torch.channels_last_3d}

_Path = tuple[Any, ...]


# A tree to bytes.


def sealed(tree: Any) -> list[Buffer]:
    """The tree as the parts of a file.

    Raises
    ------
    CodecError
        Something in it is neither a plain value nor a plain tensor; the message names its path.
    """
    found: dict[_Path, torch.Tensor] = {}
    bare = _without(tree, (), found)
    names = {path: _name(index, path) for index, path in enumerate(found)}
    told = [
        [list(path), names[path], *_facts(names[path], tensor)] for path, tensor in found.items()
    ]
    structure = b"".join(wire.encode(Result([bare, told]), _LIMITS))
    tensors = safetensors.torch.save(
        {names[path]: _storable(tensor) for path, tensor in found.items()}
    )
    digest = _digest(structure, tensors)
    head = _HEAD.pack(_MAGIC, _VERSION, len(structure), len(tensors), digest)
    return [head, structure, tensors]


def digest_of(parts: list[Buffer]) -> str:
    """The SHA-256 in the head of what `sealed` gave, as text; of equal trees it is equal."""
    return bytes(parts[0])[-hashlib.sha256().digest_size :].hex()


def _digest(structure: Buffer, tensors: Buffer) -> bytes:
    found = hashlib.sha256(structure)
    found.update(tensors)
    return found.digest()


def _without(value: Any, path: _Path, found: dict[_Path, torch.Tensor]) -> Any:
    """The tree with None where a tensor is."""
    if isinstance(value, torch.Tensor):
        found[path] = value
        return None
    if isinstance(value, dict):
        return {key: _without(item, (*path, key), found) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without(item, (*path, at), found) for at, item in enumerate(value))
    return value


def _name(index: int, path: _Path) -> str:
    """What the tensor is called in the safetensors part: for people, and unique."""
    return f"{index:05d}." + ".".join(map(str, path))


def _facts(name: str, tensor: torch.Tensor) -> list[Any]:
    try:
        told = torch_tensors.describe(tensor.detach())
    except CodecError as error:
        raise CodecError(f"{name.partition('.')[2]}: {error}") from None
    return [told.dtype, list(told.shape), CHANNELS_LAST in told.flags]


def _storable(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, on the CPU and in memory of its own, which is what safetensors takes."""
    if torch_tensors.facts(tensor)[0] in _NATIVE:
        return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    data = torch_tensors.contents(tensor, ())
    if not len(data):
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


# Bytes to a tree.


def unsealed(data: Buffer) -> Any:
    """The tree in the bytes of such a file.

    Raises
    ------
    CodecError
        It is not such a file, or not all of it, or not what was written.
    """
    view = memoryview(data).cast("B")
    if len(view) < _HEAD.size:
        raise CodecError(f"a sealed file of {len(view)} bytes lacks its head of {_HEAD.size}")
    magic, version, first, second, digest = _HEAD.unpack(view[: _HEAD.size])
    if magic != _MAGIC or version != _VERSION:
        raise CodecError(f"this is no sealed file of version {_VERSION}")
    if len(view) != _HEAD.size + first + second:
        raise CodecError(f"a sealed file of {_HEAD.size + first + second} bytes has {len(view)}")
    structure, tensors = view[_HEAD.size : _HEAD.size + first], view[_HEAD.size + first :]
    if _digest(structure, tensors) != digest:
        raise CodecError("a sealed file is not what was written: its SHA-256 differs")
    return _opened(structure, tensors)


def _opened(structure: memoryview, tensors: memoryview) -> Any:
    message = wire.decode(bytearray(structure), _LIMITS)
    if not isinstance(message, Result) or type(message.value) is not list:
        raise CodecError("a sealed file holds another kind of message")
    bare, told = message.value
    try:
        stored = safetensors.torch.load(bytes(tensors))
    except SafetensorError as error:
        raise CodecError(f"a sealed file's tensors cannot be read: {error!s:.200}") from error
    placed = {tuple(path): _restored(stored[name], *facts) for path, name, *facts in told}
    return _filled(bare, (), placed)


def _restored(
    stored: torch.Tensor, dtype: str, shape: list[int], channels_last: bool
) -> torch.Tensor:
    if dtype not in _NATIVE:
        data = memoryview(bytearray(stored.numpy().data))
        stored = torch_tensors.restore(dtype, shape, (), data)
    # safetensors gives views of one buffer.
    form = _DENSE[len(shape)] if channels_last else torch.contiguous_format
    return stored.clone(memory_format=form)


def _filled(value: Any, path: _Path, placed: Mapping[_Path, torch.Tensor]) -> Any:
    if path in placed:
        return placed[path]
    if isinstance(value, dict):
        return {key: _filled(item, (*path, key), placed) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_filled(item, (*path, at), placed) for at, item in enumerate(value))
    return value
