import numpy as np
import pytest
import torch

import maas
from maas.data import Data, check

X = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
Y = np.arange(40) % 4


def _with(values, place, value):
    changed = values.copy()
    changed[place] = value
    return changed


GOOD = [(X, Y), (torch.from_numpy(X), torch.from_numpy(Y)), X, [(X[:20], Y[:20]), (X[20:], Y[20:])]]


@pytest.mark.parametrize("data", GOOD)
def test_good_data_has_no_findings(data):
    """Data that can be trained on gives an empty report, and `require` returns."""
    report = check(data, classes=4)
    assert (report.rows, report.findings) == (40, ())
    report.require()
    assert str(report) == "40 rows, 0 problems"


PROBLEMS = [
    (
        (_with(X, (7, 1), np.nan), Y),
        {},
        "inputs: a value is missing in 1 of 40 rows, first in row 7",
    ),
    (
        (_with(X, (9, 1), np.inf), Y),
        {},
        "inputs: a value is infinite in 1 of 40 rows, first in row 9",
    ),
    (
        (X, _with(X[:, 0], 3, np.nan)),
        {},
        "targets: a value is missing in 1 of 40 rows, first in row 3",
    ),
    ((X, Y + 1), {"classes": 4}, "targets: row 3 is of class 4, and there are 4: 0 to 3"),
    ((X, _with(Y, 5, -1)), {"classes": 4}, "targets: row 5 is of class -1"),
    ((X, Y.astype(np.float32)), {"classes": 4}, "targets: classes are float32; give them as int64"),
    ((X, ["a", "b"] * 20), {}, "targets: is text.*fit a LabelEncoder"),
    (({"a": X[:, 0], "c": ["x", "y"] * 20}, Y), {}, "column 'c': is text.*OneHotEncoder"),
    (({"c": ["x", None] * 20}, Y), {}, "column 'c': a value is missing in row 1"),
    (({"c": ["1", "2.5", "oops", "4"] * 10}, Y), {}, "column 'c': is text.*row 2 is 'oops'"),
    ((X[:0], Y[:0]), {}, "inputs: there are no rows"),
    ([(X, Y), (X[:, :2], Y)], {}, r"inputs: rows of shape \(2,\) follow rows of shape \(3,\)"),
    (lambda: iter([(X, Y, Y)]), {}, "batches: a batch is a tuple of 3"),
]


@pytest.mark.parametrize(("data", "options", "words"), PROBLEMS)
def test_a_problem_is_told_with_its_place_and_remedy(data, options, words):
    """What would fail or poison training is a problem, and `require` raises with all of them."""
    report = check(data, **options)
    assert report.problems
    with pytest.raises(maas.DataError, match=words):
        report.require()
    assert all(each.remedy for each in report.findings)


NOTES = [
    ((_with(X, (slice(None), 2), 5), Y), {}, "inputs: 1 of 3 features never vary, the first is 2"),
    (({"a": X[:, 0], "b": X[:, 0] * 0}, Y), {}, "column 'b': never varies"),
    ((X.astype(np.float64), Y), {}, "inputs: are float64"),
    ((X, Y * 0), {}, "targets: are all 0"),
    ((X, Y), {"validation": (X[:5], Y[:5])}, "validation: 5 of 5 rows are among the training rows"),
]


@pytest.mark.parametrize(("data", "options", "words"), NOTES)
def test_what_is_odd_is_a_note(data, options, words):
    """What is only suspicious is told, and hinders nobody."""
    report = check(data, **options)
    report.require()
    assert words in str(report)


def test_validation_of_other_rows_is_no_finding():
    """Rows that were split apart share none."""
    train, rest = Data.of((X, Y)).split(0.25)
    assert check(train, validation=rest).findings == ()


def test_no_more_rows_are_looked_at_than_asked():
    """`rows` bounds how much of a stream is read."""

    def endless():
        while True:
            yield X, Y

    assert check(endless, rows=100).rows == 120
