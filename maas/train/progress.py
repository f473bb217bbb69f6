"""A bar on a terminal while a run goes on, drawn by tqdm from its steps; elsewhere nothing.

It knows only steps, so it is the same for a run here and for one that is followed from afar.
"""

from collections.abc import Iterable, Iterator, Mapping

from maas.bars import bar
from maas.train.history import Step

__all__ = ["shown"]


def shown(
    steps: Iterable[Step], total: int | None, *, progress: bool | None = None
) -> Iterator[Step]:
    """The steps as they come, with a bar beside them.

    Parameters
    ----------
    total : steps in all, if that is known.
    progress : True or False, or None: only where a terminal shows it and tqdm is installed.

    Raises
    ------
    ModuleNotFoundError
        A bar was asked for, and tqdm is not installed.
    """
    drawn = bar(total, "step", progress)
    if drawn is None:
        yield from steps
        return
    told: dict[str, float] = {}
    with drawn:
        for step in steps:
            told = {"loss": step.loss, **_without_loss(step.metrics or told)}
            drawn.set_description_str(f"epoch {step.epoch}", refresh=False)
            drawn.set_postfix_str(_figures(told), refresh=False)
            drawn.update()
            yield step


def _without_loss(told: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in told.items() if name != "loss"}


def _figures(told: Mapping[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in told.items())
