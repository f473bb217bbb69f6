"""See it work: a network learns to read handwritten digits, and reads them here and there.

It is fitted in this process, served by a second one, and asked over HTTP by the first.
The answers must be equal bit for bit. Run it with `make demo` or `python examples/demo.py`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from sklearn.datasets import load_digits
from torch import Tensor, nn

import maas

COLOURS = sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)  # more of them would only wait for each other in a net this small
    if options.serve:
        serve(options.serve)
        return
    torch.manual_seed(options.seed)
    seen, unseen = digits()
    net = fitted(classifier(), *seen)
    with second_process(net) as url, maas.connect(url) as there:
        images, labels = hard_ones_last(net, *unseen)
        show(images, labels, there(images).softmax(1))
        compare(maas.Model(net), there, images)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the fitting (default: 0)")
    parser.add_argument("--serve", metavar="WEIGHTS", help="be the second process, and serve these")
    return parser.parse_args()


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """1797 pictures of 8 by 8 pixels between 0 and 1, and what they show: three in four to fit."""
    data = load_digits()
    images = torch.tensor(data.data / 16, dtype=torch.float32)
    labels = torch.tensor(data.target)
    return (images[:1347], labels[:1347]), (images[1347:], labels[1347:])


def classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def fitted(net: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """The network after a plain torch loop."""
    print(f"Fitting a small network to {len(images)} handwritten digits ...")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    for _ in range(60):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    return net.eval().requires_grad_(requires_grad=False)


def serve(weights: str) -> None:
    """What the second process does, until it is told to end."""
    net = classifier()
    load_model(net, weights)
    maas.serve({"digits": net.eval()}, port=0)


@contextmanager
def second_process(net: nn.Module) -> Iterator[str]:
    """Another Python that serves the network; gives its address, and ends it by SIGTERM."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "digits.safetensors")
        save_model(net, str(weights))
        command = [sys.executable, __file__, "--serve", str(weights)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
            try:
                told = process.stdout.readline() if process.stdout else ""
                print(f"Process {process.pid} says: {told.strip() or 'nothing'}\n")
                yield f"{told.split()[-1]}/digits"
            finally:
                process.terminate()
    assert process.returncode == 0, f"the server ended with {process.returncode}"
    print(f"Process {process.pid} was sent SIGTERM, answered what it had begun, and is gone.")


def hard_ones_last(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Eight digits as they come, and the eight that the network is least sure of."""
    sure = net(images).softmax(1).amax(1)
    right = (net(images).argmax(1) == labels).float().mean()
    print(f"It reads {right:.1%} of {len(images)} digits right that it has never seen.")
    print("Eight of them, and below them the eight that it is least sure of:\n")
    chosen = torch.cat([torch.arange(8), sure.argsort()[:8]])
    return images[chosen], labels[chosen]


def show(images: Tensor, labels: Tensor, chances: Tensor) -> None:
    """Pictures side by side, each over the digit that was read and its probability."""
    for row in torch.arange(len(images)).split(8):
        for lines in zip(*(picture(images[i].view(8, 8)) for i in row), strict=True):
            print("   ".join(lines))
        print("   ".join(caption(chances[i], int(labels[i])) for i in row), end="\n\n")


def picture(pixels: Tensor) -> list[str]:
    """Four lines of text: each half block is two pixels, one above the other."""
    if COLOURS:
        grey = (232 + pixels * 23).int().tolist()
        rows = [zip(grey[y], grey[y + 1], strict=True) for y in range(0, 8, 2)]
        block = "\x1b[38;5;{};48;5;{}m▀"
        return ["".join(block.format(*pair) for pair in row) + "\x1b[0m" for row in rows]
    ink = (pixels > 0.4).int().tolist()
    rows = [zip(ink[y], ink[y + 1], strict=True) for y in range(0, 8, 2)]
    return ["".join(" ▀▄█"[upper + 2 * lower] for upper, lower in row) for row in rows]


def caption(chances: Tensor, label: int) -> str:
    """Such as `3  99%`; a wrong reading is marked by what it should be: `3≠8 61%`."""
    chance, read = chances.max(0)
    if read == label:
        return f"{read}  {chance:4.0%} "
    text = f"{read}≠{label}{chance:4.0%} "
    return f"\x1b[31m{text}\x1b[0m" if COLOURS else text


def compare(here: maas.Model[..., Tensor], there: maas.Model[..., Tensor], x: Tensor) -> None:
    """Whether the answers of both are the same bits, and how long a call took."""
    assert torch.equal(here(x).view(torch.uint8), there(x).view(torch.uint8))
    print(f"All {here(x).nbytes} bytes of the answer are the same here and there.")
    print(f"A call with {len(x)} digits took {median(here, x):.0f} µs here", end=" ")
    print(f"and {median(there, x):.0f} µs there (median of 200).")


def median(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Microseconds."""
    marks = [time.perf_counter()]
    for _ in range(200):
        call(x)
        marks.append(time.perf_counter())
    return statistics.median(after - before for before, after in pairwise(marks)) * 1e6


if __name__ == "__main__":
    main()
