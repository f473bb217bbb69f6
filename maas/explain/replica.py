"""A module of one's own for one explanation: hooks, modes and weights are changed on that alone.

The module that is served is run by others meanwhile. Captum hangs hooks on layers, puts
attributes on them and, for LRP, changes weights; none of that may be seen outside. So an
explanation runs on a copy of the module's structure. Its parameters are the very tensors of the
original, unless they are to be changed; its buffers are copies, as a run in train mode moves them.
"""

import copy

import torch

from maas.errors import Unsupported

__all__ = ["replica", "shuffle"]


def replica(module: torch.nn.Module, *, own_weights: bool) -> torch.nn.Module:
    """A copy of a module, which shares its parameters unless they shall be its own.

    Raises
    ------
    Unsupported
        The module cannot be copied.
    """
    shared = {} if own_weights else {id(each): each for each in module.parameters()}
    try:
        made = copy.deepcopy(module, shared)
    except Exception as error:
        raise Unsupported(
            f"{type(module).__name__} cannot be copied, so it cannot be explained from inside "
            f"({error!s:.160}); through='calls' explains what it gives"
        ) from error
    for parameter in made.parameters() if own_weights else ():
        parameter.grad = None
    return made


def shuffle(module: torch.nn.Module, seed: int) -> None:
    """Puts the numbers of each parameter in another order.

    What the module learned is gone, and the distribution of its weights is not, whatever its
    layers are; Adebayo et al. (2018, arXiv:1810.03292) draw new weights for the same purpose.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
