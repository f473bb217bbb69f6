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
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from sklearn.datasets import load_digits
from torch import Tensor, nn

import maas


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    if options.serve:
        serve(options.serve)
        return

    seen, unseen = digits()
    net = classifier()
    say(f"Fitting {sum(p.numel() for p in net.parameters()):,} weights to {len(seen[0])} digits ...")
    fit(net, *seen, epochs=options.epochs)

    with second_process(net) as url, maas.connect(url) as there:
        here = maas.Model(net).eval()
        say(f"\nAsking {there.ready(30).where}, which is process {there.pid()}, not {os.getpid()}.")
        show(there, *unseen)
        compare(here, there, unseen[0])
    say("The second process was sent SIGTERM, finished what it had begun, and ended well.")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60, help="rounds of fitting (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the fitting (default: 0)")
    parser.add_argument("--serve", metavar="WEIGHTS", help="be the second process, and serve these")
    return parser.parse_args()
