"""LitServe, with raw numbers both ways: `litserve_server.py PORT MAX_BATCH_SIZE`."""

import sys
from typing import Annotated

import litserve
import numpy as np
import torch
from fastapi import Body, Response

from benchmarks.big_model import fixed


class Served(litserve.LitAPI):
    def setup(self, device):
        self.net = fixed()

    def decode_request(self, request: Annotated[bytes, Body()]):
        return np.frombuffer(bytearray(request), np.float32)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):
        with torch.inference_mode():
            return self.net(torch.from_numpy(np.atleast_2d(x))).numpy()

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    batch = int(sys.argv[2])
    api = Served(max_batch_size=batch, batch_timeout=0.0, api_path="/inference")
    litserve.LitServer(api, accelerator="cpu", fast_queue=True).run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False
    )
