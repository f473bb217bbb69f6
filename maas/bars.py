"""A bar on a terminal while something goes on, drawn by tqdm; elsewhere nothing."""

import importlib
import sys
from typing import Any

__all__ = ["bar"]

_EACH = 0.1
"""Seconds between two looks of the bar at its figures."""


def bar(total: int | None, unit: str, progress: bool | None) -> Any:
    """tqdm's bar, or None where none is to be drawn.

    Parameters
    ----------
    total : units in all, if that is known.
    progress : True or False, or None: only where a terminal shows it and tqdm is installed.

    Raises
    ------
    ModuleNotFoundError
        A bar was asked for, and tqdm is not installed.
    """
    if progress is False or (progress is None and not sys.stderr.isatty()):
        return None
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ModuleNotFoundError:
        if progress is None:
            return None
        raise ModuleNotFoundError(
            "a progress bar is drawn by tqdm: pip install 'maas-sdk[train]'", name="tqdm"
        ) from None
    return tqdm(
        total=total, unit=f" {unit}", mininterval=_EACH, dynamic_ncols=True, file=sys.stderr
    )
