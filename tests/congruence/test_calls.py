import asyncio
import datetime as dt
import enum
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, Any, Literal

import attrs
import numpy as np
import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

import maas
from maas.testing import (
    Arguments,
    assert_congruent,
    calls,
    invalid_calls,
    register_strategy,
    tensors,
    values,
)

EXAMPLES = settings(max_examples=20)


def echo(value: Any) -> Any:
    return value


def tokens(text: str, *, lower: bool = True) -> list[int]:
    return [ord(letter) for letter in (text.lower() if lower else text)]


def shapes(
    a: int,
    b: float = -0.0,
    /,
    c: Literal["x", "y"] = "x",
    *rest: bool,
    d: dict[str, int | None],
    **more: tuple[int, ...],
) -> Any:
    return {"a": a, "b": b, "c": c, "rest": rest, "d": d, "more": more}


Rows = Annotated[torch.Tensor, maas.TensorSpec("float32", ("batch", 3))]
Column = Annotated[torch.Tensor, maas.TensorSpec("float64", ("batch",))]


def weighted(rows: Rows, weights: Column) -> Any:
    return (rows.double() * weights[:, None]).sum(0), rows.shape, weights > 0


@maas.register
@attrs.frozen
class Reading:
    at: dt.datetime
    value: float
    kind: Literal["raw", "mean"] = "raw"


@maas.register
class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def paint(reading: Reading, colours: list[Colour], window: dt.timedelta | None = None) -> Any:
    return dict.fromkeys(colours, (reading, window))


@maas.register
class OutOfInk(RuntimeError):
    def __init__(self, message: str, *, left: float) -> None:
        super().__init__(message)
        self.left = left


def fails(kind: str, depth: int = 0) -> None:
    """Raises a bit of everything."""
    known = {
        "builtin": lambda: ValueError("wrong", 3, b"\xff"),
        "key": lambda: KeyError(("a", 1)),
        "os": lambda: FileNotFoundError(2, "No such file", "a.txt"),
        "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        "import": lambda: ImportError("nothing here", name="nowhere", path="/x"),
        "attribute": lambda: AttributeError("no such thing", name="thing"),
        "maas": lambda: maas.NotFound("no such row"),
        "later": lambda: maas.Overloaded("come back", 2.5),
        "registered": lambda: OutOfInk("empty", left=-0.0),
        "group": lambda: ExceptionGroup("two", [ValueError(1), OutOfInk("x", left=1.0)]),
        "stop": lambda: StopIteration(7),
        "stop async": lambda: StopAsyncIteration("x"),
        "exit": lambda: SystemExit(3),
        "leave": lambda: GeneratorExit("now"),
        "not implemented": lambda: NotImplementedError("later"),
    }
    error = known[kind]()
    error.add_note("first note")
    error.add_note("second")
    if depth:
        try:
            fails("key", depth - 1)
        except KeyError as cause:
            raise error from cause
    raise error


KINDS = [
    "builtin", "key", "os", "unicode", "import", "attribute", "maas", "later", "registered",
    "group", "stop", "stop async", "exit", "leave", "not implemented",
]  # fmt: skip


def in_context(kind: str) -> None:
    try:
        raise ValueError("while this was handled")
    except ValueError:
        fails(kind)


def suppressed() -> None:
    try:
        raise ValueError("seen by nobody")
    except ValueError:
        raise RuntimeError("alone") from None


async def slowly(x: float, fail: bool = False) -> Any:
    await asyncio.sleep(0)
    if fail:
        raise OutOfInk("async", left=x)
    return {"x": x}


class Counter:
    """Keeps a state of its own."""

    def __init__(self) -> None:
        self.total = 0
        self.seen: list[Any] = []

    def __call__(self, by: int) -> int:
        self.total += by
        return self.total

    @maas.method
    def remember(self, thing: Any) -> list[Any]:
        self.seen.append(thing)
        return self.seen

    @maas.method(name="twice")
    def double(self, x: int, /) -> int:
        return 2 * x

    @maas.method
    async def wait(self, x: str) -> str:
        await asyncio.sleep(0)
        return x

    @maas.method
    def count(self, n: int) -> Iterator[int]:
        yield from range(self.total, self.total + n)

    @maas.method
    async def acount(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0)
            yield i


@given(values())
@EXAMPLES
def test_every_value_comes_back_as_it_went(maas_connect, value):
    """A model that returns its argument returns it bit for bit, whatever crosses."""
    with torch.no_grad():
        assert_congruent(echo, maas_connect(echo), Arguments((value,)))


@given(tensors())
@EXAMPLES
def test_every_array_comes_back_as_it_went(maas_connect, array):
    """Each dtype, shape and layout comes back with the same bytes."""
    with torch.no_grad():
        assert_congruent(echo, maas_connect(echo), Arguments((array,)))


