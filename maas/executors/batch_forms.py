"""What is known of calls that may go together: looked at once, remembered for all that are like it.

Calls of one *form* (`rows.py`) share a run. Of a call that came in a message even the form need not
be found out again where only the contents of its arrays are new (`likeness.py`).
"""

from typing import Any

import attrs

from maas import tensors
from maas.calls import Call
from maas.executors.base import Job
from maas.executors.batch_rules import Rule
from maas.executors.batch_runs import Asked, Runs
from maas.executors.placement import Placement, Places
from maas.executors.prompt import Prompt
from maas.executors.queue import Waiting
from maas.executors.rows import Plan
from maas.executors.trials import Verdict, size_class

__all__ = ["Form", "Forms", "entry_of"]

_MOST = 1024


@attrs.frozen(eq=False)
class Form:
    """What is known of calls that may go together, and that are equal in all but their rows."""

    invariant: bool
    verdict: Verdict
    places: Places = attrs.field(factory=Places)

    def place(self, rows: int, calls: int) -> Placement | None:
        """What says that a run of so many rows goes on the loop; never one that is to be tried."""
        verdict, size = self.verdict, size_class(rows)
        known = verdict.alone or verdict.sizes or size in verdict.tried
        if not known and (calls > 1 or self.invariant):
            return None
        return self.places.here(size)


@attrs.frozen(eq=False)
class _Alike:
    """What was found out of one call, and holds for all that differ only in their arrays.

    `straight`: its arguments are these arrays, and nothing else.
    """

    form: Form
    plan: Plan
    straight: bool

    def again(self, call: Call) -> Plan:
        """The plan of such a call."""
        plan, arrays = self.plan, call.args
        if not self.straight:
            given = (*call.args, *call.kwargs.values())
            arrays = tuple(each for each in given if tensors.facts(each) is not None)
        return Plan(plan.form, plan.rows, arrays, plan.lengths)


class Forms:
    """The forms of one model's calls.

    Attributes
    ----------
    alike : by likeness, calls that need not be looked at again.
    """

    def __init__(self, runs: Runs) -> None:
        self.alike: dict[Any, _Alike] = {}
        self._runs = runs
        self._forms: dict[Any, Form] = {}

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._forms)

    def asked(self, call: Call, rule: Rule, job: Job[Any] | Prompt) -> tuple[Asked, Form | None]:
        """The call with its plan, and its form; None where it runs alone.

        Raises
        ------
        SignatureError
            It does not fit the method; found out here, since in a run it would spoil a batch.
        """
        likeness = call.likeness
        known = self.alike.get(likeness)
        if known is not None:
            return Asked(call, rule, known.again(call), job), known.form
        rule.method.signature.check(call.args, call.kwargs, rule.method.label)
        asked = Asked(call, rule, rule.axes.plan(call), job)
        form, plan = self._form(asked), asked.plan
        if plan is None or form is None or likeness is None or len(plan.arrays) < likeness.arrays:
            return asked, form  # where an array has no rows, its contents are part of the form
        if len(self.alike) >= _MOST:
            self.alike.clear()
        straight = not call.kwargs and len(call.args) == likeness.arrays
        self.alike[likeness] = _Alike(form, attrs.evolve(plan, arrays=()), straight)
        return asked, form

    def _form(self, asked: Asked) -> Form | None:
        plan, known = asked.plan, asked.bucket
        if plan is None or known is None:
            return None
        found = self._forms.get(known)
        if found is None:
            if len(self._forms) >= _MOST:
                self._forms.clear()
            invariant, verdict = asked.rule.batching.invariant, self._runs.verdict(asked.form)
            found = self._forms[known] = Form(invariant, verdict)
        return found


def entry_of(asked: Asked, form: Form | None, now: float) -> Waiting:
    """The call as the queue has it; without a bucket it goes alone."""
    call, plan, batching = asked.call, asked.plan, asked.rule.batching
    alone = plan is None or plan.rows > batching.max_batch_size
    return Waiting(
        None if alone or form is None or form.verdict.alone else form,
        1 if plan is None else plan.rows,
        now,
        asked,
        call.context.deadline,
        call.context.priority,
        call.caller,
        batching.max_batch_size,
        batching.max_wait,
    )
