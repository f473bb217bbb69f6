"""One network in three places: here, behind the wire, and behind HTTP; the same bits in each.

What `ask` does is the same wherever the model runs, and so is what it gets.
"""

import asyncio

import torch
from torch import Tensor, nn

import maas


class BigModel(nn.Module):
    """From a thousand numbers to one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1000, 500),
            nn.ReLU(),
            nn.Linear(500, 250),
            nn.ReLU(),
            nn.Linear(250, 100),
            nn.ReLU(),
            nn.Linear(100, 1),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """From [batch, 1000] to [batch, 1]."""
        scores: Tensor = self.layers(inputs)
        return scores


def ask(model: maas.Model[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The answer now, later, in asynchronous code and for one row at a time; and a mistake."""
    now = model(x)
    later = model.submit(x).result(10)
    awaited = asyncio.run(in_async_code(model, x))
    rows = torch.stack(list(model.map(x)))
    try:
        model(torch.zeros(8, 7))
    except RuntimeError as error:
        print(f"{model.where}: {error}")
    return [now, later, awaited, rows]


async def in_async_code(model: maas.Model[[Tensor], Tensor], x: Tensor) -> Tensor:
    return await model.submit(x)


def main() -> None:
    torch.manual_seed(0)
    net = BigModel().eval()
    x = torch.randn(8, 1000)

    server = maas.Server({"big": net})
    with maas.serve(server, port=0, block=False) as running:
        answers = []
        for place in (net, server, f"{running.url}/big"):
            with maas.connect(place) as model:
                answers.append(ask(model, x))

    here, *elsewhere = answers
    for there in elsewhere:
        for ours, theirs in zip(here, there, strict=True):
            assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
    print(f"{len(here)} ways to ask in {len(answers)} places: the same bits in each place.")


if __name__ == "__main__":
    main()
