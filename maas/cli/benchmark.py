"""`maas bench`: answers a second, and how long one takes, seen from here.

Each of N threads asks as soon as it has been answered (a closed loop): what is measured is this
client, the way and the server together. Times are of whole calls that were answered; a stream's
to its last item. What fails is counted by its class, and is no goodput.
"""

import argparse
import importlib
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from maas.backends.base import Method
from maas.cli import files
from maas.cli.asking import asked, connected
from maas.cli.messages import complain, say
from maas.errors import TransportError
from maas.executors.base import ModelInfo
from maas.limits import Limits
from maas.plots import plot
from maas.server import examples, json_form

__all__ = ["bench"]

_STEP = 0.1  # seconds between two looks at the progress
_PERCENTILES = (50, 90, 99, 99.9)
_LOST = 0.05  # seconds that a thread waits where nobody answers, rather than ask as fast as it can


def bench(options: argparse.Namespace) -> int:
    """Measures, and prints a table or JSON; 1 where nothing was answered."""
    with connected(options) as model:
        target, method = asked(model, options)
        args, kwargs = (
            files.read(options.files, method, model.info.kind)
            if options.files
            else _example(model.info, method)
        )

        def ask() -> None:
            if method.streams:
                for _ in target.stream(*args, **kwargs):
                    pass
            else:
                target(*args, **kwargs)

        ask()
        runs = []
        for concurrency in _steps(options):
            run = _Run(ask, options.seconds)
            run.measure(concurrency, quiet=options.json)
            runs.append(_figures(run, concurrency))
            if options.sweep and not options.json:
                say(_row(runs[-1]) if len(runs) > 1 else f"{_HEAD}\n{_row(runs[-1])}")
    if options.json:
        say(json.dumps({"runs": runs} if options.sweep else runs[0]))
    else:
        say("\n".join(_picture(runs) if options.sweep else _table(runs[0])))
    return 0 if any(figures["calls"] for figures in runs) else 1


def _steps(options: argparse.Namespace) -> list[int]:
    """How many calls at once: 1, 2, 4 and so on up to the most, for a sweep."""
    if not options.sweep:
        return [options.concurrency]
    doubled = [2**power for power in range(options.sweep.bit_length())]
    return sorted({*doubled, options.sweep})


def _example(info: ModelInfo, method: Method) -> tuple[tuple[Any, ...], dict[str, Any]]:
    written = examples.written(info, method)
    return json_form.arguments(written, method, info.kind, Limits(header=len(written)))


@attrs.define
class _Run:
    """Threads that ask until the time is over."""

    ask: Callable[[], None]
    wanted: float
    seconds: float = 0.0
    times: list[float] = attrs.field(factory=list)
    errors: list[str] = attrs.field(factory=list)
    stopped: threading.Event = attrs.field(factory=threading.Event)

    def measure(self, concurrency: int, *, quiet: bool) -> None:
        """Asks, so many at once."""
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(concurrency)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        with _progress(self.wanted, quiet=quiet) as told:
            while (past := time.perf_counter() - began) < self.wanted:
                if self.stopped.wait(min(_STEP, self.wanted - past)):
                    break
                told(time.perf_counter() - began, len(self.times))
            self.stopped.set()
            for thread in threads:
                thread.join()
        # Calls that had begun are counted, and so is the time until they ended.
        self.seconds = time.perf_counter() - began

    def _work(self) -> None:
        while not self.stopped.is_set():
            began = time.perf_counter()
            try:
                self.ask()
            except Exception as error:  # noqa: BLE001 - whatever a model raises is counted
                self.errors.append(type(error).__name__)
                if isinstance(error, TransportError):
                    self.stopped.wait(_LOST)
            else:
                self.times.append(time.perf_counter() - began)


@contextmanager
def _progress(seconds: float, *, quiet: bool) -> Iterator[Callable[[float, int], None]]:
    """A bar on a terminal: seconds of all, and calls a second."""
    if quiet or not sys.stderr.isatty():
        yield lambda _past, _calls: None
        return
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ModuleNotFoundError:
        complain("(for a progress bar: pip install 'maas-sdk[cli]')")
        yield lambda _past, _calls: None
        return
    with tqdm(total=round(seconds, 1), bar_format="{l_bar}{bar}| {postfix}", leave=False) as bar:

        def told(past: float, calls: int) -> None:
            bar.n = min(round(past, 1), bar.total)
            bar.set_postfix_str(f"{calls / past:,.0f} calls/s")

        yield told


# Figures.


def _figures(run: _Run, concurrency: int) -> dict[str, Any]:
    times = sorted(run.times)
    latency: dict[str, float | None] = dict.fromkeys(
        (*(f"p{percent:g}" for percent in _PERCENTILES), "mean", "max")
    )
    if times:
        latency = {f"p{percent:g}": _percentile(times, percent) for percent in _PERCENTILES}
        latency |= {"mean": sum(times) / len(times), "max": times[-1]}
    return {
        "calls": len(times),
        "seconds": run.seconds,
        "concurrency": concurrency,
        "calls_per_second": len(times) / run.seconds,
        "latency_seconds": latency,
        "errors": dict(Counter(run.errors).most_common()),
    }


def _percentile(times: list[float], percent: float) -> float:
    """The time that so many percent of the calls did not exceed (nearest rank)."""
    return times[math.ceil(round(len(times) * percent / 100, 6)) - 1]


def _table(figures: dict[str, Any]) -> Iterator[str]:
    at_once = figures["concurrency"]
    yield f"answered  {figures['calls']:,} in {figures['seconds']:.1f} s, {at_once} at once"
    yield f"goodput   {figures['calls_per_second']:,.1f} calls/s"
    cells = (f"{name} {_time(value)}" for name, value in figures["latency_seconds"].items())
    yield f"latency   {'   '.join(cells)}"
    yield f"errors    {_errors(figures)}"


def _errors(figures: dict[str, Any]) -> str:
    failed = sum(figures["errors"].values())
    if not failed:
        return "none"
    share = failed / (failed + figures["calls"])
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in figures["errors"].items())
    return f"{kinds} ({share:.1%} of all)"


_HEAD = f"{'at once':>7} {'calls/s':>10} {'p50':>9} {'p90':>9} {'p99':>9} {'p99.9':>9}  errors"


def _row(figures: dict[str, Any]) -> str:
    times = (
        f"{_time(figures['latency_seconds'][name]):>9}" for name in ("p50", "p90", "p99", "p99.9")
    )
    rate = f"{figures['calls_per_second']:10,.1f}"
    return f"{figures['concurrency']:7} {rate} {' '.join(times)}  {_errors(figures)}"


def _picture(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Latency over goodput: where it turns upwards, more at once only means a longer wait."""
    points = [
        (
            run["calls_per_second"],
            run["latency_seconds"][name] * 1e3,
            mark or str(run["concurrency"]),
        )
        for name, mark in (("p99", ""), ("p50", "."))
        for run in runs
        if run["calls"]
    ]
    if points:
        yield ""
        yield from plot(points, "calls/s", "ms")
        yield "numbers: p99 with so many calls at once; dots: p50"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
