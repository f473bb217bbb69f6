import base64
import datetime as dt
import decimal
import enum
import json
import math
import uuid
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maas
from maas.backends.base import Method
from maas.errors import CodecError, LimitExceeded
from maas.limits import Limits
from maas.parameters import Parameter
from maas.schema import TensorSpec
from maas.server import json_answers, json_form
from maas.signature import Signature


def method_of(*parameters: Parameter) -> Method:
    return Method(name="__call__", label="f", signature=Signature(parameters))


def of(function: Callable) -> Method:
    return Method(name="__call__", label="f", signature=Signature.from_callable(function))


def read(body: str | bytes, method: Method, kind: str = "function", **limits: int):
    given_bytes = body.encode() if isinstance(body, str) else body
    return json_form.arguments(given_bytes, method, kind, Limits(**limits))


def one(data: object, hint: object) -> Any:
    """What a parameter of that type is given."""
    args, _ = read(json.dumps([data]), method_of(Parameter("x", annotation=hint)))
    return args[0]


def untyped(data: object) -> Any:
    """What the untyped parameter of a torch module is given."""
    args, _ = read(json.dumps([data]), method_of(Parameter("x")), "torch")
    return args[0]


FREE = method_of(Parameter("args", "*", required=False), Parameter("options", "**", required=False))


# Arguments.


def test_object_names_arguments():
    """A JSON object is keyword arguments."""
    assert read('{"text": "hello", "lower": false}', FREE) == (
        (),
        {"text": "hello", "lower": False},
    )


def test_array_orders_arguments():
    """A JSON array is positional arguments."""
    assert read('["hello", 3, null]', FREE) == (("hello", 3, None), {})


@pytest.mark.parametrize("body", ["{}", "[]"])
def test_no_arguments(body):
    """An empty object and an empty array call without arguments."""
    assert read(body, FREE) == ((), {})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("5", "got 5"),
        ('"hello"', "a string"),
        ("null", "null"),
        ('{"$bytes": ""}', "arguments by name"),
        ("{'x': 1}", "no JSON"),
        ('{"x": 1', "no JSON"),
        ("[1,]", "no JSON"),
        (b"[\xff]", "UTF-8"),
        ("[" + "1" * 5_000 + "]", "no JSON"),
        ('{"x": 1, "x": 2}', "same key twice"),
        ('{"x": {"$nope": 1}}', "unknown tag"),
        ('{"x": {"$bytes": "?"}}', "base64"),
        ('{"x": {"$array": [[1]]}}', "dtype"),
        ('{"x": {"$array": ["int8", [300]]}}', "int8 cannot hold"),
    ],
)
def test_refusals_teach(body, words):
    """What is no call is refused as a CodecError whose message says what came."""
    with pytest.raises(CodecError, match=words):
        read(body, FREE)


def test_too_many_in_order():
    """An array with more items than there are parameters is told how a list is wrapped."""
    with pytest.raises(CodecError, match=r"holds 2 arguments.*takes 1.*\(x\).*\[\[1, 2, 3\]\]"):
        read("[[1, 2], [3, 4]]", method_of(Parameter("x", annotation=torch.Tensor)))


def test_body_is_bounded():
    """A body above the header limit is refused before it is parsed."""
    with pytest.raises(LimitExceeded, match="at most 64 are read"):
        read("[" * 65, FREE, header=64)


@pytest.mark.parametrize("opening", ["[", '{"a":', '["]]]",'])
def test_depth_is_bounded(opening):
    """Nesting beyond the limit is refused, and brackets in strings do not count."""
    with pytest.raises(LimitExceeded, match="deeper than 128"):
        read(opening * 100_000, FREE)
    text = '"' + "[" * 1_000 + '\\""'
    assert read(f"[{text}]", FREE) == ((json.loads(text),), {})


@pytest.mark.parametrize(
    "body", ['["' + '\\"' * 500_000, '["' + '"\\' * 500_000, '"' * 1_000_000], ids=range(3)
)
def test_unfinished_strings_are_read_once(body):
    """A string without an end costs one pass, whatever it holds."""
    with pytest.raises(CodecError, match="no JSON"):
        read("[" * 129 + body, FREE, depth=200)


