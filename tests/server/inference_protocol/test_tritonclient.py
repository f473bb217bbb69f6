"""A client that others wrote, sync and asynchronous, against our server."""

import asyncio
import itertools
import threading

import ml_dtypes
import numpy as np
import pytest
import torch
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.datasets import load_digits
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

import maas
from maas.limits import Limits
from maas.tensors import dtype_name

PATIENT = 20.0


class BigModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        widths = [1000, 500, 250, 100, 1]
        layers = []
        for before, after in itertools.pairwise(widths):
            layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
        self.layers = torch.nn.Sequential(*layers[:-1])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs)


def same(x):
    return x


def shout(texts: list[str]) -> list[str]:
    return [text.upper() for text in texts]


def tokens(text: str, *, lower: bool = True) -> list[int]:
    return [ord(letter) for letter in (text.lower() if lower else text)]


def reverse(data: bytes) -> bytes:
    return data[::-1]


def parts(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    return {"sum": a + b, "difference": a - b}


def fails(x) -> None:
    raise RuntimeError("the model's own words")


class Agent:
    @maas.method
    def move(self, state: np.ndarray, n: int) -> tuple[np.ndarray, int]:
        return state + n, n + 1


def seeded(make):
    torch.manual_seed(0)
    return make().eval()


@pytest.fixture(scope="module")
def models():
    digits = seeded(lambda: torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 10)))
    return {
        "big": maas.Model(seeded(BigModel), name="big"),
        "digits": maas.Model(digits, name="digits", example=(torch.zeros(2, 64),)),
        "identity": torch.nn.Identity().eval(),
        "same": same,
        "shout": shout,
        "tokens": tokens,
        "reverse": reverse,
        "parts": parts,
        "fails": fails,
        "agent": Agent(),
    }


@pytest.fixture(scope="module")
def server(models):
    with maas.serve(models, port=0, block=False) as server:
        yield server


@pytest.fixture(scope="module")
def host(server):
    return server.url.removeprefix("http://")


WAYS = ["sync", "greenlet", "aio"]


def inputs_of(given, *, binary=True, aio=False):
    module = triton_aio if aio else triton
    made = []
    for name, array in given.items():
        # One that is not C-contiguous is flattened by the client itself.
        each = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        made.append(each.set_data_from_numpy(array, binary_data=binary))
    return made


def infer(host, way, model, given, *, binary=True, outputs=None, **options):
    """The answer by one of the client's ways."""
    made = inputs_of(given, binary=binary, aio=way == "aio")
    if outputs is not None:
        module = triton_aio if way == "aio" else triton
        outputs = [
            module.InferRequestedOutput(name, binary_data=as_binary)
            for name, as_binary in outputs.items()
        ]
    if way == "aio":
        return asyncio.run(_infer_aio(host, model, made, outputs=outputs, **options))
    with triton.InferenceServerClient(host) as client:
        if way == "sync":
            return client.infer(model, made, outputs=outputs, **options)
        return client.async_infer(model, made, outputs=outputs, **options).get_result()


async def _infer_aio(host, model, made, **options):
    async with triton_aio.InferenceServerClient(host) as client:
        return await client.infer(model, made, **options)


def refused(host, way, model, given, **options):
    with pytest.raises(InferenceServerException) as caught:
        infer(host, way, model, given, **options)
    return caught.value.status(), caught.value.message()


# Health and metadata.


def test_sync_client_finds_its_way(host):
    """Health, readiness and metadata are what the client wants to read."""
    with triton.InferenceServerClient(host) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        assert client.is_model_ready("digits", "1")
        assert not client.is_model_ready("digits", "2")
        assert not client.is_model_ready("nothing")
        assert client.is_model_ready("agent.move")
        assert not client.is_model_ready("agent.nothing")
        assert not client.is_model_ready("agent")
        about = client.get_server_metadata()
        assert about["name"] == "maas"
        assert "binary_tensor_data" in about["extensions"]
        assert client.get_model_metadata("digits") == {
            "name": "digits",
            "versions": ["1"],
            "platform": "maas_torch",
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 64]}],
            "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 10]}],
        }
        assert client.get_model_metadata("digits", "1")["name"] == "digits"


