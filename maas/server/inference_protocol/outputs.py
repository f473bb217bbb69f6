"""An answer as named outputs.

A value that is one tensor, number or string is the output `output`; a tuple, or a list of arrays,
has `output_0`, `output_1`, ...; a dict's outputs are named by its keys; None has none. A list of
numbers or of strings is one tensor, and a number or a string a tensor of one element.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from maas import tensors
from maas.buffers import Buffer
from maas.errors import CodecError, LimitExceeded
from maas.limits import Limits
from maas.schema import Schema
from maas.server.inference_protocol.datatypes import (
    BYTES,
    DATATYPES,
    DTYPES,
    join_strings,
    tensor_of,
)
from maas.server.inference_protocol.requests import Inference
from maas.server.json_answers import MAX_VALUES, plain
from maas.server.number_lists import array, rectangle

__all__ = ["ONLY", "Output", "numbered", "outputs", "written"]

ONLY = "output"
"""The name of an answer's only output."""

_BINARY = 'ask for binary data: "parameters": {"binary_data_output": true}'
_ELSE = "the Open Inference Protocol has no form for that; use maas.connect(url)"
_FEW_INTS = range(-(2**63), 2**63)


def numbered(index: int) -> str:
    """The name of one of several outputs."""
    return f"{ONLY}_{index}"


@attrs.frozen
class Output:
    """One output; `content` is an array, or the strings of a BYTES tensor in order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: Any

    @property
    def nbytes(self) -> int:
        """Bytes of its binary data, without making them."""
        if self.datatype == BYTES:
            return sum(4 + len(each) for each in self.content)
        return math.prod(self.shape) * tensors.DTYPES[tensors.dtype_name(self.content)]

    def data(self) -> Any:
        """For JSON: flat, row by row."""
        if math.prod(self.shape) > MAX_VALUES:
            raise LimitExceeded(
                f"{self.name} holds more than {MAX_VALUES} values, too many for JSON; {_BINARY}"
            )
        if type(self.content) is tensors.RawTensor:
            raise CodecError(f"{self.name} has no form in JSON here; {_BINARY}")
        if self.datatype != BYTES:
            return plain(self.content.reshape(-1))
        try:
            return plain([each.decode() for each in self.content])
        except UnicodeDecodeError:
            raise CodecError(
                f"{self.name} holds bytes that are no UTF-8, which JSON cannot say; {_BINARY}"
            ) from None

    def contents(self) -> Buffer:
        """The binary data: the array's own memory where it is contiguous."""
        if self.datatype == BYTES:
            return join_strings(self.content)
        if type(self.content) is tensors.RawTensor:
            return self.content.data
        adapter: Any = tensors.adapter_for(type(self.content))
        found: memoryview = adapter.contents(self.content, ())
        return found


def outputs(value: Any, returns: Schema) -> list[Output]:
    """The outputs that a value is; `returns` tells what an empty list holds.

    Raises
    ------
    CodecError
        A value that the protocol has no form for.
    """
    empty, _ = tensor_of(returns) or ("FP64", ())
    return [_output(name, each, empty) for name, each in _named(value)]


def _named(value: Any) -> Iterable[tuple[str, Any]]:
    if value is None:
        return ()
    if type(value) is tuple or (type(value) is list and any(map(tensors.facts, value))):
        return ((numbered(index), each) for index, each in enumerate(value))
    if type(value) is dict:
        if not all(type(name) is str for name in value):
            raise CodecError(f"the answer is a dict whose keys are no strings; {_ELSE}")
        return value.items()
    return ((ONLY, value),)


def _output(name: str, value: Any, empty: str) -> Output:
    if isinstance(value, np.generic):
        value = np.asarray(value)
    found = tensors.facts(value)
    if found is None:
        return _of_lists(name, value, empty)
    dtype, shape = found
    if dtype not in DATATYPES:
        raise CodecError(f"{name} is a tensor of {dtype}; {_ELSE}")
    if type(value) is not tensors.RawTensor:
        adapter: Any = tensors.adapter_for(type(value))
        adapter.describe(value)  # raises for one without plain data
    return Output(name, DATATYPES[dtype], shape, value)


def _of_lists(name: str, value: Any, empty: str) -> Output:
    shape, leaves = rectangle(value, name)
    kinds = set(map(type, leaves))
    if kinds <= {str, bytes} and (kinds or empty == BYTES):
        strings = [_encoded(name, each) for each in leaves]
        return Output(name, BYTES, shape or (1,), strings)
    dtype = _dtype(kinds, leaves) if kinds else DTYPES[empty]
    if dtype is None:
        kind = next((kind for kind in kinds if kind not in (bool, int, float)), type(value))
        raise CodecError(f"{name} is or holds a {kind.__name__}; {_ELSE}")
    numbers = array(leaves, dtype, name).reshape(shape or (1,))
    return Output(name, DATATYPES[dtype], numbers.shape, numbers)


def _encoded(name: str, text: str | bytes) -> bytes:
    if type(text) is bytes:
        return text
    try:
        return str(text).encode()
    except UnicodeEncodeError:
        raise CodecError(f"{name} holds half of a surrogate pair; {_ELSE}") from None


def _dtype(kinds: set[type], leaves: Sequence[Any]) -> str | None:
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "int64" if all(each in _FEW_INTS for each in leaves) else "uint64"
    return "float64" if kinds <= {int, float} else None


def written(
    found: Iterable[Output], asked: Inference, limits: Limits
) -> tuple[list[dict[str, Any]], list[Buffer]]:
    """The outputs that were asked for, as JSON has them, and the binary data that follow it.

    Raises
    ------
    CodecError
        An output that the answer has not, or that has no form in JSON.
    LimitExceeded
        More than the limits allow; told before the bytes are made.
    """
    chosen = list(_chosen(list(found), asked))
    if len(chosen) > limits.tensors:
        raise LimitExceeded(f"{len(chosen)} outputs, more than Limits(tensors={limits.tensors})")
    if sum(output.nbytes for output, binary in chosen if binary) > limits.body:
        raise LimitExceeded(f"the answer takes more than Limits(body={limits.body}) bytes")
    described, buffers = [], []
    for output, binary in chosen:
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if binary:
            buffers.append(output.contents())
            entry["parameters"] = {"binary_data_size": output.nbytes}
        else:
            entry["data"] = output.data()
        described.append(entry)
    return described, buffers


def _chosen(found: list[Output], asked: Inference) -> Iterator[tuple[Output, bool]]:
    """The outputs in the order asked for, each with whether it goes as binary data."""
    if not asked.outputs:
        yield from ((output, asked.binary) for output in found)
    by_name = {output.name: output for output in found}
    for wanted in asked.outputs:
        output = by_name.get(wanted.name)
        if output is None:
            here = ", ".join(by_name) or "none"
            raise CodecError(f"the answer has no output {wanted.name!r:.60}; it has: {here:.400}")
        yield output, asked.binary if wanted.binary is None else wanted.binary
