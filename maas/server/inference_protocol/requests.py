"""A request's body: a JSON object, and after it the binary data of the inputs that have some.

    {"id": "7", "parameters": {"timeout": 500000},
     "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}],
     "outputs": [{"name": "output", "parameters": {"binary_data": true}}]}

Where binary data follows, the header `Inference-Header-Content-Length` says how long the JSON is,
and an input's parameter `binary_data_size` how many of the bytes after it are its own.
Members that are not known are passed by, for that is how the protocol grows.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from maas import tensors
from maas.buffers import Body
from maas.errors import CodecError, LimitExceeded, Unsupported
from maas.limits import Limits
from maas.server.inference_protocol.datatypes import BYTES, DTYPES
from maas.server.json_text import parsed
from maas.server.number_lists import brief_kind

__all__ = ["Inference", "Input", "Wanted", "inference"]


@attrs.frozen
class Input:
    """One input; `data` is what JSON said, or the binary data, as `binary` tells."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any
    binary: bool

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"input {self.name!r:.60}"

    @property
    def count(self) -> int:
        """Elements that the shape makes."""
        return math.prod(self.shape)


@attrs.frozen
class Wanted:
    """One requested output, and whether as binary data; None where it does not say."""

    name: str
    binary: bool | None


@attrs.frozen
class Inference:
    """What a request asks for; without `outputs` all are wanted."""

    id: str | None
    inputs: tuple[Input, ...]
    outputs: tuple[Wanted, ...]
    parameters: dict[str, Any]
    binary: bool


_BYTES_PER_CHARACTER = 16
"""What JSON without containers takes once parsed: strings of one character beyond Latin-1, at
84 bytes for five, take the most. Containers are counted by `Limits.nodes`."""


def inference(body: Body, header_length: int | None, limits: Limits) -> Inference:
    """The request that a body holds; `header_length` is how much of it is JSON, None for all.

    Raises
    ------
    CodecError
        No request of this protocol.
    LimitExceeded
        More than the limits allow, told before it is allocated.
    Unsupported
        Something of the protocol that this server has not.
    """
    length = len(body) if header_length is None else header_length
    if length > len(body):
        raise CodecError(
            f"inference-header-content-length says {length} bytes of JSON, "
            f"and the body has {len(body)}"
        )
    data = _object(_json(body, length, limits), "the request")
    parameters = _parameters(data, "the request")
    inputs = _list(data, "inputs", limits)
    view = memoryview(body)[length:]
    return Inference(
        _id(data),
        tuple(_unique(_inputs(inputs, view), "input")),
        tuple(_unique(map(_wanted, _list(data, "outputs", limits)), "output")),
        parameters,
        _flag(parameters.pop("binary_data_output", None), "binary_data_output") or False,
    )


# The JSON.


