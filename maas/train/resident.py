"""Parameters that stay where the model runs, and the optimizers that move them there.

A `Distant` is a tensor in name, shape and dtype, and has no data: whatever reads it raises, so
that nothing works on numbers that are not here. A resident optimizer is torch's own class
with these for parameters; its groups and their options are here, which is all that a schedule
touches, and its state is there.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

import torch

from maas.errors import ProtocolError, Unsupported
from maas.tensors import DTYPES

__all__ = ["Distant"]

_PROPERTIES = ("shape", "dtype", "ndim", "layout", "grad_fn", "is_leaf", "requires_grad")
_FACTS = frozenset(
    {
        *(getattr(torch.Tensor, name).__get__ for name in _PROPERTIES),
        torch.Tensor.size,
        torch.Tensor.dim,
        torch.Tensor.numel,
        torch.Tensor.nelement,
        torch.Tensor.element_size,
        torch.Tensor.is_floating_point,
        torch.Tensor.is_complex,
        torch.Tensor.__len__,
    }
)
"""What may be asked of a tensor that is not here."""


class Home(Protocol):
    """What a distant parameter says of where it is."""

    name: str
    where: str


class Distant(torch.nn.Parameter):
    """A parameter of a model elsewhere: it tells its name, shape and dtype, and nothing else.

    Raises
    ------
    Unsupported
        At whatever would read or change it.
    """

    path: str
    session: "Home"

    @classmethod
    def of(cls, session: "Home", name: str, fact: Any) -> Self:
        """From what the place told of it: whether it requires grad, its shape and its dtype."""
        flag, shape, dtype = fact
        if dtype not in DTYPES:
            raise ProtocolError(f"a parameter of unknown dtype {dtype!r:.40}", answered=True)
        empty = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        made: Self = torch.Tensor._make_subclass(cls, empty, flag)
        made.path = name
        made.session = session
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answers what is known of the tensor, and raises for all else."""
        if func in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        found = next((each for each in args if isinstance(each, Distant)), None)
        raise Unsupported(
            f"{found!r} stays there, and only its name, shape and dtype are here; read it with "
            "model.state_dict(), or train with torch.optim to have it here"
        )

    def __repr__(self) -> str:  # type: ignore[override]
        return f"<parameter {self.path!r} of {self.session.name} at {self.session.where}>"
