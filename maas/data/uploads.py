"""Datasets at a server, from the side of their owner: `upload`, and the handle it gives."""

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np

from maas.calls import Context
from maas.data.data import Data
from maas.data.datasets import NAME, Facts, fingerprint
from maas.data.rows import Pair, count, mapped
from maas.errors import ProtocolError, Unsupported
from maas.executors.base import finish
from maas.executors.remote import RemoteExecutor
from maas.model import Model, connect

__all__ = ["Dataset", "upload", "uploaded"]

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


def upload(where: Any, data: Any, **options: Any) -> Dataset:
    """Takes data to the server of a model, unless it is there: then nothing is sent.

    Parameters
    ----------
    where : a Model that runs at a server, or the URL of one.
    data : what `Data.of` takes; it passes by twice where it can, to be named and to be sent.
    options : for a URL, those of `maas.connect`, such as `auth`.

    Raises
    ------
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
    rows = Data.of(data)
    if rows.repeatable:
        named = fingerprint(_messages(rows))
        known = _asked(executor, "find", named.name)
        if known is not None:
            return _handle(executor, known)
    name = _asked(executor, "begin")
    for number, (inputs, targets) in enumerate(_messages(rows), 1):
        _asked(executor, "add", name, number, _sent(inputs), _sent(targets))
    return _handle(executor, _asked(executor, "end", name))


def uploaded(where: Any, **options: Any) -> list[Dataset]:
    """Your datasets at the server of a model; parameters and errors are those of `upload`."""
    executor = _executor_of(connect(where, **options))
    return [_handle(executor, told) for told in _asked(executor, "names")]


def _executor_of(model: Model[..., Any]) -> RemoteExecutor:
    executor: Any = model.executor
    while not isinstance(executor, RemoteExecutor):
        executor = getattr(executor, "inner", None)
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


def _messages(data: Data) -> Iterator[Pair]:
    """Rows in batches that a message holds; their size is that of the first."""
    first = next(iter(data.batches(1)), None) if data.repeatable else None
    size = 1_024
    if first is not None:
        row = fingerprint(iter([first])).nbytes / max(1, count(first[0], "a row"))
        size = max(1, min(65_536, int(_MESSAGE / max(row, 1.0))))
    return data.batches(size)


def _sent(rows: Any) -> Any:
    """Rows as they cross: text as lists."""
    return mapped(_crossing, rows)


def _crossing(values: Any) -> Any:
    return values.tolist() if isinstance(values, np.ndarray) and values.dtype == object else values
