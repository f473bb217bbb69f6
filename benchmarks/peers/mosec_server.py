"""mosec, with raw numbers both ways: `mosec_server.py PORT MAX_BATCH_SIZE MAX_WAIT_MS`."""

import sys

import numpy as np
import torch
from mosec import Server, Worker

from benchmarks.big_model import fixed


class Raw(Worker):
    def deserialize(self, data):
        return data

    def serialize(self, data):
        return data


class Single(Raw):
    def __init__(self):
        self.net = fixed()

    def forward(self, data):
        with torch.inference_mode():
            row = torch.from_numpy(np.frombuffer(bytearray(data), np.float32).reshape(1, -1))
            return self.net(row).numpy().tobytes()


class Batched(Single):
    def forward(self, data):
        rows = np.frombuffer(bytearray().join(data), np.float32).reshape(len(data), -1)
        with torch.inference_mode():
            answers = self.net(torch.from_numpy(rows)).numpy()
        return [answer.tobytes() for answer in answers]


if __name__ == "__main__":
    # mosec's workers run this file again, and it reads the command line itself.
    port, batch, wait = sys.argv[1:]
    sys.argv[1:] = ["--port", port, "--address", "127.0.0.1", "--log-level", "error"]
    server = Server()
    if int(batch) > 1:
        server.append_worker(Batched, max_batch_size=int(batch), max_wait_time=int(wait))
    else:
        server.append_worker(Single)
    server.run()
