"""torch modules: `forward` under the caller's context, on the module's device.

Arrays arrive on the module's device as torch tensors and leave on the device and
in the kind of the caller's: a module called with NumPy answers NumPy, one called with
TensorFlow's tensors answers those, and the outputs of a CPU tensor's call come back to the
CPU. A dtype is never cast.
"""

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch.nn.parameter import is_lazy

from maas import ambient, tensors
from maas.backends.base import RESULT, Border, declared, describe_method, performed, release
from maas.backends.python_object import warn_of_mutation
from maas.calls import CALL, Call, Context
from maas.tensors import torch_tensors
from maas.values import Path

__all__ = ["TorchBorder", "TorchModule"]


class TorchBorder:
    """Brings arrays to the module and back to the caller."""

    __slots__ = ("_arrived", "_context", "_home", "_kind", "_module", "_owned", "differentiable")

    def __init__(self, module: "TorchModule", context: Context, *, owned: bool) -> None:
        self._module = module
        self._context = context
        self._owned = owned
        self._arrived: list[tuple[torch.Tensor, int, Path]] = []
        self._home: torch.device | None = None
        self._kind = ""
        self.differentiable = context.parameters and context.grad

    def arrive(self, array: Any, path: Path) -> torch.Tensor:
        """The array as a contiguous tensor on the module's device."""
        if isinstance(array, torch.Tensor):
            self._kind = "$tensor"
            tensor = array
            if self._home is None:
                self._home = tensor.device
            if tensor.requires_grad and self._context.grad:
                self.differentiable = True
        else:
            kind, tensor = _from_other(array)
            if self._kind in ("", "$array"):
                self._kind = kind
        self.note(tensor, torch_tensors.version(tensor), path)
        tensor = torch_tensors.contiguous(tensor)
        where = self._module.torch_device
        return tensor if where is None or tensor.device == where else tensor.to(where)

    def note(self, tensor: torch.Tensor, version: int, path: Path) -> None:
        """Remembers an argument, unless it belongs to the call alone."""
        if not self._owned:
            self._arrived.append((tensor, version, path))

    def leave(self, array: Any, _path: Path) -> Any:
        """The output on the caller's device, in its kind, and in memory that nobody else holds."""
        if not isinstance(array, torch.Tensor):
            return array
        if array.requires_grad and not self.differentiable:
            array = array.detach()
        home = self._home or _CPU
        if array.device != home:
            array = array.to(home)
        array = torch_tensors.contiguous(array)
        if self._kind not in ("", "$tensor"):
            return _to_other(self._kind, array)
        return array.clone() if self._shared(array) else array

    def _shared(self, output: torch.Tensor) -> bool:
        if ambient.transforming():
            return True  # these tensors do not tell where their memory is
        storage = output.untyped_storage().data_ptr()
        for tensor, _version, _path in self._arrived:
            if storage == tensor.untyped_storage().data_ptr():
                return True
        return self._module.owns(storage)

    def settle(self) -> None:
        """Warns of every argument that was changed in place."""
        for tensor, version, path in self._arrived:
            if torch_tensors.version(tensor) != version:
                warn_of_mutation(path)


_CPU = torch.device("cpu")


def _references() -> int:
    fresh = object()
    return sys.getrefcount(fresh)


# Whether nobody else holds an output, or the memory under it: fewer instructions than to compare
# addresses with every parameter's, and it sees a module that keeps what it returned.
_ALONE = _references()
_SOLE = 2  # the tensor, and the storage object that was asked of it
_holders: Callable[[int], int] = getattr(torch._C, "_storage_Use_Count", lambda _storage: _SOLE + 1)
ARGUMENT: Path = ((None, "args", 1), 0, 2)


def _from_other(array: Any) -> tuple[str, torch.Tensor]:
    """The kind of an array of another framework's, and the array as a tensor."""
    adapter = tensors.adapter_for(type(array))
    described = adapter.describe(array)  # type: ignore[union-attr]
    data = adapter.contents(array, ())  # type: ignore[union-attr]
    # torch warns of memory it may not write, and could not take it for an argument's copy anyway.
    data = memoryview(bytearray(data)) if data.readonly else data
    return described.tag, torch_tensors.restore(described.dtype, described.shape, (), data)


