"""The benchmarks run: each of their lines, a few times, whatever the figures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("bench_*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_runs(script, tmp_path):
    """Each benchmark ends well with `--quick`, warns nothing, and every line tells a ratio."""
    pytest.importorskip("uvicorn")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"benchmarks.{script}", "--quick"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    _, _, *lines = run.stdout.splitlines()
    assert lines
    assert [line for line in lines if re.search(r" \d+\.\d\d  ", line) is None] == []


def test_a_broken_bound_fails_only_if_asked(tmp_path):
    """A bound that cannot be kept ends the script with 1 under `--check`, and with 0 without."""
    program = tmp_path / "impossible.py"
    program.write_text(
        "from benchmarks.comparison import Bound, Report\n"
        "report = Report('A line. ')\n"
        "report.compare('nothing', lambda: None, lambda: None, bound=Bound(most=0.0))\n"
        "report.close()\n"
    )
    statuses = [
        subprocess.run(
            [sys.executable, str(program), "--quick", *options],
            capture_output=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        ).returncode
        for options in ([], ["--check"])
    ]
    assert statuses == [0, 1]


def test_each_benchmark_is_explained():
    """The README's table names each script there is."""
    named = re.findall(r"`(bench_\w+)\.py`", (ROOT / "benchmarks" / "README.md").read_text())
    assert sorted(named) == SCRIPTS


def test_readme_tells_what_was_printed():
    """Each ratio in the README's table of performance stands in the kept output of `make bench`."""
    kept = (ROOT / "benchmarks" / "results.txt").read_text().splitlines()
    printed = {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line) for line in kept)}
    section = (ROOT / "README.md").read_text().partition("## How fast")[2].partition("\n## ")[0]
    told = re.findall(r"^\| (.+?) \| (\d+\.\d\d) \|$", section, re.MULTILINE)
    assert told
    for what, ratio in told:
        assert ratio in printed[what.strip("`")], what
