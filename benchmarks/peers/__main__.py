"""This server and others, each in an environment of its own, on one small network.

Each request is a row of 1000 float32 of its own, and every answer is compared with the bare
module's; a row mixed up in a batch ends the program, or is told of the peer. Ours is one
configuration with all on: a key, deadlines, limits, metrics, batching. Of a peer the best
configuration at each point counts. Ours runs beside each peer, and both are measured in turn.

python -m benchmarks.peers            make their environments where missing, measure, print
python -m benchmarks.peers --keep     and keep it in benchmarks/peers.txt, which the docs show
python -m benchmarks.peers --quick    every line, for a moment only: the figures mean nothing
python -m benchmarks.peers --only mosec FastAPI
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.big_model import fixed
from benchmarks.peers.environments import Missing
from benchmarks.peers.measuring import Measuring, Pace
from benchmarks.peers.roster import PEERS, Peer
from benchmarks.peers.table import lines

KEPT = Path(__file__).parents[1] / "peers.txt"
ROWS = 256
PACE = Pace(rounds=3, warm_up=0.4, seconds=1.2)
QUICK = Pace(rounds=1, warm_up=0.1, seconds=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--keep", action="store_true", help=f"write {KEPT.name} as well")
    parser.add_argument("--quick", action="store_true", help="the least that runs every line")
    parser.add_argument("--only", nargs="*", metavar="PEER", help="these peers alone")
    options = parser.parse_args()
    # Whoever ends this program ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    peers, missing = _installed([peer for peer in PEERS if _chosen(peer, options.only)])
    rows = list(torch.randn(ROWS, 1, 1000, generator=torch.Generator().manual_seed(1)))
    with torch.inference_mode():
        wanted = fixed()(torch.cat(rows)).flatten()
    measuring = Measuring(rows, wanted, QUICK if options.quick else PACE, missing)
    measuring.run(peers)
    told = "\n".join(lines(measuring))
    print(f"\n{told}")
    if options.keep:
        KEPT.write_text(f"{told}\n")


def _chosen(peer: Peer, only: Sequence[str] | None) -> bool:
    return only is None or peer.name.casefold() in {name.casefold() for name in only}


def _installed(peers: Sequence[Peer]) -> tuple[list[Peer], dict[str, str]]:
    """Those that can be had, before anything is measured, and why the others cannot."""
    here: list[Peer] = []
    missing: dict[str, str] = {}
    for peer in peers:
        try:
            peer.interpreter()
        except Missing as error:
            missing[peer.name] = str(error)
        else:
            here.append(peer)
    return here, missing


if __name__ == "__main__":
    main()
