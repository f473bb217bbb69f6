"""What a backend is: the one that knows how to run a kind of target.

A backend names the target's methods and runs them; it knows nothing of
threads, deadlines or wires. Its `Border` is what arrays pass on their way in and
out of one call: there they are brought to the kind and device that the target
wants, and back to those the caller has.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, overload

import attrs

from maas.batching import Batching
from maas.calls import Call, Context
from maas.limits import Limits
from maas.records import frozen
from maas.signature import Signature
from maas.values import Path, rebuild

__all__ = [
    "ITEM",
    "KERAS",
    "RESULT",
    "Backend",
    "Border",
    "Declared",
    "Method",
    "admit",
    "backend_for",
    "declared",
    "describe_method",
    "method",
    "performed",
    "release",
]

F = TypeVar("F", bound=Callable[..., Any])


@frozen(kw_only=True)
class Declared:
    """What an author declared of a method by `@maas.method`."""

    name: str | None = None
    pure: bool | None = None
    stochastic: bool = False
    batching: Batching | None = None


@overload
def method(function: F, /) -> F: ...
@overload
def method(
    *,
    name: str | None = None,
    pure: bool | None = None,
    stochastic: bool = False,
    batching: Batching | None = None,
) -> Callable[[F], F]: ...
def method(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    pure: bool | None = None,
    stochastic: bool = False,
    batching: Batching | None = None,
) -> Any:
    """Mark a method of a class as one that callers may call.

    On a plain function, or on a module's `forward`, it only declares.

    Parameters
    ----------
    name : the name callers use; the function's own by default.
    pure : the method changes nothing and may be run again: it can be retried, and calls of
        it may overlap. A torch module in eval mode is taken to be pure unless declared otherwise.
    stochastic : it draws from torch's CPU generator, whose state then travels with the call.
    batching : how calls of it may share a run; a pure method's only.
    """
    told = Declared(name=name, pure=pure, stochastic=stochastic, batching=batching)
    if function is None:
        return partial(_declare, told)
    return _declare(told, function)


def _declare(what: Declared, function: F) -> F:
    function.__maas_method__ = what  # type: ignore[attr-defined]
    return function


def declared(function: Callable[..., Any]) -> Declared:
    """What the author declared; the defaults where nothing was."""
    found = getattr(function, "__maas_method__", None)
    return found if isinstance(found, Declared) else Declared()


@frozen(kw_only=True, eq=True)
class Method:
    """One method of a model, as callers and executors know it.

    Attributes
    ----------
    name : what callers call; `CALL` for the model itself.
    label : the name that Python's own error messages would give it, such as "Net.forward".
    signature : what it takes and gives.
    streams : it yields items.
    pure : it may be run again.
    stochastic : it draws from torch's CPU generator in every mode.
    exclusive : its calls must not overlap.
    asynchronous : it is a coroutine function or an asynchronous generator.
    doc : first line of its docstring.
    batching : what its author declared; of the side that runs it, so it does not travel.
    """

    name: str
    label: str
    signature: Signature
    streams: bool = False
    pure: bool = False
    stochastic: bool = False
    exclusive: bool = False
    asynchronous: bool = False
    doc: str = ""
    batching: Batching | None = attrs.field(default=None, eq=False)


def describe_method(name: str, function: Callable[..., Any], *, exclusive: bool) -> Method:
    """What can be told of a function by looking at it."""
    told = declared(function)
    body = inspect.unwrap(function)
    while isinstance(body, partial):
        body = inspect.unwrap(body.func)
        told = declared(body)
    if not inspect.isroutine(body):
        body = type(body).__call__
        told = declared(body)
    asynchronous = inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body)
    if asynchronous and told.stochastic:
        # The generator is the process's: nobody else may draw until the call ends, and an await
        # lets others in.
        raise TypeError(
            f"{body.__qualname__} is asynchronous; only a plain function can be stochastic"
        )
    return Method(
        name=name,
        label=body.__qualname__.rpartition("<locals>.")[2],
        signature=Signature.from_callable(function),
        streams=inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body),
        pure=told.pure is True,
        stochastic=told.stochastic,
        exclusive=exclusive and not asynchronous and told.pure is not True,
        asynchronous=asynchronous,
        doc=(inspect.getdoc(body) or "").partition("\n")[0],
        batching=told.batching,
    )


class Border(Protocol):
    """What the arrays of one call pass on their way in and out."""

    differentiable: bool

    def arrive(self, array: Any, path: Path, /) -> Any:
        """An argument's array as the target wants it."""

    def leave(self, array: Any, path: Path, /) -> Any:
        """A result's array as the caller wants it, sharing no memory that is not the caller's."""

    def settle(self) -> None:
        """Called after the run: warns of arguments that the target changed in place."""


