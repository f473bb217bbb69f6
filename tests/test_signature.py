import dataclasses
import enum
import functools
import inspect
import itertools
import os
import subprocess
import sys
import typing
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import Annotated, Any, Literal, NewType, Optional

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maas.errors import CodecError, SignatureError
from maas.hints import schema_like, schema_of
from maas.parameters import KINDS, Parameter
from maas.schema import ANY, MAX_NODES, Schema, TensorSpec
from maas.signature import Signature
from maas.values import register


def spec(*shape: int | str | None, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(dtype, shape)


def net(*specs: TensorSpec, returns: Any = None) -> Signature:
    """A signature whose parameters x, y, ... have these specs."""
    return Signature(
        [Parameter(n, annotation=s) for n, s in zip("xyz", specs, strict=False)], returns
    )


def refusal(signature: Signature, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SignatureError) as caught:
        signature.check(args, kwargs, "net")
    return str(caught.value)


# Type hints.


@register(name="tests.Box")
@dataclasses.dataclass
class Box:
    size: int


class Unregistered:
    pass


class Color(enum.Enum):
    RED = 1


Bound = typing.TypeVar("Bound", bound=int)
Tree = typing.Union[int, list["Tree"]]  # noqa: UP007 - the form that can hold its own name
UserId = NewType("UserId", str)


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"),
        (None, "None"),
        (Any, "Any"),
        (list, "list"),
        (typing.List, "list"),  # noqa: UP006 - the older form is in use
        (list[int], "list[int]"),
        (typing.Tuple, "tuple"),  # noqa: UP006
        (tuple[()], "tuple[()]"),
        (tuple[int, str], "tuple[int, str]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (dict[str, list[float]], "dict[str, list[float]]"),
        (frozenset[bytes], "frozenset[bytes]"),
        (Optional[int], "int | None"),  # noqa: UP045
        (int | list[int] | None, "int | list[int] | None"),
        (Literal["a", 1], "Literal['a', 1]"),
        (Literal[Color.RED], "Literal[<Color.RED: 1>]"),
        (torch.Tensor, "tensor"),
        (torch.nn.Parameter, "tensor"),
        (np.ndarray, "tensor"),
        (npt.NDArray[np.float32], "tensor"),
        (Annotated[torch.Tensor, spec("batch", 3)], "float32[batch, 3]"),
        (Annotated[int, "a count"], "int"),
        (spec(2), "float32[2]"),
        (Iterator[str], "Iterator[str]"),
        (typing.Iterator, "Iterator[Any]"),
        (Generator[int, None, None], "Iterator[int]"),
        (AsyncIterator[str], "AsyncIterator[str]"),
        (UserId, "str"),
        (Bound, "int"),
        (Box, "tests.Box"),
        (Unregistered, "Unregistered"),
        (Sequence[int], "collections.abc.Sequence[int]"),
        (Callable[[int], str], "collections.abc.Callable[[int], str]"),
        ("Missing", "Missing"),
        ([int], "[<class 'int'>]"),
    ],
)
def test_hint_reads_as_its_author_wrote_it(hint: Any, text: str) -> None:
    """Every hint has a schema, which reads as Python would write the hint."""
    assert str(schema_of(hint)) == text


def test_unknown_hints_pass_and_keep_their_name() -> None:
    """A hint that is not understood is any, without an address or what a terminal would obey."""

    class Odd:
        def __repr__(self) -> str:
            return "<Odd at 0x7f00dead>\x1b"

    assert schema_of(Odd()) == Schema("any", name="<Odd>?")
    assert len(schema_of("x" * 1000).name) == 200


def test_hint_that_holds_itself_ends() -> None:
    """A recursive alias becomes a finite schema, and a small one."""
    loop = typing.cast("Any", NewType)("loop", int)
    loop.__supertype__ = dict[loop, loop] | list[loop]  # type: ignore[valid-type]
    assert schema_of(loop).size < 10
    assert schema_of(Tree).size < 10


