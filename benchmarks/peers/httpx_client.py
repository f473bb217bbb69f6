"""httpx as it comes, with raw numbers both ways: `httpx_client.py URL`."""

import sys
from contextlib import asynccontextmanager, contextmanager

import httpx
import numpy as np

from benchmarks.peers.asking import asking

url = sys.argv[1]
headers = {"content-type": "application/octet-stream"}
shared = httpx.Client(headers=headers)


def number(response):
    response.raise_for_status()
    return float(np.frombuffer(response.content, np.float32)[0])


@contextmanager
def caller():
    yield lambda row: number(shared.post(url, content=row.tobytes()))


@asynccontextmanager
async def async_caller():
    async with httpx.AsyncClient(headers=headers) as client:

        async def ask(row):
            return number(await client.post(url, content=row.tobytes()))

        yield ask


asking(caller, async_caller)
