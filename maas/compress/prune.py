"""`Prune`: numbers, or whole channels, that matter least are taken out.

Unstructured, by magnitude: the share `amount` of all weights with the smallest |w| becomes zero
and is not stored (Han et al., 2015, arXiv:1506.02626). The model is smaller and not faster.

Structured: channels whose weights have the smallest group norm are removed from every layer that
they go through, so that the matrices themselves shrink (Fang et al., 2023, DepGraph,
arXiv:2301.12900; by the library torch-pruning). The model is smaller and faster. A network
needs to be tuned afterwards: `Prune(0.75, structured=True), Distill(data=...)`.
"""

import warnings
from typing import Any

import attrs
import torch

from maas.backends.packed_layers import PACKED
from maas.compress.layers import around, copied, layers_of, put
from maas.compress.quantize import repacked
from maas.compress.trial import Check, Trial
from maas.errors import Unsupported
from maas.model import Model

__all__ = ["Prune"]


def _part(_: object, _attribute: object, value: float) -> None:
    if type(value) not in (int, float) or not 0 < value < 1:
        raise ValueError(f"Prune wants a share between 0 and 1 of what to take out; got {value!r}")


@attrs.frozen
class Prune:
    """Takes out a share of the weights, or of the channels.

    Parameters
    ----------
    amount : the share. Of channels, of every layer but those that give the model's output.
    structured : channels rather than single weights.
    skip : names of layers that stay as they are, with all below them.
    """

    amount: float = attrs.field(validator=_part)
    structured: bool = attrs.field(
        default=False, validator=attrs.validators.instance_of(bool), kw_only=True
    )
    skip: tuple[str, ...] = attrs.field(default=(), converter=tuple, kw_only=True)

    def __str__(self) -> str:
        return f"Prune({self.amount:g}{', structured' if self.structured else ''})"

    def __call__(self, model: Model[..., Any], trial: Trial) -> Model[..., Any]:
        """The pruned model."""
        module = copied(model)
        if self.structured:
            return around(model, self._narrower(module, trial.inputs(self)))
        return around(model, self._sparser(module))

    # Single weights.

    def _sparser(self, module: torch.nn.Module) -> torch.nn.Module:
        found = list(layers_of(module, (*PACKED, *PACKED.values()), self.skip))
        if not found:
            raise Unsupported("this model has no layer whose weights can be pruned")
        weights = [_weight(layer) for _, layer in found]
        least = _quantile([each.abs().flatten() for each in weights], self.amount)
        for (name, layer), weight in zip(found, weights, strict=True):
            kept = torch.where(weight.abs() > least, weight, torch.zeros_like(weight))
            packing = "sparse int8" if "int8" in getattr(layer, "packing", "") else "sparse"
            module = put(module, name, repacked(layer, packing, kept))
        return module

    # Channels.

    def _narrower(self, module: torch.nn.Module, check: Check) -> torch.nn.Module:
        pruning = _torch_pruning()
        example = check.rows(2)
        with torch.no_grad():
            before = module(*example)
        skipped = [layer for name, layer in layers_of(module, _KINDS, ()) if self._skips(name)]
        list(layers_of(module, _KINDS, self.skip))  # refuses a name that no layer has
        ends = _last_layers(module, example)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pruning.pruner.BasePruner(
                    module,
                    example if len(example) > 1 else example[0],
                    importance=pruning.importance.GroupMagnitudeImportance(p=2),
                    pruning_ratio=self.amount,
                    ignored_layers=[*skipped, *ends],
                ).step()
            with torch.no_grad():
                after = module(*example)
        except Exception as error:
            raise Unsupported(
                "the channels of this model cannot be taken out one by one "
                f"({type(error).__name__}: {error!s:.200}); prune single weights, or skip= the "
                "layers that fix a number of channels"
            ) from error
        if [each.shape for each in _tensors(before)] != [each.shape for each in _tensors(after)]:
            raise Unsupported("pruning would change the shape of this model's output")
        for parameter in module.parameters():
            parameter.grad = None
        return module

    def _skips(self, name: str) -> bool:
        return any(name == each or name.startswith(f"{each}.") for each in self.skip)


_KINDS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def _weight(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.weight
    return weight.detach()


def _quantile(parts: list[torch.Tensor], share: float) -> torch.Tensor:
    """The magnitude that this share of all weights does not exceed."""
    everything = torch.cat(parts)
    return everything.kthvalue(max(1, round(share * len(everything)))).values


def _last_layers(module: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> list[Any]:
    """The layers after which nothing is multiplied any more: their channels are the output's."""
    ran: list[torch.nn.Module] = []
    hooks = [
        layer.register_forward_hook(lambda each, _args, _output: ran.append(each))
        for _, layer in layers_of(module, _KINDS)
    ]
    try:
        with torch.no_grad():
            module(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1:]


def _tensors(output: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(output)
    return [each for each in leaves if isinstance(each, torch.Tensor)]


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError:
        raise ImportError(
            "structured pruning needs torch-pruning, which is not installed: "
            "pip install 'maas-sdk[compress]'",
            name="torch_pruning",
        ) from None
    return torch_pruning
