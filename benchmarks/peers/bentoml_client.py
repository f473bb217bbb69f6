"""BentoML's own clients, rows in base64: `bentoml_client.py URL`."""

import base64
import sys
from contextlib import asynccontextmanager, contextmanager

import bentoml

from benchmarks.peers.asking import asking

url = sys.argv[1]
shared = bentoml.SyncHTTPClient(url)


def rows(row):
    return [base64.b64encode(row.tobytes()).decode()]


@contextmanager
def caller():
    yield lambda row: shared.together(rows=rows(row))[0]


@asynccontextmanager
async def async_caller():
    async with bentoml.AsyncHTTPClient(url) as client:

        async def ask(row):
            return (await client.together(rows=rows(row)))[0]

        yield ask


asking(caller, async_caller)
