"""What a type checker sees: a wrapped function keeps its parameters, here and there."""

import subprocess
import sys
import textwrap

DECLARED = """
import maas
from typing import assert_type

@maas.Model
def tokens(text: str, *, lower: bool = True) -> list[int]:
    return [ord(letter) for letter in text]

def bare(text: str, *, lower: bool = True) -> list[int]:
    return tokens(text, lower=lower)

wrapped = maas.Model(bare)
there = maas.connect("http://localhost:1/tokens", like=bare)
also = maas.connect("http://localhost:1/tokens", like=tokens)
here = maas.connect(bare)
again = maas.connect(tokens)
anything = maas.connect("http://localhost:1/tokens")
anything(1, 2, three=4).whatever()
"""

MODELS = ["tokens", "wrapped", "there", "also", "here", "again"]
RIGHT = [
    "assert_type({}('a', lower=False), list[int])",
    "assert_type({}.submit('a').result(), list[int])",
    "assert_type({}.with_options(timeout=1)('a'), list[int])",
]
WRONG = ["{}(5)", "{}()", "{}('a', False)", "{}('a', upper=True)", "{}.submit(5)", "{}('a').no"]


def test_a_wrapped_function_keeps_its_types(tmp_path):
    """Wrong calls are errors at their line, and right ones are none, through Model and connect."""
    lines = textwrap.dedent(DECLARED).strip().splitlines()
    lines += [line.format(model) for model in MODELS for line in RIGHT]
    first = len(lines) + 1
    lines += [line.format(model) for model in MODELS for line in WRONG]
    page = tmp_path / "page.py"
    page.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(page)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    found = [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line]
    assert found == list(range(first, len(lines) + 1)), done.stdout + done.stderr
