"""The Open Inference Protocol's own ways to lie: sizes, shapes, nesting, names, and bombs.

What is asked goes to the handler without a socket, under a meter: each attack ends in a JSON error
with the caller's status, within the memory that the limits allow, and the next call is answered.
"""

import asyncio
import gzip
import json
import logging
import struct
import threading
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import maas
from maas.http import Response
from maas.limits import Limits
from maas.server.front import Admission, Head
from maas.server.handler import Handler

SLACK = 2**20
PATH = "/v2/models/same/infer"


def same(x):
    return x


def listed(x: list[int]) -> int:
    return len(x)


def texts(x: list[str]) -> int:
    return len(x)


def handler_of(**limits):
    models = {
        "same": maas.Model(same, name="same"),
        "listed": maas.Model(listed, name="listed"),
        "texts": maas.Model(texts, name="texts"),
        "net": maas.Model(torch.nn.Identity().eval(), name="net"),
    }
    return Handler(models, limits=Limits(**limits))


def ask(handler, body, headers=(), path=PATH, method="POST"):
    """Status and JSON of the answer."""
    head = Head(method, path, "", (("host", "a"), *headers), secure=False, loopback=True)
    found = handler.admit(head)
    if isinstance(found, Admission):
        assert len(body) <= found.body_cap
        found = asyncio.run(handler.answer(found, bytearray(body)))
    assert isinstance(found, Response)
    sent = b"".join(bytes(part) for part in found.body)
    length = dict(found.headers).get("inference-header-content-length", len(sent))
    return found.status, json.loads(sent[: int(length)]), dict(found.headers)


def healthy(handler):
    fine = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.5]}]}
    status, data, _ = ask(handler, json.dumps(fine).encode())
    assert (status, data["outputs"][0]["data"]) == (200, [1.5])


def metered(handler, body, headers=(), path=PATH, allowed=None):
    """The refusal, within the memory allowed: twice the limits and what came."""
    healthy(handler)  # what is loaded at the first call is not the attack's
    body = bytearray(body)
    tracemalloc.start()
    try:
        status, data, sent = ask(handler, body, headers, path)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    allowed = allowed or 2 * (handler.limits.memory + len(body)) + SLACK
    assert peak <= allowed, f"{peak} bytes at the peak, {allowed} allowed"
    assert type(data["error"]) is str or status == 200
    if status != 200:
        assert 400 <= status < 500, (status, data)
        assert sent["content-type"] == "application/json"
    healthy(handler)
    return status, data.get("error", "")


def refused(handler, body, *args, match="", **options):
    status, error = metered(handler, body, *args, **options)
    assert status != 200
    assert match in error, error
    return status


def request(*inputs, **members):
    return json.dumps({"inputs": list(inputs), **members}).encode()


def x(shape=(1,), datatype="FP32", **members):
    return {"name": "x", "shape": list(shape), "datatype": datatype, **members}


def binary(data, shape=(6,), datatype="FP32", size=None, **members):
    """A request with one input whose bytes follow, and its header field."""
    size = len(data) if size is None else size
    text = request(x(shape, datatype, parameters={"binary_data_size": size}), **members)
    return text + data, [("inference-header-content-length", str(len(text)))]


# Sizes that lie.


@pytest.mark.parametrize(
    "size", [0, 1, 23, 25, 2**31, 2**63, 2**64, 10**4000, -1, 1.5, True, "24", [24], {}]
)
def test_binary_data_sizes(size):
    """A size that is not exactly that of the input's bytes is refused, whatever it is."""
    body, headers = binary(bytes(24), size=size)
    refused(handler_of(), body, headers)


@pytest.mark.parametrize("length", ["0", "1", "40", "999999", "999999999999999"])
def test_header_lengths_that_lie(length):
    """A length of the JSON that is not where it ends is refused."""
    body, _ = binary(bytes(24))
    refused(handler_of(), body, [("inference-header-content-length", length)])


