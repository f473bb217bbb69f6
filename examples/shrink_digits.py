"""A classifier of handwritten digits in a tenth of its bytes, and what that costs.

Recipes are tried on real digits, and the smallest one that agrees with the original on 99 of 100
is taken. It then answers from its folder, behind HTTP, with the same bits; and a server that is
asked to compress what it serves gives what `compress` gives here.

    python shrink_digits.py [picture.svg]
"""

import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import maas
from maas.compress import Budget, Distill, Factor, Prune, Quantize, Step


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """1,797 digits of 8 x 8 grey values, in an order of their own."""
    inputs, targets = load_digits(return_X_y=True)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    return torch.tensor(inputs, dtype=torch.float32)[order] / 16, torch.tensor(targets)[order]


def trained(inputs: torch.Tensor, targets: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    hidden = nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()
    net = nn.Sequential(*hidden, nn.Linear(256, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(20):
        for rows in torch.split(torch.randperm(len(inputs)), 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return net.eval()


def recipes(learned: torch.Tensor) -> list[tuple[Step, ...]]:
    """A few; Budget has more of its own, which take a minute."""
    narrow, again = Quantize("int8"), Distill(data=learned, epochs=30)
    return [
        (narrow,),
        (Prune(0.5), narrow),
        (Factor(0.6), again, narrow),
        (Prune(0.5, structured=True), again, narrow),
        (Prune(0.75, structured=True), again, narrow),
    ]


def main(picture: str) -> None:
    inputs, targets = digits()
    learned, check = inputs[:1200], (inputs[1200:], targets[1200:])
    model = maas.Model(trained(learned, targets[:1200]), name="digits")

    budget = Budget(size=1 / 8, agreement=0.99, recipes=recipes(learned))
    small = model.compress(auto=budget, check=check)
    print(small.report)
    small.report.plot(picture)

    allow, half = {"call", "describe", "compress"}, (Prune(0.5), Quantize("int8"))
    with tempfile.TemporaryDirectory() as place:
        maas.save(small, f"{place}/small")
        served = {"digits": model, "small": maas.load(f"{place}/small")}
        with maas.serve(served, port=0, block=False, allow=allow, jobs=place) as server:
            stored, there = (maas.connect(f"{server.url}/{name}") for name in ("small", "digits"))
            assert torch.equal(stored(check[0]), small(check[0]))
            here, there = (each.compress(*half, check=check) for each in (model, there))
            assert torch.equal(here(check[0]), there(check[0]))
    before, after = small.report.original, small.report.result
    print(f"\n{before.disk / after.disk:.1f} times fewer bytes, agreement {after.agreement:.4f}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [str(Path(tempfile.gettempdir()) / "shrink_digits.svg")]))
