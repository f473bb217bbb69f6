"""Sealed files: a tree of values and tensors comes back to the last bit, or is refused."""

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from maas.errors import CodecError
from maas.jobs.sealed import digest_of, sealed, unsealed
from maas.testing.equality import difference

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.sampled_from(
        [
            torch.arange(6.0).reshape(2, 3),
            torch.tensor([float("nan"), -0.0, float("inf")]),
            torch.tensor(True),
            torch.empty(0, 3),
            torch.arange(24, dtype=torch.uint8)
            .reshape(1, 2, 3, 4)
            .to(memory_format=torch.channels_last),
            torch.tensor([1 + 2j]),
            torch.tensor([1.5]).to(torch.bfloat16),
            torch.tensor([1.5]).to(torch.float8_e4m3fn),
            torch.arange(10)[::2],
        ]
    ),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(tree=TREES)
def test_a_tree_comes_back(tree):
    """Values, containers, dtypes, shapes and every bit of the tensors are those that were given."""
    data = b"".join(map(bytes, sealed(tree)))
    found = unsealed(data)
    assert difference(tree, found) is None or difference(_dense(tree), found) is None
    assert digest_of(sealed(found)) == digest_of(sealed(tree))


def _dense(value):
    """Tensors that are no slices with gaps."""
    if isinstance(value, torch.Tensor):
        last = value.dim() == 4
        return value if last else value.contiguous()
    if isinstance(value, dict):
        return {key: _dense(item) for key, item in value.items()}
    return type(value)(map(_dense, value)) if isinstance(value, list | tuple) else value


def test_every_byte_counts():
    """A file of which one byte is another, or with one less or more, is refused."""
    data = b"".join(map(bytes, sealed({"w": torch.arange(3.0), "step": 4})))
    for at in range(len(data)):
        with pytest.raises(CodecError):
            unsealed(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
    for wrong in (b"", data[:-1], data + b"\0", data[:64]):
        with pytest.raises(CodecError):
            unsealed(wrong)


def test_the_tensors_are_a_safetensors_file():
    """What follows the structure is read by the library of that format, by readable names."""
    parts = sealed({"weights": {"0.bias": torch.ones(2)}})
    found = safetensors.torch.load(bytes(parts[2]))
    assert {name.partition(".")[2] for name in found} == {"weights.0.bias"}


def test_a_value_without_a_form_is_named():
    """What no file can hold is refused with its place in the tree."""
    with pytest.raises(CodecError, match=r"state\.w"):
        sealed({"state": {"w": torch.eye(2).to_sparse()}})
