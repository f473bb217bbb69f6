"""Our own client: `maas_client.py URL KEY`."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import torch

import maas
from benchmarks.peers.asking import Row, asking

model = maas.connect(sys.argv[1], auth=sys.argv[2])


@contextmanager
def caller() -> Iterator[Callable[[Row], float]]:
    with torch.no_grad():
        yield lambda row: float(model(torch.from_numpy(row)))


@asynccontextmanager
async def async_caller() -> AsyncIterator[Callable[[Row], Awaitable[float]]]:
    async def ask(row: Row) -> float:
        return float(await model.submit(torch.from_numpy(row)))

    with torch.no_grad():
        yield ask


asking(caller, async_caller)