def _json(body: Body, length: int, limits: Limits) -> Any:
    most = min(limits.header, limits.memory // _BYTES_PER_CHARACTER)
    if length > most:
        raise LimitExceeded(
            f"the request has {length} bytes of JSON, and at most {most} are read; "
            "send large inputs as binary data"
        )
    text = bytes(memoryview(body)[:length])
    if text.count(b"[") + text.count(b"{") > limits.nodes:
        raise LimitExceeded(
            f"the JSON has more than Limits(nodes={limits.nodes}) brackets; "
            "send data flat, or as binary data"
        )
    return parsed(text, limits, _members, wanted='a request is {"inputs": [...]}')


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise CodecError("a JSON object holds the same key twice")
    return members


def _object(data: Any, what: str) -> dict[str, Any]:
    if type(data) is not dict:
        raise CodecError(f"{what} is a JSON object; got {brief_kind(data)}")
    return data


def _list(data: dict[str, Any], key: str, limits: Limits) -> list[Any]:
    found = data.get(key)
    if found is None and key == "outputs":
        return []
    if type(found) is not list:
        raise CodecError(f'the request wants "{key}": a list; got {_got(found)}')
    if len(found) > limits.tensors:
        raise LimitExceeded(f"{len(found)} {key}, more than Limits(tensors={limits.tensors})")
    return found


def _got(found: Any) -> str:
    return "nothing" if found is None else brief_kind(found)


def _parameters(data: dict[str, Any], what: str) -> dict[str, Any]:
    found = data.get("parameters")
    return {} if found is None else dict(_object(found, f"the parameters of {what}"))


def _text(data: dict[str, Any], key: str, what: str) -> str:
    found = data.get(key)
    if type(found) is not str:
        raise CodecError(f'{what} wants "{key}": a string; got {_got(found)}')
    return found


def _id(data: dict[str, Any]) -> str | None:
    return None if data.get("id") is None else _text(data, "id", "the request")


def _flag(found: Any, name: str) -> bool | None:
    if found is not None and type(found) is not bool:
        raise CodecError(f"the parameter {name} is true or false; got {brief_kind(found)}")
    return found


def _unique(each: Iterable[Any], what: str) -> Iterator[Any]:
    seen = set()
    for one in each:
        if one.name in seen:
            raise CodecError(f"the {what} {one.name!r:.60} is there twice")
        seen.add(one.name)
        yield one


# Inputs and outputs.


def _inputs(data: list[Any], view: memoryview) -> Iterator[Input]:
    position = 0
    for each in data:
        fields = _object(each, "an input")
        name = _text(fields, "name", "an input")
        what = f"input {name!r:.60}"
        parameters = _parameters(fields, what)
        _refuse_shared_memory(parameters, what)
        size = parameters.get("binary_data_size")
        datatype = _datatype(fields, what)
        shape = _shape(fields.get("shape"), what)
        if size is None:
            if "data" not in fields:
                raise CodecError(f'{what} wants "data", or the parameter binary_data_size')
            yield Input(name, datatype, shape, fields["data"], binary=False)
            continue
        if type(size) is not int or not 0 <= size <= len(view) - position:
            raise CodecError(
                f"{what} says binary_data_size {brief_kind(size)}, "
                f"and {len(view) - position} bytes are left after the JSON; the header "
                "inference-header-content-length says where the JSON ends"
            )
        if "data" in fields:
            raise CodecError(f'{what} has both "data" and the parameter binary_data_size')
        yield Input(name, datatype, shape, view[position : position + size], binary=True)
        position += size
    if position != len(view):
        raise CodecError(
            f"{len(view) - position} bytes follow the JSON that no input's binary_data_size claims"
        )


def _datatype(fields: dict[str, Any], what: str) -> str:
    found = _text(fields, "datatype", what)
    if found not in DTYPES and found != BYTES:
        raise CodecError(
            f"{what} has the unknown datatype {found!r:.40}; known: {', '.join(DTYPES)}, {BYTES}"
        )
    return found


_MOST = 2**59
"""Elements that the dimensions other than zero may make: 16 bytes each still fit 63 bits."""


def _shape(found: Any, what: str) -> tuple[int, ...]:
    if type(found) is not list or len(found) > tensors.MAX_RANK:
        raise CodecError(
            f'{what} wants "shape": a list of at most {tensors.MAX_RANK} lengths; got {_got(found)}'
        )
    extent = 1
    for length in found:
        # bool is an int in Python.
        if type(length) is not int or length < 0:
            raise CodecError(f"{what} has a length {brief_kind(length)}; lengths are ints from 0")
        extent *= length or 1
        # Told at once: the product of 64 long ones is an int of its own weight.
        if extent > _MOST:
            raise CodecError(f"{what} has a shape larger than any memory")
    return tuple(found)


def _wanted(data: Any) -> Wanted:
    fields = _object(data, "an output")
    name = _text(fields, "name", "an output")
    what = f"output {name!r:.60}"
    parameters = _parameters(fields, what)
    _refuse_shared_memory(parameters, what)
    if parameters.get("classification") not in (None, 0):
        raise Unsupported(f"{what} asks for a classification; this server gives the tensor itself")
    return Wanted(name, _flag(parameters.get("binary_data"), "binary_data"))


def _refuse_shared_memory(parameters: dict[str, Any], what: str) -> None:
    if parameters.get("shared_memory_region") is not None:
        raise Unsupported(f"{what} lies in shared memory, which this server does not read")
