"""Who is asked about what is kept for one caller where a model runs."""

from maas.calls import Context
from maas.executors.remote import RemoteExecutor
from maas.executors.workers import WorkerExecutor

__all__ = ["AS_LEFT", "TRAIN", "Elsewhere", "holder_of"]

TRAIN = "_train"
"""The method by which private copies are asked; see `copies.py`."""

AS_LEFT = b""
"""For a state of the generator (5 KB): the one that the copy had at the end of its last call."""

Elsewhere = RemoteExecutor | WorkerExecutor
"""What asks a model that is trained where it runs, and not in this process."""


async def holder_of(executor: Elsewhere, context: Context) -> RemoteExecutor:
    """The server; or, of several worker processes, one for good: no other has what it keeps.

    Waited for on the I/O loop.
    """
    return await executor.holder(context) if isinstance(executor, WorkerExecutor) else executor
