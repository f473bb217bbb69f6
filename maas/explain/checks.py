"""`maas.explain.check`: whether an explanation can be trusted, by three numbers.

An explanation is a claim about a model. It should hardly move when the input hardly does, it should
foretell what a change of the input does to the output, and it should be about the model: with
other weights it must be another one.
"""

from typing import Any

import attrs
import torch

from maas.errors import Unsupported
from maas.explain.asking import asked
from maas.explain.explanation import Explanation, Question
from maas.explain.options import baselines_of, groups_of, shared_out
from maas.explain.targets import checked_target, selected
from maas.tensors import adapter_for

__all__ = ["Check", "check"]

_BATCH = 1024
"""Rows of the model that are asked for together."""


@attrs.frozen(kw_only=True)
class Check:
    """What `check` found.

    Attributes
    ----------
    sensitivity : the largest change of the attributions, relative to them (Frobenius norm), for
        inputs no farther away than `radius` in each number (Yeh et al. 2019, definition 3). Small
        is good; None for an input of whole numbers, which has no neighbours.
    infidelity : mean squared difference between what the attributions foretell for a random
        change of the input and what the output does (Yeh et al. 2019, definition 1), divided by
        the mean square of the latter, with the scale of the attributions that suits best: from 0,
        perfect, to 1, as good as no attributions. None
        where the attributions are of a layer, or there are none of one output.
    randomisation : rank correlation of the attributions with those of the same
        module with shuffled weights (Adebayo et al. 2018). Near 0 is good; near 1 the
        explanation does not depend on what the model has learned. None where the module cannot
        be reached.
    rows : rows of the model that the checks cost.
    """

    sensitivity: float | None
    infidelity: float | None
    randomisation: float | None
    rows: int

    def __str__(self) -> str:
        lines = [
            ("sensitivity", self.sensitivity, "change of the attributions for a tiny change of x"),
            ("infidelity", self.infidelity, "0: they foretell the output, 1: they do not"),
            ("randomisation", self.randomisation, "likeness to those of shuffled weights"),
        ]
        return "\n".join(
            f"{name:>14}  {'-' if value is None else format(value, '.4f'):>8}  {meaning}"
            for name, value, meaning in lines
        )


def check(
    explanation: Explanation, *, radius: float = 0.02, samples: int = 10, seed: int = 0
) -> Check:
    """Sensitivity, infidelity and the randomisation test of an explanation.

    The model is asked where it is, with the grants that the explanation needed, and `call`.

    Parameters
    ----------
    explanation : what `model.explain` gave; of one array.
    radius : how far the inputs of `sensitivity` may be away, in units of the input.
    samples : how many changed inputs are tried for `sensitivity`; twenty times as many changes
        for `infidelity`, of which one is one row.
    seed : of what is drawn; no generator of this process is moved.

    Raises
    ------
    Unsupported
        The explanation is not of a single array.
    """
    question = explanation.question
    if len(question.args) != 1 or adapter_for(type(question.args[0])) is None:
        raise Unsupported("only an explanation of a single array can be checked")
    x = torch.as_tensor(question.args[0]).detach()
    generator = torch.Generator().manual_seed(seed)
    rows = 0
    sensitivity = infidelity = randomisation = None
    own = _flat(explanation)
    if x.is_floating_point():
        sensitivity, cost = _sensitivity(explanation, own, x, radius, samples, generator=generator)
        rows += cost
        if question.at is None:
            infidelity, cost = _infidelity(explanation, own, x, 20 * samples, generator)
            rows += cost
    if explanation.through == "module":
        shuffled = asked(
            explanation.model, attrs.evolve(question, shuffled=seed), explanation.through
        )
        rows += shuffled.rows
        randomisation = _rank_correlation(own, _flat(shuffled))
    return Check(
        sensitivity=sensitivity, infidelity=infidelity, randomisation=randomisation, rows=rows
    )


