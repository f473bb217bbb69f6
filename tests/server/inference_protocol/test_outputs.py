"""Answers become named outputs."""

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (None, []),
        (True, [("output", "BOOL", [True])]),
        (5, [("output", "INT64", [5])]),
        (2**63, [("output", "UINT64", [2**63])]),
        (1.5, [("output", "FP64", [1.5])]),
        (float("nan"), [("output", "FP64", ["NaN"])]),
        ("é", [("output", "BYTES", ["é"])]),
        (b"a", [("output", "BYTES", ["a"])]),
        (np.float32(1.5), [("output", "FP32", [1.5])]),
        (np.zeros((2, 0)), [("output", "FP64", [])]),
        ([1, 2], [("output", "INT64", [1, 2])]),
        ([1, 2.5], [("output", "FP64", [1.0, 2.5])]),
        ([[1], [2]], [("output", "INT64", [1, 2])]),
        (["a", b"b"], [("output", "BYTES", ["a", "b"])]),
        ([], [("output", "FP32", [])]),
        ((1, "a"), [("output_0", "INT64", [1]), ("output_1", "BYTES", ["a"])]),
        ((), []),
        ([np.ones(1), np.ones(2)], [("output_0", "FP64", [1]), ("output_1", "FP64", [1, 1])]),
        ({"a": 1, "b": [2.5]}, [("a", "INT64", [1]), ("b", "FP64", [2.5])]),
        ({}, []),
    ],
    ids=str,
)
def test_answers(infer, answer, wanted):
    """Each kind of answer that is tensors is the outputs that the page tells of."""
    assert infer(lambda: answer) == wanted


def test_an_empty_list_is_of_what_was_declared(infer):
    """An empty answer has the datatype that the signature says."""

    def model() -> list[str]:
        return []

    assert infer(model) == [("output", "BYTES", [])]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({1: 2}, "keys are no strings"),
        ({"a": {"b": 1}}, "a is or holds a dict"),
        ([1, "a"], "holds a str"),
        ([[1], [2, 3]], "all of one length"),
        ({1, 2}, "holds a set"),
        (1j, "holds a complex"),
        (np.ones(1, complex), "a tensor of complex128"),
        (2**64, "cannot hold"),
        (-(2**63) - 1, "cannot hold"),
        (b"\xff", "ask for binary data"),
        ("\ud800", "surrogate"),
        ((1, (2, 3)), "holds a tuple"),
    ],
    ids=str,
)
def test_answers_without_a_form(infer, answer, words):
    """An answer that the protocol cannot say is an error that names it."""
    status, error = infer(lambda: answer)
    assert status == 400
    assert words in error
