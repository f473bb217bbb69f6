"""A torch module's tensors in a safetensors file, and back, bit for bit.

The reference library reads and writes the file; here is what it does not know: dtypes
beyond its own (kept as their bytes), tensors that are one, memory formats, and which
tensors a module wants. All names, shapes and dtypes are compared before
a tensor is read, all tensors read before one is placed.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from maas.backends import torch_architecture
from maas.backends.onnx_graph import OnnxGraph
from maas.errors import CodecError
from maas.store.folders import Opened
from maas.store.manifest import Manifest, Mode, Weights
from maas.store.tensor_files import NAMES, Spec, TensorFile, check_alike, some, written
from maas.tensors import CHANNELS_LAST, torch_tensors

__all__ = ["architecture", "fill", "mode", "nbytes", "restored", "write"]

_NATIVE = set(NAMES.values())


# A module to a file.


def mode(module: nn.Module, handle: bool | None) -> Mode:
    """Train or eval, of the module, its submodules and the handle."""
    otherwise = [
        name for name, each in _submodules(module).items() if each.training != module.training
    ]
    return Mode(training=module.training, otherwise=otherwise, handle=handle)


def _submodules(module: nn.Module) -> dict[str, nn.Module]:
    return dict(module.named_modules(remove_duplicate=False))


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(remove_duplicate=False))


def _buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_buffers(remove_duplicate=False))


def architecture(module: nn.Module) -> tuple[dict[str, Any] | None, str]:
    """The module as standard layers, or None and the reason why it is more than that."""
    node, reason = torch_architecture.described(module)
    if node is not None and not _shares_whole(module):
        return (
            None,
            "some of its tensors share a part of their memory, or all of it without being one",
        )
    return node, reason


def _shares_whole(module: nn.Module) -> bool:
    """Whether tensors of a module share memory only where they are the same object."""
    spans: dict[int, tuple[int, int]] = {}
    for tensor in (*_parameters(module).values(), *_buffers(module).values()):
        if tensor.numel() and tensor.device.type != "meta":
            reach = sum(
                (size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)
            )
            spans[id(tensor)] = (
                tensor.data_ptr(),
                tensor.data_ptr() + (reach + 1) * tensor.element_size(),
            )
    ordered = sorted(spans.values())
    return all(one[1] <= other[0] for one, other in itertools.pairwise(ordered))


def nbytes(module: nn.Module) -> int:
    """Bytes of its parameters and buffers."""
    return sum(each.nbytes for each in (*module.parameters(), *module.buffers()))


def write(module: nn.Module, path: Path) -> Weights:
    """Writes all that the module's `state_dict` holds.

    Raises
    ------
    CodecError
        Something in it is no plain tensor: the message names it.
    """
    state = {name: _plain(name, value) for name, value in module.state_dict().items()}
    tied = _tied(state)
    own = {name: tensor for name, tensor in state.items() if name not in tied}
    packed = {
        name: tensor
        for name, tensor in own.items()
        if torch_tensors.facts(tensor)[0] not in _NATIVE
    }
    save_file(
        {name: _storable(tensor, name in packed) for name, tensor in own.items()},
        path,
        metadata={"format": "pt"},
    )
    digest, size = written(path)
    return Weights(
        sha256=digest,
        bytes=size,
        tied=tied,
        frozen=[
            name for name, parameter in _parameters(module).items() if not parameter.requires_grad
        ],
        packed={
            name: [torch_tensors.facts(tensor)[0], list(tensor.shape)]
            for name, tensor in packed.items()
        },
        channels_last=[
            name
            for name, tensor in own.items()
            if CHANNELS_LAST in torch_tensors.describe(tensor).flags
        ],
        left_out=[name for name in _buffers(module) if name not in state],
    )


def _plain(name: str, value: Any) -> torch.Tensor:
    if type(value) is not torch.Tensor:
        raise CodecError(
            f"{name} is a {type(value).__qualname__}; a model folder holds plain tensors. "
            "Initialise a lazy module by a call, and keep other state in buffers"
        )
    if name == "__metadata__":
        raise CodecError(
            "a safetensors file keeps the name __metadata__ for itself; rename the tensor"
        )
    try:
        torch_tensors.describe(value)
    except CodecError as error:
        raise CodecError(f"{name}: {error}") from None
    return value


def _tied(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Name to the first name of the same tensor, for all but the first."""
    first: dict[Any, str] = {}
    tied = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(key, name) != name:
            tied[name] = first[key]
    return tied


def _storable(tensor: torch.Tensor, packed: bool) -> torch.Tensor:
    """Contiguous, on the CPU and in memory of its own, which is what safetensors takes."""
    if not packed:
        return tensor.cpu().clone(memory_format=torch.contiguous_format)
    data = torch_tensors.contents(tensor, ())
    return (
        torch.frombuffer(data, dtype=torch.uint8)
        if len(data)
        else torch.empty(0, dtype=torch.uint8)
    )


# A file to a module.


def restored(files: Opened, manifest: Manifest) -> nn.Module:
    """The module that the manifest describes, with the tensors of the file.

    Raises
    ------
    CodecError
        The folder does not fit together.
    """
    tensors = _Tensors(files, manifest.weights)
    module = torch_architecture.build(manifest.architecture, len(tensors.specs))
    wanted = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: list(spec.shape) for name, spec in tensors.specs.items()}
    check_alike(given, wanted, "the layers in model.json")
    flags = _flags(module, manifest, tensors.specs)
    _place(module, tensors.read(), manifest.weights.tied, flags)
    for each in module.modules():
        if isinstance(each, OnnxGraph):
            each.check()
    _set_mode(module, manifest.mode)
    return module