def test_asynchronous_client_finds_its_way(host):
    """The asynchronous client reads the same."""

    async def ask():
        async with triton_aio.InferenceServerClient(host) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("big")
            assert not await client.is_model_ready("nothing")
            return await client.get_model_metadata("tokens")

    found = asyncio.run(ask())
    assert found["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [1]}]


# Models.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_big_model(server, host, way, binary, coding):
    """A torch module gives the bits that our own client is given, compressed or not."""
    x = np.random.default_rng(0).standard_normal((3, 1000), np.float32)
    found = infer(
        host,
        way,
        "big",
        {"inputs": x},
        binary=binary,
        outputs=None if binary else {"output": False},
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    with maas.connect(f"{server.url}/big") as model:
        assert found.as_numpy("output").tobytes() == model(x).tobytes()
    assert found.as_numpy("output").shape == (3, 1)


@pytest.mark.parametrize("way", WAYS)
def test_digits(host, models, way):
    """Every handwritten digit gets the class here that it gets at home."""
    images = load_digits().data.astype(np.float32)
    found = infer(host, way, "digits", {"input": images}, model_version="1", request_id="n°1")
    assert np.array_equal(found.as_numpy("output"), models["digits"](images))
    told = found.get_response()
    assert (told["model_name"], told["model_version"], told["id"]) == ("digits", "1", "n°1")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["same", "identity"])
@pytest.mark.parametrize(
    "dtype",
    ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ml_dtypes.bfloat16],
    ids=str,
)
def test_each_datatype(host, way, model, dtype):
    """Each datatype of the client's comes back as it was sent."""
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    found = infer(host, way, model, {"x" if model == "same" else "input": x}).as_numpy("output")
    assert (found.dtype, found.shape, found.tobytes()) == (x.dtype, x.shape, x.tobytes())


@pytest.mark.parametrize("way", WAYS)
def test_bytes(host, way):
    """Strings and bytes go both ways, in JSON where they are text."""
    texts = np.array(["ab", "", "größe"], dtype=object)
    wanted = [b"AB", b"", "GRÖSSE".encode()]
    found = infer(host, way, "shout", {"texts": texts})
    assert found.as_numpy("output").tolist() == wanted
    found = infer(host, way, "shout", {"texts": texts}, binary=False, outputs={"output": False})
    assert found.as_numpy("output").tolist() == [text.decode() for text in wanted]
    data = np.array([b"\x00\xff\x01"], dtype=object)
    assert infer(host, way, "reverse", {"data": data}).as_numpy("output")[0] == b"\x01\xff\x00"


@pytest.mark.parametrize("way", WAYS)
def test_parameters_are_arguments(host, way):
    """A custom parameter of the request goes to the model's parameter of that name."""
    text = np.array(["Ab"], dtype=object)
    found = infer(host, way, "tokens", {"text": text}, parameters={"lower": False})
    assert found.as_numpy("output").tolist() == [65, 98]


@pytest.mark.parametrize("way", WAYS)
def test_outputs_are_chosen(host, way):
    """The outputs asked for come in the order asked for, each as binary or as JSON."""
    given = {"a": np.ones(2), "b": np.arange(2.0)}
    found = infer(host, way, "parts", given, outputs={"difference": False, "sum": True})
    assert [each["name"] for each in found.get_response()["outputs"]] == ["difference", "sum"]
    assert found.get_output("difference")["data"] == [1.0, 0.0]
    assert found.as_numpy("sum").tolist() == [1.0, 2.0]
    assert found.as_numpy("nothing") is None


@pytest.mark.parametrize("way", WAYS)
def test_methods_have_dotted_names(host, way):
    """A method of an object is the model `agent.move`."""
    found = infer(host, way, "agent.move", {"state": np.zeros(2), "n": np.array([3])})
    assert found.as_numpy("output_0").tolist() == [3.0, 3.0]
    assert found.as_numpy("output_1").tolist() == [4]
    assert found.get_response()["model_name"] == "agent.move"


def test_many_at_once(host):
    """Each of many concurrent asynchronous calls gets its own answer."""

    async def ask():
        async with triton_aio.InferenceServerClient(host, conn_limit=16) as client:
            calls = [
                client.infer("same", inputs_of({"x": np.full(5, n)}, aio=True)) for n in range(64)
            ]
            return [found.as_numpy("output")[0] for found in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == list(range(64))


# Any tensor.

DTYPES = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


@st.composite
def arrays(draw):
    """An array of any dtype with a datatype and of any bits, NaN payloads among them."""
    dtype = np.dtype(draw(st.sampled_from([*DTYPES, ml_dtypes.bfloat16])))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    size = int(np.prod(shape)) * dtype.itemsize
    bits = draw(st.binary(min_size=size, max_size=size))
    if dtype.kind == "b":
        bits = bytes(byte & 1 for byte in bits)
    return np.frombuffer(bits, dtype).reshape(shape)


def bits(array):
    return dtype_name(array), array.shape, array.tobytes()


@given(arrays(), st.sampled_from(["same", "identity"]))
def test_any_tensor_as_binary_data(server, host, x, model):
    """Any tensor of a datatype gives, as binary data, the bits that our own client is given."""
    found = infer(host, "sync", model, {"x" if model == "same" else "input": x})
    with maas.connect(f"{server.url}/{model}") as ours:
        assert bits(found.as_numpy("output")) == bits(ours(x))


@given(arrays().filter(lambda x: x.dtype != ml_dtypes.bfloat16))
def test_any_tensor_as_json(server, host, x):
    """Any tensor that JSON can say gives the bits that our own client is given; NaN has no bits."""
    if x.dtype.kind == "f":
        x = np.where(np.isnan(x), x.dtype.type(np.nan), x)
    found = infer(host, "sync", "same", {"x": x}, binary=False, outputs={"output": False})
    with maas.connect(f"{server.url}/same") as ours:
        assert bits(found.as_numpy("output")) == bits(ours(x))


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=9))
def test_any_strings(host, strings):
    """Any strings come back as they were, in any shape."""
    x = np.empty((1, len(strings)), object)
    x[0] = strings
    found = infer(host, "sync", "same", {"x": x}).as_numpy("output")
    assert found.shape == x.shape
    assert found.tolist() == x.tolist()