@pytest.mark.parametrize(
    "length", ["", "-1", "+1", "1.0", "0x10", "1e3", " 7", "٣", "9" * 16, "1, 1", "NaN"]
)
def test_header_lengths_that_are_no_number(length):
    """A length that is no plain number of bytes is refused before the body is read."""
    field = ("inference-header-content-length", length)
    status, data, _ = ask(handler_of(), b"", [field])
    assert status == 400
    assert "number of bytes" in data["error"]


def test_two_header_lengths():
    """Of two lengths each reader would choose another."""
    field = ("inference-header-content-length", "2")
    assert ask(handler_of(), b"", [field, field])[0] == 400


def test_bytes_of_nobody():
    """Bytes that no input claims are smuggled ones; bytes claimed twice are two names for one."""
    body, headers = binary(bytes(24))
    refused(handler_of(), body + b"x", headers, match="follow the JSON")
    size = {"binary_data_size": 24}
    text = request(x([6], parameters=size), x([6], parameters=size) | {"name": "y"})
    headers = [("inference-header-content-length", str(len(text)))]
    refused(handler_of(), text + bytes(24), headers, match="0 bytes are left")


def test_both_kinds_of_data():
    """An input with data in JSON and in binary would be two values."""
    text = request(x([1], data=[1], parameters={"binary_data_size": 4}))
    headers = [("inference-header-content-length", str(len(text)))]
    refused(handler_of(), text + bytes(4), headers, match="both")


# Shapes.


@pytest.mark.parametrize(
    "shape",
    [
        [5], [7], [2, 4], [2**32, 2**32], [2**62, 4], [2**63], [2**64 - 1], [0], [0, 2**62], [-6],
        [-2, -3], [6, -1], [6.0], [True, 6], ["6"], [None], [[6]], 6, None, "6", {}, [],
        [6] + [1] * 64, [2**63] * 64, [10**4000] * 60,
    ],
    ids=lambda shape: str(shape)[:30],
)  # fmt: skip
@pytest.mark.parametrize("model", ["same", "net", "listed"])
def test_shapes(shape, model):
    """A shape that does not give exactly the data that came is refused, in JSON and in binary."""
    path = f"/v2/models/{model}/infer"
    body, headers = binary(bytes(24), [6])
    if model == "net":
        body = body.replace(b'"x"', b'"input"')
    told = json.dumps(shape).encode()
    longer = body.replace(b"[6]", told, 1)
    headers = [("inference-header-content-length", str(len(longer) - 24))]
    refused(handler_of(), longer, headers, path)
    data = {"name": "input" if model == "net" else "x", "datatype": "INT64", "data": [0] * 6}
    refused(handler_of(), request(data | {"shape": shape}), path=path)


@pytest.mark.parametrize("model", ["listed", "texts"])
@pytest.mark.parametrize("shape", [[2**50, 0], [2**59, 0], [2**20, 0], [70_000, 0]])
def test_empty_lists_are_counted(model, shape):
    """A shape of nothing may still be a trillion empty lists."""
    datatype = "BYTES" if model == "texts" else "INT64"
    path = f"/v2/models/{model}/infer"
    assert refused(handler_of(), request(x(shape, datatype, data=[])), path=path) == 413
    body, headers = binary(b"", shape, datatype)
    assert refused(handler_of(), body, headers, path) == 413


def test_numbers_that_become_objects_are_counted():
    """Eight bytes of a tensor take forty as a member of a list."""
    body, headers = binary(bytes(8 * 70_000), [70_000], "INT64")
    status = refused(handler_of(), body, headers, "/v2/models/listed/infer", match="nodes")
    assert status == 413


# Strings.


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\1", b"\1\0\0", b"\1\0\0\0", b"\2\0\0\0a", b"\xff\xff\xff\xff", b"\0\0\0\0",
        struct.pack("<I", 2**31) + b"a", b"\1\0\0\0a" + b"\1\0\0\0b" + b"\1\0\0\0c",
        b"\1\0\0\0a" + b"\1\0\0\0b" + b"\0",
    ],
)  # fmt: skip
def test_strings_whose_lengths_lie(data):
    """Strings that are more, fewer, or longer than their bytes are refused."""
    body, headers = binary(data, [2], "BYTES")
    refused(handler_of(), body, headers, "/v2/models/texts/infer")


