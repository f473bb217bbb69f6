"""The architecture of a Keras model as data, and the model again from the data.

Keras's own `from_config` imports whatever module a configuration names, and its safe mode stops
lambdas alone. So a description here names types of a closed table (`keras_layers`), and
their constructors are called with plain values:

    {"type": "Dense", "arguments": {"units": 3, "kernel_initializer": {"type": ..., ...}}}
    {"type": "Sequential", "arguments": {...}, "layers": [...]}
    {"type": "Functional", "arguments": {...}, "layers": [...], "inputs": ..., "outputs": ...,
     "calls": [{"layer": name, "args": [...], "kwargs": {...}}]}

A tensor is `{"from": [layer, call of it, output of it]}`. A model is built first without memory,
so that whoever asks for a matrix of a billion rows is told so before a byte is spent; and a
description is proven when it is made, by being built and described again.
"""

import math
import numbers
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import attrs
import keras

from maas.backends.keras_layers import DTYPE_POLICIES, TYPES, arguments_of, name_of
from maas.errors import CodecError, LimitExceeded

__all__ = ["MAX_CALLS", "Node", "Variable", "build", "described", "skeleton", "variables_of"]

Node = dict[str, Any]

MAX_CALLS = 10_000
"""Calls of layers in one model, counted as often as they are run: models inside models, each
called twice, are a thousand bytes of description and a billion calls."""

MAX_NESTING = 16
"""Models and wrapped layers inside each other."""

_MAX_LIST = 10_000
_MAX_TEXT = 200
_SEED = "seed_generator_state"

T = TypeVar("T")


class _Strange(Exception):
    """Why a model is not described."""


@attrs.frozen
class Variable:
    """What is compared of a variable: its name, and how it is stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    trainable: bool

    @property
    def is_seed(self) -> bool:
        """Whether it is the state that a layer draws from, whose dtype is the framework's."""
        return self.name == _SEED


def variables_of(model: Any) -> list[Variable]:
    """The variables of a model, in Keras's own order."""
    return [
        Variable(each.name, str(each.dtype), tuple(map(int, each.shape)), bool(each.trainable))
        for each in model.variables
    ]


# A model to data.


def described(model: Any) -> tuple[Node | None, str]:
    """The model as data, or None and the reason why it is more than standard layers."""
    try:
        with warnings.catch_warnings():
            # Keras warns of a lambda, which is refused here.
            warnings.simplefilter("ignore")
            node = _model(model)
            _prove(model, node)
    except (_Strange, CodecError) as strange:
        return None, str(strange)
    return node, ""


def _model(model: Any) -> Node:
    kind = _model_kind(type(model).__module__, type(model).__name__)
    if kind is None:
        raise _Strange(
            f"a {type(model).__name__} is neither a keras.Sequential nor a functional keras.Model"
        )
    if not model.built or not hasattr(getattr(model, "_functional", model), "inputs"):
        raise _Strange("it has not been built; give it a keras.Input, or call it once")
    return _described_model(kind, model.get_config(), MAX_NESTING)


def _model_kind(module: Any, name: Any) -> str | None:
    own = isinstance(module, str) and module.partition(".")[0] == "keras"
    return name if own and name in ("Sequential", "Functional") else None


def _described_model(kind: str, config: Mapping[str, Any], depth: int) -> Node:
    node: Node = {
        "type": kind,
        "arguments": {name: config[name] for name in ("name", "trainable")},
        "layers": [_object(layer, depth - 1) for layer in config["layers"]],
    }
    if kind == "Functional":
        node |= {
            "calls": list(_in_order(config["layers"])),
            "inputs": _structure(config["input_layers"], _reference),
            "outputs": _structure(config["output_layers"], _output_of(config["layers"])),
        }
    return node


def _object(data: Any, depth: int) -> Node:
    """A layer, initializer, regularizer or constraint of Keras's configuration."""
    module, name, config = (data.get(key) for key in ("module", "class_name", "config"))
    if depth == 0:
        raise _Strange(f"it is nested deeper than {MAX_NESTING} levels")
    kind = _model_kind(module, name)
    if kind is not None:
        return _described_model(kind, config, depth)
    found = name_of(module, name)
    if found is None or data.get("registered_name") is not None or type(config) is not dict:
        raise _Strange(f"a {name!s:.60} of {module!s:.60} is no standard layer of Keras's")
    known = arguments_of(found)
    arguments = {}
    for key, value in config.items():
        if key not in known:
            raise _Strange(f"a {name} keeps {key!r:.60}, which its constructor does not take")
        if value is not None or known[key] is not None:
            arguments[key] = _value(value, f"{key} of a {name}", depth)
    return {"type": found, "arguments": arguments}


