"""The table of algorithms: what each needs, assumes, takes and costs, and what computes it.

The numbers are Captum's. Another algorithm is an `Algorithm` of one's own, named by an entry point
in the group `maas.explanations`; it is then one of the table, here and at the server that has it.
"""

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from maas import entry_points
from maas.explain.layers import fits_deep_lift, fits_guided_backprop, fits_lrp, give_rules
from maas.spelling import offered

__all__ = [
    "GRADIENTS",
    "MODULE",
    "VALUES",
    "Algorithm",
    "Option",
    "Problem",
    "algorithm",
    "table",
]

VALUES, GRADIENTS, MODULE = "values", "gradients", "module"
"""What an algorithm sees of a model: what it gives, its gradients as well, or its layers too."""

_GROUP = "maas.explanations"


@attrs.frozen
class Option:
    """One option of an algorithm: its default, and what it may be.

    Attributes
    ----------
    default : where nothing is given; its type is that of the option unless `kind` says otherwise.
    least, most : borders of a number, both included.
    choices : the words it may be.
    kind : "groups" for an array that says which parts of the input go together, "window" for one
        size or one for each dimension of the input but the first.
    """

    default: Any
    least: float = 0
    most: float = math.inf
    choices: tuple[str, ...] = ()
    kind: str = ""


