"""Inputs become what a signature wants."""

import datetime as dt
import uuid
from typing import Literal

import numpy as np
import pytest


def given(name, datatype, data, shape=None):
    return {
        "name": name,
        "datatype": datatype,
        "shape": [len(data)] if shape is None else shape,
        "data": data,
    }


# Each hint: what is told of it, an input, and the value that the model is given.
HINTS = [
    (bool, ("BOOL", [1]), given("x", "BOOL", [True]), True),
    (int, ("INT64", [1]), given("x", "INT64", [7]), 7),
    (int, ("INT64", [1]), given("x", "UINT8", [7], []), 7),
    (float, ("FP64", [1]), given("x", "FP64", [1.5]), 1.5),
    (float, ("FP64", [1]), given("x", "INT8", [1]), 1),
    (str, ("BYTES", [1]), given("x", "BYTES", ["größe"]), "größe"),
    (bytes, ("BYTES", [1]), given("x", "BYTES", ["a"]), b"a"),
    (bytearray, ("BYTES", [1]), given("x", "BYTES", ["a"]), bytearray(b"a")),
    (dt.date, ("BYTES", [1]), given("x", "BYTES", ["2024-05-17"]), dt.date(2024, 5, 17)),
    (uuid.UUID, ("BYTES", [1]), given("x", "BYTES", [str(uuid.UUID(int=1))]), uuid.UUID(int=1)),
    (dt.timedelta, ("FP64", [1]), given("x", "FP64", [2.5]), dt.timedelta(seconds=2.5)),
    (list[int], ("INT64", [-1]), given("x", "INT64", [1, 2]), [1, 2]),
    (list[int], ("INT64", [-1]), given("x", "INT64", []), []),
    (list[str], ("BYTES", [-1]), given("x", "BYTES", ["a", "b"]), ["a", "b"]),
    (list[bytes], ("BYTES", [-1]), given("x", "BYTES", ["a", "b"]), [b"a", b"b"]),
    (list[list[float]], ("FP64", [-1, -1]), given("x", "FP64", [1, 2], [1, 2]), [[1.0, 2.0]]),
    (set[int], ("INT64", [-1]), given("x", "INT64", [1, 1]), {1}),
    (tuple[int, ...], ("INT64", [-1]), given("x", "INT64", [1, 2]), (1, 2)),
    (tuple[int, int], ("INT64", [2]), given("x", "INT64", [1, 2]), (1, 2)),
    (Literal["a", "b"], ("BYTES", [1]), given("x", "BYTES", ["b"]), "b"),
    (int | str, ("INT64", [1]), given("x", "BYTES", ["a"]), "a"),
    (str | None, ("BYTES", [1]), given("x", "BYTES", ["a"]), "a"),
    (list[str] | str, ("BYTES", [-1]), given("x", "BYTES", ["a"], []), "a"),
    (np.ndarray | list[str], ("FP32", [-1]), given("x", "BYTES", ["a"]), ["a"]),
]


@pytest.mark.parametrize(("hint", "tells", "sent", "wanted"), HINTS, ids=str)
def test_hints(infer, told, hint, tells, sent, wanted):
    """A parameter's hint decides what is told of it, and what an input becomes."""
    seen = []

    def model(x):
        seen.append(x)

    model.__annotations__ = {"x": hint}
    assert told(model)[0] == [("x", *tells)]
    assert infer(model, sent) == []
    assert seen == [wanted]
    assert type(seen[0]) is type(wanted)


# Names.


def test_optional_parameters_are_not_told_but_taken(infer, told):
    """Only what is required is told; what is not may be an input, or a parameter of the request."""

    def model(x: int, /, y: int = 1, *, z: str = "a") -> tuple[int, str]:
        return x + y, z

    assert told(model)[0] == [("x", "INT64", [1])]
    assert told(model)[1] == [("output_0", "INT64", [1]), ("output_1", "BYTES", [1])]
    x = given("x", "INT64", [1])
    wanted = [("output_0", "INT64", [3]), ("output_1", "BYTES", ["b"])]
    assert infer(model, x, y=2, z="b") == wanted
    assert infer(model, given("z", "BYTES", ["b"]), given("y", "INT64", [2]), x) == wanted
    assert infer(model, x, y="b")[0] == 422
    assert infer(model, x, w=1)[0] == 422


def test_parameters_that_are_reserved_are_no_arguments(infer):
    """The protocol's own parameters stay its own, even where the model has one of that name."""

    def model(priority: int = 0, timeout: int = 0) -> list[int]:
        return [priority, timeout]

    assert infer(model, priority=1, timeout=10**8) == [("output", "INT64", [0, 0])]
    assert infer(model, given("priority", "INT64", [5])) == [("output", "INT64", [5, 0])]


def test_starred_parameters(infer, told):
    """Those after `*` are numbered; `**` takes any name."""

    def star(first, *rest):
        return [float(first[0]), *(float(each[0]) for each in rest)]

    def stars(**named):
        return sorted(named)

    each = [given("first", "FP32", [1]), given("rest_0", "FP32", [2]), given("rest_1", "FP32", [3])]
    assert infer(star, *each) == [("output", "FP64", [1.0, 2.0, 3.0])]
    assert infer(star, *reversed(each)) == [("output", "FP64", [1.0, 2.0, 3.0])]
    assert infer(star, each[0], each[2])[0] == 422
    for name in ("rest_00", "rest_-1", "rest_1_000", "rest_", "rest_" + "9" * 5_000):
        assert infer(star, each[0], given(name, "FP32", [2]))[0] == 422
    assert infer(stars, *each) == [("output", "BYTES", ["first", "rest_0", "rest_1"])]
    assert told(star)[0] == [("first", "FP32", [-1])]
    assert told(lambda *args: args)[0] == [("args_0", "FP32", [-1])]
    assert told(stars)[0] == []


def test_untyped_strings_stay_bytes(infer):
    """Where nobody says what is wanted, BYTES are lists of bytes, of the shape they came in."""
    assert infer(lambda x: type(x[0][0]).__name__, given("x", "BYTES", ["a"], [1, 1])) == [
        ("output", "BYTES", ["bytes"])
    ]
