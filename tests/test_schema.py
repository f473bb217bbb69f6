import datetime as dt
import decimal
import json
import os
import subprocess
import sys
import uuid
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maas import tensors
from maas.errors import CodecError
from maas.schema import (
    ANY,
    ITEMS,
    LEAVES,
    MAX_DEPTH,
    MAX_NODES,
    SAMPLE,
    Schema,
    Sizes,
    TensorSpec,
    mismatch,
)
from maas.values import register

INT, STR, NONE = Schema("int"), Schema("str"), Schema("None")


def tensor(dtype: str, *shape: int | str | None) -> Schema:
    return Schema("tensor", spec=TensorSpec(dtype, shape))


def found(schema: Schema, value: object, sizes: Sizes | None = None) -> str | None:
    miss = mismatch(schema, value, {} if sizes is None else sizes)
    return None if miss is None else f"x{miss.path} wants {miss.wanted}, got {miss.given}"


# What fits.

LEAF_VALUES: dict[str, Any] = {
    "None": None,
    "bool": True,
    "int": 3,
    "float": 2.5,
    "complex": 1j,
    "str": "a",
    "bytes": b"a",
    "bytearray": bytearray(b"a"),
    "datetime": dt.datetime(2024, 1, 1),  # noqa: DTZ001 - any datetime will do
    "date": dt.date(2024, 1, 1),
    "time": dt.time(1),
    "timedelta": dt.timedelta(1),
    "Decimal": decimal.Decimal(1),
    "UUID": uuid.UUID(int=1),
    "slice": slice(1),
    "range": range(3),
}
WIDENED = {("int", "bool"), ("float", "bool"), ("float", "int"), ("date", "datetime"), *(
    ("complex", narrow) for narrow in ("bool", "int", "float")
)}  # fmt: skip


@pytest.mark.parametrize("kind", LEAVES)
@pytest.mark.parametrize("given_kind", LEAF_VALUES)
def test_leaf_takes_its_own_values_and_narrower_numbers_only(kind: str, given_kind: str) -> None:
    """A leaf takes what Python's own subclassing and the numeric tower let pass, nothing else."""
    fits = kind == given_kind or (kind, given_kind) in WIDENED
    assert (mismatch(Schema(kind), LEAF_VALUES[given_kind], {}) is None) == fits


@pytest.mark.parametrize(
    ("kind", "scalar", "fits"),
    [
        ("int", np.int8(1), True),
        ("int", np.uint64(1), True),
        ("int", np.float32(1), False),
        ("int", np.timedelta64(1), False),
        ("int", np.bool_(1), False),
        ("bool", np.bool_(1), True),
        ("float", np.float16(1), True),
        ("float", np.int32(1), True),
        ("float", ml_dtypes.bfloat16(1), True),
        ("float", np.complex64(1), False),
        ("complex", np.complex64(1), True),
        ("str", np.str_("a"), True),
        ("bytes", np.float32(1), False),
    ],
)
def test_numpy_scalar_passes_for_its_number(kind: str, scalar: np.generic, fits: bool) -> None:
    """A NumPy scalar passes where the Python number of its kind does."""
    assert (mismatch(Schema(kind), scalar, {}) is None) == fits


@pytest.mark.parametrize(
    "array",
    [
        torch.zeros(2, 3),
        torch.nn.Parameter(torch.zeros(2, 3)),
        np.zeros((2, 3), np.float32),
        tensors.RawTensor("float32", (2, 3), bytes(24)),
    ],
    ids=lambda array: type(array).__name__,
)
def test_tensor_of_any_framework_is_a_tensor(array: object) -> None:
    """A tensor hint, with a spec or without, takes the arrays of every framework."""
    assert mismatch(Schema("tensor"), array, {}) is None
    assert mismatch(tensor("float32", "n", 3), array, {}) is None


