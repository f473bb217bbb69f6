"""Run every benchmark, one after the other.

python -m benchmarks            print what they print
python -m benchmarks --keep     and keep it in benchmarks/results.txt, which the docs show
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
KEPT = HERE / "results.txt"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--keep", action="store_true", help=f"write {KEPT.name} as well")
    keep = parser.parse_args().keep
    printed = [_machine()]
    print(printed[0])
    for script in sorted(HERE.glob("bench_*.py")):
        printed.append(f"\n== {script.name}\n")
        print(printed[-1], end="", flush=True)
        printed += _run(script)
    if keep:
        KEPT.write_text("".join(printed))


def _machine() -> str:
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "httpx"))
    return f"{time.strftime('%Y-%m-%d')}, {where}, Python {platform.python_version()}, {packages}\n"


def _run(script: Path) -> list[str]:
    """The lines that the script prints, each shown as it comes."""
    command = [sys.executable, "-m", f"benchmarks.{script.stem}"]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if running.returncode:
        sys.exit(f"{script.name} ended with {running.returncode}")
    return lines


if __name__ == "__main__":
    main()
