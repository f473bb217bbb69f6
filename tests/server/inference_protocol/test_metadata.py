"""What the protocol tells of a signature."""

from typing import Any

import numpy as np
import pytest

from maas.schema import TensorSpec


@pytest.mark.parametrize(
    ("hint", "tells"),
    [
        (np.ndarray, ("FP32", [-1])),
        (Any, ("FP32", [-1])),
        (TensorSpec("bfloat16", ("batch", 3, None)), ("BF16", [-1, 3, -1])),
        (TensorSpec("bool", ()), ("BOOL", [])),
    ],
    ids=str,
)
def test_tensors(told, hint, tells):
    """A tensor is told with its datatype and lengths, -1 for those that are free."""

    def model(x):
        pass

    model.__annotations__ = {"x": hint, "return": hint}
    assert told(model) == ([("x", *tells)], [("output", *tells)])


@pytest.mark.parametrize(
    "hint", [dict[str, int], slice, complex, TensorSpec("complex64", (3,)), list[np.ndarray]]
)
def test_what_has_no_tensor_is_not_told(told, hint):
    """A type that no tensor can be is left out, for there is nothing true to say."""

    def model(x, y: int):
        pass

    model.__annotations__["x"] = hint
    assert told(model)[0] == [("y", "INT64", [1])]
