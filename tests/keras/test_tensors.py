"""TensorFlow's tensors cross as bytes: every dtype and shape, and come back as what they were."""

import importlib
import os
from typing import Any

import numpy as np
import pytest

import maas
from maas import tensors
from maas.calls import Result
from maas.errors import CodecError
from maas.limits import Limits
from maas.testing.equality import difference
from maas.wire import decode, encode

HERE = os.environ.get("KERAS_BACKEND") == "tensorflow"
tf: Any = importlib.import_module("tensorflow") if HERE else None
adapter: Any = importlib.import_module("maas.tensors.tensorflow_tensors") if HERE else None
DTYPES = sorted(adapter._KNOWN) if HERE else ["float32"]
LIMITS = Limits()


@pytest.fixture(autouse=True)
def _on_tensorflow(lacking):
    if not HERE:
        lacking("tensorflow", "this process has not TensorFlow under Keras (make test-tensorflow)")


def there_and_back(value):
    return decode(bytearray(b"".join(encode(Result(value), LIMITS))), LIMITS).value


def random_tensor(dtype, shape):
    size = int(np.prod(shape)) * tensors.DTYPES[dtype]
    raw = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, size, np.uint8)
    return adapter.restore(dtype, shape, (), memoryview(bytearray(raw.tobytes())))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (3, 4), (2, 3, 4, 5)])
def test_every_dtype(dtype, shape):
    """Every dtype that TensorFlow and the wire have crosses in random bits, 0-d and empty too."""
    tensor = random_tensor(dtype, shape)
    there = there_and_back(tensor)
    assert (type(there), there.dtype, there.shape) == (type(tensor), tensor.dtype, tensor.shape)
    assert difference(tensor, there) is None


def test_the_list_covers_tensorflow():
    """What does not cross of TensorFlow's numbers is quantised, or has fewer than 8 bits."""
    every = {
        value
        for holder in (tf.dtypes, tf.dtypes.experimental)
        for value in vars(holder).values()
        if isinstance(value, tf.DType)
    }
    left_out = {dtype.name for dtype in every} - set(DTYPES)
    assert left_out == {
        "string", "resource", "variant", "float8_e4m3b11fnuz", "float4_e2m1fn",
        "int2", "int4", "uint2", "uint4", "qint8", "qint16", "qint32", "quint8", "quint16",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_done_to_rows(dtype):
    """Rows are put together, taken apart and filled up in every dtype."""
    one, other = random_tensor(dtype, (2, 3)), random_tensor(dtype, (1, 3))
    both = adapter.concatenate([one, other])
    back = adapter.parts(both, [2, 1])
    assert difference(one, back[0]) is None
    assert difference(other, back[1]) is None
    assert adapter.stack([one, one]).shape == (2, 2, 3)
    assert adapter.pad(one, 1, 5, 1).shape == (2, 5)
    assert adapter.numbers(one).shape == (2, 3)
    assert adapter.shuffled(random_tensor(dtype, (2, 3)), np.random.default_rng(0)).shape == (2, 3)


def test_encoding_does_not_copy():
    """The message of a tensor on the CPU holds its own memory, to be read only."""
    tensor = tf.range(1_000, dtype=tf.float32)
    part = memoryview(encode(Result(tensor), LIMITS)[-1])
    assert np.frombuffer(part, np.uint8).ctypes.data == adapter.span(tensor)[0]
    assert part.readonly


@pytest.mark.parametrize("offset", [0, 4, 16, 32])
def test_decoding_copies_only_what_is_not_aligned(offset):
    """A tensor lies over aligned memory as it came; TensorFlow computes with the others too."""
    memory = bytearray(4_096 + 128)
    start = -np.frombuffer(memory, np.uint8).ctypes.data % 64 + offset
    data = memoryview(memory)[start : start + 4_096]
    tensor = adapter.restore("float32", (1_024,), (), data)
    shared = adapter.span(tensor)[0] == np.frombuffer(data, np.uint8).ctypes.data
    assert shared == (offset == 0)
    assert float(tf.reduce_sum(tf.concat([tensor, tensor], 0))) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: tf.constant(["a"]),
        lambda: tf.ragged.constant([[1], [1, 2]]),
        lambda: tf.sparse.from_dense([[0.0, 1.0]]),
        lambda: tf.Variable(1.0),
        lambda: tf.cast([1], tf.dtypes.experimental.int4),
    ],
    ids=["strings", "ragged", "sparse", "variable", "int4"],
)
def test_what_cannot_cross_says_so(make):
    """Strings, ragged and sparse tensors and variables are refused with the path to them."""
    with pytest.raises(CodecError, match=r"result\b.*cannot cross"):
        encode(Result(make()), LIMITS)


def doubled(x):
    return x * 2


def test_a_function_gets_and_gives_them(maas_connect):
    """A plain function is called with TensorFlow's tensors and answers them, in every place."""
    found = maas_connect(doubled)(tf.constant([[1.0, -0.0]]))
    assert difference(tf.constant([[2.0, -0.0]]), found) is None


@pytest.mark.filterwarnings("ignore::maas.errors.MutationWarning")
def test_a_torch_module_answers_them(maas_connect):
    """A torch module called with TensorFlow's tensors answers those, and does not change them."""
    torch = pytest.importorskip("torch")

    class Cleared(torch.nn.Module):
        def forward(self, x):
            return x.mul_(0) + 1

    x = tf.constant([[1.0, 2.0]])
    found = maas_connect(Cleared())(x)
    assert difference(tf.ones((1, 2)), found) is None
    assert x.numpy().tolist() == [[1, 2]]


def test_hints_name_them():
    """A parameter hinted as `tf.Tensor` takes tensors."""

    def scaled(x: tf.Tensor, by: float = 2.0) -> tf.Tensor:
        return x * by

    assert str(maas.Model(scaled).info.methods["__call__"].signature) == (
        "(x: tensor, by: float = 2.0) -> tensor"
    )
    with pytest.raises(maas.SignatureError, match="wants tensor"):
        maas.Model(scaled)("text")
