"""Arrays cross as bytes: every dtype, shape and layout, in either framework, or with neither."""

import json
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given

from maas import tensors
from maas.calls import Result
from maas.errors import CodecError
from maas.limits import Limits
from maas.tensors import DTYPES, RawTensor
from maas.testing import strategies
from maas.testing.equality import difference
from maas.wire import decode, encode

LIMITS = Limits()
TORCH = [name for name in DTYPES if hasattr(torch, name)]


def there_and_back(value):
    return decode(b"".join(encode(Result(value), LIMITS)), LIMITS).value


def random_tensor(dtype, shape):
    """A tensor of random bits, made without torch's help."""
    size = int(np.prod(shape)) * DTYPES[dtype]
    if not size:
        return torch.empty(0, dtype=torch.uint8).view(getattr(torch, dtype)).reshape(shape)
    raw = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, size, np.uint8)
    return torch.from_numpy(raw).view(getattr(torch, dtype)).reshape(shape)


def bits(tensor):
    """A tensor's elements as a uint8 tensor, by torch alone."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain.contiguous().reshape(-1).view(torch.uint8) if plain.numel() else torch.empty(0)


@given(strategies.tensors())
def test_round_trip(array):
    """Any array comes back with the same dtype, shape, bits and requires_grad."""
    assert difference(array, there_and_back(array)) is None


@given(strategies.tensors())
def test_results_are_writable_and_independent(array):
    """What arrives can be written to, and writing to it does not reach what was sent."""
    there = there_and_back(array)
    before = difference(array, there)
    if type(there) is np.ndarray:
        assert there.flags.writeable
        there[...] = 1
    else:
        there.untyped_storage().fill_(1)
    again = there_and_back(array)
    assert before is None
    assert difference(array, again) is None


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (3, 4), (2, 3, 4, 5)])
def test_every_torch_dtype(dtype, shape):
    """Every dtype on the list crosses in random bits: 0-d, empty and many-dimensional."""
    tensor = random_tensor(dtype, shape)
    there = there_and_back(tensor)
    assert (there.dtype, there.shape, there.device) == (tensor.dtype, tensor.shape, tensor.device)
    assert torch.equal(bits(there), bits(tensor))


def test_the_list_covers_torch():
    """Every dtype of this torch crosses, but for those that are quantised or have fewer than 8
    bits.
    """
    every = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    listed = {getattr(torch, name) for name in TORCH}
    left_out = {str(dtype).removeprefix("torch.") for dtype in every - listed}
    assert all(name.startswith(("q", "bits", "int", "uint")) for name in left_out), left_out
    assert not left_out & {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}


@pytest.mark.parametrize("dtype", [name for name in TORCH if name != "complex32"])
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.transpose(1, 3),
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, :2],
    ],
    ids=["transposed", "sliced", "expanded", "channels_last", "sliced channels_last"],
)
def test_layouts(dtype, layout):
    """Values do not depend on the layout they are sent in, and channels_last stays
    channels_last.
    """
    tensor = layout(random_tensor(dtype, (2, 3, 4, 5)))
    there = there_and_back(tensor)
    assert torch.equal(bits(there), bits(tensor))
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    assert there.is_contiguous(memory_format=torch.channels_last) == last
    assert there.is_contiguous() or last


def test_channels_last_3d():
    """Volumes keep their layout as images do."""
    tensor = random_tensor("float32", (2, 3, 4, 5, 2)).contiguous(
        memory_format=torch.channels_last_3d
    )
    there = there_and_back(tensor)
    assert there.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(bits(there), bits(tensor))


@pytest.mark.parametrize("lazy", [torch.Tensor.conj, lambda z: z.conj().imag, torch._neg_view])
def test_lazy_views(lazy):
    """A lazy conjugate or negative arrives as the values it stands for."""
    tensor = lazy(torch.tensor([1 + 2j, complex(-0.0, 3)], dtype=torch.complex64))
    assert torch.equal(bits(there_and_back(tensor)), bits(tensor))


def test_a_dimension_of_one_with_a_stride():
    """A contiguous tensor whose single element has a stride crosses as well."""
    assert there_and_back(torch.arange(4)[:1:2]).tolist() == [0]


def test_requires_grad():
    """A leaf that requires grad arrives as such a leaf, and one that does not, does not."""
    there, other = there_and_back(
        [torch.ones(2, requires_grad=True), torch.nn.Parameter(torch.ones(2))]
    )
    assert there.requires_grad
    assert there.is_leaf
    assert type(other) is torch.Tensor
    assert other.requires_grad
    assert not there_and_back(torch.ones(2)).requires_grad
    assert there_and_back(torch.ones(2, requires_grad=True) * 2).is_leaf


@pytest.mark.parametrize("array", [torch.arange(1_000.0), np.arange(1_000.0)])
def test_encoding_does_not_copy(array):
    """The message of a contiguous CPU array holds the array's own memory."""
    parts = encode(Result(array), LIMITS)
    start = array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data
    assert np.frombuffer(parts[-1], np.uint8).ctypes.data == start
    assert memoryview(parts[-1]).nbytes == 8 * 1_000 if isinstance(array, np.ndarray) else 4 * 1_000


def test_decoding_does_not_copy():
    """Arrays lie over a writable message, so that a received body is held once."""
    data = bytearray(b"".join(encode(Result([torch.ones(4), np.ones(4)]), LIMITS)))
    tensor, array = decode(data, LIMITS).value
    body = np.frombuffer(data, np.uint8)
    assert np.shares_memory(tensor.numpy(), body)
    assert np.shares_memory(array, body)


