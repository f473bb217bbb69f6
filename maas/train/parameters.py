"""`model.parameters()` and its kin: methods of every Model, by entry points in `maas.methods`.

For a module in this process they are the module's own. For one elsewhere they begin a private
copy there, and which rung it is on is decided by what is done with the parameters.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Self, cast

import torch

from maas.errors import Unsupported
from maas.executors.local import LocalExecutor
from maas.model import Model
from maas.train.elsewhere import Elsewhere
from maas.train.session import Session

__all__ = [
    "Parameters",
    "buffers",
    "load_state_dict",
    "named_buffers",
    "named_parameters",
    "parameters",
    "session_of",
    "state_dict",
    "zero_grad",
]

_BEGINNING = threading.Lock()


def _began(model: Model[..., Any]) -> torch.nn.Module | Session:
    """The module itself, whose parameters' gradients calls give from now on; or the session."""
    with _BEGINNING:
        executor = model._executor
        if isinstance(executor, Session):
            return executor
        if isinstance(executor, Elsewhere):
            session = Session(executor)
            model._executor = session
            return session
        if isinstance(executor, LocalExecutor):
            target = executor.backend.target
            if isinstance(target, torch.nn.Module):
                model._executor = executor.trained()
                return target
    raise Unsupported(f"model {model._name!r} is no torch module, so it has no parameters to train")


def session_of(model: Model[..., Any]) -> Session | None:
    """The session of a model that runs elsewhere; None for one that is here."""
    began = _began(model)
    return began if isinstance(began, Session) else None


class Parameters(Iterator[torch.nn.Parameter]):
    """The parameters of a model elsewhere: fetched when they are iterated, and not before.

    What `maas.optim` is given stays there; see `session.py` for the two rungs.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rest: Iterator[torch.nn.Parameter] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> torch.nn.Parameter:
        if self._rest is None:
            module = self._session.distant or self._session.mirror()
            self._rest = module.parameters()
        return next(self._rest)

    def stay(self) -> tuple[Session, list[Any]]:
        """Leaves them where they are: their session, and what stands for them here."""
        return self._session, list(self._session.resident().parameters())


def parameters(model: Model[..., Any], recurse: bool = True) -> Iterator[torch.nn.Parameter]:  # noqa: FBT002 - as torch has it
    """As `torch.nn.Module.parameters`; from now on the results of calls are in their graph.

    Elsewhere: given to `maas.optim` they stay there; iterated, as torch's own optimizers do,
    they are fetched once, and what changes is sent with the next call.

    Raises
    ------
    Forbidden
        The server does not grant "train".
    Unsupported
        The model is no torch module.
    """
    began = _began(model)
    if isinstance(began, Session):
        if recurse:
            return Parameters(began)
        return (began.distant or began.mirror()).parameters(recurse=False)
    return began.parameters(recurse)


def named_parameters(
    model: Model[..., Any],
    prefix: str = "",
    recurse: bool = True,  # noqa: FBT002 - as torch has it
    remove_duplicate: bool = True,  # noqa: FBT002 - the same
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """As `torch.nn.Module.named_parameters`; fetches them from elsewhere."""
    began = _began(model)
    module = (began.distant or began.mirror()) if isinstance(began, Session) else began
    return module.named_parameters(prefix, recurse, remove_duplicate)


def buffers(model: Model[..., Any], recurse: bool = True) -> Iterator[torch.Tensor]:  # noqa: FBT002 - as torch has it
    """As `torch.nn.Module.buffers`; from elsewhere, a snapshot."""
    return _current(model).buffers(recurse)


def named_buffers(
    model: Model[..., Any],
    prefix: str = "",
    recurse: bool = True,  # noqa: FBT002 - as torch has it
    remove_duplicate: bool = True,  # noqa: FBT002 - the same
) -> Iterator[tuple[str, torch.Tensor]]:
    """As `torch.nn.Module.named_buffers`; from elsewhere, a snapshot."""
    return _current(model).named_buffers(prefix, recurse, remove_duplicate)


def _current(model: Model[..., Any]) -> torch.nn.Module:
    began = _began(model)
    return began.current() if isinstance(began, Session) else began


def state_dict(model: Model[..., Any]) -> "OrderedDict[str, Any]":
    """As `torch.nn.Module.state_dict`, as a snapshot: what trains on does not change it."""
    state = _current(model).state_dict()
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            state[name] = value.detach().clone()
    return cast("OrderedDict[str, Any]", state)


def load_state_dict(
    model: Model[..., Any],
    state_dict: Mapping[str, Any],
    strict: bool = True,  # noqa: FBT002 - as torch has it
) -> Any:
    """As `torch.nn.Module.load_state_dict`; elsewhere, into this handle's private copy."""
    began = _began(model)
    if isinstance(began, Session):
        return began.load(state_dict, strict=strict)
    return began.load_state_dict(state_dict, strict)


def zero_grad(model: Model[..., Any], set_to_none: bool = True) -> None:  # noqa: FBT002 - as torch has it
    """As `torch.nn.Module.zero_grad`."""
    _began(model).zero_grad(set_to_none)