@pytest.mark.parametrize("function", [tokens, shapes, weighted, paint], ids=lambda f: f.__name__)
@given(st.data())
@EXAMPLES
def test_calls_that_fit(maas_connect, function, data):
    """Every call that a signature allows gives here what it gives anywhere."""
    model = maas_connect(function)
    assert_congruent(function, model, data.draw(calls(model)))


@pytest.mark.parametrize("function", [tokens, shapes, weighted, paint], ids=lambda f: f.__name__)
@given(st.data())
@EXAMPLES
def test_calls_that_do_not_fit(maas_connect, function, data):
    """A wrong call is refused before the model runs, in the words in which it is refused here."""
    model = maas_connect(function)
    call = data.draw(invalid_calls(function))
    with pytest.raises(maas.SignatureError) as here:
        call.of(maas.Model(function))
    with pytest.raises(maas.SignatureError) as there:
        call.of(model)
    assert str(there.value) == str(here.value)


def test_wrong_arguments_are_told_as_python_tells_them(maas_connect):
    """A wrong number or name of arguments has the message of the bare function."""
    model = maas_connect(tokens)
    for call in (
        Arguments(),
        Arguments(("a", "b")),
        Arguments(("a",), {"text": "b"}),
        Arguments(("a",), {"lowr": False}),
    ):
        assert_congruent(tokens, model, call)


@pytest.mark.parametrize("kind", KINDS)
def test_exceptions(maas_connect, kind):
    """Class, arguments, attributes, notes, causes and contexts of what a model raises are kept."""
    model = maas_connect(fails)
    assert_congruent(fails, model, Arguments((kind,)))
    assert_congruent(fails, model, Arguments((kind, 2)))
    assert_congruent(in_context, maas_connect(in_context), Arguments((kind,)))


def test_a_suppressed_context_stays_suppressed(maas_connect):
    """`raise ... from None` shows no context there either."""
    assert_congruent(suppressed, maas_connect(suppressed), Arguments())


def test_an_exit_does_not_end_the_process(maas_connect):
    """SystemExit in a model is a ModelExit for its caller, and the model goes on."""
    model = maas_connect(fails)
    for _ in range(2):
        with pytest.raises(maas.ModelExit, match=r"SystemExit\(3\)"):
            model("exit")


def test_the_remote_traceback_is_a_note(maas_connect):
    """Where the model raised is told: by the traceback here, by the last note elsewhere."""
    with pytest.raises(ValueError) as caught:
        maas_connect(fails)("builtin")
    notes = caught.value.__notes__
    assert notes[:2] == ["first note", "second"]
    if maas_connect.place != "here":
        assert "in fails" in notes[-1]


@pytest.mark.parametrize("fail", [False, True])
def test_coroutine_functions(maas_connect, fail):
    """A coroutine function is called like any other, and answers the same."""
    assert_congruent(slowly, maas_connect(slowly), Arguments((-0.0,), {"fail": fail}))


@given(st.lists(st.integers(-(2**70), 2**70), max_size=4))
@EXAMPLES
def test_an_object_keeps_its_state_where_it_runs(maas_connect, steps):
    """Calls in order change the object as they change a bare one."""
    bare, model = Counter(), maas_connect(Counter())
    for step in steps:
        assert_congruent(bare, model, Arguments((step,)))
        assert_congruent(bare.remember, model.remember, Arguments(([step, {"k": step}],)))
        assert_congruent(bare.double, model.twice, Arguments((step,)))


def test_methods_of_every_kind(maas_connect):
    """Plain, renamed, async and streaming methods answer as the object's own."""
    bare, model = Counter(), maas_connect(Counter())
    assert_congruent(bare.wait, model.wait, Arguments(("x",)))
    assert_congruent(bare.count, model.count, Arguments((3,)), way="stream")
    assert_congruent(bare.acount, model.acount, Arguments((3,)), way="async for")
    assert_congruent(bare.double, model.twice, Arguments((), {"x": 1}))
    with pytest.raises(AttributeError, match="no method 'nothing'"):
        model.nothing


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (lambda: 0, r"args\[0\]"),
        ([{"a": {1, 2}, "b": [object()]}], r'args\[0\]\[0\]\["b"\]\[0\]'),
        (np.array([object()]), r"args\[0\]"),
        (torch.zeros(2).to_sparse(), r"args\[0\]"),
        (type("Text", (str,), {})("x"), r"args\[0\]"),
    ],
    ids=["function", "nested", "object array", "sparse", "subclass"],
)
def test_what_cannot_cross_is_refused_with_its_path(maas_connect, value, path):
    """A value outside the closed set is refused in every place, with the path that leads to it."""
    with pytest.raises(maas.CodecError, match=path):
        maas_connect(echo)(value)


