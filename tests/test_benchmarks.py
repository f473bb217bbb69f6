"""The benchmarks run: each of their lines, a few times, whatever the figures."""

import importlib
import os
import re
import socket
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


def test_a_peer_that_does_not_start_is_told_with_its_last_words(peers):
    """A server that ends before it listens raises `Missing`, which says what it said last."""
    dying = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with (
        pytest.raises(peers("environments").Missing, match="does not start: no such model"),
        peers("processes").serving(dying),
    ):
        pass


def test_what_a_peer_started_ends_with_it(peers):
    """A process that left its parent's session ends when the peer is ended."""
    leaving = (
        "import socket, subprocess, sys\n"
        "inner = [sys.executable, '-c', 'import socket, sys; '\n"
        "    's = socket.create_server((\"127.0.0.1\", int(sys.argv[1]))); input()', sys.argv[1]]\n"
        "subprocess.Popen(inner, stdin=subprocess.PIPE, start_new_session=True).wait()\n"
    )
    with peers("processes").serving([sys.executable, "-c", leaving]) as place:
        socket.create_connection(place).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place)


def test_the_table_of_peers_tells_losses(peers):
    """A ratio below its promise is told as broken, and a peer that failed with its reason."""
    point = peers("measuring").Point
    measured = peers("measuring").Measuring([], None, peers("__main__").QUICK, {"Triton": "why"})
    floor = peers("systems").FLOOR.name
    for count, ours in {1: 100.0, 8: 60.0, 64: 70.0}.items():
        turn = {"maas": point(ours, 0.002), floor: point(100.0, 0.001)}
        measured.loads[floor, count] = [turn]
    table = "\n".join(peers("table").lines(measured))
    assert re.search(r"1\.00, >= 0\.7 holds +0\.60, >= 0\.7 BROKEN +0\.70, >= 0\.7 holds", table)
    assert re.search(r"^maas +100/s 2\.0 ms +60/s 2\.0 ms +70/s 2\.0 ms$", table, re.MULTILINE)
    assert "Triton is not measured, or not at all points: why" in table


@pytest.fixture
def peers(monkeypatch):
    """A module of `benchmarks.peers` by its name."""
    pytest.importorskip("uvloop")
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.peers.{name}")


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