def nested(levels: int) -> tuple[Any, Any]:
    """A hint and a value of lists inside each other."""
    hint, value = int, 1
    for _ in range(levels):
        hint, value = list[hint], [value]  # type: ignore[assignment, valid-type]
    return hint, value


def test_deep_hints_and_values_give_schemas_that_cross() -> None:
    """What nests deeper than a signature may is any below that depth."""
    hint, value = nested(100)

    def fn(x: hint = None) -> None: ...  # type: ignore[valid-type]

    read = Signature.from_callable(fn)
    learned = Signature([], schema_like(value))
    assert Signature.from_data(read.to_data()) == read
    assert Signature.from_data(learned.to_data()) == learned


def test_torch_is_not_loaded_to_read_hints() -> None:
    """A program without torch reads and checks signatures."""
    code = (
        "import sys\n"
        "from maas.signature import Signature\n"
        "def f(x: int, y: 'torch.Tensor'): ...\n"
        "Signature.from_callable(f).check((1, 2), {})\n"
        "assert 'torch' not in sys.modules"
    )
    where = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=where, check=True)


# Callables.


def tokens(text: str, *, lower: bool = True) -> list[int]:
    raise NotImplementedError


def closed(a: int, b: int, /) -> None: ...
def mixed(a, /, b, c=1, *, d, e=2): ...
def starred(a: int, *rest: str, key: int = 0, **more: float) -> None: ...
def keywords(*, a, b, c): ...
def nothing(): ...
def one(text: str) -> str: ...  # type: ignore[empty-body]
def optional(a: int = 1, b: str = "x") -> None: ...
def open_ended(a, /, **more): ...


FUNCTIONS = [tokens, closed, mixed, starred, keywords, nothing, one, optional, open_ended]


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_signature_renders_as_python_writes_it(fn: Callable[..., Any]) -> None:
    """The text of a signature is that of `inspect.signature`."""
    assert Signature.from_callable(fn).render("f") == f"f{inspect.signature(fn)}"


def test_signature_reads_with_a_name() -> None:
    """The contract's own example reads as in the contract."""
    signature = Signature.from_callable(tokens)
    assert signature.render("tokens") == "tokens(text: str, *, lower: bool = True) -> list[int]"
    assert str(signature) == "(text: str, *, lower: bool = True) -> list[int]"


def test_hints_as_text_are_resolved_one_by_one() -> None:
    """A name that only type checkers know spoils no other hint."""

    def fn(a: "int", b: "list[str]", c: "Missing", d: list["Missing"]) -> "Box": ...  # type: ignore[name-defined, empty-body]  # noqa: F821

    assert (
        str(Signature.from_callable(fn))
        == "(a: int, b: list[str], c: Missing, d: list[Missing]) -> tests.Box"
    )