def test_a_million_empty_strings():
    """Strings are objects, and no more are made than the limits say."""
    body, headers = binary(bytes(4_000_000), [1_000_000], "BYTES")
    assert refused(handler_of(), body, headers, "/v2/models/texts/infer", match="nodes") == 413
    body, headers = binary(bytes(4), [2**40], "BYTES")
    assert refused(handler_of(), body, headers, "/v2/models/texts/infer", match="nodes") == 413


@pytest.mark.parametrize("data", ["ab", ["a", 1], [["a"], "b"], [{}], None, ["\ud800", "a"], 5])
def test_strings_in_json(data):
    """What is no list of text is refused."""
    body = request(x([2], "BYTES", data=data))
    refused(handler_of(), body, path="/v2/models/texts/infer")


# JSON.


@pytest.mark.parametrize("levels", [200, 1_000, 100_000, 500_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"inputs":'])
def test_depth(levels, opening):
    """Any depth is refused, and none ends the process."""
    refused(handler_of(), opening * levels)
    deep = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":'
    refused(handler_of(), deep + opening * (levels // 8))


@pytest.mark.parametrize(
    "pattern", [b"[],", b"{},", b'{"a":1},', b'"\xc4\x80",', b"9999,", b"1e1,"]
)
@pytest.mark.parametrize("header", [2**20, 2**26])
def test_small_text_is_small_in_memory(pattern, header):
    """A megabyte of JSON, or as many as the limits on bytes allow, never takes more than memory."""
    body = b'{"inputs":[' + pattern * ((4 * 2**20) // len(pattern)) + b"0]}"
    assert refused(handler_of(header=header), body) == 413
    fitting = b'{"inputs":[' + pattern * ((2**20 - 20) // len(pattern)) + b"0]}"
    refused(handler_of(header=header), fitting)


def test_too_many_inputs():
    """Inputs and outputs are counted before they are read."""
    many = [x() | {"name": f"x{index}", "data": [1]} for index in range(1_025)]
    assert refused(handler_of(), request(*many), match="tensors") == 413
    outputs = [{"name": f"y{index}"} for index in range(1_025)]
    assert refused(handler_of(), request(x(data=[1]), outputs=outputs), match="tensors") == 413


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"null", b"[]", b"1", b'"a"', b"{}", b"{", b"\xff", b"\0", b"{'inputs': []}",
        b'{"inputs": {}}', b'{"inputs": null}', b'{"inputs": [1]}', b'{"inputs": [[]]}',
        b'{"inputs": [], "inputs": []}', b'{"inputs": [], "id": 5}', b'{"inputs": [], "id": [1]}',
        b'{"inputs": [], "parameters": []}', b'{"inputs": [], "outputs": {}}',
        b'{"inputs": [], "outputs": [1]}', b'{"inputs": [], "outputs": [{}]}',
        b'{"inputs": [], "parameters": {"binary_data_output": 1}}',
        b'{"inputs": [], "parameters": {"timeout": -1}}',
        b'{"inputs": [], "parameters": {"timeout": 1.5}}',
        b'{"inputs": [], "parameters": {"timeout": true}}',
        b'{"inputs": [], "parameters": {"timeout": 1e400}}',
        b'{"inputs": [], "parameters": {"priority": "1"}}',
        b'{"inputs": [], "parameters": {"priority": 18446744073709551616}}',
        b'{"inputs": [], "parameters": {"x": [1]}}', b'{"inputs": [], "parameters": {"x": null}}',
        b'{"inputs": [], "parameters": {"x": {"$bytes": ""}}}',
        b'{"inputs": {"$tuple": []}}', b'{"inputs": {"$range": [0, 1000000000000, 1]}}',
        b'{"inputs": [' + b"1" * 5_000 + b"]}", b"\xef\xbb\xbf{}",
    ],
    ids=lambda body: body.decode("latin-1")[:40],
)  # fmt: skip
def test_bodies_that_are_no_request(body):
    """What is no request of the protocol is the caller's fault, and said so."""
    refused(handler_of(), body)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 1}, {"name": None}, {"name": []}, {"datatype": None}, {"datatype": 4},
        {"datatype": "FP33"}, {"datatype": "fp32"}, {"datatype": "float32"}, {"datatype": "STRING"},
        {"datatype": "OBJECT"}, {"datatype": "O"}, {"datatype": "FP8"}, {"datatype": ["FP32"]},
        {"datatype": "FP32\0"}, {"datatype": "__class__"}, {"parameters": 1}, {"parameters": [1]},
        {"data": None}, {"data": {}}, {"data": "1"}, {"data": ["1"]}, {"data": [None]},
        {"data": [True]}, {"data": [[1], 2]}, {"data": [{}]}, {"data": [1e39]}, {"data": [1, 2]},
        {"data": []}, {"data": [[[[1, 2]]]]},
        {"datatype": "INT8", "data": [300]}, {"datatype": "INT8", "data": [1.5]},
        {"datatype": "UINT64", "data": [-1]}, {"datatype": "BOOL", "data": [1]},
        {"datatype": "INT64", "data": [2**63]}, {"datatype": "FP16", "data": [1e6]},
        {"parameters": {"binary_data_size": 4}},
    ],
    ids=str,
)  # fmt: skip
def test_inputs_that_are_none(change):
    """An input with a field that means nothing is refused, whatever NumPy would make of it."""
    given = x(data=[1]) | change
    refused(handler_of(), request(given))


def test_shared_memory_is_not_read():
    """A region of this machine's memory is no address that a stranger may name."""
    region = {"shared_memory_region": "a", "shared_memory_byte_size": 4}
    status, data, _ = ask(handler_of(), request(x(parameters=region)))
    assert (status, "shared memory" in data["error"]) == (501, True)
    outputs = [{"name": "output", "parameters": region}]
    assert ask(handler_of(), request(x(data=[1]), outputs=outputs))[0] == 501


def test_names_that_come_twice():
    """Two inputs or outputs of one name would be two values for it."""
    refused(handler_of(), request(x(data=[1]), x(data=[2])), match="twice")
    outputs = [{"name": "output"}, {"name": "output"}]
    refused(handler_of(), request(x(data=[1]), outputs=outputs), match="twice")
    refused(handler_of(), request(x(data=[1]), parameters={"x": 1}), match="give one")
    refused(handler_of(), request(x(data=[1])).replace(b'"shape"', b'"name": "y", "shape"'))


@pytest.mark.parametrize(
    "name", ["__class__", "self", "x.y", "a" * 10_000, "\ud800", "\x1b[2J", ""]
)
def test_names_that_no_parameter_has(name):
    """A name is looked up and never used otherwise; a message shows little of it, unprintable
    characters escaped.
    """
    status, error = metered(handler_of(), request(x(data=[1]) | {"name": name}))
    assert status == 422
    assert len(error) < 300
    assert error.isprintable()


def test_booleans():
    """A bool tensor that holds other bytes than 0 and 1 is refused."""
    body, headers = binary(bytes([0, 1, 2]), [3], "BOOL")
    refused(handler_of(), body, headers, match="bool")


# Answers.


def test_an_answer_too_large_for_json():
    """A megabyte of zeros that came as binary data does not go out as text."""
    body, headers = binary(bytes(4 * 2**19), [2**19])
    status = refused(handler_of(), body, headers, match="ask for binary data")
    assert status == 413


def test_an_answer_too_large_for_the_limits():
    """An answer beyond the limit on bodies is refused before its bytes are made."""

    def large(n: int):
        return torch.zeros(n)

    handler = handler_of(body=2**20)
    handler.catalogue.add("large", maas.Model(large, name="large"), owned=False)
    given = {"name": "n", "shape": [1], "datatype": "INT64", "data": [2**20]}
    body = request(given, parameters={"binary_data_output": True})
    assert ask(handler, body, path="/v2/models/large/infer")[0] == 413
    assert ask(handler, body.replace(b"1048576", b"100"), path="/v2/models/large/infer")[0] == 200


# Compression.


def bomb(size, how=gzip.compress):
    return how(bytes(size))


@pytest.mark.parametrize(
    ("coding", "how"),
    [("gzip", gzip.compress), ("deflate", zlib.compress)],
    ids=["gzip", "deflate"],
)
def test_bombs(coding, how):
    """A kilobyte that opens to megabytes is refused at the limit, and not held."""
    handler = handler_of(body=2**20)
    for size in (2**20 + 1, 2**24, 2**27):
        body = bomb(size, how)
        status = refused(
            handler, body, [("content-encoding", coding)], allowed=8 * 2**20, match="opens to more"
        )
        assert status == 413
        assert handler.inflater.held == 0


def test_many_bombs_at_once():
    """Opened bodies are counted over all requests: more than may be are told to come back."""
    handler = handler_of(body=2**20)
    admitted = threading.Event()
    let_go = threading.Event()

    def hold(x):
        admitted.set()
        assert let_go.wait(20)
        return x

    handler.catalogue.add("hold", maas.Model(hold, name="hold"), owned=False)
    size = 900_000
    text = request(
        x([size], "UINT8", parameters={"binary_data_size": size}), outputs=[{"name": "nothing"}]
    )
    body = gzip.compress(text + bytes(size))
    headers = (
        ("host", "a"),
        ("content-encoding", "gzip"),
        ("inference-header-content-length", str(len(text))),
    )
    head = Head("POST", "/v2/models/hold/infer", "", headers, secure=False, loopback=True)

    async def flood():
        first = [
            asyncio.ensure_future(handler.answer(handler.admit(head), bytearray(body)))
            for _ in range(12)
        ]
        done, _ = await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 8:
            done, _ = await asyncio.wait(first, timeout=0.01)
            assert handler.inflater.held <= 4 * 2**20
        let_go.set()
        return [(await each).status for each in first]

    statuses = asyncio.run(flood())
    assert statuses.count(429) == 8
    assert handler.inflater.held == 0
    healthy(handler)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\x1f\x8b", b"plain text", gzip.compress(b"{}")[:-9], gzip.compress(b"{}")[:-1],
        gzip.compress(b"{}") + b"x", gzip.compress(b"{}") * 2, zlib.compress(b"{}"),
        gzip.compress(b"{}")[:-8] + bytes(8), gzip.compress(gzip.compress(b"{}")),
    ],
    ids=range(10),
)  # fmt: skip
def test_compressed_bodies_that_are_none(body):
    """A body that is not exactly one whole gzip is refused."""
    assert refused(handler_of(), body, [("content-encoding", "gzip")]) == 400


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "gzip;q=1", "x", "compress", "*"])
def test_other_codings(coding):
    """A coding that is not opened is refused by its name, with those that are, unread."""
    status, data, headers = ask(handler_of(), b"", [("content-encoding", coding)])
    assert status == 415
    assert coding in data["error"]
    assert headers["accept-encoding"] == "gzip, deflate"


