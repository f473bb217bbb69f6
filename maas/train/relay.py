"""Private copies of models that run elsewhere than in the server's process: its questions pass on.

A gateway's model runs behind another server, one of workers in several processes. The copy is made
where the model runs, by one server or one process, and that one alone is asked about it. Here are
its name, whose it is, and since when nobody has used it. Its bytes are charged where it is.
"""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs

from maas.calls import Call, Context, Result
from maas.errors import ProtocolError, Unsupported
from maas.executors.base import Job, begun, finish
from maas.executors.local import LocalExecutor
from maas.executors.remote import RemoteExecutor
from maas.loops import begin
from maas.train.elsewhere import TRAIN, Elsewhere, holder_of
from maas.wire import Failure

__all__ = ["RelayedCopy"]


class RelayedCopy:
    """One model in training by one caller of this server, elsewhere."""

    def __init__(self, executor: Elsewhere) -> None:
        self._elsewhere = executor
        self._holder: RemoteExecutor | None = None
        self._name = ""

    @property
    def executor(self) -> LocalExecutor:
        """None that is here.

        Raises
        ------
        Unsupported
            Always.
        """
        raise Unsupported(
            f"the private copy of {self._elsewhere.name} is at {self._elsewhere.where}, and not in "
            "this server's process; fetch its weights with model.state_dict(), or connect to where "
            "it runs"
        )

    def open(self, name: str, context: Context) -> Job[Any]:
        """The answer to `open`; the copy is called `name` here."""
        return begun(begin, partial(self._opened, name, context))

    def submit(self, operation: str, arguments: Sequence[Any], call: Call) -> Job[Any]:
        """The answer to one question."""
        question = (operation, self._name, *arguments)
        return begun(begin, partial(self._asked, question, call.context))

    def release(self, graphs: list[str] | None) -> None:
        """Lets go of graphs behind results of the copy, some time; all go when it is closed."""
        if self._holder is not None and graphs is not None:
            self._holder.tell(TRAIN, ("release", self._name, graphs))

    async def _opened(self, name: str, context: Context) -> Result:
        holder = await holder_of(self._elsewhere, context)
        result = finish(await holder.aput(TRAIN, ("open", ""), context, repeatable=False))
        told = result.value
        if type(told) is not dict or type(told.get("copy")) is not str:
            raise ProtocolError(f"{holder.where} does not say what it trains", answered=True)
        self._holder, self._name = holder, told["copy"]
        finalizer = weakref.finalize(self, holder.tell, TRAIN, ("close", self._name))
        finalizer.atexit = False
        return attrs.evolve(result, value={**told, "copy": name})

    async def _asked(self, question: tuple[Any, ...], context: Context) -> Result | Failure:
        assert self._holder is not None  # noqa: S101 - its name is known from the answer to `open`
        # Questions are numbered where the copy is: one that is asked again is answered once.
        return await self._holder.aput(TRAIN, question, context, repeatable=True)
