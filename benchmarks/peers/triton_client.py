"""tritonclient over HTTP, binary tensors both ways: `triton_client.py HOST:PORT MODEL [KEY]`."""

import sys
from contextlib import asynccontextmanager, contextmanager

import tritonclient.http
import tritonclient.http.aio

from benchmarks.peers.asking import IN_FLIGHT, asking

place, model = sys.argv[1:3]
headers = {"authorization": f"Bearer {sys.argv[3]}"} if len(sys.argv) > 3 else None


def inputs(row):
    given = tritonclient.http.InferInput(INPUT, row.shape, "FP32")
    given.set_data_from_numpy(row)
    return [given]


def number(result):
    return float(result.as_numpy(OUTPUT)[0, 0])


@contextmanager
def caller():
    # It must not be shared by threads.
    client = tritonclient.http.InferenceServerClient(place)
    try:
        yield lambda row: number(client.infer(model, inputs(row), headers=headers))
    finally:
        client.close()


@asynccontextmanager
async def async_caller():
    async with tritonclient.http.aio.InferenceServerClient(place, conn_limit=IN_FLIGHT) as client:

        async def ask(row):
            return number(await client.infer(model, inputs(row), headers=headers))

        yield ask


with tritonclient.http.InferenceServerClient(place) as asked:
    told = asked.get_model_metadata(model, headers=headers)
INPUT, OUTPUT = told["inputs"][0]["name"], told["outputs"][0]["name"]
asking(caller, async_caller)
