"""`model.explain(...)`: of a module here, of one at a server, or of what calls of a model give."""

import importlib
from typing import Any

import attrs

from maas.calls import Context
from maas.errors import ProtocolError, Unsupported
from maas.executors.base import Executor, finish
from maas.explain.explanation import Explanation, Question
from maas.model import Model

__all__ = ["EXPLAIN", "explain"]

EXPLAIN = "_explain"

_WAYS = ("module", "calls")
_FIELDS = {"attributions", "gap", "assumption", "local", "rows"}


def explain(
    model: Model[..., Any],
    *args: Any,
    target: Any = None,
    method: str = "integrated_gradients",
    at: str | None = None,
    baseline: Any = None,
    seed: int = 0,
    kwargs: dict[str, Any] | None = None,
    through: str | None = None,
    **options: Any,
) -> Explanation:
    """How much each part of the input counted for the answer.

    Parameters
    ----------
    args : the model's arguments, each row an example. The floating-point arrays in them are
        explained; where there are none, those of whole numbers.
    target : which of the output's numbers: its index, a tuple where a row of the output has
        several dimensions, or a list with one for each row. None where a row is one number.
    method : name of the algorithm; docs/how-to/explain-an-answer.md lists them.
    at : a layer, by its path as in `describe()`, whose output is explained in place of the input.
    baseline : what an input that says nothing is like: a number, an array of the input's shape, or
        a list with one for each explained array. 0 by default.
    seed : of the algorithms that draw; the generators of this process are not moved.
    kwargs : the model's keyword arguments, which are not explained.
    through : "module": the algorithm runs where the module is, and may look into it; a server
        must grant `explain`. "calls": it runs here and sees what calls of the model give; those
        need what they always need, `call`, and `grad` for an algorithm that asks for
        gradients. By default "module" for torch modules, "calls" for anything else.
    options : of the algorithm, such as `steps`, `samples`, `window`.

    Raises
    ------
    ValueError, TypeError
        An unknown method, layer or option, with the nearest spelling; a target out of range; a
        value that makes no sense.
    Unsupported
        The method cannot explain this model: no gradients, a layer it has no rule for.
    Forbidden
        The server does not grant `explain` to this key.
    LimitExceeded, Overloaded
        It would cost more rows than one explanation, or the quota, allows.
    """
    if through not in (None, *_WAYS):
        raise ValueError(f"through= wants 'module' or 'calls', got {through!r:.40}")
    if type(seed) is not int or seed < 0:
        raise ValueError(f"seed= wants a whole number from 0, got {seed!r:.40}")
    question = Question(
        args=args,
        kwargs=dict(kwargs or {}),
        target=target,
        method=method,
        at=at,
        baseline=baseline,
        options=options,
        seed=seed,
    )
    return asked(model, question, through)


def asked(model: Model[..., Any], question: Question, through: str | None = None) -> Explanation:
    """The explanation that a question asks for."""
    way = through or ("module" if model.info.kind == "torch" else "calls")
    # Grad mode is the algorithm's affair; nothing of the answer is part of the caller's graph.
    context = attrs.evolve(model._call((), {}).context, grad=False)
    if way == "calls":
        found = _here().by_calls(model, question, context)
    else:
        found = answered(model.executor, question, context)
    return Explanation(**found, where=model.where, through=way, question=question, model=model)


def answered(
    executor: Executor, question: Question, context: Context, **server: Any
) -> dict[str, Any]:
    """The fields of the explanation of a torch module, wherever that is.

    `server` is what a server has to say: how to `charge` rows, and whether the caller has
    `given_up`. One that stands in front of another asks that, which charges for itself.
    """
    if getattr(executor, "put", None) is not None:
        return _there(executor, question, context)
    local = _here().local(executor)
    if local is None:
        raise Unsupported(
            f"{executor.name} at {executor.where} has no torch module that can be looked into; "
            "through='calls' explains what it gives"
        )
    found: dict[str, Any] = _here().by_module(local, question, context, **server)
    return found


def _here() -> Any:
    """What computes in this process; it needs torch."""
    return importlib.import_module("maas.explain.running")


def _there(executor: Any, question: Question, context: Context) -> dict[str, Any]:
    answer = finish(executor.put(EXPLAIN, (question.to_data(),), context, repeatable=True)).value
    if type(answer) is not dict or answer.keys() != _FIELDS:
        raise ProtocolError(f"{executor.where} answered with no explanation", answered=True)
    return answer
