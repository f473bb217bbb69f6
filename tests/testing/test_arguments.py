import dataclasses
import datetime as dt
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import maas
from maas.parameters import Parameter
from maas.tensors import DTYPES, dtype_name
from maas.testing import Arguments, calls, invalid_calls, register_strategy

EXAMPLES = settings(max_examples=15)


def everything(
    a: int,
    b: str = "b",
    /,
    c: Literal["x", 3] = "x",
    *rest: float,
    d: list[dict[str, tuple[int, ...]]],
    e: set[bool] | None = None,
    f: frozenset[bytes] = frozenset(),
    g: dt.datetime | dt.timedelta = dt.timedelta(),
    h: tuple[complex, Any, slice, range] = (0j, None, slice(None), range(0)),
    **more: bytearray,
) -> None:
    pass


def nothing() -> None:
    pass


def anything(*args: Any, **kwargs: Any) -> None:
    pass


Rows = Annotated[torch.Tensor, maas.TensorSpec("float32", ("batch", "n", 3))]
Labels = Annotated[torch.Tensor, maas.TensorSpec("int64", ("batch", None))]


def trains(rows: Rows, labels: Labels, weights: dict[str, Rows] | None = None) -> None:
    pass


@pytest.mark.parametrize("function", [everything, nothing, anything, trains])
@given(st.data())
@EXAMPLES
def test_calls_fit_their_signature(function, data):
    """Every call that is drawn passes the check, and Python's own binding."""
    signature = maas.Signature.from_callable(function)
    call = data.draw(calls(function))
    signature.check(call.args, call.kwargs)
    call.of(function)


@pytest.mark.parametrize("function", [everything, nothing, trains])
@given(st.data())
@EXAMPLES
def test_invalid_calls_do_not_fit(function, data):
    """Every invalid call is refused by the check."""
    call = data.draw(invalid_calls(function))
    with pytest.raises(maas.SignatureError):
        maas.Signature.from_callable(function).check(call.args, call.kwargs)


def test_every_way_to_give_an_argument_is_drawn():
    """Optional arguments are given and left out, by position and by name."""
    assert find(calls(trains), lambda call: len(call.args) == 2).kwargs == {}
    assert len(find(calls(trains), lambda call: len(call.args) == 3).args) == 3
    by_name = find(calls(trains), lambda call: len(call.kwargs) == 3)
    assert set(by_name.kwargs) == {"rows", "labels", "weights"}


@pytest.mark.parametrize(
    "words", ["wants float32", "missing", "unexpected keyword", "batch is", "positional", "uint8"]
)
def test_every_kind_of_mistake_is_drawn(words):
    """Numbers, names, types, dtypes, shapes and lengths that clash: all are drawn."""

    def told(call: Arguments) -> bool:
        try:
            call.of(maas.Model(trains))
        except maas.SignatureError as error:
            return words in str(error)
        return False

    unshrunk = settings(max_examples=2_000, phases=[Phase.generate])
    find(invalid_calls(trains), told, settings=unshrunk)


def test_a_signature_that_takes_everything_has_no_invalid_calls():
    """Where every call fits there is nothing to draw, and that is said."""
    with pytest.raises(ValueError, match="takes every call"):
        invalid_calls(anything)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arrays", ["torch", "numpy"])
def test_arrays_of_every_dtype(dtype, arrays):
    """A spec of any dtype gives arrays of it, in the framework that is asked for."""
    signature = maas.Signature(
        [Parameter("x", annotation=maas.TensorSpec(dtype, ("n", 2)), kind="positional")]
    )
    call = find(calls(signature, arrays=arrays), lambda call: call.args[0].shape[0] == 3)
    assert dtype_name(call.args[0]) == dtype
    assert call.args[0].shape == (3, 2)


def test_sizes_are_the_testers():
    """`sizes` says which lengths symbolic dimensions have."""
    call = find(calls(trains, sizes=st.just(7)), lambda call: len(call.args) == 2)
    assert [tuple(array.shape) for array in call.args] == [(7, 7, 3), (7, 7)]


@maas.register(name="arguments.Pixel")
@dataclasses.dataclass
class Pixel:
    x: int
    colour: Literal["red", "blue"]


def draw_pixel(pixel: Pixel) -> None:
    pass


def test_registered_classes_are_built():
    """An object of a registered class is drawn from its hints, or from a strategy of its own."""
    call = find(calls(draw_pixel), lambda call: call.args and call.args[0].colour == "blue")
    assert type(call.args[0]) is Pixel
    register_strategy(Pixel, st.just(Pixel(7, "red")))
    (*_, pixel) = find(calls(draw_pixel), lambda call: bool(call.args)).args
    assert pixel.x == 7
    with pytest.raises(TypeError, match="is not registered"):
        register_strategy(Iterator, st.none())


def test_a_remote_model_tells_what_it_takes():
    """Calls are drawn from the signature that a server describes."""
    model = maas.connect(maas.Server(trains))
    assert len(find(calls(model), lambda call: len(call.args) == 2).args) == 2


def test_methods_are_models_too():
    """A bound method of a model has a signature of its own."""

    class Box:
        @maas.method
        def put(self, n: int) -> int:
            return n

    assert find(calls(maas.Model(Box()).put), lambda call: True).of(maas.Model(Box()).put) == 0


def test_a_module_is_called_with_tensors():
    """Arrays for a torch module are tensors unless NumPy is asked for."""
    net = maas.Model(torch.nn.Linear(3, 1), example=torch.zeros(2, 3))
    assert type(find(calls(net), lambda call: bool(call.args)).args[0]) is torch.Tensor
    call = find(calls(net, arrays="numpy"), lambda call: bool(call.args))
    assert type(call.args[0]) is np.ndarray


def test_calls_are_drawn_without_torch():
    """A tester without torch draws NumPy arrays, and loads nothing."""
    code = """
import sys
import maas
from hypothesis import find
from maas.parameters import Parameter
from maas.testing import calls
spec = Parameter("x", annotation=maas.TensorSpec("float64", ("n",)), kind="positional")
print(type(find(calls(maas.Signature([spec])), lambda call: True).args[0]).__name__)
assert "torch" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "ndarray\n", run.stderr


def test_a_call_is_shown_as_it_is_written():
    """What failed can be pasted: arguments look as in Python."""
    assert str(Arguments((1, "a"), {"b": [2]})) == "(1, 'a', b=[2])"
