"""BentoML, each row as a string in base64: `bentoml_server.py PORT`.

Its tensors travel as lists of JSON, four times as long; its binary form is a pickle, which it
refuses from outside.
"""

import base64
import os
import sys

import bentoml
import numpy as np
import torch

from benchmarks.big_model import fixed


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Served:
    def __init__(self):
        self.net = fixed()

    @bentoml.api
    def alone(self, rows: list[str]) -> list[float]:
        return self.answers(rows)

    @bentoml.api(batchable=True, max_batch_size=64)
    def together(self, rows: list[str]) -> list[float]:
        return self.answers(rows)

    def answers(self, rows):
        data = bytearray().join(map(base64.b64decode, rows))
        with torch.inference_mode():
            numbers = torch.from_numpy(np.frombuffer(data, np.float32).reshape(-1, 1000))
            return self.net(numbers).flatten().tolist()


if __name__ == "__main__":
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    served = "benchmarks.peers.bentoml_server:Served"
    command = [sys.executable, "-m", "bentoml", "serve", served, "--host", "127.0.0.1"]
    os.execv(sys.executable, [*command, "--port", sys.argv[1]])
