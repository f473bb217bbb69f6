"""How Sphinx builds these pages; `make docs` runs it, and a warning is an error."""

import itertools
import re
from importlib.metadata import version as installed

from sphinx.application import Sphinx

project = "maas"
author = "The maas authors"
copyright = "The maas authors, Apache-2.0"
version = release = installed("maas-sdk")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# Docstrings write `maas.Limits`: a link where there is such a name, code where there is none.
default_role = "py:obj"
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
add_module_names = False
napoleon_google_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"maas {release}"
html_copy_source = False

SECTION = re.compile(r"(Parameters|Attributes|Returns|Yields|Raises|Notes|Examples)$")
ENTRY = re.compile(r"(?P<name>\*{0,2}\w+) : (?P<text>\S+ .*)$")


def split_entries(lines: list[str]) -> None:
    """Our `name : what it is` to the `name`, newline, `what it is` that napoleon reads.

    Types stand in the signature, so what follows the colon is prose; one word alone is a type.
    """
    section = ""
    rewritten: list[str] = []
    for line, below in itertools.pairwise([*lines, ""]):
        if SECTION.match(line) and set(below) == {"-"}:
            section = line
        entry = ENTRY.match(line) if section in {"Parameters", "Attributes"} else None
        rewritten += [entry["name"], "    " + entry["text"]] if entry else [line]
    lines[:] = rewritten


def setup(app: Sphinx) -> None:
    """Rewrites each docstring before napoleon, which listens at 500."""
    app.connect(
        "autodoc-process-docstring",
        lambda _app, _what, _name, _thing, _options, lines: split_entries(lines),
        priority=400,
    )
