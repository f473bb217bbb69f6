"""A step of training BigModel with Adam, the model in another process, over the same step here.

The loop is the plain one in both: zero the gradients, call, loss, backward, step. On the resident
rung the weights stay there; on the mirror rung they go there after each step, and
their gradients come back. Both processes have one thread.

A server that trains, and the process of a job, keep the memory that a step frees
(`keep_freed_memory`); bare torch, as it comes, gives it back and takes it anew. So both are
measured twice: beside the bare loop as it comes, and beside one that keeps it too.

A job is 1,000 steps by `fit` at a server, with a follower, from the first step to the last as they
arrive, over the bare loop in a process of its own; what comes before, a process that imports
torch, is told in seconds. The last lines are 1,000 steps by `fit` in this process, its check of
memory included. Between them stands what a step sends and receives, in KB, and beside it the
weights.
"""

import concurrent.futures
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

import maas
from benchmarks.big_model import fixed
from benchmarks.comparison import Bound, Report
from benchmarks.servers import keeping_jobs, served, trained
from maas.executors.remote import RemoteExecutor
from maas.http import Request, Response
from maas.train.machine import keep_freed_memory
from maas.transports.addresses import Address
from maas.transports.sockets import SocketTransport

BATCHES = (1, 32)
RATE = 0.001


class Counting(SocketTransport):
    """Counts the bytes of bodies, both ways."""

    counted = 0

    def send(self, request: Request, deadline: float | None, cap: int) -> Response:
        """As a socket sends it."""
        reply = super().send(request, deadline, cap)
        self.counted += sum(map(len, request.body)) + sum(map(len, reply.body))  # type: ignore[arg-type]
        return reply


def main() -> None:
    report = Report(__doc__)
    with served(trained) as place:
        # First, while this process has not freed a large block: see `keep_freed_memory`.
        for batch in BATCHES:
            ways = _resident(place.url, batch), _bare_step(batch)
            report.compare(f"resident, batch {batch}", *ways, bound=Bound(most=1.5), rounds=60)
        keep_freed_memory()
        for batch in BATCHES:
            here = _bare_step(batch)
            resident, mirror = _resident(place.url, batch), _mirror(place.url, batch)
            report.compare(f"resident, batch {batch}, memory kept here too", resident, here)
            report.compare(f"mirror, batch {batch}", mirror, here, rounds=30)
        for batch in BATCHES:
            _sizes(report, place.url, batch)
    with served(keeping_jobs) as place:
        for batch in BATCHES[:1] if report.quick else BATCHES:
            _job(report, place.url, batch)
    for batch in BATCHES:
        steps = 10 if report.quick else 1000
        rows = torch.randn(steps * batch, 1000), torch.randn(steps * batch, 1)
        ways = _fit(rows, batch), _loop(rows, batch)
        report.compare(
            f"fit here, batch {batch}", *ways, bound=Bound(most=1.05), calls=steps, rounds=7
        )
    report.close()


def _resident(url: str, batch: int) -> Callable[[], object]:
    """A step on the resident rung."""
    return _step(maas.connect(f"{url}/big"), maas.optim.Adam, batch)


def _mirror(url: str, batch: int) -> Callable[[], object]:
    """A step on the mirror rung."""
    return _step(maas.connect(f"{url}/big"), torch.optim.Adam, batch)


def _bare_step(batch: int) -> Callable[[], object]:
    """A step of bare torch."""
    return _step(fixed().train(), torch.optim.Adam, batch)


def _fit(rows: tuple[torch.Tensor, torch.Tensor], batch: int) -> Callable[[], object]:
    """An epoch by `fit`."""
    model = maas.Model(fixed())
    return lambda: model.fit(rows, loss="mse", optimizer="adam", lr=RATE, batch_size=batch)


def _loop(rows: tuple[torch.Tensor, torch.Tensor], batch: int) -> Callable[[], object]:
    """An epoch by the plain loop, over the same batches."""
    net, loss = fixed().train(), nn.MSELoss()
    x, target = rows

    def epoch() -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
        for picked in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            loss(net(x[picked]), target[picked]).backward()
            optimizer.step()

    return epoch


def _step(model: Any, optimizer: Callable[..., Any], batch: int) -> Callable[[], object]:
    """One step of the plain loop."""
    chosen = optimizer(model.parameters(), lr=RATE)
    loss = nn.MSELoss()
    x, target = torch.randn(batch, 1000), torch.randn(batch, 1)

    def step() -> None:
        chosen.zero_grad()
        loss(model(x), target).backward()
        chosen.step()

    return step


