"""The explanation pages name the lines of code that compute what they explain; these exist."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(?P<code>[^`\n]+)` in `(?P<path>(?:maas|torch)/[\w/]+\.py)`")
PAGES = sorted((ROOT / "docs" / "explanation").glob("*.md"))
FAMILIES = ("gradient-descent", "schedules", "regularisation", "loss-functions", "back-propagation")


def _named(page):
    return [(found["code"], found["path"]) for found in NAMED.finditer(page.read_text("utf-8"))]


def _source(path):
    base = ROOT if path.startswith("maas/") else Path(torch.__file__).parents[1]
    return (base / path).read_text("utf-8")


def _stands_in(code, source):
    """A name may be written with its class before it; anything else is a piece of a line."""
    parts = code.split(".") if re.fullmatch(r"[\w.]+", code) else [code]
    return all(part in source for part in parts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_named_line_exists(page):
    """Each "`code` in `file`" of a page stands in that file of maas, or of torch."""
    missing = [(code, path) for code, path in _named(page) if not _stands_in(code, _source(path))]
    assert missing == []


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_names_its_lines(family):
    """The page of each family of algorithms names at least one line for each row it explains."""
    page = ROOT / "docs" / "explanation" / f"{family}.md"
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert all(NAMED.search(row) for row in rows if family != "back-propagation")
    assert _named(page) or family == "back-propagation"