def test_alignment():
    """Every array begins at a multiple of 64 bytes from the message's first."""
    data = bytearray(b"".join(encode(Result([np.ones(n, "f8") for n in range(9)]), LIMITS)))
    base = np.frombuffer(data, np.uint8).ctypes.data
    for array in decode(data, LIMITS).value[1:]:
        assert (array.ctypes.data - base) % 64 == 0


def test_numpy_extension_dtypes():
    """bfloat16 and float8 NumPy arrays cross as NumPy arrays."""
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
        array = np.arange(4, dtype=np.uint8).view(np.uint8).astype(getattr(ml_dtypes, name))
        there = there_and_back(array)
        assert there.dtype == array.dtype
        assert there.tobytes() == array.tobytes()
        scalar = there_and_back(array[1])
        assert (type(scalar), scalar.tobytes()) == (type(array[1]), array[1].tobytes())


@pytest.mark.parametrize("value", [0, 2, 128, 255])
def test_booleans(value):
    """Bytes other than 0 and 1 do not arrive as booleans."""
    data = bytearray(b"".join(encode(Result(np.zeros(3, bool)), LIMITS)))
    data[-1] = value
    if value > 1:
        with pytest.raises(CodecError, match="bool"):
            decode(data, LIMITS)
    else:
        assert not decode(data, LIMITS).value.any()


def test_raw_tensors():
    """A tensor that nothing here can compute with is checked, kept and passed on whole."""
    raw = RawTensor("complex32", (2, 1), b"\x00\x3c\x00\x00" * 2)
    there = there_and_back(raw)
    assert torch.equal(
        torch.view_as_real(there), torch.tensor([[[1.0, 0]], [[1, 0]]], dtype=torch.half)
    )
    assert tensors.facts(raw) == ("complex32", (2, 1))
    for wrong in [("float33", (1,), b"1234"), ("float32", (2,), b"1234"), ("int8", (-1, -1), b"1")]:
        with pytest.raises(ValueError, match=r"RawTensor .*want"):
            RawTensor(*wrong)


# Without torch.

ABSENT = """
import json, sys

hidden = sys.argv[1].split(",")
sys.meta_path[:] = [
    type("Without", (), {"find_spec": staticmethod(
        lambda name, path=None, target=None, finder=finder:
            None if name.partition(".")[0] in hidden else finder.find_spec(name, path, target))})
    for finder in sys.meta_path if hasattr(finder, "find_spec")
]

import numpy as np
from maas.calls import Result
from maas.limits import Limits
from maas.wire import decode, encode

value = decode(sys.stdin.buffer.read(), Limits()).value
sent = b"".join(encode(Result(value), Limits()))
told = [[type(a).__module__, type(a).__name__, str(a.dtype), list(a.shape),
         (a.data if type(a).__name__ == "RawTensor" else np.ascontiguousarray(a).tobytes()).hex()]
        for a in value]
assert not set(hidden) & set(sys.modules)
print(json.dumps([told, sent.hex()]))
"""


def without(hidden, value):
    """What a process without these packages makes of `value`, and what it sends back."""
    data = b"".join(encode(Result(value), LIMITS))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ABSENT), hidden],
        input=data, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    told, sent = json.loads(done.stdout)
    return told, decode(bytes.fromhex(sent), LIMITS).value


IMAGE = torch.arange(24.0).reshape(1, 2, 3, 4)
SENT = [
    torch.tensor([1.5, -0.0]), IMAGE.contiguous(memory_format=torch.channels_last),
    torch.tensor([1.5, 2.5], dtype=torch.bfloat16), random_tensor("float4_e2m1fn_x2", (2, 2)),
    random_tensor("float8_e4m3fn", ()), torch.ones(2, requires_grad=True),
    IMAGE.to(torch.bfloat16).contiguous(memory_format=torch.channels_last),
]  # fmt: skip


def as_bytes(tensor):
    return bytes(bits(tensor).numpy()).hex()


def test_without_torch():
    """Where torch is absent its tensors are NumPy arrays, and raw where NumPy has no such dtype."""
    told, back = without("torch", SENT)
    kinds = [kind for _, kind, *_ in told]
    assert kinds == ["ndarray"] * 3 + ["RawTensor"] + ["ndarray"] * 3
    assert [dtype for _, _, dtype, *_ in told] == [
        str(tensor.dtype).removeprefix("torch.") for tensor in SENT
    ]
    assert [data for *_, data in told] == [as_bytes(tensor) for tensor in SENT]
    assert [shape for *_, shape, _ in told] == [list(tensor.shape) for tensor in SENT]
    assert torch.equal(bits(back[3]), bits(SENT[3]))


def test_without_torch_and_ml_dtypes():
    """Without ml_dtypes as well, bfloat16 and float8 are raw, in C order whatever order they came
    in.
    """
    told, back = without("torch,ml_dtypes", SENT)
    kinds = [kind for _, kind, *_ in told]
    raw = "RawTensor"
    assert kinds == ["ndarray", "ndarray", raw, raw, raw, "ndarray", raw]
    assert [data for *_, data in told] == [as_bytes(tensor) for tensor in SENT]
    for there, tensor in zip(back, SENT, strict=True):
        if isinstance(there, torch.Tensor):
            assert torch.equal(bits(there), bits(tensor))
            assert there.dtype == tensor.dtype
