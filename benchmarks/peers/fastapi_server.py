"""FastAPI by hand on uvicorn, with raw numbers both ways: `fastapi_server.py PORT`."""

import sys

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.big_model import fixed

app = FastAPI()
net = fixed()


@app.post("/inference")
async def inference(request: Request) -> Response:
    data = bytearray(await request.body())
    with torch.inference_mode():
        answer = net(torch.from_numpy(np.frombuffer(data, np.float32).reshape(1, -1)))
    return Response(answer.numpy().tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