def test_deep_lists_are_walked_once():
    """Lists inside each other in an untyped argument of a torch module cost one pass."""
    body = "[" * 120 + ",".join(["1"] * 300_000) + ',"a"' + "]" * 120
    args, _ = read(body, FREE, "torch")
    assert type(args[0]) is list


@given(
    st.binary(max_size=200) | st.text(alphabet='[]{}",:\\$1aN-.e \n', max_size=200).map(str.encode)
)
def test_any_bytes_give_a_call_or_a_codec_error(body):
    """Whatever bytes come, the answer is a call or a CodecError."""
    try:
        args, kwargs = read(body, FREE, "torch")
    except CodecError:
        return
    assert type(args) is tuple
    assert type(kwargs) is dict


# What the signature fills in.


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint64"])
def test_tensor_has_its_dtype(dtype):
    """Nested lists become an array of the dtype that the signature names."""
    made = one([[0, 1, 2], [3, 4, 5]], TensorSpec(dtype, ("n", 3)))
    assert made.dtype == dtype
    assert made.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("data", [[], [[], []], [[[]]], [[[1.5]]], 7])
def test_tensor_has_its_shape(data):
    """The shape is that NumPy sees, of empty and of bare numbers as well."""
    made = one(data, torch.Tensor)
    assert made.shape == np.array(data).shape
    assert made.dtype == np.float32


def test_tensor_of_bfloat16():
    """A dtype that only ml_dtypes adds to NumPy is made where that is installed."""
    pytest.importorskip("ml_dtypes")
    assert one([1, 2.5], TensorSpec("bfloat16", (2,))).dtype.name == "bfloat16"


def test_tensor_of_no_numpy_dtype():
    """A dtype that NumPy does not have is refused with the way around."""
    with pytest.raises(CodecError, match=r"float4.*maas\.connect"):
        one([1], TensorSpec("float4_e2m1fn_x2", (1,)))


@pytest.mark.parametrize(
    ("data", "dtype", "words"),
    [
        ([1, 2.5], "int64", r"x wants int64; x\[1\] is 2.5"),
        ([[1, 2], [3, True]], "float32", r"x\[1\]\[1\] is true or false"),
        ([1, 0], "bool", r"x\[0\] is 1"),
        ([[1, 2], [3]], "float32", r"x\[0\] has 2 items, and x\[1\] is a list of 1"),
        ([[1, 2], 3], "float32", r"x\[1\] is 3"),
        ([1, [2]], "float32", r"x\[1\] is a list of 1"),
        ([1, None], "float32", r"x\[1\] is null"),
        (["a"], "float32", r"x\[0\] is a string"),
        ("hello", "float32", "x is a string"),
        ([300], "uint8", "uint8 cannot hold"),
        ([1e300], "float32", "float32 cannot hold"),
        ([10**400], "float64", "float64 cannot hold"),
    ],
)
def test_tensor_refuses(data, dtype, words):
    """A number that the dtype cannot hold is refused with its place, never rounded to it."""
    with pytest.raises(CodecError, match=words):
        one(data, TensorSpec(dtype, (None,)))


def test_tensor_of_too_many_dimensions():
    """More dimensions than arrays have are refused, not passed to NumPy."""
    with pytest.raises(CodecError, match="more than 64 dimensions"):
        read("[" * 80 + "1" + "]" * 80, method_of(Parameter("x", annotation=torch.Tensor)))


@pytest.mark.parametrize("text", ["[NaN, Infinity, -Infinity]", '["NaN", "Infinity", "-Infinity"]'])
def test_nan_is_read_in_both_spellings(text):
    """NaN and the infinities are read as Python's json writes them and as protobuf's does."""
    args, _ = read(f"[{text}]", method_of(Parameter("x", annotation=torch.Tensor)))
    np.testing.assert_array_equal(args[0], np.array([math.nan, math.inf, -math.inf], np.float32))


def test_nan_for_a_float():
    """A float may be given as the text NaN."""
    assert math.isnan(one("NaN", float))