def _value(value: Any, what: str, depth: int) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple):
        return [_value(each, what, depth) for each in value]
    if isinstance(value, dict) and value.get("class_name") == "DTypePolicy":
        return str(value["config"]["name"])
    if isinstance(value, dict) and "class_name" in value:
        return _object(value, depth - 1)
    raise _Strange(f"{what} is {value!r:.60}, which is no plain value")


def _structure(data: Any, leaf: Callable[[Any], T | None]) -> Any:
    """Lists and dicts with every tensor in them as a reference."""
    found = leaf(data)
    if found is not None:
        return found
    if isinstance(data, list | tuple):
        return [_structure(each, leaf) for each in data]
    if isinstance(data, dict) and all(isinstance(key, str) for key in data):
        return {key: _structure(each, leaf) for key, each in data.items()}
    return _value(data, "an argument of a layer", 1)


def _reference(data: Any) -> Node | None:
    match data:
        case [str(layer), int(call), int(output)]:
            return {"from": [layer, call, output]}
        case {"class_name": "__keras_tensor__", "config": {"keras_history": history}}:
            return {"from": list(history)}
    return None


def _output_of(layers: list[Any]) -> Callable[[Any], Node | None]:
    """As `_reference`, of a list of outputs, where Keras counts a model's own graph as a call."""
    models = {layer["name"] for layer in layers if layer["class_name"] == "Functional"}

    def read(data: Any) -> Node | None:
        found = _reference(data)
        if found is not None and found["from"][0] in models:
            layer, call, output = found["from"]
            return {"from": [layer, call - 1, output]}
        return found

    return read


def _in_order(layers: list[Any]) -> Iterator[Node]:
    """The calls that make the graph, each after those that give what it takes."""
    made = {(layer["name"], 0) for layer in layers if layer["class_name"] == "InputLayer"}
    waiting = {}
    for layer in layers:
        for number, node in enumerate(layer["inbound_nodes"]):
            waiting[layer["name"], number] = {
                "layer": layer["name"],
                "args": _structure(node["args"], _reference),
                "kwargs": _structure(node["kwargs"], _reference),
            }
    while waiting:
        # The calls of one layer keep their order, by which they are known.
        ready = [
            (name, number)
            for (name, number), call in waiting.items()
            if (name, number - 1) not in waiting
            and all((other, its) in made for other, its, _output in _references(call))
        ]
        if not ready:
            raise _Strange("its layers do not follow one another")
        for key in ready:
            made.add(key)
            yield waiting.pop(key)


def _references(data: Any) -> Iterator[list[Any]]:
    if isinstance(data, dict):
        if data.keys() == {"from"}:
            yield data["from"]
        else:
            for each in data.values():
                yield from _references(each)
    elif isinstance(data, list):
        for each in data:
            yield from _references(each)


# The proof.


def _prove(model: Any, node: Node) -> None:
    """Raises _Strange unless what the description builds is the model but for its numbers."""
    built = skeleton(node)
    ours, theirs = model._flatten_layers(), built._flatten_layers()
    if [type(each) for each in ours] != [type(each) for each in theirs]:
        raise _Strange("its layers are not those that their constructors make")
    for one, other in zip(ours, theirs, strict=True):
        changed = [name for name in _functions(one) if name not in _functions(other)]
        if changed or any(getattr(one, name, None) for name in _HOOKS):
            raise _Strange(f"layer {one.name!r} has {', '.join(changed) or 'a hook'} of its own")
    if _model(built) != node or variables_of(built) != variables_of(model):
        raise _Strange("what its description builds is another model")
    paths = zip(model.variables, built.variables, strict=True)
    for one, other in paths:
        short, long = sorted((f"/{one.path}", f"/{other.path}"), key=len)
        if one.name != _SEED and not long.endswith(short):
            raise _Strange("what its description builds has its weights in another order")


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""torch's, of a layer that is a torch module as well."""


