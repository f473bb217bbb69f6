"""The strategies reach what they promise to reach."""

import unittest

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings

from maas.tensors import DTYPES
from maas.testing.strategies import exceptions, leaves, tensors, values


def members(value):
    """The value, and everything in it."""
    yield value
    inside = value.items() if isinstance(value, dict) else value
    if isinstance(inside, list | tuple | set | frozenset | type({}.items())):
        for member in inside:
            yield from members(member)


# Found is enough: nothing is shrunk.
FAST = settings(max_examples=5_000, database=None, phases=[Phase.generate])


def found(strategy, wanted):
    """What is raised at the first one that is wanted ends the search, and has nothing shown: torch
    cannot show a single float4, and a message of 40 KB is a warning.
    """

    @FAST
    @given(strategy)
    def look(value):
        if wanted(value):
            raise unittest.SkipTest

    with pytest.raises(unittest.SkipTest):
        look()


@pytest.mark.parametrize(
    "wanted",
    [
        lambda x: type(x) is int and x >= 2**64, lambda x: type(x) is int and x < -(2**63),
        lambda x: type(x) is float and x != x, lambda x: type(x) is float and str(x) == "-0.0",
        lambda x: type(x) is str and any("\ud800" <= c <= "\udfff" for c in x),
        lambda x: type(x) is bytes and len(x) > 4_096,
    ],
    ids=["large ints", "small ints", "NaN", "-0.0", "surrogates", "long bytes"],
)  # fmt: skip
def test_leaves(wanted):
    """Integers beyond 64 bits, NaN, negative zero, surrogates and long strings are among the
    leaves.
    """
    found(leaves(), wanted)


@pytest.mark.parametrize(
    "wanted",
    [
        lambda x: type(x) is dict and any(str(key).startswith("$") for key in x),
        lambda x: type(x) is dict and any(type(key) is not str for key in x),
        lambda x: isinstance(x, torch.Tensor) and x.requires_grad, lambda x: type(x) is np.ndarray,
        lambda x: isinstance(x, Exception) and x.args,
        lambda x: type(x) in (list, tuple) and any(type(item) in (list, dict) for item in x),
        lambda x: type(x) is set and len(x) > 1,
    ],
    ids=["reserved keys", "other keys", "grad", "numpy", "exceptions", "nesting", "sets"],
)  # fmt: skip
def test_values(wanted):
    """Containers, keys that look like tags, arrays and exceptions are among the values."""
    found(values(), lambda value: any(map(wanted, members(value))))


@pytest.mark.parametrize(
    "wanted",
    [
        lambda x: x.dim() == 0, lambda x: x.numel() == 0, lambda x: x.dim() > 40,
        lambda x: x.is_conj(), lambda x: x.is_neg(),
        lambda x: not x.is_contiguous(), lambda x: 0 in x.stride() and x.numel() > 1,
        lambda x: not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last),
        lambda x: type(x) is torch.nn.Parameter,
    ],
    ids=[
        "0-d", "empty", "rank", "conj", "neg", "strided", "expanded", "channels_last", "parameter",
    ],
)  # fmt: skip
def test_tensors(wanted):
    """Every layout that breaks naive encoders is among the tensors."""
    found(tensors(kinds=["torch"]), wanted)


@pytest.mark.parametrize("dtype", [name for name in DTYPES if hasattr(torch, name)])
def test_dtypes(dtype):
    """Each dtype can be asked for."""

    @given(tensors(dtype, (2, 3), kinds=["torch"]))
    @settings(max_examples=20, database=None)
    def check(tensor):
        assert (tensor.dtype, tensor.shape) == (getattr(torch, dtype), (2, 3))

    check()


@given(tensors(kinds=["numpy"]))
def test_kinds(array):
    """Only the kinds asked for come."""
    assert isinstance(array, np.ndarray)


@given(values(hashable=True))
def test_hashable(value):
    """Values that may be keys can be hashed."""
    hash(value)


@given(exceptions())
def test_exceptions(error):
    """Exceptions come whole."""
    assert isinstance(error, Exception)
