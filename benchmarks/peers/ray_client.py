"""Ray's handle, which asks the replica without HTTP: `ray_client.py`."""

from contextlib import asynccontextmanager, contextmanager

import ray
from ray import serve

from benchmarks.peers.asking import asking

ray.init(address="auto", log_to_driver=False, logging_level="error")
handle = serve.get_app_handle("together").answers


@contextmanager
def caller():
    yield lambda row: float(handle.remote(row[0]).result()[0])


@asynccontextmanager
async def async_caller():
    async def ask(row):
        return float((await handle.remote(row[0]))[0])

    yield ask


asking(caller, async_caller)
