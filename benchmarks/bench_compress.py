"""Compressed models over the eager module: rows a second and bytes, recipes that lose among them.

BigModel with ReLU between its layers, and an encoder of two layers (64 tokens, 128 numbers each).
`ort` is onnxruntime. The bounds of speed are meant for a processor with VNNI, which multiplies
bytes faster than floats; the one of results.txt may have none (`grep vnni /proc/cpuinfo`).
The peer of a line of speed is the eager module asked as a Model, of a line of size its bytes.
"""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

import maas
from benchmarks.comparison import Bound, Report
from maas.compress import Compile, Factor, Prune, Quantize, Step

RECIPES: list[tuple[str, tuple[Step, ...]]] = [
    ("ort", (Compile(),)),
    ("ort int8 dynamic", (Compile(), Quantize("int8 dynamic"))),
    ("ort int8 static", (Compile(), Quantize("int8 static"))),
    ("int8 weights", (Quantize("int8"),)),
    ("bf16", (Quantize("bf16"),)),
    ("half pruned, int8", (Prune(0.5), Quantize("int8"))),
    ("low rank 0.9", (Factor(0.9),)),
]
PROMISED = "ort int8 dynamic"


class Block(nn.Module):
    """Attention and two linear layers, each beside a shortcut."""

    def __init__(self, size: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.inside = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x: Tensor) -> Tensor:
        """From [batch, tokens, size] to the same."""
        rows, length, size = x.shape
        qkv = self.qkv(self.before(x)).view(rows, length, 3, self.heads, size // self.heads)
        mixed = nn.functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, size))
        outputs: Tensor = x + self.inside(self.after(x))
        return outputs


def big() -> tuple[nn.Module, Tensor]:
    sizes = (1000, 500, 250, 100, 1)
    layers = [(nn.Linear(below, above), nn.ReLU()) for below, above in itertools.pairwise(sizes)]
    flat = [layer for pair in layers for layer in pair]
    return nn.Sequential(*flat[:-1]), torch.randn(64, 1000)


def encoder() -> tuple[nn.Module, Tensor]:
    blocks = [nn.Embedding(1000, 128), Block(), Block(), nn.LayerNorm(128)]
    return nn.Sequential(*blocks), torch.randint(1000, (64, 64))


def main() -> None:
    report = Report(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, (net, rows) in {"big": big(), "encoder": encoder()}.items():
        eager: maas.Model[..., Tensor] = maas.Model(net.eval(), name=name)
        for recipe, steps in RECIPES[1:2] if report.quick else RECIPES:
            measured(report, eager, f"{name}, {recipe}", steps, rows)
    report.close()


def measured(
    report: Report, eager: "maas.Model[..., Tensor]", what: str, steps: Any, rows: Tensor
) -> None:
    small = eager.compress(*steps, check=rows)
    found = small.report.result
    promised = what.endswith(PROMISED)
    report.quantity(
        f"{what}: size, error",
        small.report.size,
        f"{found.error:.2g}",
        Bound(most=0.27) if promised else Bound(most=1.1),
    )
    bounds = {1: Bound(least=2.0), 64: Bound(least=2.5)}
    with torch.no_grad():
        for size in (1, 64):
            batch = rows[:size]
            report.compare(
                f"{what}: rows/s at {size}",
                lambda batch=batch: small(batch),  # type: ignore[misc]
                lambda batch=batch: eager(batch),  # type: ignore[misc]
                bound=bounds[size] if promised else None,
                calls=size,
                rounds=30,
                speed=True,
            )


if __name__ == "__main__":
    main()
