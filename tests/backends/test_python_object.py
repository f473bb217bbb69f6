from typing import Any

import numpy as np
import pytest
import torch

import maas
from maas.testing import difference


def test_a_functions_fresh_result_is_not_copied():
    """What nobody else holds is given as it is: no copy of a large result."""
    made = []

    def make(n: int) -> Any:
        made.append(np.ones(n))
        return made[-1]

    assert maas.Model(make)(10) is made[-1]


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
