"""The architecture of a torch module as data, and the module again from the data.

A description can name what stands in `torch_layers` and nothing else, so one
from a stranger can build nothing else. What is built has shapes but no memory (the
meta device): who asks for a matrix of a billion rows is told so before a byte is spent.

A description is proven when it is made. It is built again and compared with
the original attribute by attribute; a subclass, a hook, a replaced `forward`
or an attribute set later all show as a difference. So nothing here has to list what
a user may do to a module.
"""

import numbers
import operator
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from maas.backends.torch_layers import ALWAYS, LAYERS, PARTS, Argument, Layer
from maas.errors import CodecError, LimitExceeded

__all__ = ["MAX_MODULES", "MAX_NESTING", "Node", "build", "described"]

Node = dict[str, Any]
"""A layer as plain data: its "type", "arguments" and "layers"; or the path of the "same" layer."""

MAX_NESTING = 32
"""Sequentials inside each other; a residual network of 152 layers has four."""

MAX_MODULES = 65_536
"""Modules in one model, counted as often as they are met: ten layers, each ten times the
one before, are a thousand bytes of description and ten billion steps of `state_dict`."""


class _Strange(Exception):
    """Why a module is not described."""


# A module to data.


def described(module: nn.Module) -> tuple[Node | None, str]:
    """The module as data, or None and the reason why it is more than standard layers."""
    try:
        node = _describe(module, "", {}, MAX_NESTING)
        _compare(module, build(node, _count(module)))
    except (_Strange, CodecError) as strange:
        return None, str(strange)
    return node, ""


def _count(module: nn.Module) -> int:
    return sum(1 for _name, _tensor in module.named_parameters(remove_duplicate=False))


def _describe(module: Any, path: str, seen: dict[int, str], depth: int) -> Node:
    if id(module) in seen:
        return {"same": seen[id(module)]}
    kind = type(module)
    layer = LAYERS.get(kind.__name__)
    if layer is None or layer.cls is not kind:
        raise _Strange(
            f"{_place(path)} is a {kind.__module__}.{kind.__qualname__}, no standard layer"
        )
    if depth == 0:
        raise _Strange(f"its layers are nested deeper than {MAX_NESTING} levels")
    seen[id(module)] = path
    if kind is nn.Sequential:
        below = module._modules.items()
        return {
            "type": kind.__name__,
            "layers": {
                name: _describe(child, _joined(path, name), seen, depth - 1)
                for name, child in below
            },
        }
    return {
        "type": kind.__name__,
        **_arguments(layer, module, path),
        **_described_parts(layer, module, path),
    }


def _arguments(layer: Layer, module: nn.Module, path: str) -> dict[str, Node]:
    written = {}
    for name, argument in layer.arguments.items():
        value = _read(argument, name, module, path)
        if value != argument.late:
            written[name] = argument.to_json(value)
    return {"arguments": written} if written else {}


def _read(argument: Argument, name: str, module: nn.Module, path: str) -> Any:
    try:
        value = _plain((argument.read or operator.attrgetter(name))(module))
    except AttributeError:
        raise _Strange(f"{_place(path)} does not tell its {name}") from None
    if not argument.accepts(value):
        raise _Strange(f"{_place(path)} has {name}={value!r:.60}")
    return value


def _described_parts(layer: Layer, module: nn.Module, path: str) -> dict[str, Node]:
    """What a Transformer's stack was given; its other layers are copies of the first."""
    parts = {}
    for name, place in layer.parts.items():
        try:
            part = operator.attrgetter(place)(module)
        except AttributeError:
            raise _Strange(f"{_place(path)} has no {place}") from None
        if part is not None:
            parts[name] = _describe(part, _joined(path, place), {}, 1)
    return {"layers": parts} if parts else {}


