"""What is told beside the input: an algorithm's options, the baseline, and the groups."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from maas.explain.algorithms import Algorithm, Option
from maas.spelling import offered

__all__ = ["baselines_of", "chosen", "groups_of", "shared_out"]


def chosen(method: str, algorithm: Algorithm, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of the algorithm: those that were given, and the defaults of the others.

    Raises
    ------
    TypeError
        An option that the algorithm does not have.
    ValueError
        A value that makes no sense.
    """
    for name in given:
        if name not in algorithm.options:
            known = sorted(algorithm.options)
            raise TypeError(f"no option of {method} {name!r:.80}; {offered(name, known)}")
    return {
        name: _value(f"{method}({name}=...)", option, given[name])
        if name in given
        else option.default
        for name, option in algorithm.options.items()
    }


def _value(what: str, option: Option, told: Any) -> Any:
    if option.kind == "groups":
        return told
    if option.kind == "window":
        return _window(what, told)
    if option.choices:
        if told not in option.choices:
            raise ValueError(f"{what}: no choice {told!r:.80}; {offered(told, option.choices)}")
        return told
    wanted = type(option.default)
    fits = type(told) is wanted or (wanted is float and type(told) is int)
    if not fits:
        raise ValueError(f"{what} wants {wanted.__name__}, got {told!r:.60}")
    if wanted is not bool and not option.least <= told <= option.most:
        raise ValueError(f"{what} wants {option.least} to {option.most}, got {told!r:.60}")
    return told


def _window(what: str, told: Any) -> int | tuple[int, ...]:
    sizes = (told,) if type(told) is int else told
    if not isinstance(sizes, list | tuple) or not all(
        type(size) is int and size > 0 for size in sizes
    ):
        raise ValueError(f"{what} wants a size of at least 1, or one a dimension; got {told!r:.60}")
    return told if type(told) is int else tuple(sizes)


def _each(what: str, told: Any, inputs: Sequence[torch.Tensor]) -> list[Any]:
    """One for each input, of what may be one for all."""
    several = isinstance(told, list | tuple)
    every = list(told) if several else [told] * len(inputs)
    if len(every) != len(inputs):
        raise ValueError(f"{what} has {len(every)} parts for {len(inputs)} explained arrays")
    return every


def baselines_of(
    told: Any, inputs: Sequence[torch.Tensor], *, many: bool
) -> tuple[torch.Tensor, ...]:
    """A baseline for each input: of its shape, or any number of rows where `many` may be.

    Raises
    ------
    ValueError
        One that does not fit its input.
    """
    every = _each("baseline=", 0 if told is None else told, inputs)
    pairs = zip(every, inputs, strict=True)
    made = tuple(_baseline(each, tensor, many=many) for each, tensor in pairs)
    if len({each.shape[0] for each in made}) > 1:
        raise ValueError("the baselines of several inputs have the same number of rows")
    return made


def _baseline(told: Any, like: torch.Tensor, *, many: bool) -> torch.Tensor:
    if isinstance(told, bool) or not isinstance(told, int | float | torch.Tensor | np.ndarray):
        raise ValueError(f"baseline= wants a number or an array, got {told!r:.60}")
    made = torch.as_tensor(told).detach()
    if made.is_floating_point() and not like.is_floating_point():
        raise ValueError("the baseline of whole numbers is a whole number")
    made = made.to(like.device, like.dtype)
    if many and made.dim() == like.dim() and made.shape[1:] == like.shape[1:] and len(made):
        return made.clone()
    try:
        return made.expand(like.shape).clone()
    except RuntimeError:
        raise ValueError(
            f"a baseline of shape {list(made.shape)} does not fit an input of {list(like.shape)}"
        ) from None


def groups_of(told: Any, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...] | None:
    """For each input the groups of its elements, [1, ...], numbered from 0 without a gap.

    Raises
    ------
    ValueError
        They do not fit the input.
    """
    if told is None:
        return None
    made = [_group(*pair) for pair in zip(_each("groups=", told, inputs), inputs, strict=True)]
    _, numbers = torch.unique(torch.cat([each.flatten() for each in made]), return_inverse=True)
    parts = numbers.split([each.numel() for each in made])
    return tuple(part.view_as(each) for part, each in zip(parts, made, strict=True))


def _group(told: Any, like: torch.Tensor) -> torch.Tensor:
    row = tuple(like.shape[1:])
    made = torch.as_tensor(told) if isinstance(told, torch.Tensor | np.ndarray) else None
    if made is None or made.is_floating_point() or made.numel() != math.prod(row):
        raise ValueError(
            f"groups= wants whole numbers in the shape of one row, {list(row)}; got {told!r:.60}"
        )
    return made.to(like.device, torch.long).reshape(1, *row)


def shared_out(
    attributions: Sequence[torch.Tensor], groups: Sequence[torch.Tensor] | None
) -> list[torch.Tensor]:
    """The attributions with a group's own divided among its elements, as float64.

    Every element of a group is given what the whole group counts for.
    """
    found = [each.double() for each in attributions]
    if groups is None:
        return found
    sizes = torch.bincount(torch.cat([each.flatten() for each in groups]))
    return [each / sizes[group] for each, group in zip(found, groups, strict=True)]
