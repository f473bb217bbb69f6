"""An environment for each peer, made where it is missing and kept for the next run.

They lie in the folder that MAAS_PEERS names, otherwise in `maas-peers` of the user's cache, so that
every checkout finds them. torch is the one of this environment, by a folder of links, for it would
be gigabytes a peer.
"""

import importlib.metadata
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ROOT", "Missing", "environment", "installed"]

ROOT = Path(__file__).parents[2]
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
_HOME = Path(os.environ.get("MAAS_PEERS") or _CACHE / "maas-peers").absolute()
_SITE = Path("lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")
_SHARED = ("torch", "mpmath", "networkx", "sympy")
"""Torch, and the large ones of what it wants."""
_NEEDED = ("filelock", "fsspec", "jinja2", "numpy", "typing-extensions")
"""The rest of what it wants."""
_PATIENCE = 600.0
"""Seconds for pip: the largest peer is a quarter of a gigabyte."""


class Missing(Exception):
    """The peer cannot be had here; the message tells why."""


def environment(name: str, requirements: tuple[str, ...]) -> Path:
    """The interpreter of an environment that has these packages, and this one's torch.

    Raises
    ------
    Missing
        pip could not install them, or not in ten minutes.
    """
    home = _HOME / name
    python = home / "bin" / "python"
    ready = home / ".installed"
    told = "\n".join(requirements)
    torch = _torch()
    if python.exists() and ready.is_file() and ready.read_text() == told:
        return python
    venv.create(home, with_pip=False, clear=True)
    (home / _SITE / "torch.pth").write_text(f"{torch}\n")
    print(f"installing {' '.join(requirements)} into {home}", flush=True)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    command += ["--disable-pip-version-check", "--no-compile", "-c", str(ROOT / "constraints.txt")]
    try:
        done = subprocess.run(
            [*command, *_NEEDED, *requirements],
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"pip did not install it in {_PATIENCE:g} seconds") from None
    if done.returncode:
        raise Missing(f"pip cannot install it: {done.stderr.strip().splitlines()[-1]:.100}")
    ready.write_text(told)
    return python


def installed(name: str, package: str) -> str:
    """The version of a package in the environment of that name."""
    found = importlib.metadata.distributions(name=package, path=[str(_HOME / name / _SITE)])
    return next(iter(found)).version


def _torch() -> Path:
    """A folder that holds links to this environment's torch, and to nothing that peers choose."""
    folder = _HOME / "torch"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {part: where for name in _SHARED for part, where in _parts(name)}
    for link in folder.iterdir():
        if wanted.get(link.name) != link.readlink():
            link.unlink()
    for name, target in wanted.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    return folder


def _parts(name: str) -> Iterator[tuple[str, Path]]:
    """The names in site-packages that a distribution brought, and where they are."""
    found = importlib.metadata.distribution(name)
    for part in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        yield part, Path(str(found.locate_file(part)))
