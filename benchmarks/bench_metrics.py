"""What it costs to watch a call: counters, the access log, and what a scrape takes.

The first lines are single observations, in microseconds. The next is a server's answer to a call
of BigModel, 4 KB there, 4 bytes back, with all that watches it over the same with nothing; no
socket is in it, so it is the dearest case. Then all that is done to watch one call over that
call as a client sees it, with a server in a second process. Reading what was counted is on no
call's way; it happens in a thread, when somebody looks.
"""

import asyncio
import io
import logging
from collections.abc import Callable

import torch
import uvloop

import maas
from benchmarks.big_model import fixed
from benchmarks.comparison import Bound, Report
from benchmarks.servers import models, served
from maas.calls import CALL, NO_GRAD, Call, Info, Result
from maas.http import MSGPACK, Response
from maas.limits import Limits
from maas.server import answering, handler, live, prompt_answers
from maas.server.exposition import exposed
from maas.server.forms import Route
from maas.server.front import Admission, Head
from maas.server.guard import Caller
from maas.server.logs import JSONLines
from maas.server.metrics import SECONDS, Histogram, Metrics, Tally
from maas.server.observation import Observation
from maas.server.status import status
from maas.wire import encode_call

MODELS = 20


def main() -> None:
    report = Report(__doc__)
    observations(report)
    answers(report)
    metrics = Metrics()
    with served(models) as place, maas.connect(f"{place.url}/big") as model, torch.no_grad():
        x = torch.randn(1000)
        watch = watching(metrics)
        report.compare(
            "watching a call over the call", watch, lambda: model(x), bound=Bound(most=0.02)
        )
        logging.getLogger("maas.access").setLevel(logging.INFO)
        logging.getLogger("maas.access").propagate = False
        lines = logging.StreamHandler(io.StringIO())
        lines.setFormatter(JSONLines())
        logging.getLogger("maas.access").addHandler(lines)
        report.compare("the same, with a line of the access log", watch, lambda: model(x))
        names = [f"model-{number}" for number in range(MODELS)]
        for name in names:
            metrics.tally(name, "", CALL).ran(Info())
            metrics.tally(name, "", CALL).answered(metrics.clock(), 200)
        report.compare(
            f"a scrape of {MODELS} models over a call",
            lambda: exposed(metrics, None, ""),
            lambda: model(x),
            rounds=20,
        )
        report.compare(
            f"the page's figures of {MODELS} models over a call",
            lambda: live.shown(status(metrics, names)),
            lambda: model(x),
            rounds=20,
        )
    report.close()


def observations(report: Report) -> None:
    histogram, tally = Histogram(SECONDS), Metrics().tally("net", "", CALL)
    info = Info(queue_seconds=1e-4, compute_seconds=3e-4)

    def nothing() -> None:
        pass

    for what, observe, most in (
        ("an observation in a histogram: us", lambda: histogram.observe(0.0123), 1.0),
        ("three of a run, queue, compute, batch: us", lambda: tally.ran(info), 3.0),
        ("an answer by its status: us", lambda: tally.answered(1.0, 200), 1.0),
    ):
        report.excess(what, observe, nothing, Bound(most=most))


class Unwatched(Observation):
    """What stands in for an `Observation` where nobody watches."""

    def __init__(self, *_: object) -> None:
        """Keeps nothing."""

    def asks(self, call: Call, _tally: Tally | None = None) -> Call:
        """The call."""
        return call

    def withdraws(self) -> None:
        """Counts nothing."""

    def ran(self, _answer: object, *, on_loop: bool = False) -> None:
        """Counts nothing."""

    def answers(self, response: Response) -> Response:
        """The response."""
        return response


def answers(report: Report) -> None:
    server = handler.Handler({"big": maas.Model(fixed(), name="big")})
    body = b"".join(encode_call(Call("big", CALL, (torch.randn(1000),), context=NO_GRAD), Limits()))
    head = Head("POST", "/big", "", (("content-type", MSGPACK),), secure=False, loopback=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def some() -> None:
            for _ in range(20):
                admission = server.admit(head)
                assert isinstance(admission, Admission)
                answer = server.answer(admission, bytearray(body))
                if not isinstance(answer, Response):
                    await answer

        def by(watch: type) -> Callable[[], None]:
            def run() -> None:
                for module in (answering, prompt_answers):
                    vars(module)[Observation.__name__] = watch
                runner.run(some())

            return run

        report.compare(
            "a server's answer, watched over unwatched",
            by(Observation),
            by(Unwatched),
            calls=20,
        )
        for module in (answering, prompt_answers):
            vars(module)[Observation.__name__] = Observation


def watching(metrics: Metrics) -> Callable[[], None]:
    """All that is done to watch one call."""
    route = Route(Caller("anyone", frozenset()), "big", CALL)
    call = Call("big", CALL)
    result = Result(None, Info(queue_seconds=1e-4, compute_seconds=3e-4))
    response = Response(200, (), (bytes(120),))

    def find(model: str, method: str) -> Tally:
        return metrics.tally(model, "", method)

    def watch() -> None:
        seen = Observation(metrics, find, route, 4096)
        seen.asks(call)
        seen.ran(result)
        seen.answers(response)

    return watch


if __name__ == "__main__":
    main()
