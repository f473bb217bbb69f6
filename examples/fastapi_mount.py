"""Models beside the ordinary routes of a FastAPI application, below `/models`.

Python asks them as models, curl as JSON; a test needs no socket at all.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import torch
import uvicorn
from fastapi import FastAPI
from sklearn.datasets import load_wine
from torch import nn

import maas

data = load_wine()
wines = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0), dtype=torch.float32)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(13, 8), nn.Tanh(), nn.Linear(8, 3)).eval()

app = FastAPI()
app.mount("/models", maas.Server({"wine": net}))


@app.get("/kinds")
def kinds() -> list[str]:
    return [str(name) for name in data.target_names]


async def without_a_socket() -> None:
    """As a test of the application would ask it."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        print("GET /kinds:", (await client.get("/kinds")).json())
        reply = await client.post("/models/wine", json=[wines[:1].tolist()])
        print("POST /models/wine:", reply.json())
        assert torch.allclose(torch.tensor(reply.json()["result"]), net(wines[:1]))


@contextmanager
def served() -> Iterator[str]:
    """The application under uvicorn, in a thread; gives its address."""
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: object = None) -> None:
            await super().startup(sockets)  # type: ignore[arg-type]
            started.set()

    server = Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(30)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def main() -> None:
    asyncio.run(without_a_socket())
    with served() as url, maas.connect(f"{url}/models/wine") as there:
        assert torch.equal(there(wines), net(wines))
        print(f"{there.where} answers for {len(wines)} wines as the network itself does.")


if __name__ == "__main__":
    main()
