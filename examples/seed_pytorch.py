"""The training loop that this project began with, unchanged, wherever the model runs.

It runs behind the wire, against `maas serve` in another process, and here, and prints losses that
fall and are the same to the last bit. A plain PyTorch program differs in one line: where `model`
comes from.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import maas


class BigModel(nn.Sequential):
    """From [batch, 1000] to [batch, 1]."""

    def __init__(self) -> None:
        hidden = (nn.Linear(1000, 500), nn.ReLU(), nn.Linear(500, 250), nn.ReLU())
        super().__init__(*hidden, nn.Linear(250, 100), nn.ReLU(), nn.Linear(100, 1))


torch.manual_seed(0)
torch.set_num_threads(1)  # additions in the same order everywhere
net = BigModel()


def train(where: object) -> list[float]:
    model = maas.connect(where)  # the one line that is new

    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    # The program we began with never defined its target; here it is a function of the input.
    input = torch.linspace(-1, 1, 1000).reshape(1, 1000)  # noqa: A001 - its name there
    target = input[:, ::10].square().sum(dim=1, keepdim=True)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        output = model(input)
        loss = nn.MSELoss()(output, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@contextmanager
def served() -> Iterator[str]:
    """`maas serve` in another process, which grants training to whoever reaches it here."""
    command = [sys.executable, "-m", "maas", "serve", "seed_pytorch:net", "--port", "0"]
    with subprocess.Popen(  # noqa: S603 - of our own
        [*command, "--allow", "call,describe,train"],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield re.findall(r"http://\S+", process.stdout.readline())[0]
        process.terminate()


if __name__ == "__main__":
    # Training elsewhere works on a private copy there, so `net` is still new when it comes last.
    losses = {"the wire": train(maas.Server(net, allow={"call", "describe", "train"}))}
    with served() as url:
        losses["maas serve"] = train(url)
    losses["here"] = train(net)
    for place, falling in losses.items():
        print(f"{place:>10}", *(f"{loss:.4f}" for loss in falling))
    assert losses["the wire"] == losses["maas serve"] == losses["here"]
