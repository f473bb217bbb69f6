"""Ray Serve, with raw numbers both ways: `ray_server.py PORT`."""

import os
import sys
import threading

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import ray
import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.big_model import fixed


@serve.deployment(max_ongoing_requests=128, ray_actor_options={"num_cpus": 0.5})
class Alone:
    def __init__(self):
        self.net = fixed()

    async def __call__(self, request: Request):
        row = np.frombuffer(bytearray(await request.body()), np.float32).reshape(1, -1)
        with torch.inference_mode():
            return Response(self.net(torch.from_numpy(row)).numpy().tobytes())


@serve.deployment(max_ongoing_requests=128, ray_actor_options={"num_cpus": 0.5})
class Together:
    def __init__(self):
        self.net = fixed()

    async def __call__(self, request: Request):
        row = np.frombuffer(bytearray(await request.body()), np.float32)
        return Response((await self.answers(row)).tobytes())

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def answers(self, rows):
        with torch.inference_mode():
            return list(self.net(torch.from_numpy(np.stack(rows))).numpy())


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Alone.bind(), name="alone", route_prefix="/alone")
    serve.run(Together.bind(), name="together", route_prefix="/together")
    threading.Event().wait()