def test_a_result_that_cannot_cross_is_refused_with_its_path(maas_connect):
    """A model that returns something uncrossable raises the same in every place."""
    with pytest.raises(maas.CodecError, match=r'result\["a"\]\[1\] is a .*object'):
        maas_connect(opaque)()


def opaque() -> Any:
    return {"a": [1, object()]}


def test_the_caller_keeps_its_arguments_and_the_model_its_results(maas_connect):
    """What a model appends to its argument or keeps of its result never shows on the other side."""
    counter = Counter()
    model = maas_connect(counter)
    given = [1]
    first = model.remember(given)
    first[0].append("mine")
    assert given == [1]
    assert model.remember(2) == [[1], 2]


# The tool itself.


def draws_python(n: int) -> float:
    return random.random() * n


def draws_numpy(n: int) -> float:
    return float(np.random.random() * n)  # noqa: NPY002 - it is what is told


def draws_torch(n: int) -> Any:
    return torch.rand(n)


@maas.method(stochastic=True)
def draws_declared(n: int) -> Any:
    return torch.rand(n), torch.randint(10, (n,))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (draws_python, "Python's random, whose state does not travel"),
        (draws_numpy, "NumPy's global generator, whose state does not travel"),
        (draws_torch, "stochastic=True"),
    ],
)
def test_undeclared_draws_are_told(maas_connect, function, words):
    """A target that draws from a generator that does not travel is found out and told so."""
    with pytest.raises(AssertionError, match=words):
        assert_congruent(function, maas_connect(function), Arguments((2,)))


def test_declared_draws_are_the_callers(maas_connect):
    """A stochastic model draws what the bare one draws, and leaves the generator where it does."""
    torch.manual_seed(5)
    for _ in range(3):
        assert_congruent(draws_declared, maas_connect(draws_declared), Arguments((4,)))


class Unknown(Exception):
    pass


def raises_unknown() -> None:
    raise ValueError("known") from Unknown("not")


def test_an_unregistered_exception_is_told(maas_connect):
    """An exception class that would not arrive as itself fails in every place, here too."""
    with pytest.raises(AssertionError, match=r"maas\.register\(Unknown\)"):
        assert_congruent(raises_unknown, maas_connect(raises_unknown), Arguments())


def appends(xs: list[int]) -> list[int]:
    xs.append(1)
    return list(xs)


def test_a_target_that_changes_its_arguments_is_told(maas_connect):
    """Arguments changed in place are seen by the bare caller only, so the check fails."""
    with pytest.raises(AssertionError, match="the target changes its arguments"):
        assert_congruent(appends, maas_connect(appends), Arguments(([],)))


def count(xs: Any) -> int:
    return len(xs)


def test_too_many_values_are_refused_with_what_to_do(maas_connect):
    """More than 65,536 values in one argument are refused in the same words in every place, and
    as an array they are one value.
    """
    model = maas_connect(count)
    words = r"more than 65536 values by args\[0\]; send numbers as an array, or raise Limits"
    with pytest.raises(maas.LimitExceeded, match=words):
        model(list(range(70_000)))
    with pytest.raises(maas.LimitExceeded, match=words):
        model.submit(dict.fromkeys(map(str, range(70_000)))).result(20)
    assert model(np.arange(70_000)) == 70_000


def relu(x: torch.Tensor) -> torch.Tensor:
    return x.relu_()


def test_a_tensor_changed_in_place_warns_here(maas_connect):
    """Where a model could change its caller's tensor it says so."""
    x = torch.tensor([-1.0, 1.0])
    if maas_connect.place == "here":
        with pytest.warns(maas.MutationWarning, match=r"args\[0\]"):
            maas_connect(relu)(x)
    else:
        assert maas_connect(relu)(x).tolist() == [0.0, 1.0]
        assert x.tolist() == [-1.0, 1.0]


def test_a_tolerance_is_printed(capsys):
    """A tolerance passes what is near, only where it is given, and says that it was needed."""
    call = Arguments((1.0,))
    model = maas.Model(lambda x: [torch.tensor([x + 1e-7], dtype=torch.float64), x])
    with pytest.raises(AssertionError, match="bytes"):
        assert_congruent(lambda x: [torch.tensor([x], dtype=torch.float64), x], model, call)
    assert_congruent(
        lambda x: [torch.tensor([x], dtype=torch.float64), x], model, call, tolerance=1e-6
    )
    assert "within 1e-06, not the same: value[0][0]" in capsys.readouterr().out


def sequence(xs: Sequence[int]) -> int:
    return len(xs)


def test_calls_draws_only_what_it_knows():
    """A type that says nothing is refused with a hint, until it has a strategy of its own."""
    with pytest.raises(maas.SignatureError, match="register_strategy"):
        find(calls(sequence), lambda call: True)
    register_strategy("collections.abc.Sequence[int]", st.just([1]))
    assert find(calls(sequence), lambda call: True).of(sequence) == 1