def _flat(explanation: Explanation) -> torch.Tensor:
    """The attributions as one row of numbers for each row."""
    found = explanation.attributions
    every = found if isinstance(found, tuple) else (found,)
    return torch.cat([torch.as_tensor(each).double().flatten(1) for each in every], 1)


def _like(x: torch.Tensor, explanation: Explanation) -> Any:
    """The tensor in the kind of the explanation's own input."""
    given = explanation.question.args[0]
    return x if isinstance(given, torch.Tensor) else x.numpy()


def _sensitivity(
    explanation: Explanation,
    own: torch.Tensor,
    x: torch.Tensor,
    radius: float,
    samples: int,
    *,
    generator: torch.Generator,
) -> tuple[float, int]:
    """max over |e| <= radius of |attributions(x + e) - attributions(x)| / |attributions(x)|."""
    largest, rows = 0.0, 0
    for _ in range(samples):
        step = radius * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1)
        question = attrs.evolve(explanation.question, args=(_like(x + step, explanation),))
        there = asked(explanation.model, question, explanation.through)
        rows += there.rows
        change = (_flat(there) - own).norm(dim=1) / own.norm(dim=1).clamp_min(1e-12)
        largest = max(largest, float(change.max()))
    return largest, rows


def _infidelity(
    explanation: Explanation, own: torch.Tensor, x: torch.Tensor, samples: int, generator: Any
) -> tuple[float | None, int]:
    """Mean of (b * what the attributions foretell - what the output does)^2, over that of it.

    Of all factors b the best; the rest is what no scale explains. A change sets a random half of
    the input to the baseline.
    """
    question, model = explanation.question, explanation.model
    rows = x.shape[0]
    there = baselines_of(question.baseline, (x,), many=True)[0]
    baseline = there if there.shape == x.shape else there.mean(0, keepdim=True).expand_as(x)
    groups = groups_of(question.options.get("groups"), (x,))
    own = shared_out([own.view(x.shape)], groups)[0].flatten(1)
    per_part = (x - baseline).double().flatten(1) * own if explanation.local else own
    products = torch.zeros(3, dtype=torch.float64)
    done, at_once = 0, 1 if question.kwargs else max(1, _BATCH // rows)
    before = _output(model, question, x, explanation)
    while done < samples:
        copies = min(at_once, samples - done)
        gone = torch.rand((copies, *x.shape), generator=generator) < 0.5
        changed = torch.where(gone, baseline, x).flatten(0, 1)
        after = _output(model, question, changed, explanation).view(copies, rows)
        foretold = (gone.flatten(2) * per_part).sum(2)
        real = before - after
        products += torch.stack(
            [(real * real).sum(), (real * foretold).sum(), (foretold * foretold).sum()]
        ).cpu()
        done += copies
    moved, both, told = products.tolist()
    explained = both**2 / (moved * told) if moved and told else 0.0
    return (1 - explained if moved else None), rows * (samples + 1)


def _output(
    model: Any, question: Question, x: torch.Tensor, explanation: Explanation
) -> torch.Tensor:
    """The explained number of each row."""
    with torch.no_grad():
        given = model(_like(x, explanation), **question.kwargs)
    output = torch.as_tensor(given).double()
    target = question.target
    if isinstance(target, list):
        target = target * (x.shape[0] // len(target))
    return selected(output, checked_target(target, output.shape))


def _rank_correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    """Spearman's for each row, and the mean of these; what is 0 in both tells nothing."""
    found = []
    for pair in zip(left, right, strict=True):
        told = (pair[0] != 0) | (pair[1] != 0)
        ranks = [torch.unique(each[told], return_inverse=True)[1].double() for each in pair]
        if min(len(each.unique()) for each in ranks) > 1:
            found.append(torch.corrcoef(torch.stack(ranks))[0, 1])
    return float(torch.stack(found).mean()) if found else 0.0
