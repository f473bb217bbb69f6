"""Why a network reads a 4 where a 9 might be: explained here, and by a server, with equal numbers.

It trains on scikit-learn's digits for some seconds. Given a folder it writes pictures there; one of
them it prints in characters. Everything else is `model.explain`, the same for a module and a URL.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

import maas

torch.manual_seed(0)
torch.set_num_threads(1)  # additions in the same order everywhere
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)

net = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 32, 3, stride=2), nn.Tanh(),
    nn.Flatten(), nn.Linear(288, 10),
)  # fmt: skip


def train() -> float:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    for _ in range(6):
        for batch in torch.randperm(1500).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    net.eval()
    right = net(images[1500:]).argmax(1) == labels[1500:]
    return float(right.float().mean())


# Four by four pixels in each group: what LIME and Shapley values turn on and off together.
groups = torch.arange(16).reshape(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
METHODS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 64},
    "occlusion": {"window": (1, 3, 3), "stride": (1, 1, 1)},
    "shapley_sampling": {"groups": groups, "samples": 50},
}


def explained(where: object, folder: Path | None) -> list[torch.Tensor]:
    model = maas.connect(where)
    rows = [int((labels[1500:] == digit).nonzero()[0]) + 1500 for digit in (4, 9, 3, 0)]
    x, target = images[rows], labels[rows].tolist()
    found = []
    for method, options in METHODS.items():
        e = model.explain(x, target=target, method=method, **options)
        gap = "" if e.gap is None else f", gap {e.gap:.1e}"
        print(f"{method}: {e.rows} rows of the model{gap}. {e.assumption}")
        picture = e.plot(folder and folder / f"digits-{method}.png", rows=range(4))
        found.append(e.attributions)
    print(picture.partition("\n\n")[0])
    against_9 = model.explain(x[:1], target=9)
    print(maas.explain.check(against_9))
    return [*found, against_9.attributions]


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    print(f"right for {train():.1%} of digits it has not seen")
    here = explained(net, folder)
    with maas.serve(net, port=0, block=False, allow={"call", "describe", "explain"}) as server:
        print(f"and at {server.url.partition(':')[0]}://...")
        there = explained(f"{server.url}/sequential", folder)
    assert all(map(torch.equal, here, there))
