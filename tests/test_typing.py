"""What a type checker sees: a wrapped function keeps its parameters, here and there."""

import subprocess
import sys
import textwrap

PROGRAM = """
import maas

def tokens(text: str, *, lower: bool = True) -> list[int]:
    return [ord(letter) for letter in text]

here = maas.Model(tokens)
there = maas.connect("http://localhost:1/tokens", like=tokens)
here("a", lower=False).append(1)
there("a").append(1)
here.submit("a").result().append(1)
here(5)
there(5)
here("a", upper=True)
"""


def test_a_wrapped_function_keeps_its_types(tmp_path):
    """Wrong calls are errors at their line, and right ones are none, through Model and connect."""
    page = tmp_path / "page.py"
    page.write_text(textwrap.dedent(PROGRAM).lstrip())
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(page)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    found = [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line]
    assert found == ["11", "12", "13"], done.stdout + done.stderr
