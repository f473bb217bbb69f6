"""What is not there: no way leads from a message to code.

A decoder can be attacked only through what it reaches. Pickle and its kin run
what they read; so do `eval`, `yaml.load` and an import whose name came in a
message. The promise is their absence, so it is proved on the source, by `ast`:
`maas` names none of them, and imports by a computed name only where the list says.
"""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

MAAS = Path(__file__).parents[1] / "maas"

MODULES = {
    "_pickle", "cloudpickle", "code", "codeop", "copyreg", "dill", "joblib", "jsonpickle",
    "marshal",
    "multiprocessing.connection", "multiprocessing.managers", "pickle", "pickletools", "runpy",
    "shelve", "torch.package", "xmlrpc",
}  # fmt: skip

BUILTINS = {"__import__", "compile", "eval", "exec"}

CALLS = {
    "np.load", "numpy.load", "torch.load", "torch.jit.load", "torch.hub.load",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all",
}  # fmt: skip

# The doors by which a computed name becomes an import, and who chooses the name.
DOORS = {
    "__init__.py": "our table of public names",
    "backends/base.py": "our table of backends",
    "cli/commands.py": "our table of commands",
    "cli/serving.py": "the caller's own `module:name`",
    "explain/__init__.py": "our table of its names",
    "executors/base.py": "our table of URL schemes",
    "model.py": "the caller's own `local:module:name`",
    "store/__init__.py": "our table of kinds of models",
    "tensors/__init__.py": "our table of adapters",
    "testing/__init__.py": "our table of its names",
}


def _imported(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            yield module
            yield from (f"{module}.{alias.name}" for alias in names)


def _is_banned_module(name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: end + 1]) in MODULES for end in range(len(parts)))


def _refuses_pickle(call: ast.Call) -> bool:
    return any(
        word.arg == "allow_pickle"
        and isinstance(word.value, ast.Constant)
        and word.value.value is False
        for word in call.keywords
    )


def _is_numpy_load(name: str) -> bool:
    return name in {"np.load", "numpy.load"}


def _reached(node: ast.AST) -> Iterator[str]:
    """What one node of the source reaches that must be out of reach."""
    for name in _imported(node):
        if _is_banned_module(name) or name in CALLS:
            yield name
    match node:
        case ast.Name(id=name) if name in BUILTINS:
            yield name
        case ast.Attribute(attr=("__reduce__" | "__reduce_ex__" | "__setstate__") as name):
            yield name
        case ast.Call(func=ast.Attribute() as func) if ast.unparse(func) in CALLS:
            name = ast.unparse(func)
            if not (_is_numpy_load(name) and _refuses_pickle(node)):
                yield name
        case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module")):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield from filter(_is_banned_module, [str(node.args[0].value)])
            else:
                yield "import_module(...)"


def _complaints(package: Path) -> set[str]:
    found = set()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found |= {f"{name} reaches {what}" for what in _reached(node)}
    return found - {f"{name} reaches import_module(...)" for name in DOORS}


def test_nothing_in_maas_can_run_what_it_reads():
    """No file of maas names pickle or its kin, evaluates text, or imports by a name it was sent."""
    assert _complaints(MAAS) == set()


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "from multiprocessing import connection",
        "import multiprocessing.connection",
        "def f():\n    import marshal",
        "import cloudpickle",
        "from shelve import open",
        "import dill",
        "eval('1')",
        "run = exec",
        "__import__('os')",
        "compile('1', '', 'eval')",
        "torch.load('weights.pt')",
        "torch.load('weights.pt', weights_only=True)",
        "from torch import load",
        "numpy.load('x.npy')",
        "np.load('x.npy', allow_pickle=True)",
        "np.load('x.npy', allow_pickle=flag)",
        "yaml.load('1')",
        "importlib.import_module(name)",
        "import_module(name)",
        "importlib.import_module('pickle')",
        "value.__reduce_ex__(4)",
    ],
)
def test_a_planted_way_to_code_is_found(tmp_path, line):
    """Each forbidden line is reported when it is added to a copy of the wire format."""
    shutil.copy(MAAS / "wire.py", tmp_path)
    assert _complaints(tmp_path) == set()
    with (tmp_path / "wire.py").open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    assert _complaints(tmp_path) != set()


@pytest.mark.parametrize(
    "line",
    ["np.load('x.npy', allow_pickle=False)", "re.compile('a')", "importlib.import_module('json')"],
)
def test_what_only_looks_alike_passes(tmp_path, line):
    """The ban names what runs code, and nothing that shares a name with it."""
    (tmp_path / "wire.py").write_text(f"{line}\n")
    assert _complaints(tmp_path) == set()


def test_every_door_is_still_in_use():
    """Each file on the list of doors does import by a computed name, or leaves the list."""
    doors = [MAAS / name for name in DOORS]
    unused = [
        door for door in doors if door.exists() and "import_module(" not in door.read_text("utf-8")
    ]
    assert unused == []