def fill(module: Any, files: Opened, manifest: Manifest) -> None:
    """Copies the tensors of the file into those of the caller's module.

    Raises
    ------
    TypeError
        What the caller gave is no module.
    CodecError
        The tensors are not exactly those that the module has; then nothing was changed.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"into= wants an instance of {manifest.module}, as in into=Net(); got {module!r:.80}"
        )
    tensors = _Tensors(files, manifest.weights)
    state = {name: _plain(name, value) for name, value in module.state_dict().items()}
    wanted = {name: Spec(*torch_tensors.facts(tensor)) for name, tensor in state.items()}
    check_alike(tensors.specs, wanted, type(module).__name__)
    flags = _flags(module, manifest, tensors.specs)
    given = tensors.read()
    for name, first in _tied(state).items():
        if not _same_bits(given[name], given[first]):
            raise CodecError(
                f"{name} and {first} are one tensor in {type(module).__name__} "
                "and two in the folder"
            )
    module.load_state_dict(given, strict=True)
    for name, parameter in _parameters(module).items():
        parameter.requires_grad_(flags[name])
    _set_mode(module, manifest.mode)


class _Tensors(TensorFile):
    """The tensor file of a torch module; `read` gives its tensors."""

    def __init__(self, files: Opened, weights: Weights) -> None:
        super().__init__(files, weights, "pt", NAMES, torch_tensors.knows)
        self._check_names()
        self.specs |= {name: self.specs[first] for name, first in weights.tied.items()}

    def _check_names(self) -> None:
        """What model.json says of the tensors is of tensors that are there."""
        weights, stored = self._weights, self.specs.keys()
        unknown = ({*weights.tied.values(), *weights.packed, *weights.channels_last} - stored) | (
            weights.tied.keys() & stored
        )
        if unknown:
            raise CodecError(f"model.json and the tensor file disagree about {some(unknown)}")
        flat = [name for name in weights.channels_last if len(self.specs[name].shape) not in _DENSE]
        if flat:
            raise CodecError(f"only images have channels: {some(flat)} cannot be channels_last")

    def read(self) -> dict[str, torch.Tensor]:
        """Every tensor in memory of its own; those that are tied are one."""
        with safe_open(self._path, "pt") as opened:
            stored = [name for name in self.specs if name not in self._weights.tied]
            given = {name: self._own(name, opened.get_tensor(name)) for name in stored}
        return given | {name: given[first] for name, first in self._weights.tied.items()}

    def _own(self, name: str, stored: torch.Tensor) -> torch.Tensor:
        """The tensor itself, copied: the library may give a view of the file."""
        spec, memory = self.specs[name], torch.contiguous_format
        if name in self._weights.channels_last:
            memory = _DENSE[len(spec.shape)]
        if name in self._weights.packed:
            data = stored.clone().numpy().data
            restored = torch_tensors.restore(spec.dtype, spec.shape, (), data)
            return restored.contiguous(memory_format=memory)
        # Before the copy, in which torch makes every byte but 0 a 1.
        if spec.dtype == "bool" and stored.numel() and stored.view(torch.uint8).max() > 1:
            raise CodecError(f"{name}: a bool tensor holds bytes other than 0 and 1")
        return stored.clone(memory_format=memory)


_DENSE = {4: torch.channels_last, 5: torch.channels_last_3d}


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or torch_tensors.contents(one, ()) == torch_tensors.contents(other, ())


def _flags(module: nn.Module, manifest: Manifest, specs: Mapping[str, Spec]) -> dict[str, bool]:
    """Name of each parameter to whether it requires a gradient.

    Whatever model.json says of names is checked here, so that nothing was changed if it is wrong.
    """
    parameters, frozen, tied = (
        _parameters(module),
        set(manifest.weights.frozen),
        manifest.weights.tied,
    )
    unknown = (frozen - parameters.keys()) | (
        set(manifest.mode.otherwise) - _submodules(module).keys()
    )
    # A buffer that is one with a parameter would be neither.
    unknown |= {
        name for name, first in tied.items() if (name in parameters) != (first in parameters)
    }
    if unknown:
        raise CodecError(f"model.json says of {some(unknown)} what the module does not have")
    for name in parameters.keys() & specs.keys() - frozen:
        dtype = getattr(torch, specs[name].dtype)
        if not (dtype.is_floating_point or dtype.is_complex):
            raise CodecError(
                f"{name} is {specs[name]} and cannot require a gradient, "
                "but is not frozen in model.json"
            )
    return {name: name not in frozen for name in parameters}


def _place(
    module: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    tied: Mapping[str, str],
    flags: Mapping[str, bool],
) -> None:
    """Puts the tensors into a module on the meta device; those that are tied are one object."""
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        first = tied.get(name, name)
        if first not in made:
            made[first] = (
                nn.Parameter(tensor, requires_grad=flags[first]) if first in flags else tensor
            )
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, made[first])


def _set_mode(module: nn.Module, mode: Mode) -> None:
    otherwise = set(mode.otherwise)
    for name, each in _submodules(module).items():
        each.training = mode.training != (name in otherwise)