# Errors.

NUMBERS = np.zeros((1, 64), np.float32)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("model", "given_", "status", "words"),
    [
        ("nothing", {"input": NUMBERS}, "404", "no model 'nothing'"),
        ("agent", {"input": NUMBERS}, "404", "it has: move"),
        ("digits", {"x": NUMBERS}, "422", "no input 'x'; it takes: input"),
        ("digits", {}, "422", "missing"),
        ("digits", {"input": NUMBERS[:, 1:]}, "422", "wants float32[batch, 64]"),
        ("digits", {"input": NUMBERS.astype("f8")}, "422", "got float64"),
        ("digits", {"input": np.array([["a"] * 64], object)}, "400", "BYTES"),
        ("tokens", {"text": np.array([5])}, "422", "wants str"),
        ("tokens", {"text": np.array([b"\xff"], object)}, "400", "UTF-8"),
        ("shout", {"texts": np.array([["a"]], object)}, "422", "wants str"),
        ("fails", {"x": NUMBERS}, "500", "RuntimeError: the model's own words"),
        ("big", {"inputs": NUMBERS}, "500", "cannot be multiplied"),
    ],
)
def test_errors(host, way, model, given_, status, words):
    """Each error reaches the client with its status and its words."""
    found = refused(host, way, model, given_)
    assert found[0] == status
    assert words in found[1]


@pytest.mark.parametrize("way", WAYS)
def test_errors_of_what_is_not_there(host, way):
    """Versions, outputs and features that are not here are refused by name."""
    x = {"x": np.zeros(1)}
    status, words = refused(host, way, "same", x, model_version="2")
    assert (status, "no version '2'" in words) == ("404", True)
    status, words = refused(host, way, "same", x, outputs={"nothing": True})
    assert (status, "it has: output" in words) == ("400", True)
    status, words = refused(host, way, "same", x, sequence_id=7)
    assert (status, "sequences" in words) == ("501", True)
    status, words = refused(host, way, "same", x, parameters={"lowre": 1})
    assert (status, "no parameter 'lowre'" in words) == ("422", True)


@pytest.mark.parametrize("way", WAYS)
def test_keys(models, way):
    """A key opens the door, a wrong one is refused in words, and the grants hold."""
    with maas.serve(models, port=0, block=False, auth="secret", allow={"describe"}) as server:
        host = server.url.removeprefix("http://")
        x = {"x": np.zeros(1)}
        assert refused(host, way, "same", x)[0] == "401"
        assert refused(host, way, "same", x, headers={"Authorization": "Bearer no"})[0] == "401"
        status, words = refused(host, way, "same", x, headers={"Authorization": "Bearer secret"})
        assert (status, "'call'" in words) == ("403", True)
        with triton.InferenceServerClient(host) as client:
            assert client.is_server_live()
            about = client.get_model_metadata("same", headers={"Authorization": "Bearer secret"})
            assert about["name"] == "same"


@pytest.mark.parametrize("way", WAYS)
def test_limits(way):
    """A body beyond the limit is refused in words, however it is compressed."""
    with maas.serve({"same": same}, port=0, block=False, limits=Limits(body=4096)) as server:
        host = server.url.removeprefix("http://")
        x = {"x": np.zeros(4096)}
        status, words = refused(host, way, "same", x)
        assert (status, "4096 bytes" in words) == ("413", True)
        status, words = refused(host, way, "same", x, request_compression_algorithm="gzip")
        assert (status, "opens to more than 4096 bytes" in words) == ("413", True)


@pytest.mark.parametrize("way", WAYS)
def test_timeout_in_microseconds(way):
    """The client's `timeout` is the call's whole time, in microseconds."""
    let_go = threading.Event()

    def wait(x):
        let_go.wait(PATIENT)
        return x

    with maas.serve({"wait": wait}, port=0, block=False) as server:
        host = server.url.removeprefix("http://")
        try:
            status, words = refused(host, way, "wait", {"x": np.zeros(1)}, timeout=200_000)
        finally:
            let_go.set()
        assert (status, "in time" in words) == ("504", True)


def test_server_that_stops_says_so():
    """While a server drains it is live and not ready; who has not heard is answered."""
    server = maas.Server({"same": same})
    with maas.serve(server, port=0, block=False) as running:
        host = running.url.removeprefix("http://")
        server.handler.draining()
        with triton.InferenceServerClient(host) as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
            assert not client.is_model_ready("same")
        answer = infer(host, "sync", "same", {"x": np.zeros(1)})
        assert answer.get_response()["model_name"] == "same"
