"""Functions, and objects whose methods are marked by `@maas.method`.

Arrays pass in C order, and in memory that is as much the model's or the caller's own as elsewhere:

- An object may keep its arguments, so they are copied.
- A function's tensors pass as they are, since torch counts changes in place and one is told of
  them. NumPy does not count. To notice a change by a copy and a comparison takes longer than
  giving the copy away (64 MB: 46 ms to copy, 34 to compare), so a copy is what the function gets.
- What is given may be held on to, as a cached array is, so it is copied.

Arguments that came over the wire belong to the call alone, and are neither copied nor watched.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maas import tensors
from maas.backends.base import Border, declared, describe_method, performed
from maas.calls import CALL, Call, Context
from maas.errors import MutationWarning
from maas.values import Path, render

__all__ = ["ObjectBorder", "PythonObject"]


class ObjectBorder:
    """Normalises layouts on the way in, takes care of shared memory on the way out."""

    __slots__ = ("_arrived", "_context", "_owned", "_stateful", "differentiable")

    def __init__(self, context: Context, *, owned: bool, stateful: bool) -> None:
        self._context = context
        self._owned = owned
        self._stateful = stateful
        self._arrived: list[tuple[Any, int | None, Path]] = []
        self.differentiable = False

    def arrive(self, array: Any, path: Path) -> Any:
        """The array in C order; the caller's own only where changes to it are seen."""
        adapter = _adapter(array)
        if getattr(array, "requires_grad", False) and self._context.grad:
            self.differentiable = True
        if self._owned:
            array = adapter.contiguous(array)
            self._arrived.append((array, None, path))
            return array
        version = adapter.version(array)
        if self._stateful or version is None:
            return adapter.copy(adapter.contiguous(array))
        self._arrived.append((array, version, path))
        return adapter.contiguous(array)

    def leave(self, array: Any, _path: Path) -> Any:
        """The array in C order and in memory that nobody else holds."""
        adapter = _adapter(array)
        if getattr(array, "requires_grad", False) and not self.differentiable:
            array = array.detach()
        array = adapter.contiguous(array)
        if self._owned and not self._stateful and self._shared(adapter.span(array)):
            return array
        return adapter.copy(array)

    def _shared(self, span: tuple[int, int]) -> bool:
        start, stop = span
        for array, _version, _path in self._arrived:
            other_start, other_stop = _adapter(array).span(array)
            if start < other_stop and other_start < stop:
                return True
        return False

    def settle(self) -> None:
        """Warns of every argument of the caller's that was changed in place."""
        for array, version, path in self._arrived:
            if version is not None and _adapter(array).version(array) != version:
                warn_of_mutation(path)


def warn_of_mutation(path: Path) -> None:
    """Says once per place that a remote model could not have done this."""
    warnings.warn(
        f"the model changed {render(path)} in place; run elsewhere it would change a copy. "
        "Clone it in the model",
        MutationWarning,
        stacklevel=2,
    )


def _adapter(array: Any) -> Any:
    return tensors.adapter_for(type(array))


class PythonObject:
    """Runs a callable, an object with marked methods, or both in one."""

    training: bool | None = None
    device: str | None = None

    def __init__(self, target: Any, device: str | None = None) -> None:
        if device is not None:
            raise TypeError(f"device={device!r} is for torch modules; {target!r:.80} is none")
        self.target = target
        self._functions = dict(_functions(target))
        if not self._functions:
            raise TypeError(
                f"{target!r:.80} is not callable and marks no method with @maas.method; "
                "nothing can be called"
            )
        self.kind = "function" if inspect.isroutine(target) else "object"
        exclusive = self.kind == "object"
        self.methods = {
            name: describe_method(name, function, exclusive=exclusive)
            for name, function in self._functions.items()
        }

    def border(self, context: Context, *, owned: bool) -> Border:
        """A border for one call."""
        return ObjectBorder(context, owned=owned, stateful=self.kind == "object")

    def perform(self, call: Call) -> Any:
        """What the call gives."""
        return performed(self, call)

    def run(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The function's value; coroutines and iterators are returned as they are."""
        return self._functions[name](*args, **kwargs)

    def set_training(self, _training: bool) -> Callable[[], None]:
        """A Python object has no mode."""
        return lambda: None

    def details(self) -> dict[str, Any]:
        """Nothing to tell beyond the methods."""
        return {}


def _functions(target: Any) -> list[tuple[str, Callable[..., Any]]]:
    if isinstance(target, type):
        raise TypeError(
            f"{target.__name__} is a class; wrap an instance: maas.Model({target.__name__}(...))"
        )
    if inspect.isroutine(target):
        return [(CALL, target)]
    found: list[tuple[str, Callable[..., Any]]] = [(CALL, target)] if callable(target) else []
    for name in dir(type(target)):
        function = inspect.getattr_static(type(target), name)
        if isinstance(function, staticmethod | classmethod):
            function = function.__func__
        if hasattr(function, "__maas_method__") and name != "__call__":
            found.append((declared(function).name or name, getattr(target, name)))
    return found
