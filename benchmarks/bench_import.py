"""What an import costs: of maas alone, and of all that a caller without torch needs.

Each run is a fresh interpreter, in turn with the one it is compared to; bytecode is cached
before. `import maas` resolves names at their first use, so it is measured over nothing at
all; `maas.Model` brings in what calls need, and is measured over the packages it stands on.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable

from benchmarks.comparison import Bound, Report, compared


def main() -> None:
    report = Report(__doc__)
    rounds = 2 if report.quick else 60
    done = compared(run("import maas"), run("pass"), rounds=rounds, number=1)
    pairs = zip(done.ours, done.peers, strict=True)
    # Where noise is larger than the difference, it is none.
    extra = max(0.0, statistics.median(ours - peer for ours, peer in pairs) * 1e3)
    least = (min(done.ours) - min(done.peers)) * 1e3
    report.quantity("import maas, over `pass`: ms", extra, f"min {least:.2f}", Bound(most=15))
    report.compare(
        "import maas; maas.Model, over its packages",
        run("import maas; maas.Model"),
        run("import numpy, attrs, msgpack"),
        bound=Bound(most=1.3),
        rounds=rounds,
    )
    report.close()


def run(program: str) -> Callable[[], object]:
    """A fresh interpreter that runs the program; its first run writes the bytecode of the rest."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    return lambda: subprocess.run([sys.executable, "-c", program], check=True, env=environment)


if __name__ == "__main__":
    main()
