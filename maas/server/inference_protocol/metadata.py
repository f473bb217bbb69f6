"""What the protocol tells of a model, from what the model says about itself."""

from typing import Any

from maas.backends.base import Method
from maas.executors.base import ModelInfo
from maas.schema import Schema
from maas.server.guard import Caller
from maas.server.inference_protocol.addresses import VERSION, protocol_name
from maas.server.inference_protocol.arguments import starred
from maas.server.inference_protocol.datatypes import tensor_of
from maas.server.inference_protocol.outputs import ONLY, numbered
from maas.versions import maas_version

__all__ = ["EXTENSIONS", "model_metadata", "model_names", "server_metadata"]

EXTENSIONS = ["binary_tensor_data", "parameters", "schedule_policy"]


def server_metadata() -> dict[str, Any]:
    """This server."""
    return {"name": "maas", "version": maas_version(), "extensions": EXTENSIONS}


def model_names(info: ModelInfo, caller: Caller) -> list[str]:
    """The names under which the protocol's callers may ask a model."""
    return [
        protocol_name(info.name, each.name)
        for each in info.methods.values()
        if not each.streams and caller.may_ask(info.name, each.name)
    ]


def model_metadata(info: ModelInfo, method: Method) -> dict[str, Any]:
    """One method, with the inputs it wants and the outputs it gives."""
    return {
        "name": protocol_name(info.name, method.name),
        "versions": [VERSION],
        "platform": f"maas_{info.kind}",
        "inputs": _inputs(method),
        "outputs": _outputs(method.signature.returns),
    }


def _inputs(method: Method) -> list[dict[str, Any]]:
    """The required parameters; of a method that requires none, what it may be given first."""
    parameters = method.signature.parameters
    needed = [each for each in parameters if each.required] or [
        each for each in parameters if each.kind != "**"
    ][:1]
    return [
        _tensor(starred(each, 0) if each.kind == "*" else each.name, each.annotation)
        for each in needed
        if tensor_of(each.annotation) is not None
    ]


def _outputs(returns: Schema) -> list[dict[str, Any]]:
    if returns.kind in ("None", "set", "frozenset", "tuple..."):
        return []
    if returns.kind == "tuple":
        named = [(numbered(index), item) for index, item in enumerate(returns.items)]
    else:
        named = [(ONLY, returns)]
    return [_tensor(name, item) for name, item in named if tensor_of(item) is not None]


def _tensor(name: str, schema: Schema) -> dict[str, Any]:
    datatype, shape = tensor_of(schema) or ("FP32", (-1,))
    return {"name": name, "datatype": datatype, "shape": list(shape)}
