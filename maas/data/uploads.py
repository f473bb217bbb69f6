"""Datasets at a server, from the side of their owner: `upload`, and the handle it gives."""

import contextlib
import warnings
from typing import Any

import attrs

from maas.bars import bar
from maas.calls import Context
from maas.data.data import Data
from maas.data.datasets import NAME, Facts, fingerprint
from maas.data.rows import columns, count, is_array, sent
from maas.errors import NotFound, ProtocolError, Unsupported
from maas.executors.base import finish
from maas.executors.remote import RemoteExecutor, remote_behind
from maas.model import Model, connect

__all__ = ["Dataset", "collected", "label", "upload", "uploaded"]

_SERVICE = "_data"
_MESSAGE = 8 * 2**20
"""Bytes of rows in one message: a batch that got lost costs no more to send again."""
_RETRIES = 6


@attrs.frozen
class Dataset:
    """Rows at a server, by the hash of their content; `model.fit` takes it for data there.

    Attributes
    ----------
    name : `"sha256:..."`; `model.fit(name)` does as well.
    rows : how many rows it has.
    nbytes : what it takes there.
    """

    name: str
    rows: int
    nbytes: int
    _executor: RemoteExecutor = attrs.field(repr=False, eq=False)

    def delete(self) -> None:
        """Deletes it at the server; jobs that were given it have their own copy."""
        _asked(self._executor, "drop", self.name)


def upload(where: Any, data: Any, *, progress: bool | None = None, **options: Any) -> Dataset:
    """Takes data to the server of a model, unless it is there: then nothing is sent.

    It goes in messages of 8 MiB. One that is broken off goes on where it was, if it is asked for
    again within ten minutes, and what arrived is compared with what was sent by its hash.

    Parameters
    ----------
    where : a Model that runs at a server, or the URL of one.
    data : what `Data.of` takes; it passes by twice where it can, to be named and to be sent.
    progress : a bar; by default where a terminal shows it.
    options : for a URL, those of `maas.connect`, such as `auth`.

    Raises
    ------
    CodecError
        What arrived is not what was read at first.
    DataError
        Rows that are no numbers and no text, or do not fit each other.
    Forbidden
        The server does not grant "train".
    LimitExceeded
        It is more than the server keeps for you.
    Unsupported
        The model runs here, or the server keeps no datasets.
    """
    executor = _executor_of(connect(where, **options))
    rows, name = Data.of(data), ""
    size = _rows_of_a_message(rows, executor)
    if rows.repeatable:
        name = fingerprint(rows.batches(size)).name
        known = _asked(executor, "find", name)
        if known is not None:
            return _handle(executor, known)
    begun, number = _asked(executor, "begin", name)
    drawn = bar(rows.rows, "row", progress)
    with contextlib.nullcontext() if drawn is None else drawn:
        if drawn is not None:
            drawn.update(number * size)
        for inputs, targets in rows.batches(size, start=number):
            number += 1
            _asked(executor, "add", begun, number, sent(inputs), sent(targets))
            if drawn is not None:
                drawn.update(count(inputs, "a batch"))
    return _handle(executor, _asked(executor, "end", begun))


def uploaded(where: Any, **options: Any) -> list[Dataset]:
    """Your datasets at the server of a model; parameters and errors are those of `upload`."""
    executor = _executor_of(connect(where, **options))
    return [_handle(executor, told) for told in _asked(executor, "names")]


def collected(where: Any, **options: Any) -> Dataset:
    """A dataset of what a model at a server was asked, by anybody, and was given labels for.

    It is of what is there now; the server goes on collecting. Where requests have several forms,
    it holds those of the form that most have, and warns of the others.

    Parameters
    ----------
    where : a Model that runs at a server, or the URL of one.
    options : for a URL, those of `maas.connect`, such as `auth`.

    Raises
    ------
    DataError
        Nothing that was asked has a label.
    Forbidden
        The server does not grant "collect".
    Unsupported
        The server keeps nothing of what this model is asked, or keeps no datasets.
    """
    executor = _executor_of(connect(where, **options))
    told = _asked(executor, "collected")
    left_out = told.pop("left_out", 0) if type(told) is dict else 0
    if left_out:
        warnings.warn(
            f"{left_out} labelled requests have other columns, dtypes or shapes than most, and "
            "were left out",
            UserWarning,
            stacklevel=2,
        )
    return _handle(executor, told)


def label(model: Model[..., Any], request: str | None, target: Any) -> None:
    """Says what the answer to an earlier call should have been, where the server collects.

    Parameters
    ----------
    request : `job.info.request` of that call: `job = model.submit(x)`, `job.result()`.
    target : one for each row of that call, as an array or a list; for a call of one row the value
        alone will do. The last one counts.

    Raises
    ------
    Forbidden
        The server does not grant "label".
    NotFound
        The request is not kept, as `None` says; or not any more.
    DataError
        There are more or fewer targets than rows.
    Unsupported
        The model runs here, or its server collects nothing.
    """
    executor = _executor_of(model)
    if request is None:
        raise NotFound(f"{model.name} kept nothing of that call, so it cannot be given a label")
    rows = is_array(target) and bool(target.shape)
    whole = target if rows or isinstance(target, list | tuple | dict) else [target]
    _asked(executor, "label", request, sent(columns(whole, "the label")))


def _executor_of(model: Model[..., Any]) -> RemoteExecutor:
    executor = remote_behind(model.executor)
    if executor is None:
        raise Unsupported(
            f"{model.name} runs {model.where}, where nothing is uploaded; give the data to fit"
        )
    return executor.origin


def _asked(executor: RemoteExecutor, *question: Any) -> Any:
    context = Context(retries=_RETRIES)
    return finish(executor.put(_SERVICE, question, context, repeatable=True)).value


def _handle(executor: RemoteExecutor, told: Any) -> Dataset:
    facts = (
        Facts(**told) if type(told) is dict and told.keys() == {"name", "rows", "nbytes"} else None
    )
    if facts is None or type(facts.name) is not str or NAME.fullmatch(facts.name) is None:
        raise ProtocolError(f"{executor.where} does not say what it keeps", answered=True)
    return Dataset(facts.name, facts.rows, facts.nbytes, executor)


def _rows_of_a_message(data: Data, executor: RemoteExecutor) -> int:
    """How many rows a message holds, if all are as large as the first."""
    first = next(iter(data.batches(1)), None) if data.repeatable else None
    if first is None:
        return 1_024
    most = min(_MESSAGE, executor.describe().limits.get("body", _MESSAGE) // 2)
    row = fingerprint(iter([first])).nbytes / max(1, count(first[0], "a row"))
    return max(1, min(65_536, int(most / max(row, 1.0))))
