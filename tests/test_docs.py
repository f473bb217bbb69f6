"""What the documents say is true: their code runs, their commands exist, and so do the examples.

The Python blocks of a page are one program, run in order in a fresh module and an
empty directory. A block that cannot run here is marked `python notest`, and an
HTML comment right above it says why. `await` may stand at the top level.
"""

import ast
import asyncio
import importlib.util
import inspect
import itertools
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import attrs
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md"]
PAGES += sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# Whatever is not Python is shown, not run; a language outside this list would be neither.
SHOWN = {"console", "http", "json", "sh", "text", "toml"}
FENCE = re.compile(r"^ {0,3}(?P<ticks>`{3,}|~{3,})(?P<info>.*)$")
REASON = re.compile(r"<!--.*\w.*-->$", re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s/])(?:python -m )?maas (?P<words>[a-z].*)$")
RUNS_MAKE = re.compile(r"^(?:\$ )?make (?P<target>[a-z-]+)", re.MULTILINE)


@attrs.frozen
class Block:
    """A fenced block: `info` as after the ticks, `line` of its first line of code."""

    info: str
    line: int
    code: str
    before: str

    @property
    def language(self) -> str:
        return self.info.split(maxsplit=1)[0] if self.info else ""


def _blocks(text: str) -> Iterator[Block]:
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        opening = FENCE.match(lines[at])
        at += 1
        if opening is None:
            continue
        start = at
        while at < len(lines) and lines[at].strip() != opening["ticks"]:
            at += 1
        before = "\n".join(lines[: start - 1]).rstrip()
        yield Block(opening["info"].strip(), start + 1, "\n".join(lines[start:at]), before)
        at += 1


def _page_blocks(page: Path) -> list[Block]:
    return list(_blocks(page.read_text(encoding="utf-8")))


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# What not every machine has.
NEEDS = {"docs/how-to/use-keras.md": "keras", "examples/seed_tensorflow.py": "tensorflow"}


def _check_needs(path: Path, lacking: Callable[[str, str], NoReturn]) -> None:
    package = NEEDS.get(_name(path))
    if package is not None and importlib.util.find_spec(package) is None:
        lacking(package, f"{package} is not installed")


def _run_block(block: Block, page: Path, module: types.ModuleType) -> None:
    """Runs one block so that a traceback shows the page and its line."""
    source = "\n" * (block.line - 1) + block.code
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(source, str(page), "exec", flags, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, vars(module)))
    else:
        exec(code, vars(module))


def _program(page: Path) -> list[Block]:
    return [block for block in _page_blocks(page) if block.info == "python"]


def _options(words: str) -> set[str]:
    return set(re.findall(r"(?<!\S)--[a-z][a-z-]*", words))


def _commands() -> dict[str, set[str]]:
    """Every `maas COMMAND` that a page shows, with the options shown for it."""
    found: dict[str, set[str]] = {}
    blocks = itertools.chain.from_iterable(map(_page_blocks, PAGES))
    lines = [
        line.split(" #")[0]
        for block in blocks
        if block.language in {"console", "sh"}
        for line in block.code.replace("\\\n", " ").splitlines()
    ]
    for match in filter(None, map(COMMAND.search, lines)):
        command, _, rest = match["words"].partition(" ")
        found.setdefault(command, set()).update(_options(rest))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if _program(page)], ids=_name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, lacking):
    """The Python blocks of a page, run in order from an empty directory, raise and warn nothing."""
    _check_needs(page, lacking)
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page_" + re.sub(r"\W", "_", _name(page)))
    # Type hints and dataclasses look their module up by its name.
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in _program(page):
        _run_block(block, page, module)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_block_says_what_it_is(page):
    """Each fenced block has a language that is run or known to be shown only."""
    for block in _page_blocks(page):
        known = block.language in SHOWN | {"python"} or block.info.startswith("{")
        assert known, f"{_name(page)}:{block.line} is a block of {block.info or 'no language'!r}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_block_that_is_not_run_says_why(page):
    """A Python block runs, or is marked `notest` below an HTML comment with the reason."""
    for block in _page_blocks(page):
        if block.language == "python" and block.info != "python":
            assert block.info == "python notest", f"{_name(page)}:{block.line}: {block.info!r}"
            assert REASON.search(block.before.rpartition("\n\n")[2]), f"{_name(page)}:{block.line}"


@pytest.mark.parametrize(("command", "options"), sorted(_commands().items()))
def test_a_command_that_is_shown_exists(command, options):
    """Each `maas COMMAND --option` on a page is one that the command's own help tells."""
    run = subprocess.run(
        [sys.executable, "-m", "maas", command, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert options - _options(run.stdout.replace(",", " ").replace("[", " ")) == set()


def test_a_make_target_that_is_shown_exists():
    """Each `make TARGET` on a page is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    blocks = itertools.chain.from_iterable(map(_page_blocks, PAGES))
    shell = [block.code for block in blocks if block.language in {"console", "sh"}]
    assert {name for code in shell for name in RUNS_MAKE.findall(code)} <= targets


@pytest.mark.parametrize("example", EXAMPLES, ids=_name)
def test_an_example_runs(example, tmp_path, lacking):
    """Each program in examples/ ends well, warns nothing, and leaves no file behind."""
    _check_needs(example, lacking)
    run = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("example", EXAMPLES, ids=_name)
def test_an_example_is_short(example):
    """Each program in examples/ is read on one page: under 80 lines; the demo has two."""
    most = 160 if example.name == "demo.py" else 80
    assert len(example.read_text(encoding="utf-8").splitlines()) < most


def test_the_readme_is_short():
    """README.md is under 150 lines."""
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) < 150


def _undocumented_tests(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("test_") and not ast.get_docstring(node):
            yield f"{_name(path)}:{node.lineno} {node.name}"


def test_every_test_states_its_promise():
    """Each test has a docstring, which is the promise it holds."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    assert [line for path in files for line in _undocumented_tests(path)] == []


def test_blocks_are_found_with_their_place():
    """The reader of pages finds nested and marked blocks, their lines, and what stands above."""
    text = "a\n```python\nx = 1\n```\n<!-- why -->\n```python notest\n  y\n\n```\n"
    text += "````text\n```\n````\n"
    found = [(block.info, block.line, block.code) for block in _blocks(text)]
    assert found == [("python", 3, "x = 1"), ("python notest", 7, "  y\n"), ("text", 11, "```")]
    assert REASON.search(list(_blocks(text))[1].before)


def test_a_block_may_await(tmp_path):
    """A block with `await` at its top level runs, and shares the names of its page."""
    module = types.ModuleType("page")
    for line in ("import asyncio", "x = await asyncio.sleep(0, 'slept')", "y = x * 2"):
        _run_block(Block("python", 1, line, ""), tmp_path, module)
    assert module.y == "sleptslept"


def test_a_failing_block_points_at_its_line(tmp_path):
    """A traceback names the page and the line in it."""
    with pytest.raises(ZeroDivisionError) as caught:
        _run_block(
            Block("python", 7, "x = 1\n1 / 0", ""), tmp_path / "page.md", types.ModuleType("page")
        )
    last = caught.traceback[-1]
    assert (Path(last.path).name, last.lineno + 1) == ("page.md", 8)