@pytest.mark.parametrize(
    ("schema", "value", "complaint"),
    [
        (STR, 1, "x wants str, got int"),
        (INT, None, "x wants int, got None"),
        (INT, np.float32(1), "x wants int, got numpy.float32"),
        (Schema("list", (INT,)), [1, "a"], "x[1] wants int, got str"),
        (Schema("list", (INT,)), (1,), "x wants list[int], got tuple of 1"),
        (Schema("tuple...", (INT,)), (1, 2, None), "x[2] wants int, got None"),
        (Schema("tuple", (INT, STR)), (1, 2), "x[1] wants str, got int"),
        (Schema("tuple", (INT, STR)), (1,), "x wants tuple[int, str], got tuple of 1"),
        (Schema("dict", (STR, INT)), {"a": "b"}, 'x["a"] wants int, got str'),
        (Schema("dict", (ANY, INT)), {3: "b"}, "x[3] wants int, got str"),
        (Schema("dict", (STR, INT)), {1: 1}, "x.keys() wants str, got int"),
        (Schema("set", (INT,)), {"a", 1, b"c"}, "x wants set[int], got set of 3 with bytes"),
        (Schema("frozenset", (INT,)), {1}, "x wants frozenset[int], got set of 1"),
        (Schema("union", (INT, STR)), 1.5, "x wants int | str, got float"),
        (Schema("union", (NONE, Schema("list", (INT,)))), ["a"], "x[0] wants int, got str"),
        (Schema("literal", literals=("a", "b")), "c", "x wants Literal['a', 'b'], got 'c'"),
        (Schema("literal", literals=(1,)), True, "x wants Literal[1], got True"),
        pytest.param(
            Schema("literal", literals=(1,)), 10**5000, "x wants Literal[1], got int", id="huge"
        ),
        (Schema("literal", literals=(1,)), [1], "x wants Literal[1], got list of 1"),
        (Schema("tensor"), 1.5, "x wants tensor, got float"),
        (tensor("float32", 2), torch.zeros(3), "x wants float32[2], got float32[3]"),
        (tensor("float32", None, 2), torch.zeros(2), "x wants float32[?, 2], got float32[2]"),
        (tensor("float32"), np.float32(1), "x wants float32[], got numpy.float32"),
        (
            Schema("dict", (STR, Schema("list", (tensor("int64", "n"),)))),
            {"ids": [torch.zeros(3)]},
            'x["ids"][0] wants int64[n], got float32[3]',
        ),
    ],
)
def test_mismatch_says_where_and_what(schema: Schema, value: object, complaint: str) -> None:
    """A misfit names the innermost place that does not fit, what it should be and what it is."""
    assert found(schema, value) == complaint


@pytest.mark.parametrize("value", [None, object(), 3, torch.zeros(2), iter([])])
def test_any_and_stream_take_everything(value: object) -> None:
    """What nobody can check passes."""
    assert mismatch(Schema("any", name="jax.Array"), value, {}) is None
    assert mismatch(Schema("stream", (INT,), name="Iterator"), value, {}) is None


def test_symbol_has_one_length() -> None:
    """A symbol that has a length keeps it, and a second length is told beside the first."""
    pair = Schema("tuple", (tensor("float32", "n"), tensor("float32", "n")))
    assert mismatch(pair, (torch.zeros(3), torch.zeros(3)), {}) is None
    miss = mismatch(pair, (torch.zeros(3), torch.zeros(4)), {})
    assert miss is not None
    assert (miss.path, miss.clash) == ("[1]", ("n", 3, 4))


def test_refused_alternative_leaves_no_symbol_behind() -> None:
    """The part of a union that did not fit gives no symbol a length."""
    pair = Schema("tuple", (tensor("float32", "n"), INT))
    either = Schema("union", (pair, Schema("tuple", (tensor("float32", "m"), STR))))
    sizes: Sizes = {}
    assert mismatch(either, (torch.zeros(3), "a"), sizes) is None
    assert sizes == {"m": 3}


def test_long_containers_are_checked_at_their_head() -> None:
    """Only the first members of a long container are looked at, so that a check stays cheap."""
    numbers = Schema("list", (INT,))
    assert mismatch(numbers, [1] * SAMPLE + ["a"], {}) is None
    assert mismatch(numbers, [1] * (SAMPLE - 1) + ["a"], {}) is not None
    assert mismatch(Schema("set", (INT,)), {*range(SAMPLE), "a"}, {}) is None


