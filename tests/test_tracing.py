"""Traces: the header by its grammar, and spans through real servers, in processes of their own.

OpenTelemetry, once loaded, is loaded for the process, so what needs it runs as a program.
"""

import json
import re
import subprocess
import sys
import textwrap

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maas
from maas import tracing
from maas.executors.remote import RemoteExecutor
from maas.transports.inprocess import InProcessTransport

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (PARENT, True),
        (f"00-{TRACE}-{SPAN}-00", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (None, False),
        ("", False),
        (f"00-{TRACE}-{SPAN}-01-more", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE}-{SPAN}", False),
        (f"00-{TRACE}-{SPAN}-1", False),
        (f" {PARENT}", False),
        (f"{PARENT}\n", False),
        (f"{PARENT},{PARENT}", False),
        ("00-trace-01", False),
    ],
)
def test_a_traceparent_is_taken_by_its_grammar(given, kept):
    """A well-formed traceparent is continued under a new span id, and anything else is dropped."""
    child = tracing.child(given)
    assert (child is not None) is kept
    if child is not None:
        version, trace, span, flags = child.split("-")
        assert (version, trace, flags) == ("00", TRACE, given.split("-")[3])
        assert re.fullmatch("[0-9a-f]{16}", span)
        assert span not in (SPAN, "0" * 16)


@given(st.text(max_size=80))
def test_no_text_breaks_it(text):
    """Whatever text comes as a traceparent, what goes on is none or well-formed."""
    child = tracing.child(text)
    assert child is None or re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", child)


# Without OpenTelemetry: the header travels.


def told() -> str:
    """The trace that this call is part of."""
    return tracing._here.get() or "none"


class Told:
    @maas.method
    async def awaited(self) -> str:
        return told()

    @maas.method
    def items(self):
        yield told()
        yield told()


def parts(trace: str) -> tuple[str, str]:
    _, trace_id, span, _ = trace.split("-")
    return trace_id, span


def test_a_trace_goes_through_servers_and_models():
    """A caller's trace is the same in a gateway, in the server behind, and in what a model asks."""
    with maas.serve({"told": told, "object": Told()}, port=0, block=False) as inner:

        def asks() -> list[str]:
            with maas.connect(f"{inner.url}/told") as behind:
                return [told(), behind(), behind.submit().result(20)]

        with (
            maas.connect(f"{inner.url}/told") as far,
            maas.connect(f"{inner.url}/object") as thing,
            maas.serve({"far": far, "asks": asks, "thing": thing}, port=0, block=False) as gateway,
            httpx.Client(base_url=gateway.url, headers={"traceparent": PARENT}) as client,
        ):
            far_trace = client.post("/far", json=[]).json()["result"]
            own, *others = client.post("/asks", json=[]).json()["result"]
            awaited = client.post("/thing/awaited", json=[]).json()["result"]
            lines = client.post("/thing/items", json=[]).text.splitlines()
            broken = client.post("/far", json=[], headers={"traceparent": "broken"}).json()
            without = client.post("/far", json=[], headers={"traceparent": ""}).json()
    items = [json.loads(line)["item"] for line in lines[:-1]]
    assert items[0] == items[1]
    traces = [parts(trace) for trace in (far_trace, own, *others, awaited, items[0])]
    assert {trace for trace, _ in traces} == {TRACE}
    assert len({span for _, span in traces} | {SPAN}) == len(traces) + 1
    assert [broken["result"], without["result"]] == ["none", "none"]


def test_a_keyed_call_is_part_of_the_trace_that_ran_it():
    """A call that is sent twice under one key runs once, in the trace of the first."""
    with (
        maas.serve(told, port=0, block=False) as server,
        httpx.Client(base_url=server.url, headers={"idempotency-key": "k"}) as client,
    ):
        first = client.post("/told", json=[], headers={"traceparent": PARENT})
        other = f"00-{'1' * 32}-{SPAN}-01"
        second = client.post("/told", json=[], headers={"traceparent": other})
    assert parts(first.json()["result"])[0] == TRACE
    assert second.json() == first.json()