def _sizes(report: Report, url: str, batch: int) -> None:
    """KB that a step sends and receives, on each rung."""
    weights = sum(each.nbytes for each in fixed().parameters()) / 1e3
    # The batch, and 2 KB for all the rest, which nothing of the generator's 5 KB is.
    most = {"resident": 4 * batch + 2, "mirror": 2 * weights + 4 * batch + 4}
    for rung, kind in (("resident", maas.optim.Adam), ("mirror", torch.optim.Adam)):
        model, transport = _counted(url)
        step = _step(model, kind, batch)
        for _ in range(3):
            step()
        before, steps = transport.counted, 10
        for _ in range(steps):
            step()
        size = (transport.counted - before) / steps / 1e3
        bound = Bound(most=most[rung])
        report.quantity(f"KB a step, {rung}, batch {batch}", size, f"{weights:.0f}", bound)


def _counted(url: str) -> tuple[maas.Model[..., Any], Counting]:
    """The model, and what counts the bytes that it takes."""
    parts = urlsplit(url)
    address: Address = ("tcp", str(parts.hostname), int(parts.port or 80))
    transport = Counting(address, tls=None, server_name=None, host=parts.netloc)
    return maas.Model.over(RemoteExecutor(transport, "/big", url), "big"), transport


def _job(report: Report, url: str, batch: int) -> None:
    """The bare loops and the job in turn; the median of what one takes of the other."""
    model, transport = _counted(url)
    steps, rounds = (20, 1) if report.quick else (1000, 5)
    data = _rows(batch, steps)
    taken: dict[str, list[float]] = {"": [], ", memory kept here too": []}
    ratios: dict[str, list[float]] = {kept: [] for kept in taken}
    begun = []
    with _Bare() as bare, _Bare(initializer=keep_freed_memory) as keeping:
        for _ in range(rounds):
            waited, seconds = _followed(model, data, batch, steps)
            begun.append(waited)
            # A quick run starts one process for both: its figures mean nothing.
            for kept, pool in zip(taken, (bare, bare if report.quick else keeping), strict=True):
                taken[kept].append(pool.submit(_bare, batch, steps).result())
                ratios[kept].append(seconds / taken[kept][-1])
    for kept, bound in zip(taken, (Bound(most=1.1), Bound()), strict=True):
        beside = f"{statistics.median(taken[kept]) / (steps - 1) * 1e6:.0f} us"
        what = f"fit as a job, batch {batch}{kept}"
        report.quantity(what, statistics.median(ratios[kept]), beside, bound)
    report.quantity(f"s until its first step, batch {batch}", statistics.median(begun), "", Bound())
    size = transport.counted / rounds / steps / 1e3
    weights = sum(each.nbytes for each in fixed().parameters()) / 1e3
    report.quantity(f"KB a step, fit as a job, batch {batch}", size, f"{weights:.0f}", Bound())


_Bare = partial(
    concurrent.futures.ProcessPoolExecutor, 1, mp_context=multiprocessing.get_context("spawn")
)


@cache
def _rows(batch: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of a hundred steps; never freed, since that alone would make a process keep memory."""
    rows = batch * min(steps, 100)
    return torch.randn(rows, 1000), torch.randn(rows, 1)


def _bare(batch: int, steps: int) -> float:
    """Seconds of all steps but the first."""
    net = fixed().layers.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    loss, (x, target) = nn.MSELoss(), _rows(batch, steps)
    taken = 0
    while True:
        for rows in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            loss(net(x[rows]), target[rows]).backward()
            optimizer.step()
            taken += 1
            if taken == 1:
                began = time.perf_counter()
            if taken == steps:
                return time.perf_counter() - began


def _followed(
    model: maas.Model[..., Any],
    data: tuple[torch.Tensor, torch.Tensor],
    batch: int,
    steps: int,
) -> tuple[float, float]:
    """Seconds until the first step is heard of, and from then to the last one."""
    asked = time.perf_counter()
    epochs = steps * batch // len(data[0])
    job = model.fit.submit(data, loss="mse", lr=RATE, batch_size=batch, epochs=epochs)
    events = job.events()
    next(events)
    began = time.perf_counter()
    assert 1 + sum(1 for _ in events) == steps
    seconds = time.perf_counter() - began
    job.delete()
    return began - asked, seconds


if __name__ == "__main__":
    main()