def _functions(layer: Any) -> set[str]:
    plain = {"build", "quantize", "loss", "optimizer", "train_function", "test_function"}
    plain |= {"predict_function", "_loss", "_compile_loss", "_compile_metrics"}
    return {
        name
        for name, value in vars(layer).items()
        if callable(value)
        and name not in plain
        and not isinstance(value, keras.Layer)
        and type(value).__module__ in ("builtins", "functools")
    }


# Data to a model.


def skeleton(node: Any) -> Any:
    """The model that a stranger's `node` describes, its variables without memory.

    Raises
    ------
    CodecError
        No description, or one of layers that Keras will not make.
    LimitExceeded
        More than `MAX_CALLS` calls.
    """
    found: list[Any] = []

    def make() -> None:
        try:
            with keras.StatelessScope(initialize_variables=False):
                found.append(build(node))
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            found.append(error)

    # Keras keeps a list of variables to be initialised for each thread; this one takes its own
    # along, before anything in it is.
    thread = threading.Thread(target=make, name="maas-keras-skeleton")
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def build(node: Any) -> Any:
    """The same, with memory and numbers of its own."""
    with warnings.catch_warnings():
        # Whoever made the original has seen what Keras warns of.
        warnings.simplefilter("ignore")
        model, _calls = _Builder().model(node, MAX_NESTING)
    return model


class _Builder:
    """Makes objects of a description, and counts what calling them takes."""

    def model(self, node: Any, depth: int) -> tuple[Any, int]:
        """A model, and the calls of layers that one call of it is."""
        kind = node.get("type") if type(node) is dict else None
        if kind not in _FIELDS or node.keys() != _FIELDS[kind] or depth == 0:
            raise CodecError(f"no description of a Keras model: {node!r:.80}")
        if type(node["layers"]) is not list or type(node["arguments"]) is not dict:
            raise CodecError(f"a {kind} wants a list of layers, and arguments by name")
        layers = [self._layer(each, depth - 1) for each in node["layers"]]
        arguments = node["arguments"]
        if arguments.keys() != {"name", "trainable"} or type(arguments["trainable"]) is not bool:
            raise CodecError(f"a {kind} has a name, and is trainable or not")
        if kind == "Sequential":
            total = _counted(sum(calls for _layer, calls in layers))
            name = _text(arguments["name"])
            made = _made(lambda: keras.Sequential([each for each, _ in layers], name=name), kind)
        else:
            named = {each.name: (each, calls) for each, calls in layers}
            made, total = self._functional(node, named)
        # Told after it was built, since some layers make others only then, and tell them all.
        frozen = [each for each, _ in layers if not each.trainable]
        for layer in frozen if arguments["trainable"] else [*frozen, made]:
            # On TensorFlow, to set what is set already does nothing.
            layer.trainable = True
            layer.trainable = False
        return made, total

    def _layer(self, node: Any, depth: int) -> tuple[Any, int]:
        if type(node) is dict and node.get("type") in _FIELDS:
            return self.model(node, depth)
        made, calls = self._object(node, depth)
        if not isinstance(made, keras.Layer):
            raise CodecError(f"a {type(made).__name__} is no layer")
        return made, calls

    def _object(self, node: Any, depth: int) -> tuple[Any, int]:
        if type(node) is not dict or node.keys() != {"type", "arguments"} or depth == 0:
            raise CodecError(f"no description of a layer: {node!r:.80}")
        kind, given = node["type"], node["arguments"]
        if type(kind) is not str or kind not in TYPES:
            raise CodecError(f"{kind!r:.60} is no standard layer of Keras's")
        if type(given) is not dict or not given.keys() <= arguments_of(kind).keys():
            raise CodecError(f"a {kind} does not have the arguments {sorted(given)[:20]!r:.300}")
        calls = [1]
        arguments = {
            name: self._policy(value) if name == "dtype" else self._value(value, depth, calls)
            for name, value in given.items()
        }
        return _made(lambda: TYPES[kind](**arguments), kind), _counted(sum(calls))

    def _policy(self, value: Any) -> str | None:
        if value is not None and value not in DTYPE_POLICIES:
            raise CodecError(f"{value!r:.60} is no dtype that is known here")
        return value  # type: ignore[no-any-return]

    def _value(self, value: Any, depth: int, calls: list[int]) -> Any:
        if type(value) is dict:
            inner = self.model if value.get("type") in _FIELDS else self._object
            made, inside = inner(value, depth - 1)
            calls.append(2 * inside)  # a wrapper may run what it wraps forwards and backwards
            return made
        if type(value) is list:
            if len(value) > _MAX_LIST:
                raise CodecError(f"a list of {len(value)} values is no argument of a layer")
            return [self._value(each, depth - 1, calls) for each in value]
        return _scalar(value)

    def _functional(self, node: Node, layers: Mapping[str, tuple[Any, int]]) -> tuple[Any, int]:
        if len(layers) != len(node["layers"]) or type(node["calls"]) is not list:
            raise CodecError("a functional model has layers with a name each, and a list of calls")
        tensors: dict[tuple[str, int], list[Any]] = {}
        numbered: dict[str, int] = {}
        for name, (layer, _calls) in layers.items():
            if type(layer) is keras.layers.InputLayer:
                tensors[name, 0] = [layer.output]
            else:
                numbered[name] = 0
        total = 0
        for call in node["calls"]:
            if type(call) is not dict or call.keys() != {"layer", "args", "kwargs"}:
                raise CodecError(f"a call has a layer, args and kwargs, got {call!r:.80}")
            name = call["layer"]
            if type(name) is not str or name not in numbered:
                raise CodecError(f"a call is of {name!r:.60}, which is no layer of the model")
            layer, calls = layers[name]
            total = _counted(total + calls)
            tensors[name, numbered[name]] = _called(layer, call, tensors)
            numbered[name] += 1
        inputs, outputs = (_resolved(node[part], tensors) for part in ("inputs", "outputs"))
        name = _text(node["arguments"]["name"])
        return _made(lambda: keras.Model(inputs, outputs, name=name), "the model"), total


