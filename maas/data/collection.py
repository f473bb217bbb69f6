"""`Collect`: what a served model is asked, and labels that come later, kept to learn from.

A server that is given one keeps the inputs of calls that its models answered. Who asked is not
kept. The answer names its request, `job.info.request`, and `model.label(job.info.request, target)`
says later what it should have been.
"""

import asyncio
import logging
import os
import random
import secrets
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from maas.backends.base import Method
from maas.calls import CALL, Call
from maas.data.data import Data
from maas.data.journal import Journal, Labelled, copied
from maas.data.rows import column, columns, count, is_array, joined
from maas.errors import DataError
from maas.executors.lanes import Lane

__all__ = ["Collect"]

_LOG = logging.getLogger("maas")

_AT_ONCE = 2**16
"""Bytes that are copied where the call is read, in 10 microseconds; more are on a thread."""
_WAITING = 64 * 2**20
"""Bytes that wait for the disk; while there are more, nothing is collected."""
_REQUEST = 12
"""Random bytes of a request's name: whoever knows it was answered, or was told."""


class Collect:
    """Keeps what a server's models are asked; give it to `maas.Server(..., collect=...)`.

    Of each model it keeps the newest: once there is more than `rows` or `nbytes`, the oldest
    eighth goes. Calls in train mode or for gradients, streams, and calls of methods other than the
    model's own are not use of the model, and are not kept.

    Parameters
    ----------
    folder : where it is kept, a folder a model; made at once.
    rows, nbytes : how much is kept of each model.
    redact : is given the inputs of a request before they are written, as `fit` would be given
        them, and gives what may be kept of them; None to keep nothing. One that raises keeps
        nothing.
    rate : the share of the calls that are kept, drawn by chance.

    Raises
    ------
    ValueError
        A rate that is not above 0 and at most 1, or sizes below 1.
    OSError
        The folder cannot be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        rows: int = 100_000,
        nbytes: int = 2**30,
        redact: Callable[[Any], Any] | None = None,
        rate: float = 1.0,
    ) -> None:
        if not 0 < rate <= 1 or rows < 1 or nbytes < 1:
            raise ValueError(
                "Collect wants a rate above 0 and at most 1, and rows and nbytes from 1; got "
                f"rate={rate!r}, rows={rows!r}, nbytes={nbytes!r}"
            )
        self._folder = Path(folder)
        # Known now, and not by a line in the log for each request that is lost.
        self._folder.mkdir(parents=True, exist_ok=True)
        self._rows = rows
        self._nbytes = nbytes
        self._redact = redact
        self._rate = rate
        # Its own: the program's is not moved.
        self._random = random.Random()  # noqa: S311 - no secret
        self._journals: dict[str, Journal] = {}
        self._lock = threading.Lock()
        self._waiting = 0
        # One thread: what is asked stands in a journal before its label.
        self._lane = Lane(1, "maas-collecting")

    def data(self, model: str) -> Data:
        """The requests of a model that have a label, with these for targets; for the owner.

        Raises
        ------
        DataError
            There are none.
        """
        return Data.of(self.ask(model, _together))

    # For a server.

    async def copied(self, call: Call, method: Method, nbytes: int) -> Any:
        """The inputs of a call, before the model can change them; None where it is not kept."""
        context = call.context
        if call.method != CALL or method.streams or call.leaves or context.training:
            return None
        if self._waiting > _WAITING or self._random.random() >= self._rate:
            return None
        if nbytes <= _AT_ONCE:
            return _copied(call, method)
        return await asyncio.to_thread(_copied, call, method)

    def keep(self, model: str, inputs: Any, nbytes: int) -> str:
        """Has a request written that was answered; gives its name, and waits for nothing."""
        request = secrets.token_urlsafe(_REQUEST)
        with self._lock:
            self._waiting += nbytes
        self._lane.put(
            partial(self._write, model, request, inputs, nbytes), lambda _: self._written(nbytes)
        )
        return request

    def ask(self, model: str, question: Callable[[Journal], Any]) -> Any:
        """The journal's answer, once it has all that was asked before; raises what it raises."""
        return self._lane.ask(lambda: question(self._journal(model))).result()

    def close(self) -> None:
        """Returns once all is written."""
        self._lane.ask(_nothing).result()

    # On the thread that writes.

    def _journal(self, model: str) -> Journal:
        found = self._journals.get(model)
        if found is None:
            found = Journal(self._folder / model, rows=self._rows, nbytes=self._nbytes)
            self._journals[model] = found
        return found

    def _write(self, model: str, request: str, inputs: Any, nbytes: int) -> None:
        try:
            if self._redact is not None:
                inputs = self._redact(inputs)
                inputs = None if inputs is None else columns(inputs, "the inputs")
            if inputs is not None:
                self._journal(model).add(request, inputs, count(inputs, "the inputs"))
        except Exception as error:  # noqa: BLE001 - the owner's own function, or the disk
            # Not the message: it may hold what was to be redacted.
            _LOG.error("a request of %s was not collected: %s", model, type(error).__name__)
        finally:
            self._written(nbytes)

    def _written(self, nbytes: int) -> None:
        with self._lock:
            self._waiting -= nbytes


def _nothing() -> None:
    """Done once all before it is."""


def _together(journal: Journal) -> tuple[Any, Any]:
    found: Labelled = journal.labelled()
    inputs, targets = zip(*found.blocks(), strict=True)
    return joined(inputs), joined(targets)


# Arguments as inputs.


def _copied(call: Call, method: Method) -> Any:
    """What `fit` would be given for this call; None where that is no rows."""
    binder = method.signature.binder
    try:
        bound = binder.bind(call.args, call.kwargs, method.label)
        given = {parameter.name: value for (_, parameter), value in bound}
        first = [each.name for each in binder.positional][: len(given)]
        inputs: Any = {name: copied(_rows(value)) for name, value in given.items()}
        if len(given) == len(bound) and [*given] == first:
            inputs = inputs[first[0]] if len(first) == 1 else tuple(inputs.values())
        return inputs if count(inputs, "the inputs") else None
    except Exception:  # noqa: BLE001 - whatever came, its caller must have his answer
        return None


def _rows(value: Any) -> Any:
    """One argument as columns: records as a dict of them."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {name: column([each.get(name) for each in value], name) for name in value[0]}
    if not isinstance(value, list | tuple | dict) and not is_array(value):
        raise DataError("no rows")
    return columns(value, "the inputs")