class Backend(Protocol):
    """Runs one target."""

    kind: str
    target: Any

    @property
    def methods(self) -> Mapping[str, Method]:
        """What callers may call, by name."""

    @property
    def training(self) -> bool | None:
        """The target's own mode; None where the notion is void."""

    @property
    def device(self) -> str | None:
        """The torch device the target lives on; None where the notion is void."""

    def border(self, context: Context, *, owned: bool) -> Border:
        """A border for one call; `owned` arguments belong to nobody else."""

    def perform(self, call: Call) -> Any:
        """What the call gives, all of it done: arrays in, `run`, arrays out."""

    def run(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The method's value; a coroutine or an iterator is returned as it is."""

    def set_training(self, training: bool) -> Callable[[], None]:
        """Switches the mode and gives the function that switches it back."""

    def details(self) -> dict[str, Any]:
        """Facts for `describe`, such as a module's layers with their parameters."""


_ARGS: Path = (None, "args", 1)
_KWARGS: Path = (None, "kwargs", 1)
RESULT: Path = (None, "result", 1)
ITEM: Path = (None, "item", 1)
_LIMITS = Limits()


def admit(backend: Backend, call: Call) -> tuple[Border, Sequence[Any], Mapping[str, Any]]:
    """The border of a call, and its arguments past it: copied containers, converted arrays.

    Raises
    ------
    CodecError
        An argument that could not cross to another place, named by its path.
    """
    border = backend.border(call.context, owned=call.owned)
    arrive = border.arrive
    args = [
        rebuild(value, (_ARGS, index, 2), arrive, _LIMITS) for index, value in enumerate(call.args)
    ]
    kwargs = {
        name: rebuild(value, (_KWARGS, name, 2), arrive, _LIMITS)
        for name, value in call.kwargs.items()
    }
    return border, args, kwargs


def release(value: Any, path: Path, border: Border) -> Any:
    """A value that leaves past the border; raises as `admit` does."""
    return rebuild(value, path, border.leave, _LIMITS)


def performed(backend: Backend, call: Call) -> Any:
    """`Backend.perform` for any call."""
    border, args, kwargs = admit(backend, call)
    value = backend.run(call.method, args, kwargs)
    border.settle()
    return release(value, RESULT, border)


_BACKENDS = {
    "torch": ("torch.nn", "Module", "maas.backends.torch_module:TorchModule"),
    "keras": ("keras", "Layer", "maas.backends.keras_{}:KerasModel"),
}
"""Framework to the base class of its models and the backend for them, looked at only if it is
loaded; `{}` is what Keras runs on. A Keras model on torch is a torch module as well, so the later
row wins."""

KERAS = ("torch", "tensorflow")
"""What Keras may run on."""


def backend_for(target: Any, device: str | None = None) -> Backend:
    """The backend that runs `target`.

    Raises
    ------
    TypeError
        Nothing here can run it.
    """
    entry = "maas.backends.python_object:PythonObject"
    for framework, (module, base, backend) in _BACKENDS.items():
        loaded = sys.modules.get(module) if framework in sys.modules else None
        # Another thread may be importing it, and then no model is of its class yet.
        if loaded is not None and isinstance(target, getattr(loaded, base, ())):
            entry = backend.format(_under(loaded)) if framework == "keras" else backend
    module, _, name = entry.partition(":")
    made: Backend = getattr(importlib.import_module(module), name)(target, device)
    return made


def _under(keras: Any) -> str:
    """What Keras runs on in this process."""
    found: str = keras.backend.backend()
    if not keras.__version__.startswith("3.") or found not in KERAS:
        raise TypeError(
            f"Keras {keras.__version__} runs on {found} in this process; maas runs models of "
            f"Keras 3 on {' or '.join(KERAS)}. What Keras runs on is fixed at its first import, "
            "one a process: set KERAS_BACKEND before it, and serve two from two processes"
        )
    return found