def test_registered_class_is_known_by_its_name() -> None:
    """An object schema takes instances of the class registered under its name."""

    @register(name="tests.Point")
    class Point(tuple):  # noqa: SLOT001 - a class, no more
        _fields = ()

    schema = Schema("object", name="tests.Point")
    assert mismatch(schema, Point(), {}) is None
    assert found(schema, 3) == "x wants tests.Point, got int"
    assert mismatch(Schema("object", name="tests.Unheard"), 3, {}) is None


def test_complaint_does_not_depend_on_the_process() -> None:
    """The same misfit in a set reads the same under every hash seed."""
    code = (
        "from maas.schema import Schema, mismatch\n"
        "words = {str(n) for n in range(20)} | {b'a', 1.5, None}\n"
        "print(mismatch(Schema('set', (Schema('int'),)), words, {}))"
    )
    said = set()
    for seed in ("1", "2", "3"):
        where = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        ran = subprocess.run(
            [sys.executable, "-c", code], env=where, check=True, capture_output=True
        )
        said.add(ran.stdout)
    assert len(said) == 1


# As text and as data.

names = st.from_regex(r"[a-z]{1,5}", fullmatch=True)
dimensions = st.none() | names | st.integers(0, 2**63 - 1)
specs = st.builds(
    TensorSpec, st.sampled_from(list(tensors.DTYPES)), st.lists(dimensions, max_size=4)
)
literals = st.lists(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    min_size=1,
    max_size=4,
)
leaves = (
    st.sampled_from([*map(Schema, LEAVES), ANY, Schema("tensor")])
    | st.builds(lambda spec: Schema("tensor", spec=spec), specs)
    | st.builds(lambda found: Schema("literal", literals=tuple(found)), literals)
    | st.builds(lambda name: Schema("object", name=name), names)
    | st.builds(lambda name: Schema("any", name=name), names)
)