def test_a_locally_submitted_call_is_part_of_it_too():
    """Here as there: what a model submits to a model of the same process stays in its trace."""
    inner = maas.Model(told)

    def asks() -> list[str]:
        return [told(), inner(), inner.submit().result(20)]

    with (
        maas.serve(asks, port=0, block=False) as server,
        httpx.Client(base_url=server.url, headers={"traceparent": PARENT}) as client,
    ):
        found = client.post("/asks", json=[]).json()["result"]
    assert len(set(found)) == 1
    assert parts(found[0])[0] == TRACE


def test_the_header_wins_over_the_message():
    """What stands between client and server may have put a span of its own into the header."""
    server = maas.Server(told)
    between = f"00-{TRACE}-{'1' * 16}-01"
    came = []

    async def proxy(scope, receive, send):
        headers = dict(scope["headers"])
        came.append(headers.get(b"traceparent"))
        if scope["method"] == "POST":
            headers[b"traceparent"] = between.encode()
        await server(scope | {"headers": list(headers.items())}, receive, send)

    model = maas.Model.over(RemoteExecutor(InProcessTransport(proxy), "/told", "wire"), "told")
    with tracing.applied(f"00-{'2' * 32}-{SPAN}-01"):
        found = model()
    assert came == [None, f"00-{'2' * 32}-{SPAN}-01".encode()]
    assert parts(found)[0] == TRACE


# With OpenTelemetry, in a process of its own.


def run(program: str, before: str = "", after: str = "") -> list[str]:
    program = textwrap.dedent(program).replace("PARENT", repr(PARENT))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", before + program + after],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_opentelemetry_is_never_imported():
    """Serving and calling, traced by header, load nothing of OpenTelemetry."""
    out = run(
        """
        import sys, httpx, maas
        def f(a: int) -> int: return a
        with maas.serve(f, port=0, block=False) as server, maas.connect(server.url) as model:
            httpx.post(server.url + "/f", json=[1], headers={"traceparent": PARENT})
            model(1), model.submit(1).result(20)
        print([name for name in sys.modules if name.startswith("opentelemetry")])
        """
    )
    assert out == ["[]"]


PRELUDE = """
import asyncio, json
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import maas

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("program")

def show():
    provider.force_flush()
    for span in exporter.get_finished_spans():
        print(json.dumps({
            "name": span.name, "kind": span.kind.name, "trace": span.context.trace_id,
            "id": span.context.span_id, "parent": span.parent and span.parent.span_id,
            "status": span.status.status_code.name, "said": span.status.description,
            "events": len(span.events), "seconds": (span.end_time - span.start_time) / 1e9,
            **{key: span.attributes[key] for key in span.attributes},
        }))
"""


def spans(program: str) -> dict[str, list[dict]]:
    """What a program's spans were, by name, in the order they ended."""
    found: dict[str, list[dict]] = {}
    for line in run(program, PRELUDE, "show()"):
        span = json.loads(line)
        found.setdefault(span["name"], []).append(span)
    return found


def test_a_call_is_one_trace_with_the_right_parents():
    """The caller's span is the client's parent, that one the server's, and that the model's."""
    found = spans(
        """
        def double(x: int) -> int:
            with tracer.start_as_current_span("model"):
                return 2 * x

        with maas.serve(double, port=0, block=False) as server:
            with maas.connect(server.url) as model, tracer.start_as_current_span("program"):
                assert model(3) == 6
        """
    )
    [program], [client] = found["program"], found["call double"]
    [server], [model] = found["POST /double"], found["model"]
    assert {span["trace"] for spans in found.values() for span in spans} == {program["trace"]}
    assert client["parent"] == program["id"]
    assert server["parent"] == client["id"]
    assert model["parent"] == server["id"]
    assert (client["kind"], server["kind"]) == ("CLIENT", "SERVER")
    assert server["http.response.status_code"] == 200
    assert (server["maas.model"], server["maas.batch_size"]) == ("double", 1)
    assert 0 <= server["maas.compute_seconds"] <= server["seconds"] <= client["seconds"]


