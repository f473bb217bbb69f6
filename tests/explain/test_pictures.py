"""Pictures of explanations: what is drawn is what was found."""

import struct

import numpy as np
import pytest
import torch
from torch import nn

import maas


class Weighed(nn.Module):
    """Each number of the input times its own weight."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.tensor(weights)

    def forward(self, x):
        return (x.flatten(1) * self.weights).sum(1)


def explained(weights, shape):
    model = maas.Model(Weighed(weights).eval())
    return model.explain(torch.ones(2, *shape), method="input_x_gradient")


def size(path):
    """Width and height of a PNG file, from its first chunk."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_an_image_in_characters():
    """Strong and faint, for and against, and next to nothing have a mark each."""
    found = explained([1.0, 0.2, 0.0, -0.2, -1.0, 0.05], (2, 3))
    assert found.plot() == "##++\n--=="
    channels = explained([0.5, 0.0, 0.5, -1.0], (2, 1, 2))
    assert channels.plot() == "##=="


def test_a_flat_image_is_told_its_shape():
    """`shape=` makes an image of a flat row, and several rows are drawn one after another."""
    found = explained([1.0, 0.0, 0.0, -1.0], (4,))
    assert found.plot(shape=(2, 2), rows=(0, 1)) == "##\n  ==\n\n##\n  =="


def test_a_table_in_characters():
    """Columns stand by their size, each with its name, its number and a bar."""
    lines = explained([0.5, -2.0, 0.0], (3,)).plot(names=["age", "blood", "sex"]).splitlines()
    assert [line.split() for line in lines] == [
        ["blood", "-2.0000", 24 * "="],
        ["age", "+0.5000", 6 * "#"],
        ["sex", "+0.0000"],
    ]


def test_a_text_in_characters():
    """Tokens stand in their order; what each one's vector has is added up."""
    found = explained([1.0, 1.0, -1.0, 0.0], (2, 2))
    lines = found.plot(tokens=["not", "bad"]).splitlines()
    assert [line.split()[:2] for line in lines] == [["not", "+2.0000"], ["bad", "-1.0000"]]


@pytest.mark.parametrize(
    ("weights", "shape", "told"),
    [
        ([1.0, 0.2, 0.0, -0.2, -1.0, 0.05], (2, 3), {}),
        ([0.5, -2.0, 0.0], (3,), {"names": ["age", "blood", "sex"]}),
        ([1.0, -1.0], (2,), {"tokens": ["good", "bad"]}),
    ],
)
def test_a_file_is_written(tmp_path, weights, shape, told):
    """matplotlib writes each kind of picture, larger for more rows, with no window opened."""
    found = explained(weights, shape)
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    assert found.plot(one, **told) == found.plot(**told)
    found.plot(two, rows=(0, 1), **told)
    assert size(two)[0] * size(two)[1] > 1.3 * size(one)[0] * size(one)[1]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"rows": (2,)}, "rows 0 to 1"),
        ({"rows": ()}, "rows 0 to 1"),
        ({"names": ["a"]}, "1 names for 3"),
        ({"tokens": ["a"]}, "1 tokens for 3"),
        ({"shape": (2, 2)}, "reshape"),
        ({"shape": (1, 1, 1, 3)}, "an image has 2"),
    ],
)
def test_what_does_not_fit_is_refused(told, words):
    """Rows, names, tokens and shapes that are not those of the attributions are errors."""
    with pytest.raises(ValueError, match=words):
        explained([1.0, 2.0, 3.0], (3,)).plot(**told)


def test_numpy_is_drawn_as_well():
    """Attributions of an array are drawn like those of a tensor."""
    model = maas.Model(Weighed([1.0, -1.0]).eval())
    found = model.explain(np.ones((1, 2), np.float32), method="input_x_gradient")
    assert found.plot().splitlines()[0].endswith("#" * 24)