def test_torch_module_without_types():
    """Lists of numbers become float32 arrays for a torch module, everything else stays."""
    made = untyped({"a": [[1, 2]], "b": ["x", [1.5]], "c": 3, "d": [True], "e": [{"f": [1]}]})
    assert made["a"].dtype == np.float32
    assert made["a"].shape == (1, 2)
    assert made["b"][0] == "x"
    assert made["b"][1].dtype == np.float32
    assert made["c"] == 3
    assert made["d"] == [True]
    assert made["e"][0]["f"].dtype == np.float32


def test_function_without_types():
    """Lists stay lists for a function that does not say what it wants."""
    assert read("[[1, 2]]", FREE) == (([1, 2],), {})


def test_torch_module_answers(tmp_path):
    """A torch module called with what JSON gave answers as with the same NumPy array."""
    net = torch.nn.Linear(3, 2)
    model = maas.Model(net)
    args, kwargs = json_form.arguments(
        b'{"input": [[1, 2, 3]]}', model.info.methods["__call__"], model.info.kind, Limits()
    )
    expected = net(torch.tensor([[1.0, 2.0, 3.0]])).detach().numpy()
    np.testing.assert_array_equal(model(*args, **kwargs), expected)


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("data", "hint", "wanted"),
    [
        ([1, 2], tuple[int, int], (1, 2)),
        ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        ([1, 1], set[int], {1}),
        (["a"], frozenset[str], frozenset("a")),
        ([[1, 2]], list[tuple[int, int]], [(1, 2)]),
        ({"a": [1]}, dict[str, tuple[int, ...]], {"a": (1,)}),
        ("2024-05-17", dt.date, dt.date(2024, 5, 17)),
        ("2024-05-17T12:00:00", dt.datetime, dt.datetime(2024, 5, 17, 12)),  # noqa: DTZ001 - naive crosses too
        ("12:00:00", dt.time, dt.time(12)),
        (2.5, dt.timedelta, dt.timedelta(seconds=2.5)),
        ("0.10", decimal.Decimal, decimal.Decimal("0.10")),
        ("00000000-0000-0000-0000-000000000001", uuid.UUID, uuid.UUID(int=1)),
        ([1, 2], complex, 1 + 2j),
        ({"$bytes": "aGk="}, bytes, b"hi"),
        ({"$bytes": "aGk="}, bytearray, bytearray(b"hi")),
        (None, tuple[int, ...] | None, None),
        ([1], tuple[int, ...] | None, (1,)),
        ([1], int | tuple[str, ...] | list[int], [1]),
        ("x", int, "x"),
        ([1], tuple[int, int], (1,)),
    ],
)  # fmt: skip
def test_types_that_json_lacks(data, hint, wanted):
    """The signature's type decides what a JSON value becomes; what does not fit stays."""
    made = one(data, hint)
    assert made == wanted
    assert type(made) is type(wanted)


@pytest.mark.parametrize(
    ("data", "hint", "words"),
    [
        ("yesterday", dt.date, "2024-05-17"),
        ("1,5", decimal.Decimal, "0.10"),
        ("x", uuid.UUID, "UUID"),
        ([1], complex, "imaginary"),
        ([[1]], set[list], "cannot be a member"),
        (1e300, dt.timedelta, "seconds"),
    ],
)
def test_wrong_texts_teach(data, hint, words):
    """A text that means nothing to the wanted type is refused with an example."""
    if hint is complex:
        data = [1, "a"]
    with pytest.raises(CodecError, match=words):
        one(data, hint)


def test_tags():
    """Tags of the wire format say what no signature does."""
    body = json.dumps(
        [
            {"$bytes": base64.b64encode(b"\0\1").decode()},
            {"$tuple": [1, {"$set": [2]}]},
            {"$map": [[1, "a"]]},
            {"$array": ["int64", [[1, 2]]]},
        ]
    )
    (data, pair, table, array), _ = read(body, FREE)
    assert (data, pair, table) == (b"\0\1", (1, {2}), {1: "a"})
    assert array.dtype == np.int64
    assert array.tolist() == [[1, 2]]


