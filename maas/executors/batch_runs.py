"""A run of a model for the calls that go through it together: tried, shared out, taken apart again.

Of a run that fails, halves are run again until the culprit is alone: it gets its own error, and its
mates their own answers. What goes together was tried before it is relied on (`trials.py`).
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import attrs

from maas import tensors
from maas.calls import Call, Context, Info, Result
from maas.executors.base import Job
from maas.executors.batch_rules import Rule
from maas.executors.local import LocalExecutor
from maas.executors.prompt import Prompt, posting
from maas.executors.queue import Waiting
from maas.executors.rows import Plan, gathered, scattered
from maas.executors.trials import (
    Verdict,
    difference,
    invariant_sizes,
    mates,
    size_class,
    trial_sizes,
)
from maas.wire import Failure

__all__ = ["Asked", "Runs", "rows_in"]

_LOG = logging.getLogger("maas")

_MOST_FORMS = 1024
"""Forms whose verdict is remembered; a form met again after it was forgotten is tried again."""
_NOT_INVARIANT = "ran alone: in a batch of this model the bits of an answer would differ"

_Size = Callable[[int], int]
"""The size to which a number of rows is filled up."""


@attrs.define(eq=False)
class Asked:
    """One call with the job that waits for its answer; without a plan it runs alone."""

    call: Call
    rule: Rule
    plan: Plan | None
    job: Job[Any] | Prompt

    @property
    def bucket(self) -> Hashable:
        """What must be equal in calls that go together; None for a call that goes alone."""
        plan, context = self.plan, self.call.context
        if plan is None or plan.rows > self.rule.batching.max_batch_size:
            return None
        return self.call.method, context.grad, context.training, context.autocast, plan.form

    @property
    def form(self) -> Hashable:
        """What must be equal in calls of which one trial tells about all; no mode changes that."""
        plan = self.plan
        assert plan is not None  # noqa: S101 - asked only where there is one
        return self.call.method, self.call.context.autocast, plan.form


class Runs:
    """The runs of one model.

    Parameters
    ----------
    inner : what runs the model.

    Attributes
    ----------
    held : whoever runs has seen to it by `inner.hold` that no run need wait.
    """

    def __init__(self, inner: LocalExecutor) -> None:
        self.held = False
        self._inner = inner
        self._lock = threading.Lock()
        self._forms: OrderedDict[Hashable, Verdict] = OrderedDict()

    def verdicts(self, method: str) -> list[Verdict]:
        """What is known of the forms of this method."""
        with self._lock:
            return [each for form, each in self._forms.items() if form[0] == method]  # type: ignore[index]

    def answer(self, entries: list[Waiting]) -> None:
        """Settles the jobs of calls that go together, whatever happens."""
        waiting = [entry for entry in entries if entry.work.job.begin()]
        try:
            if waiting:
                self._answer_fairly(waiting)
        except BaseException as error:  # noqa: BLE001 - a fault of this file must not stop the queue
            _LOG.exception("a batch of %s failed", self._inner.name)
            for entry in waiting:
                entry.work.job.finish(Failure(self._inner.presentable(error)))

    def _answer_fairly(self, entries: list[Waiting]) -> None:
        asked: Asked = entries[0].work
        if entries[0].bucket is None:
            self._alone(entries[0], note=self.known(asked))
            return
        verdict = self.verdict(asked.form)
        if asked.rule.batching.invariant and not verdict.sizes and not verdict.alone:
            self._find_sizes(asked, verdict)
        if verdict.alone:
            for entry in entries:
                if _wanted([entry]):
                    self._alone(entry, note=verdict.alone)
        elif verdict.sizes:
            self._invariant(entries, verdict)
        elif len(entries) == 1:
            self._alone(entries[0])
        elif size_class(rows_in(entries)) in verdict.tried:
            self._together(entries, _as_it_is)
        else:
            self._trial(entries, verdict)

    def _alone(self, entry: Waiting, *, note: str = "") -> Result | Failure:
        """Runs a call as if nothing stood here, and settles its job."""
        answer = self.alone(entry.work, time.monotonic() - entry.arrived, note=note)
        entry.work.job.finish(answer)
        return answer

    def alone(self, asked: Asked, queued: float, *, note: str = "") -> Result | Failure:
        """Runs a call as if nothing stood here, after so many seconds in the queue."""
        answer = self._inner.execute(asked.call, asked.rule.method, queued, held=self.held)
        if note and isinstance(answer, Result):
            answer = Result(answer.value, attrs.evolve(answer.info, note=note), answer.rng)
        return answer

    def _together(self, entries: Sequence[Waiting], size: _Size) -> None:
        if len(entries) == 1:
            self._single(entries[0], size)
        elif not self._attempt(entries, size(rows_in(entries))):
            self._bisect(entries, size)

    def _attempt(self, entries: Sequence[Waiting], size: int) -> bool:
        """Runs calls together and settles their jobs, if the run does not fail."""
        started = time.monotonic()
        answer = self._run_together([entry.work for entry in entries], size)
        if isinstance(answer, Failure):
            return False
        count, device, seconds = len(entries), answer.info.device, answer.info.compute_seconds
        with posting():
            for entry, value in zip(entries, answer.value, strict=True):
                asked: Asked = entry.work
                info = Info("here", device, count, started - entry.arrived, seconds)
                # A server makes bytes of it at once; anybody else may keep it and write to it.
                asked.job.finish(Result(value if asked.call.owned else _own(value), info))
        return True

    def _run_together(self, asked: Sequence[Asked], size: int) -> Result | Failure:
        """Each call's part of one run's answer, as a list, in the memory of the whole answer."""
        first = asked[0]
        plans = [each.plan for each in asked if each.plan is not None]
        likeness, context = first.call.likeness, first.call.context
        if likeness is not None:
            context = likeness.context
        elif context.deadline is not None or context.key is not None:
            context = attrs.evolve(context, deadline=None, key=None)
        try:
            args, kwargs = gathered(plans, size)
            call = Call(first.call.model, first.call.method, args, kwargs, context, owned=True)
            answer = self._inner.execute(call, first.rule.method, 0.0, held=self.held)
            if isinstance(answer, Failure):
                return answer
            parts = scattered(answer.value, plans, size, first.rule.axes.returns)
        except Exception as error:  # noqa: BLE001 - arrays that cannot be joined, a wrong answer
            return Failure(error)
        return Result(parts, answer.info)

    def _bisect(self, entries: Sequence[Waiting], size: _Size) -> None:
        """Answers calls of which one makes their run fail, in at most 2 log2(n) more runs.

        Where the first half goes well the culprit is in the second, which is not run whole
        only to find that out.
        """
        entries = _wanted(entries)
        if len(entries) < 2:
            for entry in entries:
                self._single(entry, size)
            return
        middle = len(entries) // 2
        first, second = entries[:middle], entries[middle:]
        if self._went_well(first, size):
            self._bisect(second, size)
        else:
            self._together(second, size)

    def _went_well(self, entries: Sequence[Waiting], size: _Size) -> bool:
        if len(entries) == 1:
            return self._single(entries[0], size)
        well = self._attempt(entries, size(rows_in(entries)))
        if not well:
            self._bisect(entries, size)
        return well

    def _single(self, entry: Waiting, size: _Size) -> bool:
        """One call by itself, filled up where that is how it would be alone; whether it went well.

        What fails is run once more as it came, for the error that it has alone.
        """
        filled = size(entry.rows) != entry.rows and self._attempt([entry], size(entry.rows))
        return filled or isinstance(self._alone(entry), Result)

    # Trials.

    def known(self, asked: Asked) -> str:
        """Why the call runs alone, if that is known."""
        verdict = None if asked.plan is None else self._forms.get(asked.form)
        return "" if verdict is None else verdict.alone

    def verdict(self, form: Hashable) -> Verdict:
        """What is known of a form."""
        with self._lock:
            verdict = self._forms.get(form)
            if verdict is None:
                verdict = self._forms[form] = Verdict()
                if len(self._forms) > _MOST_FORMS:
                    self._forms.popitem(last=False)
            else:
                self._forms.move_to_end(form)
        return verdict

    def _trial(self, entries: Sequence[Waiting], verdict: Verdict) -> None:
        """Runs calls together and each alone; they get what came alone."""
        together = self._run_together([entry.work for entry in entries], rows_in(entries))
        alone = [self._alone(entry) for entry in entries]
        self._judge(verdict, entries[0].work, rows_in(entries), together, alone)

    def _judge(
        self,
        verdict: Verdict,
        asked: Asked,
        rows: int,
        together: Result | Failure,
        alone: Sequence[Result | Failure],
    ) -> None:
        """Writes down what a run together showed beside the same calls alone."""
        if any(isinstance(answer, Failure) for answer in alone):
            return
        if isinstance(together, Failure):
            error = together.error
            verdict.strike(f"ran alone: a batch raised {type(error).__name__}: {error!s:.120}")
            return
        worst, too_far = difference(
            [answer.value for answer in alone if isinstance(answer, Result)],
            together.value,
            asked.call.context,
            asked.rule.batching.tolerance,
        )
        if too_far:
            verdict.strike(f"ran alone: in a batch the answer would differ by {worst:.2g} of it")
        else:
            verdict.tried.add(size_class(rows))
            verdict.tolerance = max(verdict.tolerance, worst)

    def _invariant(self, entries: Sequence[Waiting], verdict: Verdict) -> None:
        """Runs calls in batches of the sizes that agree; one that is larger as it is."""
        most = verdict.sizes[-1]
        batch: list[Waiting] = []
        for entry in entries:
            if batch and rows_in(batch) + entry.rows > most:
                self._together(batch, verdict.size_for)
                batch = []
            batch.append(entry)
        self._together(batch, verdict.size_for)

    def _find_sizes(self, asked: Asked, verdict: Verdict) -> None:
        plan = asked.plan
        assert plan is not None  # noqa: S101 - a call without one has no form
        try:
            sizes = invariant_sizes(plan, asked.rule.batching.max_batch_size, self._stand_in(asked))
        except Exception:  # noqa: BLE001 - the model's own, on rows that nobody sent
            sizes = ()
        if sizes and sizes[-1] > 1:
            verdict.sizes = sizes
        else:
            verdict.alone = _NOT_INVARIANT

    def _stand_in(self, asked: Asked) -> Callable[[Sequence[Plan], int], list[Any]]:
        """Runs plans that are nobody's calls."""

        def run(plans: Sequence[Plan], size: int) -> list[Any]:
            made = [Asked(asked.call, asked.rule, plan, asked.job) for plan in plans]
            answer = self._run_together(made, size)
            if isinstance(answer, Failure):
                raise answer.error
            parts: list[Any] = answer.value
            return parts

        return run

    def try_on(self, rule: Rule, example: tuple[Any, ...]) -> None:
        """Tries batches of all sizes on rows like those of one real call."""
        training = False if self._inner.backend.training is not None else None
        context = Context(grad=False, training=training)
        call = Call(self._inner.name, rule.method.name, example, context=context)
        plan = rule.axes.plan(call)
        if plan is None:
            return
        asked = Asked(call, rule, plan, Job())
        verdict = self.verdict(asked.form)
        if rule.batching.invariant:
            self._find_sizes(asked, verdict)
        else:
            self._try_sizes(asked, plan, verdict)

    def _try_sizes(self, asked: Asked, plan: Plan, verdict: Verdict) -> None:
        most = asked.rule.batching.max_batch_size
        rows = mates(plan, most)
        run = self._stand_in(asked)
        alone: list[Result | Failure] = []
        for row in rows:
            try:
                alone.append(Result(run([row], 1)[0]))
            except Exception:  # noqa: BLE001 - the model knows no such rows; real calls will show
                return
        for size in trial_sizes(most):
            made = [Asked(asked.call, asked.rule, row, asked.job) for row in rows[:size]]
            together = self._run_together(made, size)
            self._judge(verdict, asked, size, together, alone[:size])
            if verdict.alone:
                return


def _wanted(entries: Sequence[Waiting]) -> list[Waiting]:
    """Those that somebody waits for; of the others the work has ended."""
    wanted = []
    for entry in entries:
        job = entry.work.job
        if job.done():
            job.end()
        else:
            wanted.append(entry)
    return wanted


def _as_it_is(rows: int) -> int:
    return rows


def rows_in(entries: Sequence[Waiting]) -> int:
    """Rows of a run of these."""
    return sum([entry.rows for entry in entries])


def _own(value: Any) -> Any:
    """The value in memory that no other caller's answer lies in."""
    kind = type(value)
    if kind is tuple:
        return tuple(map(_own, value))
    if kind is dict:
        return {key: _own(each) for key, each in value.items()}
    adapter = tensors.CLAIMED.get(kind)
    return value if adapter is None else adapter.copy(value)
