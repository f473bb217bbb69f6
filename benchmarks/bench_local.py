"""A Model's call over the bare module's, both under no_grad: what it costs to be asked here.

The module is BigModel in eval mode. What is on top is the check of the arguments, the
context, and the border that keeps memory apart; it does not grow with the batch.
"""

from functools import partial

import torch

import maas
from benchmarks.big_model import fixed
from benchmarks.comparison import Bound, Report


def main() -> None:
    report = Report(__doc__)
    net = fixed()
    model = maas.Model(net)
    with torch.no_grad():
        for batch, most in ((1, 1.15), (64, 1.04)):
            x = torch.randn(batch, 1000)
            report.compare(
                f"model(x), batch {batch}, over net(x)",
                partial(model, x),
                partial(net, x),
                bound=Bound(most=most),
                rounds=300,
            )
    report.close()


if __name__ == "__main__":
    main()
