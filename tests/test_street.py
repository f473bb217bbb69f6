"""The order of the house: a file imports only from rooms earlier on the street.

A *room* is a file of `maas/`, or a folder of files that belong together. The
list below is the reading order too; docs/explanation/tour.md walks along it.
What is read is the source, by `ast`, so nothing is imported to find out.
"""

import ast
import functools
import re
import shutil
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import attrs
import pytest

MAAS = Path(__file__).parents[1] / "maas"

STREET = [
    "errors", "spelling", "limits", "records", "buffers", "http", "calls",
    "tensors", "charging", "kinds", "leaves", "dates", "registry", "values",
    "exception_classes", "failures", "surroundings", "wire", "likeness", "writers",
    "schema", "hints", "parameters", "signature", "options", "batching", "tracing", "ambient",
    "loops", "versions", "entry_points",
    "backends", "methods", "transports", "executors", "batches", "model", "server", "store",
    "worker", "plots", "bars",
    "data", "train", "jobs", "compress", "explain", "security", "scale", "testing", "cli",
    "__main__",
]  # fmt: skip

# The public names: a table that names every room and imports none of them.
EXEMPT = "__init__.py"


@attrs.frozen
class Import:
    """One import of our own: where it stands, what it names, and whether a function hides it."""

    file: str
    line: int
    target: str
    hidden: bool

    @property
    def room(self) -> str:
        return self.target.split(".")[1]


def _own(node: ast.AST) -> Iterator[str]:
    """The modules of ours that one statement or call imports, `maas.` in front."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(level=level) if level:
            yield "maas." + "." * level
        case ast.ImportFrom(module="maas", level=0, names=names):
            yield from (f"maas.{alias.name}" for alias in names)
        case ast.ImportFrom(module=str(module), level=0, names=names):
            yield module
            yield from (f"{module}.{alias.name}" for alias in names)
        case ast.Call(
            func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]
        ):
            yield name


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _walk(node: ast.AST) -> Iterator[tuple[ast.AST, bool]]:
    """Every node with whether it stands in a function; type-only blocks are passed by."""
    waiting = [(node, False)]
    while waiting:
        node, hidden = waiting.pop()
        yield node, hidden
        hidden = hidden or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        below = [child for child in ast.iter_child_nodes(node) if not _for_types_only(child)]
        waiting += [(child, hidden) for child in below]


@functools.cache
def _found(source: str) -> list[tuple[int, str, bool]]:
    """Line, target and hiddenness of every import of ours in a file's source."""
    return [
        # By name, in a function, is how the few lazy doors are made; their direction still counts.
        (getattr(node, "lineno", 0), target, hidden and not isinstance(node, ast.Call))
        for node, hidden in _walk(ast.parse(source))
        for target in _own(node)
        if target.startswith("maas.")
    ]


def _files(package: Path) -> list[Path]:
    return sorted(path for path in package.rglob("*.py") if path != package / EXEMPT)


def _module(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, package: Path) -> Iterator[Import]:
    name = path.relative_to(package.parent).as_posix()
    for line, target, hidden in _found(path.read_text(encoding="utf-8")):
        yield Import(name, line, target, hidden)


def _wrong_way(path: Path, package: Path) -> Iterator[str]:
    room = _module(path, package).split(".")[1]
    if room not in STREET:
        yield f"maas/{room} is not on the street; give it its place in tests/test_street.py"
        return
    for found in _imports(path, package):
        if found.target.endswith("."):
            yield f"{found.file}:{found.line} has a relative import; say `from maas....`"
            continue
        if found.hidden:
            yield f"{found.file}:{found.line} hides the import of {found.target} in a function"
        if found.room not in STREET[: STREET.index(room) + 1]:
            yield f"{found.file}:{found.line} imports {found.target}, further down the street"


def _circles(package: Path) -> Iterator[str]:
    """Import cycles among the files of one room; between rooms the order leaves none."""
    modules = {_module(path, package): path for path in _files(package)}
    graph = {
        name: {found.target for found in _imports(path, package)} & modules.keys() - {name}
        for name, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "import cycle: " + " -> ".join(error.args[1])


def _complaints(package: Path) -> list[str]:
    files = _files(package)
    return [
        *(line for path in files for line in _wrong_way(path, package)),
        *_circles(package),
    ]


def test_every_file_imports_only_from_rooms_earlier_on_the_street():
    """No file imports from a room further down, hides an import of ours, or is in a cycle."""
    assert _complaints(MAAS) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("limits.py", "from maas.model import Model", "imports maas.model, further down"),
        ("limits.py", "from maas import wire", "imports maas.wire, further down"),
        ("limits.py", "import maas.server.runner", "imports maas.server.runner, further down"),
        ("limits.py", "from .errors import Error", "relative import"),
        ("limits.py", "def f():\n    from maas import errors", "hides the import of maas.errors"),
        ("limits.py", "class A:\n    from maas.wire import B", "imports maas.wire, further down"),
        ("limits.py", "import importlib\nimportlib.import_module('maas.cli')", "imports maas.cli"),
        ("http.py", "from maas.http import body\n", ""),
        ("utils.py", "", "maas/utils is not on the street"),
        ("wire_extra/a.py", "", "maas/wire_extra is not on the street"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, line, complaint):
    """Each way to walk up the street is reported when it is added to a copy of the sources."""
    package = tmp_path / "maas"
    shutil.copytree(MAAS, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = _complaints(package)
    (package / file).parent.mkdir(exist_ok=True)
    with (package / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    new = [found for found in _complaints(package) if found not in before]
    assert [complaint in found for found in new][:1] == ([True] if complaint else [])


def test_a_cycle_inside_a_room_is_found(tmp_path):
    """Two files of one room that import each other are reported."""
    room = tmp_path / "maas" / "server"
    room.mkdir(parents=True)
    (room / "one.py").write_text("from maas.server import two\n")
    (room / "two.py").write_text("from maas.server.one import name\n")
    assert [line.startswith("import cycle: ") for line in _complaints(tmp_path / "maas")] == [True]


def test_imports_for_types_only_are_free(tmp_path):
    """A hint may name a class from further down, under TYPE_CHECKING."""
    package = tmp_path / "maas"
    package.mkdir()
    (package / "errors.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from maas.model import Model\n"
    )
    assert _complaints(package) == []


def test_the_tour_walks_along_the_street():
    """docs/explanation/tour.md names every room that exists, in the order of the street."""
    tour = (MAAS.parent / "docs" / "explanation" / "tour.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", tour, re.MULTILINE)
    here = {_module(path, MAAS).split(".")[1] for path in _files(MAAS)} - {"__main__"}
    assert rooms == [room for room in STREET if room in rooms]
    assert here - set(rooms) == set()


def test_every_room_on_the_street_is_written_once():
    """The list has no room twice, so that its order means something."""
    assert len(set(STREET)) == len(STREET)
