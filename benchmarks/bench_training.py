"""A step of training BigModel with Adam, the model in another process, over the same step here.

The loop is the plain one in both: zero the gradients, call, loss, backward, step. On the resident
rung the weights stay there; on the mirror rung they go there after each step, and
their gradients come back. Both processes have one thread.

A server that trains keeps the memory that a step frees (`keep_freed_memory`); bare torch, as it
comes, gives it back and takes it anew. So the resident rung is measured twice: beside the bare
loop as it comes, and beside one that keeps it too, as all later lines do.

Then come 1,000 steps by `fit` as a job at a server, with a follower, over the bare loop: from the
first step to the last as they arrive; what comes before, a process that imports torch, is told in
seconds. And 1,000 steps by `fit` in this process, its check of memory included. Between them stands
what a step sends and receives on each rung, in KB; beside it stand the weights.
"""

import statistics
import time
from collections.abc import Callable
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
    """The bare loop and the job in turn; the median of what one takes of the other."""
    model, transport = _counted(url)
    steps, rounds = (20, 1) if report.quick else (1000, 5)
    rows = batch * min(steps, 100)
    data = torch.randn(rows, 1000), torch.randn(rows, 1)
    ratios, begun = [], []
    for _ in range(rounds):
        bare = _bare(data, batch, steps)
        waited, seconds = _followed(model, data, batch, steps)
        ratios.append(seconds / bare)
        begun.append(waited)
    beside = f"{bare / (steps - 1) * 1e6:.0f} us"
    what, bound = f"fit as a job, batch {batch}", Bound(most=1.1)
    report.quantity(what, statistics.median(ratios), beside, bound)
    report.quantity(f"s until its first step, batch {batch}", statistics.median(begun), "", Bound())
    size = transport.counted / rounds / steps / 1e3
    weights = sum(each.nbytes for each in fixed().parameters()) / 1e3
    report.quantity(f"KB a step, fit as a job, batch {batch}", size, f"{weights:.0f}", Bound())


def _bare(data: tuple[torch.Tensor, torch.Tensor], batch: int, steps: int) -> float:
    """Seconds of all steps but the first."""
    net = fixed().layers.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    loss, (x, target) = nn.MSELoss(), data
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