def test_every_way_to_call_is_traced():
    """submit, await, map, streams and a gateway: each is a hop, with its caller as the parent."""
    found = spans(
        """
        class Words:
            @maas.method
            def split(self, text: str):
                for word in text.split():
                    with tracer.start_as_current_span("item"):
                        yield word
            @maas.method
            async def later(self, n: int) -> int:
                with tracer.start_as_current_span("later"):
                    await asyncio.sleep(0)
                    return n

        async def awaited(model):
            with tracer.start_as_current_span("async"):
                assert await model.later.submit(4) == 4
                assert [w async for w in model.split.stream("a b")] == ["a", "b"]

        with maas.serve({"words": Words()}, port=0, block=False) as inner:
            with (
                maas.connect(inner.url) as far,
                maas.serve({"far": far}, port=0, block=False) as outer,
                maas.connect(outer.url) as model,
            ):
                with tracer.start_as_current_span("submit"):
                    job = model.later.submit(3)
                assert job.result(20) == 3
                asyncio.run(awaited(model))
        """
    )
    everything = [span for spans in found.values() for span in spans]
    by_id = {span["id"]: span for span in everything}

    def line(span):
        names = []
        while span is not None:
            names.append(span["name"])
            span = by_id.get(span["parent"])
        return names

    hops = ["POST /words/{}", "call words.{}", "POST /far/{}", "call far.{}"]
    later = [name.format("later") for name in hops]
    split = [name.format("split") for name in hops]
    assert [line(span) for span in found["later"]] == [
        ["later", *later, "submit"],
        ["later", *later, "async"],
    ]
    assert [line(span) for span in found["item"]] == [["item", *split, "async"]] * 2
    assert {span["status"] for span in everything} == {"UNSET"}


def test_failures_are_marked_without_their_words():
    """A failing call's spans say which error, on both sides, and never what it said."""
    found = spans(
        """
        def refuse(secret: str) -> str:
            raise ValueError(secret)

        class Words:
            @maas.method
            def split(self, text: str):
                yield "a"
                raise ValueError(text)

        with maas.serve({"refuse": refuse, "words": Words()}, port=0, block=False) as server:
            with maas.connect(server.url + "/refuse") as model:
                for way in (model, lambda x: model.submit(x).result(20)):
                    try: way("hunter2")
                    except ValueError: pass
            with maas.connect(server.url + "/words") as model:
                try: list(model.split.stream("hunter2"))
                except ValueError: pass
        """
    )
    everything = [span for spans in found.values() for span in spans]
    assert len(everything) == 6
    assert {span["status"] for span in everything} == {"ERROR"}
    assert {span["error.type"] for span in everything} == {"ValueError", "model"}
    assert "hunter2" not in json.dumps(everything)
    assert {(span["said"], span["events"]) for span in everything} == {(None, 0)}


def test_without_a_recorder_the_header_still_travels():
    """Where only OpenTelemetry's API is loaded, a trace that came by header goes on."""
    out = run(
        """
        import httpx, maas
        from opentelemetry import trace
        from maas import tracing
        def told() -> str: return tracing._here.get()
        with maas.serve(told, port=0, block=False) as inner, maas.connect(inner.url) as far:
            with maas.serve({"far": far}, port=0, block=False) as outer:
                for headers in ({"traceparent": PARENT}, {}):
                    reply = httpx.post(outer.url + "/far", json=[], headers=headers)
                    print(reply.json()["result"])
        """
    )
    assert parts(out[0])[0] == TRACE
    assert parts(out[0])[1] != SPAN
    assert out[1] == "None"
