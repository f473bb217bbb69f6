"""KServe, with binary tensors both ways: `kserve_server.py PORT`. It has no batcher of its own."""

import sys

import torch
from kserve import InferOutput, InferResponse, Model, ModelServer

from benchmarks.big_model import fixed


class Served(Model):
    def __init__(self):
        super().__init__("big")
        self.net = fixed()
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        row = torch.tensor(payload.inputs[0].as_numpy())
        with torch.inference_mode():
            answers = self.net(row).numpy()
        output = InferOutput("output", list(answers.shape), "FP32")
        output.set_data_from_numpy(answers, binary_data=True)
        return InferResponse(
            payload.id, self.name, [output], use_binary_outputs=payload.use_binary_outputs
        )


if __name__ == "__main__":
    ModelServer(
        http_port=int(sys.argv[1]), workers=1, enable_grpc=False, access_log_format=None
    ).start([Served()])