def nested(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    def of(kind: str, least: int, most: int, name: str = "") -> st.SearchStrategy[Schema]:
        items = st.lists(inner, min_size=least, max_size=most).map(tuple)
        return items.map(lambda items: Schema(kind, items, name=name))

    fixed = [of(kind, n, n) for kind, n in ITEMS.items() if kind != "stream"]
    streams = [of("stream", 1, 1, name) for name in ("Iterator", "AsyncIterator")]
    return st.one_of(*fixed, *streams, of("tuple", 0, 3), of("union", 2, 3))


schemas = st.recursive(leaves, nested, max_leaves=12)


@given(schemas)
def test_schema_crosses_as_plain_values(schema: Schema) -> None:
    """Any schema comes back equal from its plain form, through msgpack and with the same words."""
    data = msgpack.unpackb(msgpack.packb(schema.to_data()))
    back = Schema.from_data(data)
    assert back == schema
    assert str(back) == str(schema)
    assert hash(back) == hash(schema)


def test_plain_form_is_json_without_byte_literals() -> None:
    """A description can be shown as JSON."""
    schema = Schema("dict", (STR, Schema("union", (tensor("float32", "batch", None), NONE))))
    assert json.loads(json.dumps(schema.to_data())) == schema.to_data() == {
        "kind": "dict",
        "items": [
            "str",
            {
                "kind": "union",
                "items": [{"kind": "tensor", "dtype": "float32", "shape": ["batch", None]}, "None"],
            },
        ],
    }  # fmt: skip


def test_literals_of_equal_value_differ_by_type() -> None:
    """Literal[True] is not Literal[1]."""
    assert Schema("literal", literals=(True,)) != Schema("literal", literals=(1,))


def test_walk_meets_every_type() -> None:
    """A schema can be walked, outermost first."""
    schema = Schema("dict", (STR, Schema("list", (INT,))))
    assert [each.kind for each in schema.walk()] == ["dict", "str", "list", "int"]
    assert tensor("float32", 1, "n").size == 3


def nest(levels: int) -> Any:
    data: Any = "int"
    for _ in range(levels):
        data = {"kind": "list", "items": [data]}
    return data


HOSTILE: dict[str, Any] = {
    "nothing": None,
    "a number": 3,
    "a list": [],
    "no kind": {},
    "unknown kind": "eval",
    "unknown kind in a map": {"kind": "eval"},
    "kind of another type": {"kind": 1},
    "unknown field": {"kind": "int", "code": "x"},
    "key that is no text": {"kind": "int", 1: 2},
    "items of a leaf": {"kind": "int", "items": ["int"]},
    "list without its type": "list",
    "dict with one type": {"kind": "dict", "items": ["int"]},
    "union of one": {"kind": "union", "items": ["int"]},
    "items that are no list": {"kind": "list", "items": "int"},
    "items that are a tuple": {"kind": "list", "items": ("int",)},
    "dtype without shape": {"kind": "tensor", "dtype": "float32"},
    "shape without dtype": {"kind": "tensor", "shape": []},
    "unknown dtype": {"kind": "tensor", "dtype": "object", "shape": []},
    "negative length": {"kind": "tensor", "dtype": "int8", "shape": [-1]},
    "length that is a bool": {"kind": "tensor", "dtype": "int8", "shape": [True]},
    "length that is a float": {"kind": "tensor", "dtype": "int8", "shape": [1.0]},
    "length beyond any memory": {"kind": "tensor", "dtype": "int8", "shape": [2**63]},
    "symbol that is no name": {"kind": "tensor", "dtype": "int8", "shape": ["\x1b[2J"]},
    "long symbol": {"kind": "tensor", "dtype": "int8", "shape": ["n" * 201]},
    "too many dimensions": {"kind": "tensor", "dtype": "int8", "shape": [1] * 65},
    "spec of a list": {"kind": "list", "items": ["int"], "dtype": "int8", "shape": []},
    "literal of nothing": {"kind": "literal", "literals": []},
    "literal of a container": {"kind": "literal", "literals": [[1]]},
    "literals of an int": {"kind": "int", "literals": [1]},
    "object without a name": "object",
    "stream of another name": {"kind": "stream", "items": ["int"], "name": "eval"},
    "name of an int": {"kind": "int", "name": "x"},
    "name with escapes": {"kind": "any", "name": "\x1b[31mred"},
    "long name": {"kind": "any", "name": "n" * 201},
    "nested too deep": nest(MAX_DEPTH),
    "nested far too deep": nest(100_000),
    "too many types": {"kind": "tuple", "items": ["int"] * MAX_NODES},
    "too many literals": {"kind": "literal", "literals": [0] * MAX_NODES},
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_stranger_cannot_send_what_is_no_schema(data: Any) -> None:
    """Plain values that no schema has given are refused as such, and quickly."""
    with pytest.raises(CodecError):
        Schema.from_data(data)


def test_deepest_and_largest_schemas_come_back() -> None:
    """The bounds are on what is beyond them only."""
    assert Schema.from_data(nest(MAX_DEPTH - 1)).size == MAX_DEPTH
    assert Schema.from_data({"kind": "tuple", "items": ["int"] * (MAX_NODES - 1)}).size == MAX_NODES


@pytest.mark.parametrize(
    ("dtype", "shape", "complaint"),
    [
        ("float33", (), "one of the dtypes bool, int8"),
        ("float32", "batch", "a shape is a tuple of dimensions"),
        ("float32", (1.5,), "a dimension is an int from 0, an identifier or None; got 1.5"),
        ("float32", ("2n",), "got '2n'"),
        ("float32", (1,) * 65, "at most 64 dimensions, got 65"),
    ],
)
def test_spec_refuses_what_no_tensor_is(dtype: str, shape: Any, complaint: str) -> None:
    """A wrong spec is refused where it is written, with what was wanted."""
    with pytest.raises(ValueError, match=complaint):
        TensorSpec(dtype, shape)


def test_spec_reads_as_it_is_spoken() -> None:
    """A spec shows its dtype, symbols and lengths."""
    assert repr(TensorSpec("float32", ["batch", None, 3])) == "float32[batch, ?, 3]"
    assert repr(TensorSpec("int64", ())) == "int64[]"
