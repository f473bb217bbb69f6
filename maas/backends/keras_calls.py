"""Keras models, whatever they compute with: what they take, how their mode is set, what they draw.

A call is `model(x, training=...)`, where `training` is the mode of the handle; Keras itself takes a
call that does not say to be one in eval mode. What a layer draws comes from a state of its
own, a variable as its weights are, so it stays with the model and does not travel with a call. On
torch, a layer that was given no seed draws from torch's generator, which does travel.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from maas import tensors
from maas.backends.base import Method, declared, describe_method, performed
from maas.calls import CALL, Call
from maas.hints import BATCH, unify
from maas.parameters import Parameter
from maas.schema import ANY, Schema, TensorSpec
from maas.signature import Signature

__all__ = ["KerasCalls", "array_of", "in_numpy"]


def array_of(variable: Any) -> Any:
    """A variable's value in NumPy, and in memory of its own.

    Not by way of Keras, which casts bfloat16 on torch.
    """
    value = variable.value
    return in_numpy(value.read_value() if hasattr(value, "read_value") else value)


def in_numpy(array: Any) -> Any:
    """An array of any kind as NumPy's, in memory of its own; TypeError for what is none."""
    adapter = tensors.adapter_for(type(array))
    if adapter is None:
        raise TypeError(f"wanted an array, got {array!r:.60}")
    dtype, shape = adapter.facts(array)
    data = bytearray(adapter.contents(adapter.contiguous(array), ()))
    return tensors.restore("$array", dtype, shape, (), memoryview(data))


class KerasCalls:
    """What the backends for Keras have in common; `target` is the model."""

    kind = "keras"
    target: Any

    def _prepare(self, target: Any) -> None:
        self.target = target
        self._mode = False
        self._building = threading.Lock()
        self.methods = {CALL: _method(target)}

    @property
    def training(self) -> bool | None:
        """The mode of a call that does not say: eval, unless it is being switched."""
        return self._mode

    def set_training(self, training: bool) -> Callable[[], None]:
        """Sets what `training=` the next calls get."""
        before, self._mode = self._mode, training

        def restore() -> None:
            self._mode = before

        return restore

    def run(self, _name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The model's output; the first call may be what makes its weights, so it runs alone."""
        if self.target.built:
            return self.target(*args, **kwargs, training=self._mode)
        with self._building:
            output = self.target(*args, **kwargs, training=self._mode)
            self._built()
        return output

    def _built(self) -> None:
        """Called after the model has made its weights."""

    def perform(self, call: Call) -> Any:
        """What the call gives."""
        if call.context.seed is None:
            return performed(self, call)  # type: ignore[arg-type]
        with _seeded(self.target, call.context.seed):
            return performed(self, call)  # type: ignore[arg-type]

    def details(self) -> dict[str, Any]:
        """The layers that hold weights, and the sum of these."""
        own = [
            (layer, layer.weights) for layer in self.target._flatten_layers() if not layer._layers
        ]
        return {
            "layers": [
                {
                    "name": layer.name,
                    "type": type(layer).__name__,
                    "parameters": {
                        weight.name: [str(weight.dtype), [*weight.shape]] for weight in weights
                    },
                }
                for layer, weights in own
                if weights
            ],
            "parameters": sum(int(np.prod(each.shape)) for each in self.target.weights),
        }


@contextlib.contextmanager
def _seeded(model: Any, seed: int) -> Iterator[None]:
    """The model draws as the seed says, and afterwards as if it had not drawn."""
    states = [each for each in model.variables if each.name == "seed_generator_state"]
    before = [array_of(each) for each in states]
    # One for each, so that two layers do not draw the same numbers.
    children = np.random.SeedSequence(seed % 2**64).spawn(len(states))
    try:
        for state, child in zip(states, children, strict=True):
            state.assign([int(child.generate_state(1)[0]) & 0x7FFFFFFF, 0])
        yield
    finally:
        for state, value in zip(states, before, strict=True):
            state.assign(value)


# What it takes and gives.


def _method(target: Any) -> Method:
    found = describe_method(CALL, target.call, exclusive=False)
    # A layer that remembers what it has seen from call to call answers differently each time.
    keeps = any(getattr(layer, "stateful", False) for layer in target._flatten_layers())
    pure = declared(target.call).pure is not False and not keeps
    label = f"{type(target).__name__}.call"
    return attrs.evolve(
        found, label=label, signature=_signature(target, found), pure=pure, exclusive=keeps
    )


def _signature(target: Any, found: Method) -> Signature:
    """The inputs by their shapes where the model knows them; else what `call` says."""
    parameters = [each for each in found.signature.parameters if each.name != "training"]
    structures = _structures(target)
    if structures is None:
        return Signature(parameters, found.signature.returns)
    takes, gives = map(_schema, structures)
    return Signature([Parameter(parameters[0].name, "positional-or-keyword", takes)], gives)


def _structures(target: Any) -> tuple[Any, Any] | None:
    """Symbolic inputs and outputs of a functional or sequential model, nested as it takes them."""
    inner = getattr(target, "_functional", target)
    takes, gives = (getattr(inner, name, None) for name in ("_inputs_struct", "_outputs_struct"))
    return None if takes is None or gives is None else (takes, gives)


def _schema(structure: Any) -> Schema:
    if isinstance(structure, dict):
        return Schema("dict", (Schema("str"), unify(map(_schema, structure.values()))))
    if isinstance(structure, list | tuple):
        members = tuple(map(_schema, structure))
        if isinstance(structure, list):
            return Schema("list", (unify(members),))
        return Schema("tuple", members)
    if str(structure.dtype) not in tensors.DTYPES or getattr(structure, "sparse", False):
        return ANY
    first, *rest = structure.shape or (None,)
    shape = (BATCH if first is None else first, *rest) if structure.shape else ()
    return Schema("tensor", spec=TensorSpec(str(structure.dtype), shape))
