"""`maas.optim`: optimizers that work where the model is.

Given the parameters of a module in this process they *are* torch's. Given those of a model
elsewhere, the weights, their gradients and the optimizer's state stay there, a step is
a few bytes, and the numbers are the same: there, too, it is torch's optimizer that steps.

The rules, each in torch's own code (`torch/optim/sgd.py`, `adam.py`, `adamw.py`):

    SGD      w <- w - lr * v,  v <- momentum * v + g      Sutskever et al., ICML 2013
    Adam     w <- w - lr * m^ / (sqrt(v^) + eps)          Kingma and Ba, arXiv:1412.6980
    AdamW    Adam, and w <- w - lr * decay * w            Loshchilov and Hutter, arXiv:1711.05101
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch

from maas.errors import Unsupported
from maas.train.parameters import Parameters
from maas.train.resident import Distant
from maas.train.session import Session

__all__ = ["SGD", "Adam", "AdamW", "clip_grad_norm_", "clip_grad_value_"]

_NUMBERS = itertools.count(1)


def SGD(params: Any, *args: Any, **options: Any) -> torch.optim.SGD:  # noqa: N802 - torch's name
    """`torch.optim.SGD`, where the model is; the same options."""
    return cast("torch.optim.SGD", _made(torch.optim.SGD, params, args, options))


def Adam(params: Any, *args: Any, **options: Any) -> torch.optim.Adam:  # noqa: N802 - torch's name
    """`torch.optim.Adam`, where the model is; the same options."""
    return cast("torch.optim.Adam", _made(torch.optim.Adam, params, args, options))


def AdamW(params: Any, *args: Any, **options: Any) -> torch.optim.AdamW:  # noqa: N802 - torch's name
    """`torch.optim.AdamW`, where the model is; the same options."""
    return cast("torch.optim.AdamW", _made(torch.optim.AdamW, params, args, options))


def clip_grad_norm_(
    parameters: Any, max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
) -> torch.Tensor:
    """`torch.nn.utils.clip_grad_norm_`, where the gradients are; gives their total norm.

    Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013.
    """
    session, held = _resident(parameters)
    if session is None:
        return torch.nn.utils.clip_grad_norm_(
            held, max_norm, norm_type, error_if_nonfinite=error_if_nonfinite
        )
    names = [each.path for each in held]
    norm: torch.Tensor = session.done(
        "clip norm", names, float(max_norm), float(norm_type), error_if_nonfinite
    )
    return norm


def clip_grad_value_(parameters: Any, clip_value: float) -> None:
    """`torch.nn.utils.clip_grad_value_`, where the gradients are."""
    session, held = _resident(parameters)
    if session is None:
        torch.nn.utils.clip_grad_value_(held, clip_value)
    else:
        session.do("clip value", [each.path for each in held], float(clip_value))


def _resident(parameters: Any) -> tuple[Session | None, list[Any]]:
    """The session whose parameters these are, and they; None for tensors that are here."""
    if isinstance(parameters, Parameters):
        return parameters.stay()
    held: list[Any] = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
    sessions = {cast("Session", each.session) for each in held if isinstance(each, Distant)}
    if not sessions:
        return None, held
    if len(sessions) > 1 or not all(isinstance(each, Distant) for each in held):
        raise Unsupported("these parameters are in several places; one optimizer works in one")
    return sessions.pop(), held


def _made(kind: Any, params: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if isinstance(params, Parameters | torch.Tensor):
        groups: list[Any] = [params]
    else:
        groups = list(params)
    nested = [group for group in groups if isinstance(group, dict)]
    if nested:
        found = [_resident(group["params"]) for group in nested]
        groups = [{**group, "params": held} for group, (_, held) in zip(nested, found, strict=True)]
    else:
        found = [_resident(groups[0] if isinstance(params, Parameters) else groups)]
        groups = found[0][1]
    sessions = {session for session, _ in found}
    if sessions == {None}:
        return kind(groups, *args, **options)
    if len(sessions) > 1:
        raise Unsupported("these parameters are in several places; one optimizer works in one")
    return _RESIDENT[kind](sessions.pop(), groups, args, options)


class _Stays:
    """What a resident optimizer does otherwise than torch's, whose class stands behind this one."""

    param_groups: list[dict[str, Any]]
    _session: Session
    _number: int
    _told: list[dict[str, Any]] | None

    def __init__(
        self,
        session: Session,
        groups: Iterable[Any],
        args: tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        # Which kernel steps is the place's affair: torch would ask the tensors, which are not here.
        kernel = {name: options[name] for name in _KERNELS if options.get(name) is not None}
        rest = {name: value for name, value in options.items() if name not in _KERNELS}
        self._told = None
        super().__init__(groups, *args, **rest)  # type: ignore[call-arg]
        for group in self.param_groups:
            group.update(kernel)
        self._session = session
        self._number = next(_NUMBERS)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, until the first step."""
        if self._told is not None:
            raise Unsupported("a group can be added before the first step of this optimizer only")
        super().add_param_group(param_group)  # type: ignore[misc]

    def _begun(self) -> list[dict[str, Any]]:
        """The options of the groups as the optimizer there has them; it is made if need be."""
        if self._told is None:
            options = [_options(group) for group in self.param_groups]
            groups = [
                {**chosen, "params": [each.path for each in group["params"]]}
                for chosen, group in zip(options, self.param_groups, strict=True)
            ]
            name = type(self).__mro__[2].__name__
            self._session.do("make", self._number, name, groups)
            self._told = options
        return self._told

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps where the weights are; travels with the next question."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        changed = [
            {name: value for name, value in _options(now).items() if value != before.get(name)}
            for now, before in zip(self.param_groups, self._begun(), strict=True)
        ]
        for before, options in zip(self._begun(), changed, strict=True):
            before.update(options)
        self._session.do("step", self._number, changed)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT002 - as torch has it
        """Forgets the gradients where they are; travels with the next question."""
        self._begun()
        self._session.do("zero", self._number, set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, fetched."""
        self._begun()
        return self._session.optimizer_state(self._number)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; the groups' options are taken over here as well."""
        self._begun()
        self._session.do("load", self._number, state_dict)
        for group, given in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in given.items() if name != "params"})
        self._told = [_options(group) for group in self.param_groups]


_KERNELS = ("fused", "foreach")


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


class _SGD(_Stays, torch.optim.SGD):
    pass


class _Adam(_Stays, torch.optim.Adam):
    pass


class _AdamW(_Stays, torch.optim.AdamW):
    pass


_RESIDENT: dict[Any, Any] = {
    torch.optim.SGD: _SGD,
    torch.optim.Adam: _Adam,
    torch.optim.AdamW: _AdamW,
}