def _to_other(kind: str, tensor: torch.Tensor) -> Any:
    described = torch_tensors.describe(tensor)
    data = bytearray(torch_tensors.contents(tensor, ()))
    return tensors.restore(kind, described.dtype, described.shape, (), memoryview(data))


class TorchModule:
    """Runs one `torch.nn.Module`."""

    kind = "torch"

    def __init__(self, target: torch.nn.Module, device: str | None = None) -> None:
        self.target = target if device is None else target.to(device)
        # Nothing but a declaration makes a forward in eval mode impure.
        pure = declared(target.forward).pure is not False
        self.methods = {
            CALL: attrs.evolve(describe_method(CALL, target.forward, exclusive=False), pure=pure)
        }
        self._own: list[tuple[weakref.ref[torch.Tensor], int]] = []
        self._remember()

    def _remember(self) -> None:
        tensors_ = [*self.target.parameters(), *self.target.buffers()]
        self.torch_device = tensors_[0].device if tensors_ else None
        self._device = self.torch_device or _CPU
        self._own = [
            (weakref.ref(tensor), tensor.data_ptr() - tensor.untyped_storage().data_ptr())
            for tensor in tensors_
            if tensor.layout is torch.strided and not is_lazy(tensor)
        ]

    def owns(self, storage: int) -> bool:
        """Whether a storage at that address lies under a parameter or buffer."""
        for reference, offset in self._own:
            tensor = reference()
            if tensor is None:
                # A layer was replaced: what it owned before is gone.
                self._remember()
                return self.owns(storage)
            if tensor.data_ptr() - offset == storage:
                return True
        return False

    @property
    def training(self) -> bool | None:
        """The module's own mode."""
        return self.target.training

    @property
    def device(self) -> str | None:
        """Where the module's first parameter lives."""
        return None if self.torch_device is None else str(self.torch_device)

    def border(self, context: Context, *, owned: bool) -> Border:
        """A border for one call."""
        return TorchBorder(self, context, owned=owned)

    def perform(self, call: Call) -> Any:
        """What the call gives.

        One plain tensor in and one fresh tensor out is nearly every call, and is written out flat:
        for a
        model of 75 us, the calls into half a dozen helpers cost more (8 us, their code being cold)
        than what they do.
        """
        tensor = call.args[0] if len(call.args) == 1 and not call.kwargs else None
        if (
            type(tensor) is not torch.Tensor
            or not self._is_plain(tensor)
            or tensor.is_inference()
            or ambient.transforming()
        ):
            return performed(self, call)
        version = tensor._version
        output = self.target(tensor)
        if (
            type(output) is torch.Tensor
            and sys.getrefcount(output) == _ALONE
            and tensor._version == version
            and self._is_plain(output)
            and _holders(output.untyped_storage()._cdata) == _SOLE
        ):
            return output
        border = TorchBorder(self, call.context, owned=call.owned)
        border.note(tensor, version, ARGUMENT)
        border.settle()
        return release(output, RESULT, border)

    def _is_plain(self, tensor: torch.Tensor) -> bool:
        """Whether a border would let the tensor pass as it is."""
        return (
            not tensor.requires_grad
            and tensor.is_contiguous()
            and tensor.device == self._device
            and not tensor.is_neg()
            and not tensor.is_conj()
        )

    def run(self, _name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The module's output."""
        return self.target(*args, **kwargs)

    def set_training(self, training: bool) -> Callable[[], None]:
        """Switches every submodule, and remembers each one's mode: a frozen part stays so."""
        before = [(module, module.training) for module in self.target.modules()]
        self.target.train(training)

        def restore() -> None:
            for module, mode in before:
                module.training = mode

        return restore

    def details(self) -> dict[str, Any]:
        """The layers that hold parameters, and their sum."""
        layers = [
            {
                "name": name,
                "type": type(module).__name__,
                "parameters": {
                    key: [str(value.dtype).removeprefix("torch."), _shape(value)]
                    for key, value in module.named_parameters(recurse=False)
                },
            }
            for name, module in self.target.named_modules()
            if next(module.parameters(recurse=False), None) is not None
        ]
        return {
            "layers": layers,
            "parameters": sum(map(_count, self.target.parameters())),
        }


def _shape(parameter: Any) -> list[int] | None:
    """None for a lazy module's, which the first call decides."""
    return None if is_lazy(parameter) else list(parameter.shape)


def _count(parameter: Any) -> int:
    return 0 if is_lazy(parameter) else int(parameter.numel())
