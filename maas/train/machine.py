"""What this machine can do: free memory, and how fast it computes, measured."""

import functools
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import torch

__all__ = ["Rates", "free_memory", "keep_freed_memory", "measured_rates"]

_KEPT = 2**25 - 2**13
"""Just below the largest block that glibc learns from, which is 32 MB."""

_SIDE = 384
_STREAM = 4 << 20
_ROUNDS = 5


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on the device; None where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return None
    found = [_available(), _of_group(), _of_process()]
    return min((each for each in found if each is not None), default=None)


def _available() -> int | None:
    """What the kernel says it could give without swapping: `MemAvailable` of proc(5), in KiB."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _of_group() -> int | None:
    """What the control group leaves (cgroup v2), as containers are bounded by it."""
    try:
        most, now = (
            Path("/sys/fs/cgroup", name).read_text(encoding="ascii").strip()
            for name in ("memory.max", "memory.current")
        )
    except OSError:
        return None
    return int(most) - int(now) if most.isdigit() else None


def _of_process() -> int | None:
    """What `ulimit -v` leaves."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY:
        return None
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return most - pages * resource.getpagesize()


def keep_freed_memory() -> None:
    """Has this process keep the memory that a step of training frees, for the next one.

    A step frees its gradients and takes as much again. What goes back to the kernel in between
    comes page by page, at a fault for 4 KB: for BigModel a third of the step. glibc learns from
    the largest block that it has seen freed (mallopt(3), M_MMAP_THRESHOLD): from then on blocks
    up to that size are kept, 64 MB at most for each of its arenas. The block is never touched, so
    it takes no memory. Elsewhere, or where MALLOC_TRIM_THRESHOLD_ is set, this changes nothing.
    """
    bytes(_KEPT)


@attrs.frozen(kw_only=True)
class Rates:
    """How fast a device computes, with the threads that torch has now.

    Attributes
    ----------
    flops : floating-point operations a second, in a product of float32 matrices.
    bandwidth : bytes a second, read and written by an addition that does not fit a cache.
    overhead : seconds that any operation takes, however small, with what Python and autograd do
        around it.
    """

    flops: float
    bandwidth: float
    overhead: float

    def seconds(self, flops: float, moved: float) -> float:
        """What one operation takes: what it computes, or what it moves, whichever is longer.

        The roofline model (Williams, Waterman and Patterson, Communications of the ACM 52(4),
        2009), and the overhead that small operations consist of.
        """
        return max(flops / self.flops, moved / self.bandwidth) + self.overhead


def measured_rates(device: torch.device) -> Rates:
    """The rates of that device, measured at the first asking; that takes about 50 ms."""
    return _measured(str(device), torch.get_num_threads())


@functools.cache
def _measured(device: str, _threads: int) -> Rates:
    one = torch.ones(1, device=device, requires_grad=True)

    def small() -> None:
        """A product, and the three operations of its backward run."""
        (one * 2.0).backward()  # type: ignore[no-untyped-call]

    overhead = _quickest(small, device, 100) / 4
    with torch.no_grad():
        square = torch.ones(_SIDE, _SIDE, device=device)
        many = torch.ones(_STREAM, device=device)
        added = torch.empty_like(many)
        return Rates(
            flops=2 * _SIDE**3 / _quickest(lambda: square @ square, device),
            bandwidth=3 * many.nbytes / _quickest(lambda: torch.add(many, many, out=added), device),
            overhead=overhead,
        )


def _quickest(work: Callable[[], object], device: str, times: int = 1) -> float:
    """Seconds of one run: the least of several, which what else runs here disturbs least."""
    found = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(times):
            work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        found.append((time.perf_counter() - began) / times)
    return min(found)
