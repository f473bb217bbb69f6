"""The tables of the explanation pages hold: what each recipe did to the network for digits."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import maas
from maas.compress import Distill, Factor, Prune, Quantize
from maas.compress.compression import attempt
from maas.compress.trial import Check

pytestmark = pytest.mark.usefixtures("single")
PAGES = Path(__file__).parents[2] / "docs" / "explanation"
ROW = re.compile(r"^\| (?P<recipe>`[A-Z].*`) \| (?P<figures>[\d. |]+) \|$", re.MULTILINE)
ROWS = [
    (page, found["recipe"].replace("`", ""), [float(each) for each in found["figures"].split("|")])
    for page in ("quantization", "pruning", "low-rank")
    for found in ROW.finditer((PAGES / f"{page}.md").read_text("utf-8"))
]
TAUGHT = re.compile(
    r"^\| (\d+) epochs, `lr=([\d.]+)` \| ([\d.]+) ± [\d.]+ \| ([\d.]+) ± [\d.]+ \|$", re.MULTILINE
)
SLOW = ("int8 dynamic", "int8 static", "Distill")
KNOWN = {each.__name__: each for each in (Distill, Factor, Prune, Quantize)}


def test_every_page_has_its_table():
    """Each family shows recipes that lose beside those that gain."""
    assert {page for page, *_ in ROWS} == {"quantization", "pruning", "low-rank"}
    assert len(ROWS) >= 14


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        pytest.param(
            recipe,
            told,
            marks=[pytest.mark.long] * any(each in recipe for each in SLOW),
            id=recipe,
        )
        for _, recipe, told in ROWS
    ],
)
def test_a_row_of_a_page_is_what_comes_out(model, digits, recipe, told):
    """Size, error, agreement and accuracy of a recipe are those of the page, but for training."""
    (inputs, _), check = digits
    steps = eval(f"({recipe},)", {**KNOWN, "x": inputs})
    found = attempt(model, steps, Check.of(check), (), metric=None).rows
    first, last = found[0].figures, found[-1].figures
    size, error, agreement, score = told
    assert last.disk / first.disk == pytest.approx(size, abs=0.006)
    assert last.error == pytest.approx(error, rel=0.3)
    # Training on another processor rounds otherwise; what agrees on all rows must, here as there.
    assert last.agreement == pytest.approx(agreement, abs=max(0.006, 0.3 * (1 - agreement)))
    assert last.score == pytest.approx(score, abs=max(0.012, 0.3 * (1 - score)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("epochs", "lr", "taught", "alone"),
    TAUGHT.findall((PAGES / "distillation.md").read_text("utf-8")),
)
def test_five_seeds_tell_whether_a_teacher_helps(model, digits, epochs, lr, taught, alone):
    """Students of a teacher elsewhere, and their twins without one, score as the page tells."""
    torch.manual_seed(0)
    tiny = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    step = Distill(tiny, digits[0], seeds=5, epochs=int(epochs), lr=float(lr))
    (note,) = maas.connect(maas.Server(model)).compress(step, check=digits[1]).report.notes
    assert note.endswith("5 seeds: the teacher did not help")
    found = [float(each) for each in re.findall(r"([\d.]+) ±", note)]
    assert found == pytest.approx([float(taught), float(alone)], abs=0.03)