def test_default_of_none_may_be_given() -> None:
    """`x: int = None` takes None, which it has when left out."""

    def fn(x: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013

    Signature.from_callable(fn).check((None,), {})


def test_defaults_show_no_address_and_stay_short() -> None:
    """A default that is no plain value, or a long one, is shown as dots."""

    def fn(a=object(), b="x" * 100, c=(1, 2), d=Color.RED, e=10**5000, f=[]): ...  # noqa: B006, B008

    assert str(Signature.from_callable(fn)) == "(a=..., b=..., c=(1, 2), d=Color.RED, e=..., f=[])"


def test_every_sort_of_callable_has_a_signature() -> None:
    """Methods, partials, callable objects, classes and wrapped functions tell their parameters."""

    class Model:
        def __init__(self, width: int) -> None: ...
        def __call__(self, x: "torch.Tensor") -> int: ...  # type: ignore[empty-body]
        def encode(self, text: str) -> str: ...  # type: ignore[empty-body]

    @functools.wraps(tokens)
    def wrapped(*args: Any, **kwargs: Any) -> Any: ...

    told = [
        (Signature.from_callable(Model(1)), "(x: tensor) -> int"),
        (Signature.from_callable(Model(1).encode), "(text: str) -> str"),
        (Signature.from_callable(Model.encode, skip_self=True), "(text: str) -> str"),
        (Signature.from_callable(Model), "(width: int) -> Model"),
        (
            Signature.from_callable(functools.partial(tokens, lower=False)),
            "(text: str, *, lower: bool = False) -> list[int]",
        ),
        (Signature.from_callable(wrapped), "(text: str, *, lower: bool = True) -> list[int]"),
        (Signature.from_callable(torch.relu), "(*args, **kwargs)"),
    ]
    assert [str(signature) for signature, _ in told] == [text for _, text in told]


def test_generator_without_hints_is_a_stream() -> None:
    """A generator function streams, whether its author said so or not."""

    def here():
        yield 1

    async def there():
        yield 1

    assert str(Signature.from_callable(here)) == "() -> Iterator[Any]"
    assert str(Signature.from_callable(there)) == "() -> AsyncIterator[Any]"


@pytest.mark.parametrize(
    "name", [n for n in dir(torch.nn.functional) if callable(getattr(torch.nn.functional, n))]
)
def test_signatures_of_torch_are_read_and_cross(name: str) -> None:
    """Every function of torch.nn.functional has a signature, which comes back equal."""
    signature = Signature.from_callable(getattr(torch.nn.functional, name))
    assert Signature.from_data(signature.to_data()) == signature


# Arity and names: CPython is the oracle.

ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (args, dict.fromkeys(names))
    for args in ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))
    for count in range(4)
    for names in itertools.combinations(("a", "b", "c", "d", "e", "text", "key", "zzz"), count)
]


def python_says(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[Any, Any]
) -> str | None:
    try:
        fn(*args, **kwargs)
    except NotImplementedError:
        return None
    except TypeError as error:
        # A suggestion comes with 3.13, and its choice is Python's own.
        return str(error).partition(". Did you mean")[0]
    return None


def untyped(signature: Signature) -> Signature:
    return Signature([Parameter(p.name, p.kind, ANY, p.required) for p in signature.parameters])


def maas_says(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[Any, Any]) -> str | None:
    try:
        untyped(Signature.from_callable(fn)).check(args, kwargs, fn.__qualname__)
    except TypeError as error:
        return str(error).partition(". Did you mean")[0]
    return None


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_wrong_calls_are_refused_in_pythons_words(fn: Callable[..., Any]) -> None:
    """A call is refused when and as the bare function refuses it."""
    for args, kwargs in ARGUMENTS:
        assert maas_says(fn, args, kwargs) == python_says(fn, args, kwargs), (args, kwargs)


@st.composite
def functions(draw: st.DrawFn) -> Callable[..., Any]:
    """A function of up to seven parameters named a, b, ... of any kinds."""
    plain = draw(st.lists(st.sampled_from([0, 1]), max_size=4).map(sorted))
    bare = draw(st.integers(0, len(plain)))
    parts = [f"{'abcd'[i]}{'=0' if i >= bare else ''}" for i in range(len(plain))]
    if 0 in plain:
        parts.insert(plain.count(0), "/")
    named = draw(st.lists(st.booleans(), max_size=3))
    star = draw(st.sampled_from([["*args"], ["*"] if named else []]))
    parts += star + [f"{'efg'[i]}{'=0' if least else ''}" for i, least in enumerate(named)]
    parts += draw(st.sampled_from([[], ["**kwargs"]]))
    scope: dict[str, Any] = {}
    exec(f"def fn({', '.join(parts)}): ...", scope)
    fn: Callable[..., Any] = scope["fn"]
    return fn


