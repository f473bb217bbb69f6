"""MLServer, rows in base64 as its codec of that name wants them: `mlserver_server.py PORT`.

Its REST has no binary tensors; the numbers of a row as JSON are four times as long.
"""

import asyncio
import socket
import sys

import numpy as np
import torch
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceResponse

from benchmarks.big_model import fixed


class Served(MLModel):
    async def load(self):
        self.net = fixed()
        return True

    async def predict(self, payload):
        data = bytearray().join(Base64Codec.decode_input(payload.inputs[0]))
        with torch.inference_mode():
            rows = torch.from_numpy(np.frombuffer(data, np.float32).reshape(-1, 1000))
            answers = self.net(rows).numpy()
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("output", answers)]
        )


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as free:
        unused = free.getsockname()[1]
    settings = Settings(
        host="127.0.0.1",
        http_port=int(sys.argv[1]),
        grpc_port=unused,
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
    )
    models = [
        ModelSettings(name="alone", implementation=Served),
        ModelSettings(
            name="together", implementation=Served, max_batch_size=64, max_batch_time=0.002
        ),
    ]
    asyncio.run(MLServer(settings).start(models))
