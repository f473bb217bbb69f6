"""One way in: a name is public if `maas.__all__` lists it, and what is listed is documented."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import maas

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"

# A name is documented by a heading that holds it, or by the directive that pulls its docstring in.
HEADING = re.compile(r"^#+ .*`maas\.(?P<name>\w+)", re.MULTILINE)
DIRECTIVE = re.compile(
    r"^ *(?:```\{)?(?:\.\. )?auto\w+(?:::|\}) +[\w.]*?(?P<name>\w+)$", re.MULTILINE
)


def _documented() -> set[str]:
    pages = [page.read_text(encoding="utf-8") for page in REFERENCE.rglob("*.md")]
    return {
        match["name"]
        for page in pages
        for pattern in (HEADING, DIRECTIVE)
        for match in pattern.finditer(page)
    }


def _for_editors() -> dict[str, str]:
    """Name to module, as `maas/__init__.py` tells type checkers under TYPE_CHECKING."""
    tree = ast.parse((ROOT / "maas" / "__init__.py").read_text(encoding="utf-8"))
    blocks = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    ]
    return {
        alias.asname or alias.name: node.module
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


@pytest.mark.parametrize("name", maas.__all__)
def test_every_public_name_resolves(name):
    """`maas.NAME` is there for each name that `maas.__all__` lists, and `dir(maas)` tells it."""
    assert getattr(maas, name) is not None
    assert name in dir(maas)


@pytest.mark.parametrize("name", maas.__all__)
def test_every_public_name_tells_what_it_is_for(name):
    """Each public name has a docstring of its own, not one inherited from a base class."""
    thing = getattr(maas, name)
    own = vars(thing).get("__doc__") if isinstance(thing, type) else inspect.getdoc(thing)
    assert own
    assert own.strip()


@pytest.mark.parametrize("name", maas.__all__)
def test_every_public_name_is_in_the_reference(name):
    """Each public name has its place on a page of docs/reference."""
    assert name in _documented()


def test_a_name_that_is_not_written_down_is_missed():
    """The search for documented names finds headings and directives, not running text."""
    page = "# `maas.Model(target)`\n`maas.connect`\n```{eval-rst}\n.. autoclass:: maas.calls.Info\n"
    names = {match["name"] for match in HEADING.finditer(page)}
    assert names | {match["name"] for match in DIRECTIVE.finditer(page)} == {"Model", "Info"}


def test_no_name_is_listed_twice():
    """`maas.__all__` is a set in a fixed order."""
    assert len(set(maas.__all__)) == len(maas.__all__)


def test_nothing_else_is_public():
    """Once every name is resolved, the package holds no other object of ours in plain sight."""
    for name in maas.__all__:
        getattr(maas, name)
    ours = {
        name
        for name, value in vars(maas).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and str(getattr(value, "__module__", "")).startswith("maas")
    }
    assert ours - set(maas.__all__) == set()


def test_editors_see_the_same_names():
    """The imports for type checkers name every public name, and the very objects one gets."""
    told = _for_editors()
    assert set(told) - {"__version__"} == set(maas.__all__)
    for name, module in told.items():
        home = importlib.import_module(module)
        held = getattr(home, name, None) or importlib.import_module(f"{module}.{name}")
        assert getattr(maas, name) is held


def test_an_unknown_name_is_an_attribute_error():
    """A mistyped name is refused as by any module, and the message repeats it."""
    with pytest.raises(AttributeError, match="Modle"):
        maas.Modle


def test_the_version_is_that_of_the_distribution():
    """`maas.__version__` is the one in pyproject.toml, which is its only source."""
    line = next(
        line
        for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
        if line.startswith("version = ")
    )
    assert f'version = "{maas.__version__}"' == line


def test_a_star_import_gives_the_public_names():
    """`from maas import *` brings exactly the names in `maas.__all__`."""
    code = (
        "before = set(dir()); from maas import *; import maas;"
        "print(set(dir()) - before - {'maas', 'before'} == set(maas.__all__))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"