@given(
    functions(),
    st.lists(st.integers(), max_size=6).map(tuple),
    st.lists(st.sampled_from("abcdefgz"), unique=True, max_size=5).map(dict.fromkeys),
)
def test_any_function_is_bound_as_python_binds_it(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Whatever the parameters and the arguments, both refuse with the same words or neither."""
    assert maas_says(fn, args, kwargs) == python_says(fn, args, kwargs)


def test_misspelt_name_brings_the_right_one() -> None:
    """A name close to a parameter's is answered with that parameter's."""
    assert refusal(Signature.from_callable(tokens), "a", lowre=True) == (
        "net() got an unexpected keyword argument 'lowre'. Did you mean 'lower'?"
    )
    long = Signature([Parameter("p" * 41)])
    assert (
        refusal(long, **{"p" * 42: 1}) == f"net() got an unexpected keyword argument '{'p' * 42}'"
    )
    assert len(refusal(long, **{"p" * 10_000: 1})) < 300


def test_names_that_are_no_text_are_refused() -> None:
    """Keywords are strings, as in Python."""
    with pytest.raises(SignatureError, match=r"net\(\) keywords must be strings"):
        Signature.from_callable(open_ended).check((1,), {1: 2}, "net")  # type: ignore[dict-item]


# Types and shapes.


@pytest.mark.parametrize("array", [torch.zeros, np.zeros], ids=["torch", "numpy"])
def test_complaint_is_the_same_for_every_framework(array: Callable[..., Any]) -> None:
    """The message names the argument, the spec and what came, alike for torch and NumPy."""
    dtype = {torch.zeros: torch.float64, np.zeros: np.float64}[array]
    assert refusal(net(spec("batch", 1000)), array((8, 1000), dtype=dtype)) == (
        "net(): argument 'x' wants float32[batch, 1000], got float64[8, 1000]"
    )


def test_symbol_agrees_across_arguments() -> None:
    """One symbol is one length in a call, and may be another in the next."""
    signature = net(spec("batch", 3), spec("batch"))
    for length in (1, 4):
        signature.check((torch.zeros(length, 3), torch.zeros(length)), {})
    said = (
        "net(): argument 'y' wants float32[batch], got float32[6]; batch is 8 in 'x' but 6 in 'y'"
    )
    assert refusal(signature, torch.zeros(8, 3), torch.zeros(6)) == said
    assert refusal(signature, y=torch.zeros(6), x=torch.zeros(8, 3)) == said


def test_symbol_agrees_within_an_argument() -> None:
    """A symbol that stands twice in one argument has one length there too."""
    assert refusal(net(spec("n", "n")), torch.zeros(3, 4)) == (
        "net(): argument 'x' wants float32[n, n], got float32[3, 4]; n is both 3 and 4"
    )
    pair = Schema("tuple", (schema_of(spec("n")), schema_of(spec("n"))))
    maybe = Schema("union", (pair, Schema("None")))
    signature = Signature([Parameter("x", annotation=maybe), Parameter("y", annotation=spec("n"))])
    said = refusal(signature, (torch.zeros(3), torch.zeros(4)), torch.zeros(5))
    assert said.endswith("; n is both 3 and 4")


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        (("a",), {}, "argument 'a' wants int, got str"),
        ((1, "b", 2), {}, "argument 'rest[1]' wants str, got int"),
        ((1,), {"key": None}, "argument 'key' wants int, got None"),
        ((1,), {"other": "c"}, "argument 'other' wants float, got str"),
    ],
)
def test_every_kind_of_argument_is_checked(
    args: tuple[Any, ...], kwargs: dict[str, Any], said: str
) -> None:
    """Positional, starred and keyword arguments are held to their hints, under their own names."""
    assert refusal(Signature.from_callable(starred), *args, **kwargs) == f"net(): {said}"


def test_arguments_that_fit_pass() -> None:
    """A call that fits raises nothing, however it is written."""
    signature = Signature.from_callable(starred)
    signature.check((1,), {})
    signature.check((1, "a", "b"), {"key": True, "x": 1, "y": 2.5})
    signature.check((), {"a": np.int64(1)})


# From an example.


def forward(x, mask=None, *, scale=1.0):
    raise NotImplementedError


def test_example_gives_specs_with_a_batch() -> None:
    """One call tells dtypes and shapes; the first tensor's first dimension is the batch."""
    learned = Signature.from_example(
        (torch.zeros(8, 3),),
        {"mask": np.zeros((8, 8), np.bool_)},
        {"logits": torch.zeros(8, 10), "state": torch.zeros(4)},
        Signature.from_callable(forward),
    )
    assert str(learned) == (
        "(x: float32[batch, 3], mask: bool[batch, 8] = None, *, scale=1.0) -> dict[str, tensor]"
    )


def test_example_leaves_what_was_said() -> None:
    """Hints and specs that say something stay as they are."""

    def fn(  # type: ignore[empty-body]
        x: torch.Tensor, y: Annotated[torch.Tensor, spec("n")], z: "int | None" = None
    ) -> str: ...

    base = Signature.from_callable(fn)
    learned = Signature.from_example((torch.zeros(2), torch.zeros(2)), {"z": 3}, "a", base)
    assert str(learned) == "(x: float32[batch], y: float32[n], z: int | None = None) -> str"


def test_example_without_a_first_dimension_has_no_batch() -> None:
    """A scalar tensor in front leaves every dimension fixed."""
    base = Signature.from_callable(forward)
    learned = Signature.from_example((torch.tensor(1.0), torch.zeros(3)), {}, None, base)
    assert str(learned) == "(x: float32[], mask: float32[3] = None, *, scale=1.0)"


def test_example_that_does_not_fit_is_refused() -> None:
    """An example is a call like any other."""
    with pytest.raises(SignatureError, match="missing 1 required positional argument: 'x'"):
        Signature.from_example((), {}, None, Signature.from_callable(forward))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@given(plain)
def test_a_value_fits_what_is_learned_from_it(value: Any) -> None:
    """The example itself is accepted afterwards."""
    learned = Signature([Parameter("x", annotation=schema_like(value))])
    learned.check((value,), {})


def test_learned_signature_takes_another_batch_only() -> None:
    """After an example of eight rows, five rows fit and another width does not."""
    learned = Signature.from_example(
        (torch.zeros(8, 3),), {}, None, Signature.from_callable(forward)
    )
    learned.check((torch.zeros(5, 3),), {})
    assert refusal(learned, torch.zeros(8, 4)).endswith("got float32[8, 4]")


# What a batch is.


@pytest.mark.parametrize(
    ("signature", "symbol"),
    [
        (net(spec("batch", 3), returns=spec("batch", 10)), "batch"),
        (net(spec("batch", 3), spec(3)), "batch"),
        (net(spec("batch", 3), returns=spec(10)), None),
        (net(spec("batch", "batch")), None),
        (net(spec(8, 3)), None),
        (net(spec("n", 3)), None),
        (Signature.from_callable(tokens), None),
    ],
    ids=str,
)
def test_batch_symbol_is_where_calls_can_be_joined(
    signature: Signature, symbol: str | None
) -> None:
    """Calls can be joined along a batch that goes in first and comes out first."""
    assert signature.batch_symbol == symbol


# Two signatures.


def test_difference_tells_each_in_a_sentence() -> None:
    """What another signature has otherwise is said parameter by parameter."""

    def here(a: int, b: str, c: int = 1, d: int = 2, *, gone: int = 0) -> int: ...  # type: ignore[empty-body]
    def there(b: str, a: float, d: int = 3, *, c: int, new: int, more: int = 1) -> str: ...  # type: ignore[empty-body]

    mine, other = Signature.from_callable(here), Signature.from_callable(there)
    assert mine.difference(other) == [
        "'gone' is a parameter here but not there",
        "'new' is a required parameter there but none here",
        "'more' is an optional parameter there but none here",
        "'a' is int here and float there",
        "'c' is positional-or-keyword here and keyword there",
        "'c' is optional here and required there",
        "'d' is 2 by default here and 3 there",
        "the order is a, b, c, d here and b, a, d, c there",
        "the result is int here and str there",
    ]
    assert mine.difference(mine) == []


# As data.

hints = st.sampled_from([int, str | None, list[float], spec("batch", 2), Any, Iterator[int], None])


@given(functions(), st.lists(hints, min_size=10, max_size=10))
def test_signature_crosses_as_plain_values(fn: Callable[..., Any], chosen: list[Any]) -> None:
    """Any signature comes back equal through msgpack, and says the same words."""
    names = [*inspect.signature(fn).parameters, "return"]
    fn.__annotations__ = dict(zip(names, chosen, strict=False))
    signature = Signature.from_callable(fn)
    back = Signature.from_data(msgpack.unpackb(msgpack.packb(signature.to_data())))
    assert back == signature
    assert back.difference(signature) == []
    assert back.render("f") == signature.render("f")


def parameter(**changes: Any) -> dict[str, Any]:
    plain = {"name": "x", "kind": KINDS[1], "annotation": "any", "required": True, "default": ""}
    return plain | changes


def data(*parameters: Any, **changes: Any) -> dict[str, Any]:
    return {"parameters": list(parameters), "returns": "any"} | changes


HOSTILE: dict[str, Any] = {
    "nothing": None,
    "a list": [],
    "empty": {},
    "no result": {"parameters": []},
    "unknown field": data(code="x"),
    "parameters that are no list": data(parameters={}),
    "a result of no type": data(returns=None),
    "a parameter that is text": data("x"),
    "a parameter without fields": data({}),
    "a parameter with a field too many": data(parameter(code="x")),
    "a name that is no text": data(parameter(name=1)),
    "a name that is no name": data(parameter(name="x y")),
    "an empty name": data(parameter(name="")),
    "a long name": data(parameter(name="x" * 201)),
    "the same name twice": data(parameter(), parameter()),
    "an unknown kind": data(parameter(kind="eval")),
    "required that is a number": data(parameter(required=1)),
    "required with a default": data(parameter(default="1")),
    "required and starred": data(parameter(kind="*")),
    "two stars": data(
        parameter(name="a", kind="*", required=False), parameter(name="b", kind="*", required=False)
    ),
    "the wrong order": data(parameter(name="a", kind="keyword"), parameter(name="b")),
    "required after optional": data(parameter(name="a", required=False), parameter(name="b")),
    "a default with escapes": data(parameter(required=False, default="\x1b[2J")),
    "a long default": data(parameter(required=False, default="x" * 201)),
    "an unknown type": data(parameter(annotation="eval")),
    "too many parameters": data(*(parameter(name=f"x{n}") for n in range(256))),
    "too many types together": data(
        *(
            parameter(name=f"x{n}", annotation={"kind": "tuple", "items": ["int"] * 2047})
            for n in range(2)
        ),
    ),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_stranger_cannot_send_what_is_no_signature(hostile: Any) -> None:
    """Plain values that no signature has given are refused as such."""
    with pytest.raises(CodecError):
        Signature.from_data(hostile)


def test_signature_too_large_to_send_is_refused_where_it_is_made() -> None:
    """No signature can be made here that could not be read there."""
    large = Schema("tuple", (ANY,) * MAX_NODES)
    with pytest.raises(ValueError, match="at most 4096 types"):
        Signature([Parameter("x", annotation=large)])
    deep = functools.reduce(lambda inner, _: Schema("list", (inner,)), range(32), ANY)
    with pytest.raises(ValueError, match="deeper than 32 levels"):
        Signature([Parameter("x", annotation=deep)])
