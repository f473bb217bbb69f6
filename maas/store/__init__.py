"""Model folders: a readable manifest beside a safetensors file, opened without running any code.

A module of torch's standard layers, or a Keras model of Keras's, is stored whole, as data that a
closed table turns back into layers. Of any other module the weights are stored, and whoever loads
them brings an instance of the class. Nothing here can import a class, call a
function or unpickle; that a folder came from a stranger costs nothing but disk.
"""

import importlib
import os
from pathlib import Path
from typing import Any

from maas.backends.base import KERAS
from maas.calls import CALL
from maas.errors import CodecError, Unsupported
from maas.executors.base import NAME
from maas.executors.batching import BatchingExecutor
from maas.executors.local import LocalExecutor
from maas.model import Model
from maas.store import folders
from maas.store.manifest import Manifest
from maas.versions import versions

__all__ = ["STANDARD", "load", "save", "weights_of"]


def save(model: Any, folder: str | os.PathLike[str]) -> None:
    """Writes a model into a folder of its own, which `maas.load` opens.

    Parameters
    ----------
    model : a torch module or a Keras model, or a `Model` of one, a preprocessing in front of it
        included; it must not be trained meanwhile.
    folder : made if need be. A model that is there is replaced as a whole, in one step.

    Raises
    ------
    TypeError
        A function or an object: their code cannot be stored.
    CodecError
        A tensor that no folder can hold, such as a sparse one.
    FileExistsError
        `folder` holds something else.
    Unsupported
        The model runs elsewhere.
    """
    model = model if isinstance(model, Model) else Model(model)
    training = model._training
    # By what it has and not by its class, which is further up the street.
    preprocessing = getattr(model.executor, "preprocessing", None)
    if preprocessing is not None:
        model = Model.over(model.executor.inner, model.name)
    kind, module = _module(model)
    weights = weights_of(kind)
    architecture, reason = weights.architecture(module)
    with folders.building(Path(folder).absolute()) as new:
        manifest = Manifest(
            name=model.name,
            kind=kind,
            module=f"{type(module).__module__}.{type(module).__qualname__}",
            versions=versions(),
            signature=model._executor.method(CALL).signature,
            mode=weights.mode(module, training),
            architecture=architecture,
            reason=reason,
            weights=weights.write(module, new / folders.WEIGHTS),
            preprocessing=None if preprocessing is None else preprocessing.to_data(),
        )
        (new / folders.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def load(
    folder: str | os.PathLike[str],
    into: Any = None,
    *,
    name: str | None = None,
    device: str | None = None,
) -> Model[..., Any]:
    """The model in a folder that `maas.save` made; no code of the folder runs, for there is none.

    Parameters
    ----------
    folder : the model's folder.
    into : an instance of the model's class, for a class of one's own. It gets the folder's tensors,
        modes and `requires_grad` flags if it has exactly the same tensors, else nothing.
    name : what to call the model; as it was called by default.
    device : torch device to move it to; the CPU, or where `into` is, by default.

    Raises
    ------
    FileNotFoundError
        No folder, or a file missing in it.
    CodecError
        What is there is no model, or not that of `into`.
    Unsupported
        The folder holds weights alone, and `into` was not given.
    """
    with folders.opened(Path(folder)) as files:
        manifest = Manifest.from_json(files.manifest)
        if manifest.kind not in _WEIGHTS or NAME.fullmatch(manifest.name) is None:
            raise CodecError(
                f"model.json is of {manifest.name!r:.80}, a {manifest.kind!r:.20}; "
                f"wanted a {' or '.join(_WEIGHTS)} model with a name that matches {NAME.pattern}"
            )
        weights = weights_of(manifest.kind)
        if into is None:
            _check_whole(manifest)
            into = weights.restored(files, manifest)
        else:
            weights.fill(into, files, manifest)
    model: Model[..., Any] = Model(
        into,
        name=manifest.name if name is None else name,
        signature=manifest.signature,
        device=device,
    )
    if manifest.preprocessing is not None:
        model = model.prepared(manifest.preprocessing)
    return model if manifest.mode.handle is None else model.train(manifest.mode.handle)


_WEIGHTS = {"torch": "maas.store.torch_weights", "keras": "maas.store.keras_weights"}
"""Kinds of models that can be stored, and what writes and reads their tensors."""


def _module(model: Model[..., Any]) -> tuple[str, Any]:
    executor = model.executor
    if isinstance(executor, BatchingExecutor):
        executor = executor.inner
    if not isinstance(executor, LocalExecutor):
        raise Unsupported(f"model {model.name!r} runs at {model.where}; save it there")
    backend = executor.backend
    if backend.kind not in _WEIGHTS:
        raise TypeError(
            f"model {model.name!r} is a {backend.kind}, and its code cannot be stored: "
            "serve it by its import path, `maas serve package.module:name`, or connect to it with "
            "maas.connect('local:package.module:name')"
        )
    return backend.kind, backend.target


def _check_whole(manifest: Manifest) -> None:
    if manifest.architecture is None:
        raise Unsupported(
            f"this folder holds the weights of a {manifest.module}, not its code "
            f"({manifest.reason}): give an instance, "
            f"maas.load(folder, into={manifest.module.rpartition('.')[2]}(...)), or build the "
            f"model of {STANDARD[manifest.kind]} alone, which are stored whole"
        )


STANDARD = {
    "torch": "torch's standard layers, such as torch.nn.Sequential,",
    "keras": "Keras's standard layers, as a keras.Sequential or a functional keras.Model,",
}
"""What a model of each kind is to be built of, to be stored whole."""


def weights_of(kind: str) -> Any:
    """What writes and reads the tensors of that kind of models, imported.

    Raises
    ------
    ImportError
        The framework is not installed; the message tells how to.
    """
    try:
        return importlib.import_module(_WEIGHTS[kind])
    except ImportError as error:
        if kind == "keras" and error.name in KERAS:
            raise ImportError(
                f"Keras is to run on {error.name}, which is not installed. Set "
                f"KERAS_BACKEND to {' or '.join(KERAS)} before keras is first imported; a process "
                "has one of them",
                name=error.name,
            ) from None
        if error.name not in ("torch", "keras", "safetensors"):
            raise
        raise ImportError(
            f"a model folder needs {error.name}, which is not installed: "
            f"pip install 'maas-sdk[{kind}]'",
            name=error.name,
        ) from None
