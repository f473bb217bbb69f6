"""Autograd graphs that a server keeps behind its results, and what is computed over them.

A result that is part of a graph is sent as numbers and a name. The graph stays here, whole:
what the forward run saved is what the backward run needs, so nothing is computed twice and
dropout, BatchNorm and the like give the very gradients that they would have given in one
process. It goes with the backward run unless that wants to keep it, when the caller's result is
collected, or by the bounds of `maas.Leases`, against which its saved tensors are charged
before it is kept.

torch is imported by whoever gives a graph, so a server without torch never meets one.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs
import torch

from maas import ambient
from maas.calls import Context, Result
from maas.errors import CodecError
from maas.executors.gradients import tensors_in
from maas.limits import Leases
from maas.server.leases import Bounds, Table

__all__ = ["Graph", "Graphs", "kept_bytes"]


@attrs.define(eq=False)
class Graph:
    """What a caller may differentiate: these outputs with respect to these inputs.

    An input that is None stands for all of `parameters`, whose gradients stay where they are. A
    `shared` graph has nodes that belong to another one as well.
    """

    inputs: tuple[torch.Tensor | None, ...]
    outputs: tuple[torch.Tensor, ...]
    parameters: tuple[torch.Tensor, ...] = ()
    shared: bool = False


@attrs.frozen
class Gradients:
    """What a backward run gave: the answer to the caller, and the gradients that stay here.

    In the answer a zero stands for all of these.
    """

    result: Result
    staying: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()


class Graphs:
    """The graphs of one server's callers."""

    def __init__(self, leases: Leases) -> None:
        self.table: Table[Graph] = Table(
            Bounds.of(
                leases,
                "the graph behind this result",
                ("graphs", "graph_bytes", "graph_seconds"),
                gives_way=True,
            )
        )

    def kept(
        self,
        owner: str,
        inputs: Sequence[torch.Tensor | None],
        result: Result,
        parameters: Iterable[torch.Tensor] = (),
        *,
        shared: bool = False,
    ) -> Result:
        """The result with the name of its graph, where it has one.

        Raises
        ------
        LimitExceeded
            The graph holds more than a caller may have.
        """
        outputs = tuple(each for each in tensors_in(result.value) if each.requires_grad)
        if not outputs:
            return result
        graph = Graph(tuple(inputs), outputs, tuple(parameters), shared)
        arrived = sum(tensor.nbytes for tensor in inputs if tensor is not None)
        name = self.table.add(owner, graph, arrived + kept_bytes(outputs))
        return attrs.evolve(result, graph=name)

    def backward(
        self,
        owner: str,
        name: str,
        given: Sequence[int],
        gradients: Sequence[torch.Tensor],
        wanted: Sequence[int],
        *,
        keep: bool,
        context: Context,
    ) -> Gradients:
        """The gradients of the wanted inputs, given those of some outputs.

        With grad mode on, they are part of a graph themselves, over the same inputs and then the
        given gradients.

        Raises
        ------
        Expired
            The graph is gone.
        CodecError
            Numbers that name no input or output.
        """
        graph = self.table.find(owner, name)
        _check(given, gradients, wanted, graph)
        if not keep:
            # Taken before it is run: of two that want to free it, one finds it gone.
            graph = self.table.take(owner, name)
        graph.shared = graph.shared or context.grad
        # A graph that shares nodes goes when the last of its names does, not node by node.
        keep = keep or graph.shared
        with ambient.applied(context):
            found = _differentiated(graph, given, gradients, wanted, keep, create=context.grad)
        if not context.grad:
            return found
        inputs = (*graph.inputs, *gradients)
        result = self.kept(owner, inputs, found.result, graph.parameters, shared=True)
        return attrs.evolve(found, result=result)


def _check(
    given: Sequence[int], gradients: Sequence[torch.Tensor], wanted: Sequence[int], graph: Graph
) -> None:
    for numbers, those in ((given, graph.outputs), (wanted, graph.inputs)):
        if len(set(numbers)) < len(numbers) or any(
            type(number) is not int or not 0 <= number < len(those) for number in numbers
        ):
            raise CodecError(
                f"the graph has {len(those)} of these, none twice; got {numbers!r:.80}"
            )
    if len(given) != len(gradients) or not all(
        isinstance(gradient, torch.Tensor) for gradient in gradients
    ):
        raise CodecError(f"{len(given)} outputs want as many gradients, which are tensors")


def _differentiated(
    graph: Graph,
    given: Sequence[int],
    gradients: Sequence[torch.Tensor],
    wanted: Sequence[int],
    keep: bool,
    *,
    create: bool,
) -> Gradients:
    asked = [graph.inputs[number] for number in wanted]
    every = [
        each for tensor in asked for each in (graph.parameters if tensor is None else (tensor,))
    ]
    found = torch.autograd.grad(
        [graph.outputs[number] for number in given],
        every,
        gradients,
        retain_graph=keep,
        create_graph=create,
        allow_unused=True,
    )
    rest = iter(found)
    answer: list[torch.Tensor | None] = []
    staying: list[tuple[torch.Tensor, torch.Tensor]] = []
    for tensor in asked:
        if tensor is not None:
            answer.append(next(rest))
            continue
        answer.append(torch.zeros(()))
        staying = [
            (parameter, each.detach().clone() if create else each)
            for parameter in graph.parameters
            if (each := next(rest)) is not None  # type: ignore[redundant-expr]
        ]
    return Gradients(Result(answer), staying)


# What a graph holds.


def kept_bytes(outputs: Iterable[torch.Tensor]) -> int:
    """Bytes that a graph holds on to: its outputs and what its nodes saved, each storage once.

    Without its leaves: a module's parameters are there anyway. Nodes that do not tell what they
    saved count nothing.
    """
    held: dict[int, int] = {}
    leaves: set[int] = set()
    waiting = [tensor.grad_fn for tensor in outputs]
    seen: set[Any] = set()
    for tensor in outputs:
        _hold(tensor, held)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves.add(leaf.untyped_storage().data_ptr())
            continue
        for tensor in _saved(node):
            _hold(tensor, held)
        waiting += [before for before, _number in node.next_functions]
    return sum(nbytes for storage, nbytes in held.items() if storage not in leaves)


def _hold(tensor: torch.Tensor, held: dict[int, int]) -> None:
    if tensor.layout is torch.strided:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()


_NAMES: dict[type, tuple[str, ...]] = {}


def _saved(node: Any) -> Iterator[torch.Tensor]:
    kind = type(node)
    names = _NAMES.get(kind)
    if names is None:
        raw = [name for name in dir(kind) if name.startswith("_raw_saved_")]
        names = tuple(name.removeprefix("_raw") for name in raw) or ("saved_tensors",)
        _NAMES[kind] = names
    for name in names:
        try:
            value = getattr(node, name, None)
        except RuntimeError:  # freed, or changed in place: the backward run will say so
            continue
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, torch.Tensor):
                yield each