def _place(path: str) -> str:
    return f"layer {path!r}" if path else "the model"


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _plain(value: Any) -> Any:
    """A value that shows what it says: NumPy's numbers as Python's, a list as a tuple.

    Of what is no plain data, its identity.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value if isinstance(value, set | frozenset) else id(value)


# The proof.

_APART = {"training", "_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs"}
"""Attributes that hold tensors and modules, or are stored elsewhere."""


def _compare(module: nn.Module, built: nn.Module) -> None:
    """Raises _Strange unless the two differ in nothing but the contents of their tensors."""
    ours, theirs = _walk(module), _walk(built)
    if [entry[:2] for entry in ours] != [entry[:2] for entry in theirs]:
        raise _Strange("its layers are not those that their constructors make")
    for (path, _first, one), (_path, _other_first, other) in zip(ours, theirs, strict=True):
        if type(one) is not type(other):
            raise _Strange(
                f"{_place(path)} is a {type(one).__qualname__}, and a "
                f"{type(other).__qualname__} by its constructor"
            )
        _compare_attributes(path, one, other)
        _compare_tensors(path, one._parameters, other._parameters, nn.Parameter)
        _compare_tensors(path, one._buffers, other._buffers, torch.Tensor)


def _walk(module: nn.Module) -> list[tuple[str, str, nn.Module]]:
    """Path, the first path of the same module, and the module."""
    first: dict[int, str] = {}
    return [
        (path, first.setdefault(id(each), path), each)
        for path, each in module.named_modules(remove_duplicate=False)
    ]


def _compare_attributes(path: str, one: nn.Module, other: nn.Module) -> None:
    ours, theirs = vars(one), vars(other)
    for name in (ours.keys() | theirs.keys()) - _APART:
        # As text, so that nan is nan; True is told from 1 as well.
        if (
            name not in ours
            or name not in theirs
            or repr(_plain(ours[name])) != repr(_plain(theirs[name]))
        ):
            raise _Strange(
                f"{_place(path)} has an attribute {name!r} that its constructor does not give it"
            )


def _compare_tensors(
    path: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], kind: type[torch.Tensor]
) -> None:
    if list(ours) != list(theirs):
        raise _Strange(
            f"{_place(path)} has the tensors {list(ours)}, and {list(theirs)} by its constructor"
        )
    for name, tensor in ours.items():
        wanted = theirs[name]
        if tensor is None and wanted is None:
            continue
        if (
            type(tensor) is not kind
            or wanted is None
            or tensor.shape != wanted.shape
            or _hooked(tensor)
        ):
            raise _Strange(
                f"tensor {_joined(path, name)!r} is not what its layer's constructor makes"
            )


def _hooked(tensor: torch.Tensor) -> bool:
    return bool(
        tensor._backward_hooks
        or getattr(tensor, "_post_accumulate_grad_hooks", None)
        or vars(tensor)
    )


# Data to a module.


def build(node: Any, tensors: int) -> nn.Module:
    """The module that a stranger's `node` describes, on the meta device.

    Parameters
    ----------
    node : as `described` gives it.
    tensors : tensors there are to fill it; layers that want to make more copies of a part than
        that are refused, for torch would make them one by one.

    Raises
    ------
    CodecError
        No description, or one of layers that torch will not make.
    LimitExceeded
        More than `MAX_MODULES` modules.
    """
    with torch.device("meta"), warnings.catch_warnings():
        # Whoever made the original has seen what torch warns of.
        warnings.simplefilter("ignore")
        return _Builder(tensors).build(node, "")


class _Builder:
    def __init__(self, tensors: int) -> None:
        self._copies = tensors
        self._built: dict[str, tuple[nn.Module, int]] = {}

    def build(self, node: Any, path: str) -> nn.Module:
        module, _modules = self._node(node, path)
        return module

    def _node(self, node: Any, path: str) -> tuple[nn.Module, int]:
        """The module and the number of modules in it, each counted as often as it is met."""
        if type(node) is not dict:
            raise CodecError(f"{_place(path)} wants to be an object with a type, got {node!r:.60}")
        if node.keys() == {"same"}:
            return self._same(node["same"], path)
        if not {"type"} <= node.keys() <= {"type", "arguments", "layers"}:
            raise CodecError(
                f"{_place(path)} has the fields {sorted(node)[:5]!r:.200}; "
                "wanted type, arguments and layers"
            )
        layer = LAYERS.get(node["type"]) if type(node["type"]) is str else None
        if layer is None:
            raise CodecError(
                f"{_place(path)} is of the type {node['type']!r:.60}, which is no standard layer"
            )
        arguments = node.get("arguments", {})
        layers = node.get("layers", {})
        if type(arguments) is not dict or type(layers) is not dict:
            raise CodecError(f"{_place(path)} wants objects for its arguments and layers")
        made = (
            self._sequential(layers, path)
            if layer.cls is nn.Sequential
            else self._layer(layer, arguments, layers, path)
        )
        self._built[path] = made
        return made

    def _same(self, path: Any, here: str) -> tuple[nn.Module, int]:
        found = self._built.get(path) if type(path) is str else None
        if found is None:
            raise CodecError(
                f"{_place(here)} is to be the same as {path!r:.60}, which does not stand before it"
            )
        return found

    def _sequential(self, layers: dict[str, Any], path: str) -> tuple[nn.Module, int]:
        children: OrderedDict[str, nn.Module] = OrderedDict()
        total = 1
        for name, node in layers.items():
            children[name], size = self._node(node, _joined(path, name))
            total += size
            if total > MAX_MODULES:
                raise LimitExceeded(f"the description is of more than {MAX_MODULES} modules")
        return _made(lambda: nn.Sequential(children), path), total

    def _layer(
        self, layer: Layer, arguments: dict[str, Any], layers: dict[str, Any], path: str
    ) -> tuple[nn.Module, int]:
        given = _checked(layer, arguments, path)
        self._spend(given.get("num_layers", 0), path)
        for name, node in layers.items():
            if (
                name not in layer.parts
                or type(node) is not dict
                or node.get("type") not in PARTS[name]
            ):
                raise CodecError(f"{_place(path)} takes no such layer as {name!r:.60}")
            given[name] = self.build(node, _joined(path, name))
        made = _made(lambda: layer.cls(**given), path)
        return made, sum(1 for _module in made.modules())

    def _spend(self, copies: int, path: str) -> None:
        self._copies -= copies
        # A negative number would buy a later layer more copies.
        if copies < 0 or self._copies < 0:
            raise CodecError(
                f"{_place(path)} is to have {copies} layers, for which there are not enough tensors"
            )


def _checked(layer: Layer, arguments: dict[str, Any], path: str) -> dict[str, Any]:
    needed = {name for name, argument in layer.arguments.items() if argument.late is ALWAYS}
    if not needed <= arguments.keys() <= layer.arguments.keys():
        raise CodecError(
            f"{_place(path)}, a {layer.cls.__name__}, has the arguments "
            f"{sorted(arguments)[:20]!r:.300}; "
            f"wanted {sorted(layer.arguments)}"
        )
    given = {name: layer.arguments[name].from_json(value) for name, value in arguments.items()}
    for name, value in given.items():
        if not layer.arguments[name].accepts(value):
            raise CodecError(
                f"{_place(path)}, a {layer.cls.__name__}, cannot have {name}={value!r:.60}"
            )
    return given


def _made(make: Callable[[], nn.Module], path: str) -> nn.Module:
    try:
        return make()
    except Exception as error:
        # torch refuses with any class; RuntimeError is a size beyond 64 bits.
        raise CodecError(
            f"torch {torch.__version__} does not make {_place(path)}: {error!s:.200}"
        ) from error
