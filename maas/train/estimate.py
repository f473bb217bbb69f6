"""`model.estimate(x)` and `model.estimate(data, ...)`: what it will cost, before anything is done.

One call, or one step of training, is played with tensors that have shapes and no numbers
(torch's device "meta"). It computes nothing and takes no memory, but every operation passes by and
can be counted: what it computes, what it moves, and what it keeps for the backward run.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from maas.calls import Context
from maas.data import Data
from maas.data.rows import sent
from maas.errors import ProtocolError, Unsupported
from maas.executors.base import finish
from maas.executors.remote import remote_behind
from maas.model import Model
from maas.train import rules
from maas.train.course import rows_in
from maas.train.feeding import called, moved
from maas.train.here import local_executor, rows_for
from maas.train.layout import tensors_of
from maas.train.machine import Rates, free_memory, measured_rates
from maas.train.recipe import Recipe

__all__ = ["ESTIMATE", "Estimate", "check_memory", "estimate", "estimated", "of_batch"]

ESTIMATE = "_estimate"
"""What a server is asked for one; see `estimate_service.py`."""

_META = torch.device("meta")
_CPU = torch.device("cpu")


@attrs.frozen(kw_only=True)
class Estimate:
    """What one call costs, or training.

    Attributes
    ----------
    rows : in the batch that was looked at.
    parameters, trainable : numbers, all and those that require a gradient.
    weights : bytes of parameters and buffers.
    gradients, optimizer : bytes that training adds for them; 0 for a call.
    activations : bytes that a batch keeps for the backward run; of a call, the most that one
        operation reads and writes. None for a module that looks at its numbers.
    batch : bytes of the batch itself.
    flops : floating-point operations of one call or step: those of matrix products, convolutions
        and attention, counted as torch counts them; None as above.
    seconds : that one call or step is likely to take here; None as above.
    steps : of training, in all; None for a call, or where nobody knows how many rows there are.
    free : bytes that can be taken now; None where nothing tells.
    """

    rows: int
    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int | None
    batch: int
    flops: int | None
    seconds: float | None
    steps: int | None
    free: int | None

    @property
    def wanted(self) -> int:
        """Bytes that it takes beside the weights, which are there already."""
        return self.gradients + self.optimizer + (self.activations or 0) + self.batch

    @property
    def fits(self) -> bool:
        """Whether that is free; True where nothing tells."""
        return self.free is None or self.wanted <= self.free

    @property
    def total_seconds(self) -> float | None:
        """Of all steps, or of the call."""
        if self.seconds is None:
            return None
        return self.seconds * (self.steps or 1)

    def __str__(self) -> str:
        training = self.steps is not None or self.gradients > 0
        lines = [
            ("parameters", f"{self.parameters:,} ({self.trainable:,} trainable)"),
            ("weights", _size(self.weights)),
            *([("gradients", _size(self.gradients))] if training else []),
            *([("optimizer", _size(self.optimizer))] if training else []),
            ("activations", _size(self.activations)),
            ("batch", f"{_size(self.batch)} ({self.rows} rows)"),
            ("free memory", _size(self.free)),
            ("operations", "unknown" if self.flops is None else f"{self.flops:,}"),
            ("step" if training else "call", _time(self.seconds)),
            *(
                [("all steps", f"{self.steps:,}, {_time(self.total_seconds)}")]
                if self.steps
                else []
            ),
        ]
        return "\n".join(f"{name:12} {told}" for name, told in lines)


def _size(nbytes: float | None) -> str:
    if nbytes is None:
        return "unknown"
    for unit in ("B", "KB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.1f} GB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    for unit in ("s", "ms"):
        if seconds >= 1:
            return f"about {seconds:,.1f} {unit}"
        seconds *= 1000
    return f"about {seconds:.0f} us"


def estimate(model: Model[..., Any], value: Any, **options: Any) -> Estimate:
    """What a call of the model costs where it runs, or training it.

    A server, which grants it with `train`, is sent one batch, and tells its own seconds and what is
    free there.

    Parameters
    ----------
    value : inputs alone, for a call with them; or data with targets, for training.
    options : those of `fit`.

    Raises
    ------
    TypeError, ValueError
        As `fit` raises them.
    Forbidden
        The server does not grant "train".
    Unsupported
        The model is no torch module, in this process or in that of a server.
    """
    data, recipe = Data.of(value), Recipe.of(options)
    if data.name is not None:
        return _told(model, recipe, {"dataset": data.name})
    data = rows_for(model, data)
    batch = next(iter(data.batches(_asked(data, recipe))))
    steps = None if batch[1] is None else _steps(data, recipe)
    return attrs.evolve(of_batch(model, batch, recipe), steps=steps)


def of_batch(model: Model[..., Any], batch: tuple[Any, Any], recipe: Recipe) -> Estimate:
    """As `estimate`, of one batch that stands behind all preparation here; nothing of steps."""
    executor = local_executor(model)
    if executor is None:
        inputs, targets = map(sent, batch)
        return _told(model, recipe, {"inputs": inputs, "targets": targets})
    target = executor.backend.target
    if not isinstance(target, torch.nn.Module):
        raise Unsupported(f"{model.name} is no torch module, so nobody knows what it costs")
    rates = measured_rates(next((each.device for each in target.parameters()), _CPU))
    return estimated(target, batch, recipe, rates)


def _told(model: Model[..., Any], recipe: Recipe, rows: dict[str, Any]) -> Estimate:
    """What the server says at which the model runs."""
    executor = remote_behind(model.executor)
    if executor is None:
        raise Unsupported(
            f"{model.name} runs {model.where}; an estimate is made where its torch module is, "
            "or at a server"
        )
    question = (recipe.to_data(), rows)
    told = finish(executor.origin.put(ESTIMATE, question, Context(), repeatable=True)).value
    if type(told) is not dict or told.keys() != attrs.fields_dict(Estimate).keys():
        raise ProtocolError(f"{executor.where} answered with no estimate", answered=True)
    return Estimate(**told)


def _asked(data: Data, recipe: Recipe) -> int:
    """Rows of a batch: for a call, all."""
    alone = next(iter(data.batches(1)))[1] is None if data.repeatable else False
    return data.rows if alone and data.rows else recipe.batch_size


def estimated(
    module: torch.nn.Module, batch: tuple[Any, Any], recipe: Recipe, rates: Rates
) -> Estimate:
    """As `estimate`, of a module and a batch; how many steps there are is not known here."""
    tensors = [*tensors_of(module).values()]
    trained = [each for each in module.parameters() if each.requires_grad]
    training = batch[1] is not None
    counted = _played(module, batch, recipe, rates)
    optimizer, stepping = _stepped(trained, recipe, rates) if training else (0, 0.0)
    return Estimate(
        rows=rows_in(batch[0]),
        parameters=sum(each.numel() for each in module.parameters()),
        trainable=sum(each.numel() for each in trained),
        weights=_bytes(tensors),
        gradients=_bytes(trained) if training else 0,
        optimizer=optimizer,
        activations=None if counted is None else counted.kept if training else counted.widest,
        batch=_bytes(_tensors(moved(batch, _CPU))),
        flops=None if counted is None else counted.flops * (recipe.accumulate if training else 1),
        seconds=None if counted is None else counted.seconds * recipe.accumulate + stepping,
        steps=None,
        free=free_memory(next((each.device for each in tensors), _CPU)),
    )


def check_memory(module: torch.nn.Module, data: Data, recipe: Recipe) -> None:
    """Looks at one batch before anything is trained.

    Raises
    ------
    MemoryError
        What does not fit; the message says what of it is how large.
    """
    if not data.repeatable:
        return  # its first batch is the run's
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws a number when it begins
        batch = next(iter(data.batches(recipe.batch_size)), None)
    if batch is not None:
        _check_fits(estimated(module, batch, recipe, Rates(flops=1.0, bandwidth=1.0, overhead=0.0)))


def _check_fits(found: Estimate) -> None:
    """Raises `MemoryError` for what does not fit, saying what of it is how large."""
    if found.fits:
        return
    raise MemoryError(
        f"training takes {_size(found.wanted)} beside the weights, and {_size(found.free)} are "
        f"free here: {_size(found.gradients)} of gradients, {_size(found.optimizer)} of the "
        f"optimizer, {_size(found.activations)} of activations for {found.rows} rows. "
        "Give a smaller batch_size (with accumulate=, for the same steps), or optimizer='sgd'"
    )


def _steps(data: Data, recipe: Recipe) -> int | None:
    if recipe.validation:
        data = data.split(recipe.validation, seed=recipe.seed)[0]
    batches = data.steps(recipe.batch_size)
    return None if batches is None else -(-batches // recipe.accumulate) * recipe.epochs


def _tensors(tree: Any) -> list[torch.Tensor]:
    found: list[Any] = torch.utils._pytree.tree_leaves(tree)
    return [each for each in found if isinstance(each, torch.Tensor)]


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.nbytes for each in tensors)


# One call or step, without numbers.


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what passes by."""

    def __init__(self, rates: Rates, own: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rates = rates
        self._seen = {each.untyped_storage()._cdata for each in own}
        self._held: list[torch.Tensor] = []
        self.flops = self.kept = self.widest = 0
        self.seconds = 0.0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs one operation, and counts it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        flops = 0 if count is None else int(count(*args, **kwargs, out_val=out))
        # A view moves nothing.
        moves = 0 if func.is_view else _bytes(_tensors((args, kwargs, out)))
        self.flops += flops
        self.widest = max(self.widest, moves)
        self.seconds += self._rates.seconds(flops, moves)
        return out

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Is told of a tensor that the backward run will want."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            # Held, so that no other storage gets the same address.
            self._held.append(tensor)
            self.kept += storage.nbytes()
        return tensor


def _played(
    module: torch.nn.Module, batch: tuple[Any, Any], recipe: Recipe, rates: Rates
) -> _Counted | None:
    """What one call, or one step, counts; None for a module that cannot be played."""
    try:
        with torch.random.fork_rng(devices=[]):
            return _counted(module, batch, recipe, rates)
    except Exception:  # noqa: BLE001 - a module that looks at numbers finds none, and says so its own way
        return None


def _counted(
    module: torch.nn.Module, batch: tuple[Any, Any], recipe: Recipe, rates: Rates
) -> _Counted:
    shape = _without_numbers(module)
    inputs, targets = moved(batch, _META)
    counted = _Counted(rates, tensors_of(shape).values())
    if targets is None:
        with counted, torch.no_grad():
            called(shape.eval(), inputs)
        return counted
    shape.train()
    unpacked: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor  # noqa: E731
    with (
        counted,
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(counted.keep, unpacked),
    ):
        loss = rules.Loss(recipe)(called(shape, inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
    return counted


def _without_numbers(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose tensors have shapes only; what its forward does to itself stays there."""
    memo = {}
    for each in itertools.chain(module.parameters(), module.buffers()):
        bare = torch.empty_like(each, device=_META)
        if isinstance(each, torch.nn.Parameter):
            bare = torch.nn.Parameter(bare, each.requires_grad)
        memo[id(each)] = bare
    return copy.deepcopy(module, memo)


def _stepped(trained: list[torch.nn.Parameter], recipe: Recipe, rates: Rates) -> tuple[int, float]:
    """Bytes that the optimizer keeps, and the seconds of its step."""
    held = torch.nn.ParameterList(torch.empty_like(each, device=_META) for each in trained)
    for each in held:
        each.grad = torch.empty_like(each)
    # Without numbers the fused kernels do not run; they keep the same.
    options = {name: each for name, each in recipe.optimizer.options.items() if name != "fused"}
    plain = attrs.evolve(recipe, optimizer={"name": recipe.optimizer.name, **options})
    optimizer = rules.optimizer_of(plain, held)
    counted = _Counted(rates, [])
    with counted:
        optimizer.step()
    state = [[*each.values()] for each in optimizer.state.values()]
    return _bytes(_tensors(state)), counted.seconds