def test_codings_that_come_twice():
    """Of two fields each reader would choose another."""
    field = ("content-encoding", "gzip")
    assert ask(handler_of(), b"", [field, field])[0] == 400


# Other sites.


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://a.evil.example", "https://a:1", "", "a"]
)
def test_pages_of_other_sites_cannot_call(origin):
    """A browser sends this POST without asking, and with its origin: only our own passes."""
    status, data, _ = ask(handler_of(), request(x(data=[1])), [("origin", origin)])
    assert (status, "may not call" in data["error"]) == (403, True)
    ours = ("origin", "http://a")
    assert ask(handler_of(), request(x(data=[1])), [ours])[0] == 200
    assert ask(handler_of(), request(x(data=[1])), [ours, ("origin", origin)])[0] == 400


# Paths.


@pytest.mark.parametrize(
    "path",
    [
        "/v2x", "/v2//", "/v2/models//infer", "/v2/models/same/infer/infer", "/v2/Models",
        "/v2/models/same/versions", "/v2/models/same/versions//infer", "/v2/models/../healthz",
        "/v2/models/s%61me/infer", "/v2/models/SAME/infer", "/v2/models/same%00/infer",
        "/v2/models/same..x/infer", "/v2/models/.same/infer", "/v2/models/same./infer",
        "/v2/health", "/v2/health/x", "/v2/repository/index", "/v2/models/same;x/infer",
        "/v2/models/" + "a" * 8_000 + "/infer", "/v2/models/same/versions/../infer",
    ],
    ids=lambda path: path[:40],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_odd_paths(path, method):
    """A path that is not exactly one of the protocol's is refused in JSON, and never repaired."""
    status, data, headers = ask(handler_of(), b"", path=path, method=method)
    assert status in (400, 404, 501), data
    if path.startswith("/v2/"):
        assert status == 404
        assert type(data["error"]) is str
        assert headers["content-type"] == "application/json"


def test_a_fault_of_the_server_tells_nothing(caplog):
    """An error that nobody foresaw is told to the log, and to callers only that it was."""
    handler = handler_of()

    class Broken:
        where, name = "here", "broken"

        def describe(self, context=None):
            raise KeyError("/secret/path")

    handler.catalogue.find("same").executor = Broken()
    with caplog.at_level(logging.CRITICAL + 1):
        for path, method in [(PATH, "POST"), ("/v2/models/same", "GET"), ("/v2/models", "GET")]:
            body = request(x(data=[1])) if method == "POST" else b""
            status, data, _ = ask(handler, body, path=path, method=method)
            assert (status, "secret" in json.dumps(data)) == (500, False)


def test_numpy_is_the_oracle():
    """What is accepted is read as NumPy reads it: each datatype, little-endian, row by row."""
    for datatype, dtype in [("INT16", "<i2"), ("FP64", "<f8"), ("UINT64", "<u8"), ("FP16", "<f2")]:
        array = np.arange(6, dtype=dtype).reshape(2, 3)
        body, headers = binary(array.tobytes(), [2, 3], datatype)
        _, data, _ = ask(handler_of(), body, headers)
        assert data["outputs"][0]["data"] == array.reshape(-1).tolist()


# Mutations.

MODELS = ["same", "net", "listed", "texts"]


@settings(max_examples=200)
@given(st.data())
def test_mutations(data):
    """A request with bytes changed, cut or put in gives an answer or the caller's error."""
    model = data.draw(st.sampled_from(MODELS))
    datatype = "BYTES" if model == "texts" else "INT64"
    content = b"\1\0\0\0a" * 3 if model == "texts" else bytes(24)
    if data.draw(st.booleans()):
        body, headers = binary(content, [3], datatype, parameters={"binary_data_output": True})
    else:
        body, headers = request(x([3], datatype, data=["a"] * 3)), []
    body = bytearray(body.replace(b'"x"', b'"input"') if model == "net" else body)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, max(0, len(body) - 1)))
        piece = data.draw(st.sampled_from(PIECES) | st.binary(max_size=3))
        body[place : place + data.draw(st.integers(0, 9))] = piece
    status, answer, _ = ask(HANDLER, body, headers, f"/v2/models/{model}/infer")
    assert status == 200 or (400 <= status < 500 and type(answer["error"]) is str) or status == 501


PIECES = [b"[", b"]", b"{", b"}", b'"', b",", b"9" * 20, b"-1", b"null", b"1e9", b"[]", b"\0"]
PIECES += [b'"FP32"', b'"BOOL"', b'"BYTES"', b'"BF16"', b'"data"', b'"outputs"', b'"parameters"']
HANDLER = handler_of()
