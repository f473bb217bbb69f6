"""torch modules: `forward` under the caller's context, on the module's device.

Arrays arrive on the module's device as torch tensors and leave on the device and
in the kind of the caller's: a module called with NumPy answers NumPy, and the
outputs of a CPU tensor's call come back to the CPU. A dtype is never cast.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from maas import tensors
from maas.backends.base import Border, declared, describe_method
from maas.backends.python_object import warn_of_mutation
from maas.calls import CALL, Context
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
        self.differentiable = False

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
            self._kind = self._kind or "$array"
            tensor = _from_numpy(array)
        if not self._owned:
            self._arrived.append((tensor, torch_tensors.version(tensor), path))
        tensor = torch_tensors.contiguous(tensor)
        where = self._module.torch_device
        return tensor if where is None or tensor.device == where else tensor.to(where)

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
        if self._kind == "$array":
            array = _to_numpy(array)
        elif self._shared(array.untyped_storage().data_ptr()):
            array = array.clone()
        return array

    def _shared(self, storage: int) -> bool:
        if storage in self._module.storages():
            return True
        return any(storage == tensor.untyped_storage().data_ptr() for tensor, _version, _path in self._arrived)

    def settle(self) -> None:
        """Warns of every argument that was changed in place."""
        for tensor, version, path in self._arrived:
            if torch_tensors.version(tensor) != version:
                warn_of_mutation(path)


_CPU = torch.device("cpu")


def _from_numpy(array: Any) -> torch.Tensor:
    adapter = tensors.adapter_for(type(array))
    described = adapter.describe(array)  # type: ignore[union-attr]
    data = adapter.contents(array, ())  # type: ignore[union-attr]
    # torch warns of memory it may not write, and could not take it for an argument's copy anyway.
    data = memoryview(bytearray(data)) if data.readonly else data
    return torch_tensors.restore(described.dtype, described.shape, (), data)


def _to_numpy(tensor: torch.Tensor) -> Any:
    described = torch_tensors.describe(tensor)
    data = bytearray(torch_tensors.contents(tensor, ()))
    return tensors.restore("$array", described.dtype, described.shape, (), memoryview(data))


class TorchModule:
    """Runs one `torch.nn.Module`."""

    kind = "torch"

    def __init__(self, target: torch.nn.Module, device: str | None = None) -> None:
        self._module = target if device is None else target.to(device)
        # Nothing but a declaration makes a forward in eval mode impure.
        pure = declared(target.forward).pure is not False
        self.methods = {CALL: attrs.evolve(describe_method(CALL, target.forward, exclusive=False), pure=pure)}
        self._own: list[tuple[weakref.ref[torch.Tensor], int]] = []
        self._remember()

    def _remember(self) -> None:
        tensors_ = [*self._module.parameters(), *self._module.buffers()]
        self.torch_device = tensors_[0].device if tensors_ else None
        self._own = [
            (weakref.ref(tensor), tensor.data_ptr() - tensor.untyped_storage().data_ptr())
            for tensor in tensors_
            if tensor.layout is torch.strided and not isinstance(tensor, torch.nn.UninitializedParameter)
        ]

    def storages(self) -> set[int]:
        """Addresses of the storages under parameters and buffers: an output over one must be copied."""
        found = set()
        for reference, offset in self._own:
            tensor = reference()
            if tensor is None:
                self._remember()
                return self.storages()
            found.add(tensor.data_ptr() - offset)
        return found

    @property
    def training(self) -> bool | None:
        """The module's own mode."""
        return self._module.training

    @property
    def device(self) -> str | None:
        """Where the module's first parameter lives."""
        return None if self.torch_device is None else str(self.torch_device)

    def border(self, context: Context, *, owned: bool) -> Border:
        """A border for one call."""
        return TorchBorder(self, context, owned=owned)

    def run(self, _name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The module's output."""
        return self._module(*args, **kwargs)

    def set_training(self, training: bool) -> Callable[[], None]:
        """Switches every submodule, and remembers each one's own mode: a frozen part stays frozen afterwards."""
        before = [(module, module.training) for module in self._module.modules()]
        self._module.train(training)

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
                    key: [str(value.dtype).removeprefix("torch."), list(value.shape)]
                    for key, value in module.named_parameters(recurse=False)
                },
            }
            for name, module in self._module.named_modules()
            if next(module.parameters(recurse=False), None) is not None
        ]
        return {"layers": layers, "parameters": sum(value.numel() for value in self._module.parameters())}
