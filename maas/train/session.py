"""A remote model in training by one handle: the executor that stands in front of the remote one.

The first question opens a private copy at the server (`copies.py`). What is done here between two
calls, such as steps and changed weights, waits and travels with the next question.

There are two rungs, chosen by what is done with `model.parameters()`:

- *mirror*: they are iterated, as every torch optimizer does. Then the weights are here, real
  parameters. What has changed goes there with the next call, found by comparing bits, since
  neither a fused optimizer nor an edit of `.data` counts up `Tensor._version`.
- *resident*: `maas.optim` is given them. Then the weights, their gradients and the optimizer's
  state stay there. A backward step that is about them alone waits as well, so that a step
  of training is one message; what it raises is raised by the next question.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from maas import ambient
from maas.calls import AMBIENT, Call, Context, Result
from maas.errors import ProtocolError, Unsupported
from maas.executors import gradients
from maas.executors.base import Job, finish
from maas.executors.remote import RemoteExecutor
from maas.loops import run
from maas.train.elsewhere import AS_LEFT, TRAIN, Elsewhere, holder_of
from maas.train.handles import TrainingHandle
from maas.train.layout import bare_module
from maas.train.resident import Distant
from maas.wire import Failure

__all__ = ["Session"]


class Session(TrainingHandle[Elsewhere]):
    """Answers the calls of one handle by its private copy at the server."""

    def __init__(self, inner: Elsewhere) -> None:
        super().__init__(inner)
        # Who has the copy, once there is one.
        self._holder: RemoteExecutor | None = None
        self._copy: str | None = None
        self._layout: Any = None
        self._facts: dict[str, Any] = {}
        # What is known to be there.
        self._sent: dict[str, torch.Tensor] = {}
        self._flags: dict[str, bool] = {}
        self._generator: bytes | None = None
        # What is not yet.
        self._works: list[list[Any]] = []
        self._counted = 0
        # How the last call was asked: so are the questions that no call asks.
        self._manner: Context | None = None
        # Whether the copy there differs, or may, from the model that others see.
        self._apart = False
        self._module: torch.nn.Module | None = None
        self._distant: torch.nn.Module | None = None
        self._anchor = _anchor(weakref.ref(self))

    # As an executor.

    def submit(self, call: Call) -> Job[Any]:
        """The answer, later."""
        return super().submit(call) if self._apart else self.inner.submit(call)

    def run(self, call: Call) -> Result:
        """The answer of the private copy, or of the model itself while they do not differ."""
        if not self._apart:
            return self.inner.run(call)
        method = self.method(call.method, call.context)
        method.signature.check(call.args, call.kwargs, method.label)
        if call.context.grad and ambient.transforming():
            return gradients.transformed(self, call, lambda plain: self._called(plain, "none"))
        manner = gradients.Manner.of(call.context)
        rung = self.rung
        more = self._more(rung) if call.context.grad else []
        answer = self._called(call, rung)
        if answer.graph is None:
            return answer
        staying = rung == "resident" and bool(more)
        return gradients.attached(self, call, answer, manner, more, staying=staying)

    @property
    def rung(self) -> str:
        """Where the weights are: "mirror", "resident", or "none" while nobody has asked."""
        if self._module is not None:
            return "mirror"
        return "none" if self._distant is None else "resident"

    def _more(self, rung: str) -> Sequence[torch.Tensor]:
        if rung == "mirror":
            return [each for each in self._parameters().values() if each.requires_grad]
        return [self._anchor] if rung == "resident" else []

    def _called(self, call: Call, rung: str) -> Result:
        def ask(lent: Call) -> Result | Failure:
            question = (lent.method, list(lent.args), dict(lent.kwargs), rung)
            context, known = lent.context, self._generator
            if context.rng is not None and context.rng == known:
                context = attrs.evolve(context, rng=AS_LEFT)
            # What is there after a call that fails is not known.
            self._generator = None
            answer = self._put("call", question, context)
            if isinstance(answer, Result):
                self._generator = answer.rng or lent.context.rng or known
            return answer

        return self._opened(call.context).lend(call, ask)

    # As the place that keeps the graphs.

    def ask(self, _method: str, args: tuple[Any, ...], context: Context) -> Result:
        """A backward step, after all that came before it."""
        run = torch._C._current_graph_task_id()
        return finish(self._put("backward", (*args, run), context))

    def later(self, args: tuple[Any, ...]) -> None:
        """A backward step whose gradients all stay there: it travels with the next question."""
        self.do("backward", *args, torch._C._current_graph_task_id())

    def tell(self, _method: str, args: tuple[Any, ...]) -> None:
        """Lets go of graphs, in any order."""
        if self._holder is not None:
            self._holder.tell(TRAIN, ("release", self._copy, *args))

    # Questions.

    def _put(
        self,
        operation: str,
        args: tuple[Any, ...],
        context: Context,
        changes: Mapping[str, torch.Tensor] | None = None,
    ) -> Result | Failure:
        with self._lock:
            if context is not AMBIENT:
                self._manner = Context(retries=context.retries, priority=context.priority)
            elif self._manner is not None:
                context = self._manner
            holder = self._opened(context)
            self._number += 1
            works, changes, flags = list(self._works), self._changed(changes or {}), self._flagged()
            question = (operation, self._copy, self._number, works, changes, flags, *args)
            answer = holder.put(TRAIN, question, context, repeatable=True)
            if isinstance(answer, Result):
                # Until then they are sent again: each is done once.
                del self._works[: len(works)]
                self._flags.update(flags)
                for name in changes.keys() & self._sent.keys():
                    self._sent[name].copy_(changes[name])
            return answer

    def _opened(self, context: Context) -> RemoteExecutor:
        """Who has the copy; it is made at the first question."""
        with self._lock:
            if self._holder is None:
                self._open(run(holder_of(self.inner, context)).result(), context)
            assert self._holder is not None  # noqa: S101 - `_open` raises or sets it
            return self._holder

    def _open(self, holder: RemoteExecutor, context: Context) -> None:
        told = finish(holder.put(TRAIN, ("open", ""), context, repeatable=False)).value
        if type(told) is not dict or told.keys() != {"copy", "layout", "parameters"}:
            raise ProtocolError(f"{self.where} does not say what it trains", answered=True)
        self._layout, self._facts = told["layout"], told["parameters"]
        self._flags = {name: fact[0] for name, fact in self._facts.items()}
        self._holder, self._copy, self.name = holder, told["copy"], holder.name
        finalizer = weakref.finalize(self, holder.tell, TRAIN, ("close", self._copy))
        finalizer.atexit = False

    def _changed(self, told: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {
            name: parameter.detach()
            for name, parameter in self._parameters().items()
            if not _same_bits(parameter.detach(), self._sent[name])
        }
        return {**found, **told}

    def _flagged(self) -> dict[str, bool]:
        return {
            name: parameter.requires_grad
            for name, parameter in self._parameters().items()
            if parameter.requires_grad is not self._flags[name]
        }

    def _parameters(self) -> Mapping[str, torch.nn.Parameter]:
        return {} if self._module is None else dict(self._module.named_parameters())

    def pull(self, *, whole: bool) -> dict[str, torch.Tensor]:
        """The buffers there, and the parameters too, after all that was done here."""
        found: dict[str, torch.Tensor] = finish(self._put("pull", (whole,), AMBIENT)).value
        return found

    def do(self, *work: Any) -> None:
        """Has something done there, with the next question."""
        with self._lock:
            self._counted += 1
            self._works.append([self._counted, *work])

    def done(self, *work: Any) -> Any:
        """What a work gives, asked now."""
        with self._lock:
            self.do(*work)
            return finish(self._put("do", (), AMBIENT)).value[-1]

    def optimizer_state(self, number: int) -> dict[str, Any]:
        """The state of one of the optimizers there."""
        state: dict[str, Any] = finish(self._put("optimizer", (number,), AMBIENT)).value
        return state

    def settled(self) -> str:
        """The name of the copy, after all that was done here; "" while it is the model itself."""
        if not self._apart or self._copy is None:
            return ""
        finish(self._put("do", (), AMBIENT))
        return self._copy

    # The two rungs.

    def mirror(self) -> torch.nn.Module:
        """The weights here: a bare module whose parameters are real ones."""
        with self._lock:
            if self._distant is not None:
                raise Unsupported(
                    f"an optimizer of maas.optim trains {self.name}, so its weights stay at "
                    f"{self.where}; model.state_dict() reads them"
                )
            if self._module is None:
                module = self._pulled()
                self._sent = {
                    name: each.detach().clone() for name, each in module.named_parameters()
                }
                self._module, self._apart = module, True
            return self._module

    def _pulled(self) -> torch.nn.Module:
        tensors = self.pull(whole=True)
        held = {
            name: torch.nn.Parameter(each, self._flags[name]) if name in self._facts else each
            for name, each in tensors.items()
        }
        return bare_module(self._layout, held)

    def resident(self) -> torch.nn.Module:
        """The weights there: a bare module whose parameters raise when they are touched."""
        with self._lock:
            if self._module is not None:
                raise Unsupported(
                    f"the parameters of {self.name} were fetched, so they are trained by "
                    "torch.optim; connect anew to have them stay where the model runs"
                )
            if self._distant is None:
                self._opened(AMBIENT)
                held = {name: Distant.of(self, name, fact) for name, fact in self._facts.items()}
                parts = [[path, parameters, []] for path, parameters, _ in self._layout]
                self._distant, self._apart = bare_module(parts, held), True
            return self._distant

    @property
    def distant(self) -> torch.nn.Module | None:
        """The module of the resident rung, if that is the one."""
        return self._distant

    def current(self) -> torch.nn.Module:
        """A bare module with the weights and buffers as they are now."""
        if self._module is None:
            return self._pulled()
        held = dict(self._module.named_buffers())
        with torch.no_grad():
            for name, value in self.pull(whole=False).items():
                held[name].copy_(value)
        return self._module

    def load(self, state: Mapping[str, Any], *, strict: bool) -> Any:
        """Has the copy take these weights and buffers, as torch's `load_state_dict` does."""
        with self._lock:
            module = self.current()
            told = module.load_state_dict(state, strict=strict)
            changed: dict[str, torch.Tensor] = dict(module.named_buffers())
            if self._module is None:
                # Those of a mirror are compared, and sent like any other change.
                changed |= {name: each.detach() for name, each in module.named_parameters()}
            finish(self._put("do", (), AMBIENT, changed))
            self._apart = True
            return told

    def zero_grad(self, set_to_none: bool) -> None:
        """As torch's."""
        if self._module is not None:
            self._module.zero_grad(set_to_none)
        elif self._distant is not None:
            self.do("zero", None, set_to_none)


def _anchor(session: "weakref.ref[Session]") -> torch.Tensor:
    """What stands in the graph here for all parameters that stay there.

    Its gradient means nothing. That it comes means that a backward run is through with them.
    """

    def through(_anchor: torch.Tensor) -> None:
        home = session()
        if home is not None:
            home.do("merge", torch._C._current_graph_task_id())

    anchor = torch.zeros((), requires_grad=True)
    anchor.register_post_accumulate_grad_hook(through)  # type: ignore[no-untyped-call]
    return anchor


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if left.is_complex():
        left, right = torch.view_as_real(left), torch.view_as_real(right)
    whole = _WHOLE.get(left.element_size(), torch.uint8)
    return torch.equal(left.view(whole), right.view(whole))


_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