@attrs.define(kw_only=True, eq=False)
class Problem:
    """What an algorithm is given beside the model.

    Attributes
    ----------
    inputs : the tensors to explain, each [rows, ...].
    baselines : one for each input, of its shape; `[any, ...]` where the algorithm takes `many`.
    beside : further arguments of the model's forward, after the inputs.
    target : index of the output, for every row or one a row; None where there is but one.
    options : of the algorithm, all of them.
    groups : for each input which group each of its elements is in, numbered over all inputs.
    at : name of the layer whose output is explained; None for the input.
    """

    inputs: tuple[torch.Tensor, ...]
    baselines: tuple[torch.Tensor, ...]
    beside: tuple[Any, ...] = ()
    target: Any = None
    options: Mapping[str, Any] = attrs.field(factory=dict)
    groups: tuple[torch.Tensor, ...] | None = None
    at: str | None = None

    @property
    def rows(self) -> int:
        """Rows of the inputs."""
        return self.inputs[0].shape[0]

    @property
    def features(self) -> int:
        """Parts of a row that are told apart."""
        if self.groups is not None:
            return 1 + max(int(group.max()) for group in self.groups)
        return sum(math.prod(each.shape[1:]) for each in self.inputs)

    @property
    def common(self) -> dict[str, Any]:
        """The arguments that all of Captum's methods take."""
        return {"target": self.target, "additional_forward_args": self.beside or None}

    @property
    def at_once(self) -> int:
        """Copies of the rows that go through the model together."""
        return max(1, int(self.options["batch_size"]) // self.rows)

    def part(self, copies: int, *, least: int = 1) -> int | None:
        """Rows at once for a method that makes so many copies of the input; None for all."""
        if copies <= self.at_once:
            return None
        return max(self.at_once, least) * self.rows

    @property
    def masks(self) -> dict[str, Any]:
        """The arguments of Captum's methods that replace parts of the input."""
        masks = {} if self.groups is None else {"feature_mask": self.groups}
        return {**self.common, **masks, "baselines": self.baselines}


@attrs.frozen(kw_only=True)
class Algorithm:
    """One way to explain.

    Attributes
    ----------
    attribute : from the model as a module, whose forward takes `problem.inputs` and then
        `problem.beside`; the problem; and the layer that `at` names or None: one tensor for
        each input, or those of the layer's output.
    rows : how many rows of the model that costs.
    needs : VALUES, GRADIENTS or MODULE.
    assumes : what must hold for the numbers to mean what they seem to, in a sentence.
    source : where it was published.
    options : by name.
    at : whether it explains the input or a layer's output: "input", "either", "layer".
    sums : what the attributions of a row add up to: the output's "change" from the baseline, the
        "output" itself, or nothing known, "".
    local : its numbers are per unit of the input, as gradients are.
    draws : it draws random numbers, from torch's or NumPy's generators.
    many : its baseline may be a sample of inputs.
    fits : raises where a layer of the module is none that it can treat; given the module before
        anything is run.
    targeted : it explains one number of the output.
    once : it takes each layer to run once in a call.
    changes : it changes weights while it runs, and is given a copy of them.
    """

    attribute: Callable[[torch.nn.Module, Problem, torch.nn.Module | None], Any]
    rows: Callable[[Problem], int]
    needs: str
    assumes: str
    source: str = ""
    options: Mapping[str, Option] = attrs.field(factory=dict)
    at: str = "input"
    sums: str = ""
    local: bool = False
    draws: bool = False
    many: bool = False
    fits: Callable[[torch.nn.Module], None] | None = None
    targeted: bool = True
    once: bool = False
    changes: bool = False


def algorithm(name: str) -> Algorithm:
    """The algorithm of that name.

    Raises
    ------
    ValueError
        There is none; the message lists those there are.
    """
    found = _TABLE.get(name) or _strangers(name)
    if found is None:
        known = sorted({*_TABLE, *entry_points.names(_GROUP)})
        raise ValueError(f"no method {name!r:.80}; {offered(name, known)}")
    return found


def table() -> dict[str, Algorithm]:
    """Every algorithm there is in this process, by name: ours, and what entry points add."""
    strangers = {name: _strangers(name) for name in sorted(entry_points.names(_GROUP))}
    return {**_TABLE, **{name: each for name, each in strangers.items() if each is not None}}


@functools.cache
def _strangers(name: str) -> Algorithm | None:
    found = entry_points.load(_GROUP, name)
    return found if isinstance(found, Algorithm) else None


def _captum() -> Any:
    try:
        return importlib.import_module("captum.attr")
    except ImportError as error:
        raise ImportError(
            "explanations need the package captum: pip install maas-sdk[explain]"
        ) from error


# What each costs, in rows of the model.


def _once(problem: Problem) -> int:
    return problem.rows


def _twice(problem: Problem) -> int:
    return 2 * problem.rows


def _samples(problem: Problem) -> int:
    return problem.rows * int(problem.options["samples"])


def _path(problem: Problem) -> int:
    return problem.rows * int(problem.options["steps"])


def _path_and_ends(problem: Problem) -> int:
    # A layer's output is computed once at each end of the path.
    return _path(problem) + (2 * problem.rows if problem.at else 0)


def _conducted(problem: Problem) -> int:
    steps = int(problem.options["steps"])
    # Each part of the path has both its ends.
    parts = 1 if steps < problem.at_once else math.ceil(steps / max(1, problem.at_once - 1))
    return problem.rows * (steps + parts)


def _each_group(problem: Problem) -> int:
    return problem.rows * (1 + problem.features)


def _each_order(problem: Problem) -> int:
    return problem.rows * (1 + problem.features * int(problem.options["samples"]))


def _regressed(problem: Problem) -> int:
    if problem.features < 2:
        raise ValueError("a regression over sets of features wants two features at least")
    # Rows are explained one by one; several are first run together, to see that they can be.
    return _samples(problem) + (problem.rows if problem.rows > 1 else 0)


def _windows(problem: Problem) -> int:
    count = 0
    for each in problem.inputs:
        window = _sizes(problem.options["window"], each)
        stride = _sizes(problem.options["stride"], each)
        _check_window(window, stride, each.shape[1:])
        count += math.prod(
            1 + math.ceil((length - wide) / step)
            for length, wide, step in zip(each.shape[1:], window, stride, strict=True)
        )
    return problem.rows * (1 + count)


def _check_window(window: Sequence[int], stride: Sequence[int], row: Sequence[int]) -> None:
    if not len(window) == len(stride) == len(row):
        raise ValueError(
            f"window={window} and stride={stride} want a size for each of the {len(row)} "
            f"dimensions of a row, {list(row)}"
        )
    if any(wide > length for wide, length in zip(window, row, strict=True)):
        raise ValueError(f"window={window} is wider than a row of {list(row)}")
    if any(step > wide for step, wide in zip(stride, window, strict=True)):
        raise ValueError(f"stride={stride} leaves out what no window={window} covers")


# What computes each.


def _saliency(model: Any, problem: Problem, _layer: Any) -> Any:
    absolute = problem.options["absolute"]
    return _captum().Saliency(model).attribute(problem.inputs, abs=absolute, **problem.common)


def _input_x_gradient(model: Any, problem: Problem, layer: Any) -> Any:
    if layer is None:
        return _captum().InputXGradient(model).attribute(problem.inputs, **problem.common)
    method = _captum().LayerGradientXActivation(model, layer)
    return method.attribute(problem.inputs, **problem.common)


def _integrated_gradients(model: Any, problem: Problem, layer: Any) -> Any:
    steps = problem.options["steps"]
    captum = _captum()
    method = (
        captum.IntegratedGradients(model)
        if layer is None
        else captum.LayerIntegratedGradients(model, layer)
    )
    return method.attribute(
        problem.inputs,
        baselines=problem.baselines,
        n_steps=steps,
        method=problem.options["rule"],
        internal_batch_size=problem.part(steps),
        **problem.common,
    )


def _conductance(model: Any, problem: Problem, layer: Any) -> Any:
    steps = problem.options["steps"]
    return (
        _captum()
        .LayerConductance(model, layer)
        .attribute(
            problem.inputs,
            baselines=problem.baselines,
            n_steps=steps,
            method=problem.options["rule"],
            internal_batch_size=problem.part(steps + 1, least=2),
            **problem.common,
        )
    )


def _smooth_grad(model: Any, problem: Problem, _layer: Any) -> Any:
    captum, options = _captum(), problem.options
    method = getattr(captum, _SMOOTHED[options["of"]])(model)
    return captum.NoiseTunnel(method).attribute(
        problem.inputs,
        nt_type=options["kind"],
        nt_samples=options["samples"],
        nt_samples_batch_size=problem.at_once,
        stdevs=float(options["noise"]),
        **problem.common,
    )


_SMOOTHED = {"saliency": "Saliency", "input_x_gradient": "InputXGradient"}


def _gradient_shap(model: Any, problem: Problem, _layer: Any) -> Any:
    method, samples = _captum().GradientShap(model), problem.options["samples"]
    sums = [torch.zeros_like(each) for each in problem.inputs]
    # In parts that fit into memory.
    for first in range(0, samples, problem.at_once):
        part = min(problem.at_once, samples - first)
        found = method.attribute(
            problem.inputs,
            baselines=problem.baselines,
            n_samples=part,
            stdevs=float(problem.options["noise"]),
            **problem.common,
        )
        if part == samples:
            return found
        sums = [total + part * each for total, each in zip(sums, found, strict=True)]
    return [total / samples for total in sums]


def _deep_lift(model: Any, problem: Problem, layer: Any) -> Any:
    captum = _captum()
    method = captum.DeepLift(model) if layer is None else captum.LayerDeepLift(model, layer)
    return method.attribute(problem.inputs, baselines=problem.baselines, **problem.common)


def _lrp(model: Any, problem: Problem, layer: Any) -> Any:
    captum = _captum()
    give_rules(model)
    method = captum.LRP(model) if layer is None else captum.LayerLRP(model, layer)
    return method.attribute(problem.inputs, **problem.common)


def _guided_backprop(model: Any, problem: Problem, _layer: Any) -> Any:
    return _captum().GuidedBackprop(model).attribute(problem.inputs, **problem.common)


def _activation(model: Any, problem: Problem, layer: Any) -> Any:
    beside = problem.beside or None
    method = _captum().LayerActivation(model, layer)
    return method.attribute(problem.inputs, additional_forward_args=beside)


def _occlusion(model: Any, problem: Problem, _layer: Any) -> Any:
    window = tuple(_sizes(problem.options["window"], each) for each in problem.inputs)
    stride = tuple(_sizes(problem.options["stride"], each) for each in problem.inputs)
    return (
        _captum()
        .Occlusion(model)
        .attribute(
            problem.inputs,
            sliding_window_shapes=window,
            strides=stride,
            baselines=problem.baselines,
            perturbations_per_eval=problem.at_once,
            **problem.common,
        )
    )


def _sizes(told: int | Sequence[int], tensor: torch.Tensor) -> tuple[int, ...]:
    """One size for each dimension but the first; a single number is for the last two at most."""
    dimensions = tensor.shape[1:]
    if isinstance(told, int):
        whole = dimensions[:-2]
        return (*whole, *(min(told, each) for each in dimensions[-2:]))
    return tuple(told)


def _feature_ablation(model: Any, problem: Problem, _layer: Any) -> Any:
    method = _captum().FeatureAblation(model)
    return method.attribute(problem.inputs, perturbations_per_eval=problem.at_once, **problem.masks)


def _shapley_sampling(model: Any, problem: Problem, _layer: Any) -> Any:
    return (
        _captum()
        .ShapleyValueSampling(model)
        .attribute(
            problem.inputs,
            n_samples=problem.options["samples"],
            perturbations_per_eval=problem.at_once,
            **problem.masks,
        )
    )


def _regression(name: str) -> Callable[[Any, Problem, Any], Any]:
    def attribute(model: Any, problem: Problem, _layer: Any) -> Any:
        return getattr(_captum(), name)(model).attribute(
            problem.inputs,
            n_samples=problem.options["samples"],
            perturbations_per_eval=problem.options["batch_size"],
            **problem.masks,
        )

    return attribute


_BATCH = {"batch_size": Option(1024, 1, 65_536)}
_RULES = (
    "gausslegendre",
    "riemann_left",
    "riemann_middle",
    "riemann_right",
    "riemann_trapezoid",
)
_STEPS = {"steps": Option(64, 2, 4096), "rule": Option(_RULES[0], choices=_RULES), **_BATCH}
_GROUPS = {"groups": Option(None, kind="groups"), **_BATCH}


def _drawn(samples: int) -> dict[str, Option]:
    return {"samples": Option(samples, 1, 65_536)}


_SMALL_CHANGES = "It tells of changes so small that the model is a straight line over them"

_TABLE: dict[str, Algorithm] = {
    "saliency": Algorithm(
        attribute=_saliency,
        rows=_once,
        needs=GRADIENTS,
        options={"absolute": Option(default=True)},
        local=True,
        assumes=f"{_SMALL_CHANGES}, and not how much the input's own value adds.",
        source="Simonyan, Vedaldi and Zisserman 2014, arXiv:1312.6034",
    ),
    "input_x_gradient": Algorithm(
        attribute=_input_x_gradient,
        rows=_once,
        needs=GRADIENTS,
        at="either",
        assumes="The model is a straight line between 0 and the input; exact for a linear model.",
        source="Shrikumar et al. 2016, arXiv:1605.01713",
    ),
    "integrated_gradients": Algorithm(
        attribute=_integrated_gradients,
        rows=_path_and_ends,
        needs=GRADIENTS,
        options=_STEPS,
        at="either",
        sums="change",
        assumes="The baseline stands for an input that says nothing, "
        "and the straight path from it to the input is a fair one.",
        source="Sundararajan, Taly and Yan 2017, arXiv:1703.01365",
    ),
    "smooth_grad": Algorithm(
        attribute=_smooth_grad,
        rows=_samples,
        needs=GRADIENTS,
        options={
            **_drawn(25),
            "noise": Option(0.1, 0),
            "of": Option("saliency", choices=tuple(_SMOOTHED)),
            "kind": Option("smoothgrad", choices=("smoothgrad", "smoothgrad_sq", "vargrad")),
            **_BATCH,
        },
        draws=True,
        local=True,
        assumes=f"{_SMALL_CHANGES}, averaged over inputs with noise that are still valid inputs.",
        source="Smilkov et al. 2017, arXiv:1706.03825; Adebayo et al. 2018, arXiv:1810.03307",
    ),
    "gradient_shap": Algorithm(
        attribute=_gradient_shap,
        rows=_samples,
        needs=GRADIENTS,
        options={**_drawn(25), "noise": Option(0.0, 0), **_BATCH},
        sums="change",
        draws=True,
        many=True,
        assumes="Features are independent and the model nearly linear between the baselines "
        "and the input; the numbers are means of a sample.",
        source="Lundberg and Lee 2017, arXiv:1705.07874; Erion et al. 2021, arXiv:1906.10670",
    ),
    "deep_lift": Algorithm(
        attribute=_deep_lift,
        rows=_twice,
        needs=MODULE,
        at="either",
        sums="change",
        fits=fits_deep_lift,
        once=True,
        assumes="The baseline stands for an input that says nothing, and each non-linear layer "
        "passes on what its input's change shares (the Rescale rule).",
        source="Shrikumar, Greenside and Kundaje 2017, arXiv:1704.02685",
    ),
    "lrp": Algorithm(
        attribute=_lrp,
        rows=_twice,
        needs=MODULE,
        at="either",
        sums="output",
        fits=fits_lrp,
        once=True,
        changes=True,
        assumes="Each layer hands the whole output on to its inputs, in proportion to what each "
        "gave (the epsilon rule); what biases gave is lost.",
        source="Bach et al. 2015, doi:10.1371/journal.pone.0130140",
    ),
    "guided_backprop": Algorithm(
        attribute=_guided_backprop,
        rows=_once,
        needs=MODULE,
        fits=fits_guided_backprop,
        local=True,
        assumes="Only paths that raise the output count; the picture may show the input rather "
        "than the model (Adebayo et al. 2018).",
        source="Springenberg et al. 2015, arXiv:1412.6806",
    ),
    "occlusion": Algorithm(
        attribute=_occlusion,
        rows=_windows,
        needs=VALUES,
        options={"window": Option(3, kind="window"), "stride": Option(1, kind="window"), **_BATCH},
        assumes="The input with a window set to the baseline is still one that the model knows.",
        source="Zeiler and Fergus 2014, arXiv:1311.2901",
    ),
    "feature_ablation": Algorithm(
        attribute=_feature_ablation,
        rows=_each_group,
        needs=VALUES,
        options=_GROUPS,
        assumes="Features act one by one: each number is the change when that one alone is set "
        "to the baseline.",
        source="Covert, Lundberg and Lee 2021, arXiv:2011.14878",
    ),
    "shapley_sampling": Algorithm(
        attribute=_shapley_sampling,
        rows=_each_order,
        needs=VALUES,
        options={**_drawn(25), **_GROUPS},
        sums="change",
        draws=True,
        assumes="A feature that is set to the baseline is missing; the numbers are means over a "
        "sample of the orders in which features come in.",
        source="Castro, Gomez and Tejada 2009, doi:10.1016/j.cor.2008.04.004",
    ),
    "kernel_shap": Algorithm(
        attribute=_regression("KernelShap"),
        rows=_regressed,
        needs=VALUES,
        options={**_drawn(256), **_GROUPS},
        sums="change",
        draws=True,
        assumes="A feature that is set to the baseline is missing; Shapley values by a weighted "
        "linear regression over a sample of sets of features.",
        source="Lundberg and Lee 2017, arXiv:1705.07874",
    ),
    "lime": Algorithm(
        attribute=_regression("Lime"),
        rows=_regressed,
        needs=VALUES,
        options={**_drawn(256), **_GROUPS},
        draws=True,
        assumes="Near the input the model is a sparse linear function of which features are there.",
        source="Ribeiro, Singh and Guestrin 2016, arXiv:1602.04938",
    ),
    "activation": Algorithm(
        attribute=_activation,
        rows=_once,
        needs=MODULE,
        at="layer",
        targeted=False,
        assumes="None: these are the numbers that the layer gave, whatever they are for.",
        source="Erhan et al. 2009, Visualizing higher-layer features of a deep network",
    ),
    "conductance": Algorithm(
        attribute=_conductance,
        rows=_conducted,
        needs=MODULE,
        options=_STEPS,
        at="layer",
        sums="change",
        assumes="As integrated gradients; each number is what flows through that unit of the "
        "layer, which nothing goes round.",
        source="Dhamdhere, Sundararajan and Yan 2019, arXiv:1805.12233",
    ),
}
