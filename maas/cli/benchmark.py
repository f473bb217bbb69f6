"""`maas bench`: calls a second, and how long one takes, seen from here.

Each of N threads asks as soon as it has been answered (a closed loop): what is measured is this
client, the way and the server together. Times are of whole calls; a stream's to its last item.
"""

import argparse
import importlib
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from maas.backends.base import Method
from maas.cli import files
from maas.cli.asking import asked, connected
from maas.cli.messages import complain, say
from maas.executors.base import ModelInfo
from maas.limits import Limits
from maas.server import examples, json_form

__all__ = ["bench"]

_STEP = 0.1  # seconds between two looks at the progress
_PERCENTILES = (50, 90, 99)


def bench(options: argparse.Namespace) -> int:
    """Measures, and prints a table or JSON."""
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
        run = _Run(ask, options.seconds)
        run.measure(options.concurrency, quiet=options.json)
    figures = _figures(run, options.concurrency)
    say(json.dumps(figures) if options.json else "\n".join(_table(figures)))
    return 0


def _example(info: ModelInfo, method: Method) -> tuple[tuple[Any, ...], dict[str, Any]]:
    written = examples.written(info, method)
    return json_form.arguments(written, method, info.kind, Limits(header=len(written)))


@attrs.define
class _Run:
    """Threads that ask until the time is over or one of them fails."""

    ask: Callable[[], None]
    wanted: float
    seconds: float = 0.0
    times: list[float] = attrs.field(factory=list)
    errors: list[BaseException] = attrs.field(factory=list)
    stopped: threading.Event = attrs.field(factory=threading.Event)

    def measure(self, concurrency: int, *, quiet: bool) -> None:
        """Asks, and raises what any thread raised."""
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
        if self.errors:
            raise self.errors[0]

    def _work(self) -> None:
        try:
            while not self.stopped.is_set():
                began = time.perf_counter()
                self.ask()
                self.times.append(time.perf_counter() - began)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self.errors.append(error)
            self.stopped.set()


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
    latency = {f"p{percent}": _percentile(times, percent) for percent in _PERCENTILES}
    return {
        "calls": len(times),
        "seconds": run.seconds,
        "concurrency": concurrency,
        "calls_per_second": len(times) / run.seconds,
        "latency_seconds": latency | {"mean": sum(times) / len(times), "max": times[-1]},
    }


def _percentile(times: list[float], percent: int) -> float:
    """The time that so many percent of the calls did not exceed (nearest rank)."""
    return times[math.ceil(len(times) * percent / 100) - 1]


def _table(figures: dict[str, Any]) -> Iterator[str]:
    at_once = figures["concurrency"]
    yield f"calls       {figures['calls']:,} in {figures['seconds']:.1f} s, {at_once} at once"
    yield f"throughput  {figures['calls_per_second']:,.1f} calls/s"
    cells = (f"{name} {_time(value)}" for name, value in figures["latency_seconds"].items())
    yield f"latency     {'   '.join(cells)}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
