"""64 MB there and back: memory beyond what was there before, and speed against httpx and uvicorn.

Memory is the peak of resident memory, as Linux counts it, less what was resident before, in
sizes of the body. A side that holds the body once, and no copy of any part, has 1. The
client's own argument was there before; the reply is what it must hold. The server must hold
the request; its model gives back the very same memory.
"""

import sys
from collections.abc import Callable
from functools import partial

import httpx
import torch

import maas
from benchmarks.comparison import Bound, Report
from benchmarks.servers import Place, asgi, forget_peak, models, peak_memory, served

Side = tuple[Callable[[], object], Place]


def main() -> None:
    report = Report(__doc__)
    size = 2**22 if report.quick else 2**26
    with (
        served(models) as place,
        served(asgi) as peer,
        maas.connect(f"{place.url}/echo") as echo,
        httpx.Client(timeout=60) as client,
    ):
        x = torch.rand(size // 4)
        body = x.numpy().tobytes()

        def peers() -> bytes:
            return client.post(peer.url, content=body).content

        assert torch.equal(echo(x), x)
        assert peers() == body
        if sys.platform == "linux":
            memory(report, size, (partial(echo, x), place), (peers, peer))
        else:
            print("memory is not measured: only Linux tells the peak of a moment")
        report.compare(
            f"{size // 2**20} MB there and back: speed over httpx + uvicorn",
            partial(echo, x),
            peers,
            bound=Bound(least=1.3),
            rounds=15,
            speed=True,
        )
    report.close()


def memory(report: Report, size: int, ours: Side, peer: Side) -> None:
    """The worst of ours beside the best of the peer's."""
    rounds = 1 if report.quick else 5
    mine = [peaks(ours, size) for _ in range(rounds)]
    theirs = [peaks(peer, size) for _ in range(rounds)]
    for index, (side, most) in enumerate((("client", 1.3), ("server", 1.2))):
        report.quantity(
            f"{side}: peak memory, in bodies",
            max(each[index] for each in mine),
            f"{min(each[index] for each in theirs):.2f}",
            Bound(most=most),
        )


def peaks(side: Side, size: int) -> tuple[float, float]:
    """Of one call: what it took at the client and at the server, in sizes of the body."""
    call, place = side
    before, there_before = forget_peak(), place.forget_peak()
    call()
    return (peak_memory() - before) / size, (place.peak_memory() - there_before) / size


if __name__ == "__main__":
    main()