def test_positional_only_parameters_have_names():
    """An object may name positional-only parameters, unless ** takes any name."""

    def closed(x: set[int], y=1, /, *, z): ...

    def open_(x, /, **named): ...

    assert read('{"z": 1, "x": [2]}', of(closed)) == (({2},), {"z": 1})
    assert read('{"y": 3, "x": [2]}', of(closed)) == (({2}, 3), {})
    assert read('{"y": 3}', of(closed)) == ((), {"y": 3})
    assert read('{"x": 3}', of(open_)) == ((), {"x": 3})


def test_starred_parameters_have_types():
    """The types of * and ** parameters hold for each of their arguments."""

    def function(*xs: torch.Tensor, **named: set[int]): ...

    args, _ = read("[[1], [2]]", of(function))
    _, kwargs = read('{"a": [1]}', of(function))
    assert [array.dtype for array in args] == [np.float32, np.float32]
    assert kwargs == {"a": {1}}


# Answers.


@maas.register(name="test_json_form.Box")
@attrs.frozen
class Box:
    size: tuple[int, int]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, None),
        ((1, "a", True), [1, "a", True]),
        (2**70, 2**70),
        ({1: "cat", "b": 2}, {"1": "cat", "b": 2}),
        ({1: "cat", "1": 2}, {"$map": [[1, "cat"], ["1", 2]]}),
        ({(1,): 2}, {"$map": [[[1], 2]]}),
        ({"$x": 1}, {"$map": [["$x", 1]]}),
        (b"hi", {"$bytes": "aGk="}),
        (math.inf, "Infinity"),
        (1 + 2j, [1.0, 2.0]),
        (dt.date(2024, 5, 17), "2024-05-17"),
        (dt.timedelta(seconds=2.5), 2.5),
        (decimal.Decimal("0.10"), "0.10"),
        (range(3), [0, 1, 2]),
        (slice(1, None), [1, None, None]),
        (np.float32(0.5), 0.5),
        (np.array([[1, 2]], np.int8), [[1, 2]]),
        (np.array(1.5), 1.5),
        (np.array([1j]), [[0.0, 1.0]]),
        (np.array([math.nan, 1], np.float32), ["NaN", 1.0]),
        (torch.tensor([0.5, -math.inf], requires_grad=True), [0.5, "-Infinity"]),
        (torch.tensor([0.5], dtype=torch.bfloat16), [0.5]),
        (torch.tensor([0.5], dtype=torch.float8_e4m3fn), [0.5]),
        (torch.Size([1, 2]), [1, 2]),
        (Box((1, 2)), {"size": [1, 2]}),
    ],
)
def test_plain(value, wanted):
    """Every value that may cross has a JSON form, which strict readers can read."""
    made = json_form.plain(value)
    assert made == wanted

    def refuse(word: str):
        raise AssertionError(word)

    assert json.loads(json_form.line(made), parse_constant=refuse) == wanted


@pytest.mark.parametrize(
    "value",
    [
        [0] * (json_answers.MAX_VALUES + 1),
        np.zeros(json_answers.MAX_VALUES + 1, np.int8),
        torch.zeros(()).expand(2**20, 2**20),
        b"\0" * 2**22,
        ["a" * 2**20] * 4,
        2**20_000,
    ],
    ids=["list", "array", "expanded", "bytes", "text", "int"],
)
def test_plain_is_bounded(value):
    """An answer too large for JSON is refused before it is written."""
    with pytest.raises(LimitExceeded):
        json_form.plain(value)


@pytest.mark.parametrize(
    "value", [object(), Colour.RED, maas.RawTensor("float4_e2m1fn_x2", (1,), b"\0")]
)
def test_plain_refuses(value):
    """What has no JSON form is refused with the way around."""
    with pytest.raises(CodecError, match=r"maas\.connect"):
        json_form.plain(value)


def test_line():
    """A line is one JSON text in UTF-8, with half a surrogate pair escaped."""
    assert json_form.line({"a": "grün\n"}) == '{"a": "grün\\n"}\n'.encode()
    assert json_form.line("\ud800") == b'"\\ud800"\n'


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_plain_of_json_is_json(value):
    """What JSON can hold already is written as it is, but for NaN and the infinities."""
    text = json.dumps(value)
    back = json.loads(text, parse_constant=lambda word: word)
    assert json.loads(json_form.line(json_form.plain(value))) == back
