"""torch's ambient state: what a call takes along from its caller, and how it is put in force.

Grad mode and autocast belong to a thread, the random generator to the process.
A call that runs elsewhere (a pool thread, another machine) would meet other
ones; so they are captured with the call and applied around the model's run.
Where torch is not loaded there is nothing to capture, and torch's defaults hold.
"""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any

import attrs

from maas.calls import AMBIENT, NO_GRAD, Autocast, Context
from maas.errors import CodecError

__all__ = [
    "GENERATOR",
    "Drawn",
    "adopt_threads",
    "applied",
    "captured",
    "generator_state",
    "in_force",
    "set_generator_state",
    "stepwise",
    "stochastic",
    "take_back",
    "transforming",
]

GENERATOR = threading.RLock()
"""Held by a call that draws from torch's CPU generator, of which a process has one."""

_DEVICES = ("cpu", "cuda")


_loaded: Any = None
_casts: Callable[[], bool]
"""Whether the thread has autocast on for any device type."""


def _torch() -> Any:
    """torch once it is loaded whole, else None; another thread may be importing it."""
    global _loaded, _casts  # noqa: PLW0603 - looking them up anew costs as much as all that is asked
    if _loaded is None:
        torch: Any = sys.modules.get("torch")
        if hasattr(torch, "is_inference_mode_enabled") and hasattr(torch, "autocast"):
            # One question for all device types: 0.05 us, where torch's public one takes 0.23 each.
            _casts = getattr(torch._C, "_is_any_autocast_enabled", lambda: bool(_autocast(torch)))
            _loaded = torch
    return _loaded


def captured() -> Context:
    """The context of the calling thread: grad mode and autocast."""
    torch = _loaded or _torch()
    if torch is None:
        return AMBIENT
    if _casts():
        return Context(grad=torch.is_grad_enabled(), autocast=_autocast(torch))
    return AMBIENT if torch.is_grad_enabled() else NO_GRAD


def _autocast(torch: Any) -> tuple[Autocast, ...]:
    return tuple(
        Autocast(device, str(torch.get_autocast_dtype(device)).removeprefix("torch."), enabled=True)
        for device in _DEVICES
        if torch.is_autocast_enabled(device)
    )


def in_force(context: Context) -> bool:
    """Whether the calling thread is in this context already, so that nothing need be applied."""
    torch = _loaded or _torch()
    if torch is None:
        return True
    if torch.is_inference_mode_enabled() or torch.is_grad_enabled() is not context.grad:
        return False
    if _casts():
        return _autocast(torch) == context.autocast
    return not context.autocast


def adopt_threads() -> None:
    """Lets this thread compute on as many threads as `torch.set_num_threads` said on another.

    A thread begins with OpenMP's own number and keeps it, in matrix products, until it asks once;
    with more threads than processors, small products then wait for each other.
    """
    torch = _loaded or _torch()
    if torch is not None:
        torch.get_num_threads()


def transforming() -> bool:
    """Whether the calling thread is inside a transform of `torch.func`, such as `grad` or `vmap`.

    Its tensors are views of a computation and hold no numbers.
    """
    return _loaded is not None and _loaded._C._are_functorch_transforms_active()


def applied(context: Context) -> contextlib.AbstractContextManager[Any]:
    """Puts grad mode and autocast of `context` in force on this thread; to be entered at once.

    Inference mode never is: its tensors could not enter autograd later, and no
    remote model could give them.
    """
    torch = _torch()
    if torch is None:
        return contextlib.nullcontext()
    if torch.is_inference_mode_enabled() or _casts() or context.autocast:
        return _all_applied(torch, context)
    # As in nearly all calls: three functions, where all that could differ takes forty.
    grad_mode: contextlib.AbstractContextManager[Any] = torch.set_grad_enabled(context.grad)
    return grad_mode


@contextlib.contextmanager
def _all_applied(torch: Any, context: Context) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(context.grad))
        wanted = {state.device: state for state in context.autocast}
        for device in _DEVICES:
            state = wanted.get(device)
            if state is not None:
                stack.enter_context(
                    torch.autocast(device, _dtype(torch, state.dtype), enabled=state.enabled)
                )
            elif torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _dtype(torch: Any, name: str) -> Any:
    # Names come from strangers: only the two dtypes autocast is made for lead to an attribute.
    if name not in ("bfloat16", "float16"):
        raise CodecError(f"autocast to {name!r:.40}; bfloat16 and float16 are possible")
    return getattr(torch, name)


def generator_state() -> bytes | None:
    """The state of torch's CPU generator; None where torch is not loaded."""
    torch = _torch()
    return None if torch is None else torch.get_rng_state().numpy().tobytes()


def set_generator_state(state: bytes) -> None:
    """Sets torch's CPU generator to what `generator_state` gave.

    Raises
    ------
    CodecError
        Bytes that are no such state.
    """
    torch = _torch()
    try:
        torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    except (RuntimeError, ValueError) as error:
        raise CodecError(f"not a state of torch's CPU generator: {error!s:.120}") from None


def take_back(state: bytes | None) -> None:
    """Advances this process's generator to where a model elsewhere left it, if it drew."""
    if state is not None:
        set_generator_state(state)


@attrs.define(eq=False, repr=False)
class Drawn:
    """What a drawing run left behind: the generator's state to send back, where one came."""

    state: bytes | None = None


@contextlib.contextmanager
def stochastic(context: Context, drawn: Drawn) -> Iterator[None]:
    """The generator that a drawing call sees, exclusively.

    With a seed: a fork of the generator, seeded. With a state that came with the
    call: that state, and `drawn.state` is the advanced one afterwards if anything was drawn, also
    when the run raised. With neither: this process's own generator, as bare torch has it.
    """
    torch = _torch()
    with GENERATOR:
        if torch is None or (context.seed is None and context.rng is None):
            yield
            return
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            _start(torch, context)
            try:
                yield
            finally:
                if context.seed is None and (state := generator_state()) != context.rng:
                    drawn.state = state


def _start(torch: Any, context: Context) -> None:
    if context.seed is not None:
        torch.manual_seed(context.seed)
    elif context.rng is not None:
        set_generator_state(context.rng)


class _Stepwise:
    """Drives a coroutine with the context in force at each of its steps, and only then."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], context: Context) -> None:
        self._coroutine = coroutine
        self._context = context

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[], Any] = functools.partial(self._coroutine.send, None)
        while True:
            try:
                with applied(self._context):
                    awaited = resume()
            except StopIteration as stop:
                return stop.value
            try:
                resume = functools.partial(self._coroutine.send, (yield awaited))
            except BaseException as error:  # noqa: BLE001 - cancellation included, it is the coroutine's to handle
                resume = functools.partial(self._coroutine.throw, error)


async def stepwise(coroutine: Coroutine[Any, Any, Any], context: Context) -> Any:
    """The coroutine's value, computed under `context` while its loop runs others in between."""
    return await _Stepwise(coroutine, context)