def _called(layer: Any, call: Node, tensors: Mapping[tuple[str, int], list[Any]]) -> list[Any]:
    args, kwargs = (_resolved(call[part], tensors) for part in ("args", "kwargs"))
    if type(args) is not list or type(kwargs) is not dict:
        raise CodecError("args is a list, and kwargs are by name")
    return list(
        keras.tree.flatten(_made(lambda: layer(*args, **kwargs), f"a call of {layer.name}"))
    )


_FIELDS: Mapping[Any, set[str]] = {
    "Sequential": {"type", "arguments", "layers"},
    "Functional": {"type", "arguments", "layers", "calls", "inputs", "outputs"},
}


def _counted(calls: int) -> int:
    if calls > MAX_CALLS:
        raise LimitExceeded(f"the model is described as more than {MAX_CALLS} calls of layers")
    return calls


def _scalar(value: Any) -> Any:
    if type(value) is str:
        return _text(value)
    if value is None or type(value) in (bool, float) or (type(value) is int and abs(value) < 2**63):
        return value
    raise CodecError(f"{value!r:.60} is no argument of a layer")


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > _MAX_TEXT:
        raise CodecError(f"wanted a string of at most {_MAX_TEXT} characters, got {value!r:.60}")
    return value


def _resolved(
    data: Any, tensors: Mapping[tuple[str, int], list[Any]], depth: int = MAX_NESTING
) -> Any:
    """The structure with its tensors in it."""
    if depth == 0:
        raise CodecError("the arguments of a call are nested too deep")
    if type(data) is list:
        return [_resolved(each, tensors, depth - 1) for each in data]
    if type(data) is not dict:
        return _scalar(data)
    if data.keys() != {"from"}:
        return {_text(key): _resolved(each, tensors, depth - 1) for key, each in data.items()}
    match data["from"]:
        case [str(layer), int(call), int(output)]:
            made = tensors.get((layer, call), [])
            if 0 <= output < len(made):
                return made[output]
    raise CodecError(f"a call takes {data['from']!r:.80}, which does not stand before it")


def _made(make: Callable[[], T], what: str) -> T:
    try:
        return make()
    except (CodecError, LimitExceeded):
        raise
    except Exception as error:
        # Keras refuses with any class.
        raise CodecError(
            f"Keras {keras.__version__} does not make {what:.60}: {error!s:.200}"
        ) from error
