"""An environment for each peer, made where it is missing: below `.cache/peers/`, which git ignores.

torch is the one of this environment, by a folder of links, for it would be gigabytes a peer.
"""

import importlib.metadata
import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["ROOT", "Missing", "environment"]

ROOT = Path(__file__).parents[2]
_HOME = ROOT / ".cache" / "peers"
_NEEDED = ("filelock", "fsspec", "jinja2", "networkx", "numpy", "sympy", "typing-extensions")
"""What torch itself wants."""


class Missing(Exception):
    """The peer cannot be had here; the message tells why."""


def environment(name: str, requirements: tuple[str, ...]) -> Path:
    """The interpreter of an environment that has these packages, and this one's torch.

    Raises
    ------
    Missing
        pip could not install them.
    """
    home = _HOME / name
    python = home / "bin" / "python"
    ready = home / ".installed"
    told = "\n".join(requirements)
    if ready.is_file() and ready.read_text() == told:
        return python
    venv.create(home, with_pip=False, clear=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (home / "lib" / version / "site-packages" / "torch.pth").write_text(f"{_torch()}\n")
    print(f"installing {' '.join(requirements)} into {home.relative_to(ROOT)}", flush=True)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    command += ["--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    done = subprocess.run(
        [*command, *_NEEDED, *requirements], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Missing(f"pip cannot install it: {done.stderr.strip().splitlines()[-1]:.100}")
    ready.write_text(told)
    return python


def _torch() -> Path:
    """A folder that holds links to this environment's torch, and nothing else."""
    folder = _HOME / "torch"
    folder.mkdir(parents=True, exist_ok=True)
    found = importlib.metadata.distribution("torch")
    site = Path(str(found.locate_file("")))
    names = {"torch", "torchgen", "functorch", *(path.name for path in site.glob("torch-*"))}
    for name in sorted(names):
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(site / name)
    return folder
