"""How a module's parameters and buffers are called, as data; and a module with no more than that.

The bare module is the client's view of a model that runs elsewhere. It is torch's own
`nn.Module` with the same names in the same order and nothing to compute with, so
`parameters()`, `state_dict()`, `load_state_dict()` and the errors of the last are torch's own.
A tensor that the real module holds under two names is one tensor here as well.
"""

from collections.abc import Mapping
from typing import Any

import torch

from maas.errors import ProtocolError

__all__ = ["bare_module", "layout_of", "tensors_of"]


def layout_of(module: torch.nn.Module) -> list[list[Any]]:
    """For each submodule: path, `[name, tensor]` of parameters, `[name, tensor, kept]` of buffers.

    `tensor` is the first full name of the tensor; `kept` says whether `state_dict` has the buffer.
    """
    parameters = _first_names(module.named_parameters(remove_duplicate=False))
    buffers = _first_names(module.named_buffers(remove_duplicate=False))
    return [
        [
            path,
            [
                [name, parameters[id(each)]]
                for name, each in part.named_parameters(recurse=False, remove_duplicate=False)
            ],
            [
                [name, buffers[id(each)], name not in part._non_persistent_buffers_set]
                for name, each in part.named_buffers(recurse=False, remove_duplicate=False)
            ],
        ]
        for path, part in module.named_modules(remove_duplicate=False)
    ]


def _first_names(named: Any) -> dict[int, str]:
    names: dict[int, str] = {}
    for name, tensor in named:
        names.setdefault(id(tensor), name)
    return names


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by their first full names, parameters first."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def bare_module(layout: Any, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The module of that layout, over these tensors; those that are `nn.Parameter` are parameters.

    Raises
    ------
    ProtocolError
        A stranger's layout that is none.
    """
    root = torch.nn.Module()
    try:
        for path, parameters, buffers in layout:
            part = _part(root, path)
            for name, tensor in parameters:
                part.register_parameter(name, tensors[tensor])  # type: ignore[arg-type]
            for name, tensor, kept in buffers:
                part.register_buffer(name, tensors[tensor], persistent=kept)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ProtocolError(f"no module has this layout: {error!s:.200}", answered=True) from None
    return root


def _part(root: torch.nn.Module, path: str) -> torch.nn.Module:
    part = root
    for name in path.split(".") if path else ():
        if name not in part._modules:
            part.add_module(name, torch.nn.Module())
        part = part._modules[name]  # type: ignore[assignment]
    return part
