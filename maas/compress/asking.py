"""`model.compress(...)` of a model at a server: a job there, followed to its end."""

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

from maas.bars import bar
from maas.compress.compressed import Compressed
from maas.compress.question import Question
from maas.compress.report import Report
from maas.errors import ProtocolError, Unsupported
from maas.executors.base import NAME
from maas.jobs.folders import ENDED
from maas.jobs.sides import There, side_of
from maas.model import Model

__all__ = ["COMPRESS", "asked"]

COMPRESS = "_compress"


def asked(model: Model[..., Any], question: Question, name: str | None) -> Compressed:
    """A handle of the version that the server makes; raises as `compress` does."""
    side = side_of(model)
    if not isinstance(side, There):
        raise Unsupported(
            f"{model.name} is no torch module by itself, here or at a server, but a "
            f"{model.info.kind} at {model.where}; compress the module that it asks"
        )
    if name is not None and NAME.fullmatch(name) is None:
        raise ValueError(f"a version's name matches {NAME.pattern}, got {name!r:.80}")
    chosen = name or f"compressed-{secrets.token_hex(6)}"
    side.order(COMPRESS, chosen, *question.to_data())
    try:
        last = _followed(side, chosen, model._waiting().deadline, question)
        return Compressed.of(side.made(chosen), _report(side, last))
    except BaseException:
        # What has failed is of no use; what goes on is, to whoever can name it.
        with contextlib.suppress(Exception):
            if name is None or side.ask("told", chosen)["state"] in _IN_VAIN:
                side.ask("drop", chosen)
        raise


_IN_VAIN = ENDED - {"done"}


def _followed(side: There, name: str, deadline: float | None, question: Question) -> dict[str, Any]:
    """The last event, once the work has ended; with a bar on a terminal meanwhile."""
    auto = question.auto
    drawn = (
        bar(len(question.steps), "step", None)
        if auto is None
        else bar(None if auto.recipes is None else len(auto.recipes), "recipe", None)
    )
    last: dict[str, Any] = {}
    with contextlib.nullcontext() if drawn is None else drawn:
        for last in _events(side, name, deadline):
            if drawn is not None and "row" in last:
                drawn.set_description_str(str(last["row"]), refresh=False)
                drawn.update()
    return last


def _report(side: There, event: dict[str, Any]) -> Report:
    try:
        return Report.from_data(event["report"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"{side.where} made a model and no report", answered=True) from error


def _events(side: There, name: str, deadline: float | None) -> Iterator[dict[str, Any]]:
    start = 0
    while True:
        told = side.ask("events", name, start, deadline=deadline)
        yield from told["events"]
        start += len(told["events"])
        if not told["events"] and told["state"] in ENDED:
            return
