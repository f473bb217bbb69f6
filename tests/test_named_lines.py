"""The explanation pages name the lines of code that compute what they explain; these exist."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(?P<code>[^`\n]+)` in `(?P<path>(?:maas|torch|torch_pruning)/[\w/]+\.py)`")
PAGES = sorted((ROOT / "docs" / "explanation").glob("*.md"))
FAMILIES = ("gradient-descent", "schedules", "regularisation", "loss-functions", "back-propagation")
SMALLER = ("quantization", "pruning", "low-rank", "distillation")


def _named(page):
    return [(found["code"], found["path"]) for found in NAMED.finditer(page.read_text("utf-8"))]


def _source(path):
    package = importlib.util.find_spec(path.partition("/")[0])
    base = ROOT if path.startswith("maas/") else Path(package.origin).parents[1]
    return (base / path).read_text("utf-8")


def _stands_in(code, source):
    """A name may be written with its class before it; anything else is a piece of a line."""
    parts = code.split(".") if re.fullmatch(r"[\w.]+", code) else [code]
    return all(part in source for part in parts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_named_line_exists(page):
    """Each "`code` in `file`" of a page stands in that file of maas, or of a library."""
    missing = [(code, path) for code, path in _named(page) if not _stands_in(code, _source(path))]
    assert missing == []


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_names_its_lines(family):
    """The page of each family of algorithms names at least one line for each row it explains."""
    page = ROOT / "docs" / "explanation" / f"{family}.md"
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert all(NAMED.search(row) for row in rows if family != "back-propagation")
    assert _named(page) or family == "back-propagation"


@pytest.mark.parametrize("family", SMALLER)
def test_each_family_of_compression_has_formula_source_and_lines(family):
    """The page of each way to make models smaller has a formula, a paper and lines that differ."""
    text = (ROOT / "docs" / "explanation" / f"{family}.md").read_text("utf-8")
    assert "```{math}" in text
    assert re.search(r"\]\(https://(arxiv|doi)\.org/", text)
    lines = [
        each
        for each in _named(ROOT / "docs" / "explanation" / f"{family}.md")
        if "(" in each[0] or " " in each[0]
    ]
    assert len(set(lines)) >= 5
