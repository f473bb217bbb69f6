from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import maas
from maas.backends.python_object import PythonObject
from maas.calls import CALL, Call
from maas.testing import difference

CACHES = {"numpy": np.zeros(3), "torch": torch.zeros(3)}


def test_a_cached_result_stays_the_functions(maas_connect):
    """Changing what a function gave leaves what it keeps, and the next answer, as they were."""

    def cached(kind: str) -> Any:
        return {"a": [CACHES[kind], CACHES[kind][1:]]}

    model = maas_connect(cached)
    for kind in CACHES:
        for array in model(kind)["a"]:
            array[...] = 7
        assert model(kind)["a"][0].tolist() == [0, 0, 0]


def test_one_buffer_gives_many_items(maas_connect):
    """A generator that fills one array over and over gives items that stay what they were."""

    def fills(n: int) -> Iterator[Any]:
        buffer = np.zeros(2)
        for number in range(n):
            buffer[:] = number
            yield buffer

    items = list(maas_connect(fills).stream(3))
    assert [item.tolist() for item in items] == [[0, 0], [1, 1], [2, 2]]


def changes(x: Any) -> Any:
    x[0] = 7
    return x


def test_a_numpy_argument_is_never_changed(maas_connect):
    """A function that changes a NumPy argument in place changes a copy, in every place alike."""
    x = np.arange(3)
    view = np.arange(6).reshape(2, 3).T
    model = maas_connect(changes)
    assert model(x).tolist() == [7, 1, 2]
    assert model(view).tolist() == [[7, 7], [1, 4], [2, 5]]
    assert x.tolist() == [0, 1, 2]
    assert view[0].tolist() == [0, 3]


def test_an_argument_over_the_wire_is_given_back_uncopied():
    """On the server's side an argument is the call's own: a large one is not copied to answer."""
    seen = []

    def echo(x: Any) -> Any:
        seen.append(x)
        return x

    backend = PythonObject(echo)
    x = np.zeros(1000)
    assert backend.perform(Call("echo", CALL, (x,), owned=True)) is x
    assert backend.perform(Call("echo", CALL, (x,))) is not x
    assert [array is x for array in seen] == [True, False]


@pytest.mark.parametrize(
    "view",
    [lambda x: x, lambda x: x[1:], lambda x: x.reshape(2, -1), lambda x: {"a": (x[:1],)}],
    ids=["same", "slice", "reshaped", "inside"],
)
@pytest.mark.parametrize("array", [np.arange(6.0), torch.arange(6.0)], ids=["numpy", "torch"])
def test_a_result_over_an_argument_is_a_copy(view, array):
    """A view of an argument is given in memory of its own: changing it leaves the argument."""
    before = array.tolist()
    result = maas.Model(view)(array)
    assert difference(view(array), result) is None
    inner = result["a"][0] if type(result) is dict else result
    inner[...] = -1
    assert array.tolist() == before


class Keeps:
    def __init__(self) -> None:
        self.kept = torch.zeros(3)

    @maas.method
    def get(self) -> torch.Tensor:
        return self.kept

    @maas.method
    def put(self, value: torch.Tensor) -> None:
        self.kept = value


def test_what_an_object_keeps_is_its_own():
    """An object's arrays are neither the caller's after a call nor before one."""
    keeps = Keeps()
    model = maas.Model(keeps)
    model.get().fill_(7)
    assert keeps.kept.tolist() == [0, 0, 0]
    value = torch.ones(3)
    model.put(value)
    value.fill_(7)
    assert keeps.kept.tolist() == [1, 1, 1]


def test_arguments_arrive_in_c_order():
    """Whatever layout a caller's array has, the function sees the one a remote one would."""

    def strides(x: Any) -> tuple[int, ...]:
        return tuple(x.strides) if isinstance(x, np.ndarray) else x.stride()

    assert maas.Model(strides)(np.zeros((2, 3)).T) == (16, 8)
    assert maas.Model(strides)(torch.zeros(2, 3).T) == (2, 1)


def test_lazy_conjugates_are_resolved():
    """A conjugated or negated view arrives as plain numbers."""
    x = torch.tensor([1 + 2j]).conj()
    assert maas.Model(lambda x: (x.is_conj(), x.imag.is_neg()))(x) == (False, False)


def test_gradients_flow_through_a_function_here():
    """With grad mode on and an argument that requires grad, the result is part of its graph."""
    x = torch.ones(2, requires_grad=True)
    maas.Model(lambda x: x * 3)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3, 3]


def test_a_function_that_closes_over_parameters_gives_no_graph():
    """A result requires grad only if an argument does, as no other place could give a graph."""
    weight = torch.ones(2, requires_grad=True)
    assert not maas.Model(lambda x: x * weight)(torch.ones(2)).requires_grad


def test_static_and_class_methods_can_be_marked():
    """`@maas.method` goes with staticmethod and classmethod, in either order of inheritance."""

    class Base:
        @staticmethod
        @maas.method
        def double(x: int) -> int:
            return 2 * x

        @classmethod
        @maas.method(name="title")
        def named(cls) -> str:
            return cls.__name__

    class Derived(Base):
        pass

    model = maas.Model(Derived())
    assert (model.double(2), model.title()) == (4, "Derived")
