"""What was counted, as Prometheus reads it: by `prometheus-client`, from a collector of our own.

The library is asked only when somebody scrapes, and only for the format: its own counters cost
2 microseconds an observation, which a small request would feel.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from maas.errors import Unsupported
from maas.server.metrics import Histogram, Metrics, Tally

__all__ = ["NAMES", "exposed"]

_LABELS = ("model", "version", "method")
_EACH = {
    "maas_request_duration_seconds": "From a call's whole body to its answer, or its last item.",
    "maas_queue_seconds": "From a call's arrival at its model to the start of the run.",
    "maas_compute_seconds": "The run of the model that answered a call.",
    "maas_batch_rows": "Calls that shared the run, for each call.",
}
_COUNTERS = {
    "maas_received_bytes": "Bytes of the bodies of calls.",
    "maas_sent_bytes": "Bytes of the bodies of answers.",
    "maas_stream_items": "Items of streams.",
    "maas_requests_on_loop": "Calls whose model ran on the loop of the connections, being short.",
}
NAMES = {
    **_EACH,
    "maas_requests": "Calls by the HTTP status of their answer; 499 is a caller who left.",
    "maas_failures": "Calls that failed, by the error's code; model is the model's own error.",
    "maas_requests_in_flight": "Calls that are being answered.",
    **_COUNTERS,
    "maas_connections": "Connections that are open.",
    "maas_connections_accepted": "Connections that were accepted.",
    "maas_http_refusals": "Requests that were no good HTTP, or came too slowly, by status.",
    "maas_uptime_seconds": "Since the server was made.",
}
"""Every metric of ours, and what it tells; counters have `_total` behind."""

_FEWER = 3
"""Of ten bounds a decade three go out (1, 2.5 and 5), as is usual; a page has use for all."""


def exposed(
    metrics: Metrics, shown: Callable[[str, str], bool] | None, accept: str
) -> tuple[str, bytes]:
    """Content type and text of all metrics; `shown` tells of which model and method, if not of all.

    Whoever sees everything also gets what others registered with `prometheus-client` in this
    process: memory and processor time, and the counters of the models themselves.

    Raises
    ------
    Unsupported
        The library is not installed.
    """
    try:
        importlib.import_module("prometheus_client")
    except ModuleNotFoundError:
        raise Unsupported(
            "metrics want prometheus-client where the server runs: pip install 'maas-sdk[metrics]'"
        ) from None
    write, content_type = importlib.import_module("prometheus_client.exposition").choose_encoder(
        accept
    )
    return content_type, write(_Collector(metrics, shown))


class _Collector:
    """What the library asks: one pass over the tallies for each family."""

    def __init__(self, metrics: Metrics, shown: Callable[[str, str], bool] | None) -> None:
        self._metrics = metrics
        self._shown = shown
        self._families: Any = importlib.import_module("prometheus_client.metrics_core")

    def collect(self) -> Iterator[Any]:
        """Families of samples."""
        tallies = [
            (labels, tally)
            for labels, tally in self._metrics
            if self._shown is None or self._shown(labels[0], labels[2])
        ]
        yield from self._histograms(tallies)
        yield self._by("maas_requests", "code", tallies, lambda tally: tally.codes)
        yield self._by("maas_failures", "error", tallies, lambda tally: tally.errors)
        yield self._one("Gauge", "maas_requests_in_flight", tallies, lambda tally: tally.active)
        for name, field in zip(_COUNTERS, ("received", "sent", "items", "on_loop"), strict=True):
            yield self._one("Counter", name, tallies, lambda tally, of=field: getattr(tally, of))
        yield self._plain(
            "Gauge", "maas_uptime_seconds", self._metrics.clock() - self._metrics.began
        )
        if self._shown is None:
            yield from self._connections()
            yield from importlib.import_module("prometheus_client.registry").REGISTRY.collect()

    def _histograms(self, tallies: "Sequence[tuple[Any, Tally]]") -> Iterator[Any]:
        for name, field in zip(_EACH, ("duration", "queue", "compute", "rows"), strict=True):
            family = self._families.HistogramMetricFamily(name, NAMES[name], labels=_LABELS)
            for labels, tally in tallies:
                histogram: Histogram = getattr(tally, field)
                family.add_metric(labels, _buckets(histogram), histogram.total)
            yield family

    def _by(self, name: str, label: str, tallies: Any, field: Any) -> Any:
        labels = (*_LABELS, label)
        family = self._families.CounterMetricFamily(name, NAMES[name], labels=labels)
        for labels, tally in tallies:
            for key, count in dict(field(tally)).items():
                family.add_metric((*labels, str(key)), count)
        return family

    def _one(self, kind: str, name: str, tallies: Any, field: Any) -> Any:
        make = getattr(self._families, f"{kind}MetricFamily")
        family = make(name, NAMES[name], labels=_LABELS)
        for labels, tally in tallies:
            family.add_metric(labels, field(tally))
        return family

    def _plain(self, kind: str, name: str, value: float) -> Any:
        return getattr(self._families, f"{kind}MetricFamily")(name, NAMES[name], value=value)

    def _connections(self) -> Iterator[Any]:
        if self._metrics.connections is None:
            return
        opened, accepted, refusals = self._metrics.connections()
        yield self._plain("Gauge", "maas_connections", opened)
        yield self._plain("Counter", "maas_connections_accepted", accepted)
        yield self._refusals(refusals)

    def _refusals(self, refusals: Mapping[int, int]) -> Any:
        name = "maas_http_refusals"
        family = self._families.CounterMetricFamily(name, NAMES[name], labels=("code",))
        for code, count in dict(refusals).items():
            family.add_metric((str(code),), count)
        return family


def _buckets(histogram: Histogram) -> list[tuple[str, int]]:
    """Bounds with how many values were at most that, a few of the bounds only."""
    sums = list(accumulate(histogram.counts))
    told = [
        (repr(bound), count)
        for bound, count in zip(histogram.bounds, sums, strict=False)
        if len(histogram.bounds) < 20 or f"{bound:e}"[:3] in ("1.0", "2.5", "5.0")
    ]
    return [*told, ("+Inf", sums[-1])]
