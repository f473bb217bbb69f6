"""In front of a model in this process: calls that wait while it runs go through it together.

A caller who finds the model free runs it as if nothing stood here. Otherwise the call waits
in a `Queue`, and whoever is there when the model becomes free goes in one run (`rows.py`),
provided that it was tried and cannot be noticed (`trials.py`). Of a run that fails, halves are
run again until the culprit is alone: it gets its own error, and its mates their own answers.
Therefore only pure methods are batched; calls that draw, that stream or that want gradients
never are, and go straight to the model.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import attrs

from maas import tensors
from maas.backends.base import Method
from maas.batching import Batching
from maas.calls import AMBIENT, CALL, Call, Context, Info, Result
from maas.errors import Cancelled, DeadlineExceeded
from maas.executors.base import Job, ModelInfo, Stream, late, waited_for
from maas.executors.lanes import Lane
from maas.executors.local import LocalExecutor
from maas.executors.queue import Queue, Waiting
from maas.executors.rows import Axes, Plan, gathered, scattered
from maas.executors.trials import (
    Verdict,
    difference,
    invariant_sizes,
    mates,
    size_class,
    trial_sizes,
)
from maas.wire import Failure

__all__ = ["BatchingExecutor", "batched"]

_LOG = logging.getLogger("maas")

_MOST_FORMS = 1024
"""Forms whose verdict is remembered; a form met again after it was forgotten is tried again."""
_NOT_INVARIANT = "ran alone: in a batch of this model the bits of an answer would differ"

_Size = Callable[[int], int]
"""The size to which a number of rows is filled up."""


@attrs.frozen
class _Rule:
    """One method that is batched; `plain` if a caller who finds the model free runs it as it is."""

    method: Method
    axes: Axes
    batching: Batching
    plain: bool


@attrs.define(eq=False)
class _Asked:
    """One call with the job that waits for its answer; without a plan it runs alone."""

    call: Call
    rule: _Rule
    plan: Plan | None
    job: Job[Any]

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


def batched(
    inner: LocalExecutor, batching: Batching | None, example: Any = None
) -> "BatchingExecutor":
    """The executor in front of `inner`, with what the model and its methods were told.

    `example` is one real argument, or a tuple of them; batches are tried on it at once.

    Raises
    ------
    ValueError
        A method that cannot be batched was to be, or nothing can.
    """
    front = BatchingExecutor(inner, _rules_for(inner.describe().methods, batching))
    if example is not None:
        front.try_on(example if type(example) is tuple else (example,))
    return front


def _rules_for(methods: Mapping[str, Method], batching: Batching | None) -> dict[str, Batching]:
    """Which methods are batched, and how: as each one's author declared, or as the model's."""
    rules: dict[str, Batching] = {}
    refused: list[str] = []
    for name, method in methods.items():
        told = method.batching or batching
        if told is None:
            continue
        why = _unfit(method)
        if not why:
            rules[name] = told
        elif method.batching is not None or name == CALL:
            raise ValueError(f"{method.label} cannot be batched: {why}")
        else:
            refused.append(f"{method.label} {why}")
    if batching is not None and not rules:
        raise ValueError(f"nothing here can be batched: {'; '.join(refused) or 'no methods'}")
    return rules


def _unfit(method: Method) -> str:
    if method.streams or method.asynchronous:
        return "it streams or is asynchronous"
    if method.stochastic:
        return "it draws, so its answer depends on which calls ran before"
    if not method.pure:
        return (
            "a batch that fails is run again in parts; if it may be, declare it "
            "@maas.method(pure=True)"
        )
    return ""


def _rule(method: Method, batching: Batching) -> _Rule:
    plain = not batching.invariant and not batching.max_wait
    return _Rule(method, Axes(method, batching), batching, plain)


class BatchingExecutor:
    """Stands in front of a `LocalExecutor`; see the module's docstring.

    Parameters
    ----------
    inner : what runs the model.
    rules : the methods that are batched, and how.
    """

    def __init__(
        self,
        inner: LocalExecutor,
        rules: Mapping[str, Batching],
    ) -> None:
        self.where = inner.where
        self.name = inner.name
        self.method = inner.method
        self.expect = inner.expect
        self.ready = inner.ready
        self.inner = inner
        self._rules = {name: _rule(inner.method(name), each) for name, each in rules.items()}
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        # One model, one queue: its methods take turns, so the bounds are those of the first.
        self._queue = Queue(next(iter(rules.values())), self.name)
        self._forms: OrderedDict[Hashable, Verdict] = OrderedDict()
        self._draining = False
        self._closed = False
        self._holder = 0

    # What is passed on.

    @property
    def backend(self) -> Any:
        """What runs the target."""
        return self.inner.backend

    def describe(self, context: Context = AMBIENT) -> ModelInfo:
        """What the model says about itself, and in `details` how it is batched."""
        info = self.inner.describe(context)
        told = {name: self._told(name, rule) for name, rule in self._rules.items()}
        return attrs.evolve(info, details={**info.details, "batching": told})

    def _told(self, name: str, rule: _Rule) -> dict[str, Any]:
        with self._lock:
            verdicts = [each for form, each in self._forms.items() if form[0] == name]  # type: ignore[index]
        tried = [each for each in verdicts if not each.alone and (each.tried or each.sizes)]
        return {
            "max_batch_size": rule.batching.max_batch_size,
            "max_wait": float(rule.batching.max_wait),
            "invariant": rule.batching.invariant,
            "forms": len(tried),
            "alone": sorted({each.alone for each in verdicts if each.alone}),
            "tolerance": max((each.tolerance for each in tried), default=None),
            "sizes": sorted({size for each in tried for size in each.sizes}),
        }

    def stream(self, call: Call) -> Stream[Any]:
        """The items of a method that streams; nothing is batched there."""
        return self.inner.stream(call)

    def close(self) -> None:
        """Takes no more calls; those that wait hear so."""
        with self._lock:
            self._closed = True
            left = self._queue.everyone()
            self._arrived.notify_all()
        self.inner.close()
        for entry in left:
            closed = Cancelled("the model was closed before this call began")
            entry.work.job.settle(Failure(closed))

    # In.

    def run(self, call: Call) -> Result:
        """The answer: from this thread if the model is free, else from a batch."""
        rule = self._rules.get(call.method)
        if rule is None:
            return self.inner.run(call)
        if not rule.plain or call.context.deadline is not None:
            return self._waited_for(call)
        with self._lock:
            free = self._queue.claim(time.monotonic())
        if not free:
            return self._waited_for(call)
        self._holder = threading.get_ident()
        try:
            return self.inner.run(call)
        finally:
            self._free()

    def _waited_for(self, call: Call) -> Result:
        job = self.submit(call)
        try:
            return waited_for(job, self.name)
        except BaseException:
            # Of a wait that was interrupted; a job that has failed is not cancelled any more.
            job.cancel()
            raise

    def submit(self, call: Call) -> Job[Any]:
        """The answer, later; a call that is cancelled or late while it waits is never run."""
        rule = self._rules.get(call.method)
        if rule is None or self._closed or self._passes_by(call, rule.method):
            return self.inner.submit(call)
        entry: Waiting | None = None
        job: Job[Any] = Job(on_cancel=lambda: self._leave(entry))
        if self._holder == threading.get_ident():
            # The model asks itself, and would wait for the end of the run that this is part of.
            job.settle(self.inner.execute(call, rule.method, 0.0))
            return job
        try:
            # Here and not in the run: what does not fit must not spoil a batch.
            rule.method.signature.check(call.args, call.kwargs, rule.method.label)
            self._check_time(call.context)
            entry = self._entry(_Asked(call, rule, rule.axes.plan(call), job))
            self._enqueue(entry)
        except Exception as error:  # noqa: BLE001 - the job's to raise
            job.settle(Failure(error))
        else:
            if call.context.deadline is not None:
                self.inner.release_at(call.context.deadline, job)
        return job

    def _passes_by(self, call: Call, method: Method) -> bool:
        """Whether the call goes straight to the model, since it draws."""
        return call.context.rng is not None or self.inner.draws(call.context, method)

    def _check_time(self, context: Context) -> None:
        try:
            context.remaining()
        except DeadlineExceeded:
            raise late(self.name) from None

    def _entry(self, asked: _Asked) -> Waiting:
        context, plan, batching = asked.call.context, asked.plan, asked.rule.batching
        return Waiting(
            bucket=None if self._known(asked) else asked.bucket,
            rows=1 if plan is None else plan.rows,
            arrived=time.monotonic(),
            work=asked,
            deadline=context.deadline,
            priority=context.priority,
            owner=asked.call.caller,
            most=batching.max_batch_size,
            patience=batching.max_wait,
        )

    def _enqueue(self, entry: Waiting) -> None:
        lane = self.inner.pool("batches", 1)  # refuses after a fork, where nobody would drain
        with self._lock:
            evicted = self._queue.offer(entry, entry.arrived)
            try:
                self._wake(lane)
            except BaseException:
                self._queue.withdraw(entry)
                raise
        for other in evicted:
            refusal = self._queue.overloaded("it made room for other callers", entry.arrived)
            other.work.job.settle(Failure(refusal))

    def _leave(self, entry: Waiting | None) -> None:
        with self._lock:
            if entry is not None:
                self._queue.withdraw(entry)

    # The thread that runs batches: one while there is work, none while there is none.

    def _wake(self, lane: Lane) -> None:
        """Under the lock: sees to it that somebody takes what waits once the model is free."""
        if self._draining:
            self._arrived.notify()
        elif self._queue.due(time.monotonic()) is not None:
            self._draining = True
            try:
                lane.put(self._drain, self._stopped)
            except BaseException:
                self._draining = False
                raise

    def _stopped(self, _error: Exception) -> None:
        self._draining = False

    def _drain(self) -> None:
        while (batch := self._next()) is not None:
            self._holder = threading.get_ident()
            try:
                self._answer([entry for entry in batch if not entry.work.job.done()])
            finally:
                self._holder = 0
                with self._lock:
                    self._queue.done(time.monotonic())

    def _next(self) -> list[Waiting] | None:
        """The next batch, waited for while somebody waits for company; None where nobody waits."""
        while True:
            with self._lock:
                taken = self._queue.take(time.monotonic())
                if not taken.batch and not taken.late:
                    pause = self._queue.due(time.monotonic())
                    if pause is None:
                        self._draining = False
                        return None
                    self._arrived.wait(pause)
            for entry in taken.late:
                entry.work.job.settle(Failure(self._too_late(entry)))
            if taken.batch:
                return taken.batch

    def _too_late(self, entry: Waiting) -> Exception:
        now = time.monotonic()
        if entry.deadline is not None and entry.deadline <= now:
            return late(self.name)
        return self._queue.overloaded("a run would end beyond the deadline", now)

    def _free(self) -> None:
        """A caller who had the model to itself has ended."""
        self._holder = 0
        with self._lock:
            self._queue.done(time.monotonic())
            if self._queue.calls:
                self._wake(self.inner.pool("batches", 1))

    # A run.

    def _answer(self, entries: list[Waiting]) -> None:
        try:
            if entries:
                self._answer_fairly(entries)
        except BaseException as error:  # noqa: BLE001 - a fault of this file must not stop the queue
            _LOG.exception("a batch of %s failed", self.name)
            for entry in entries:
                entry.work.job.settle(Failure(self.inner.presentable(error)))

    def _answer_fairly(self, entries: list[Waiting]) -> None:
        asked: _Asked = entries[0].work
        if entries[0].bucket is None:
            self._alone(entries[0], note=self._known(asked))
            return
        verdict = self._verdict(asked.form)
        if asked.rule.batching.invariant and not verdict.sizes and not verdict.alone:
            self._find_sizes(asked, verdict)
        if verdict.alone:
            for entry in entries:
                if not entry.work.job.done():
                    self._alone(entry, note=verdict.alone)
        elif verdict.sizes:
            self._invariant(entries, verdict)
        elif len(entries) == 1:
            self._alone(entries[0])
        elif size_class(_rows(entries)) in verdict.tried:
            self._together(entries, _as_it_is)
        else:
            self._trial(entries, verdict)

    def _alone(self, entry: Waiting, *, note: str = "") -> Result | Failure:
        """Runs a call as if nothing stood here, and settles its job."""
        asked: _Asked = entry.work
        queued = time.monotonic() - entry.arrived
        answer = self.inner.execute(asked.call, asked.rule.method, queued)
        if note and isinstance(answer, Result):
            answer = Result(answer.value, attrs.evolve(answer.info, note=note), answer.rng)
        asked.job.settle(answer)
        return answer

    def _together(self, entries: Sequence[Waiting], size: _Size) -> None:
        if len(entries) == 1:
            self._single(entries[0], size)
        elif not self._attempt(entries, size(_rows(entries))):
            self._bisect(entries, size)

    def _attempt(self, entries: Sequence[Waiting], size: int) -> bool:
        """Runs calls together and settles their jobs, if the run does not fail."""
        started = time.monotonic()
        answer = self._run_together([entry.work for entry in entries], size)
        if isinstance(answer, Failure):
            return False
        for entry, value in zip(entries, answer.value, strict=True):
            asked: _Asked = entry.work
            info = Info(
                device=answer.info.device,
                batch_size=len(entries),
                queue_seconds=started - entry.arrived,
                compute_seconds=answer.info.compute_seconds,
            )
            # A server makes bytes of it at once; anybody else may keep it and write to it.
            asked.job.settle(Result(value if asked.call.owned else _own(value), info))
        return True

    def _run_together(self, asked: Sequence[_Asked], size: int) -> Result | Failure:
        """Each call's part of one run's answer, as a list, in the memory of the whole answer."""
        first = asked[0]
        plans = [each.plan for each in asked if each.plan is not None]
        context = first.call.context
        if context.deadline is not None or context.key is not None:
            context = attrs.evolve(context, deadline=None, key=None)
        try:
            args, kwargs = gathered(plans, size)
            call = Call(first.call.model, first.call.method, args, kwargs, context, owned=True)
            answer = self.inner.execute(call, first.rule.method, 0.0)
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
        entries = [entry for entry in entries if not entry.work.job.done()]
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
        well = self._attempt(entries, size(_rows(entries)))
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

    def _known(self, asked: _Asked) -> str:
        """Why the call runs alone, if that is known."""
        verdict = None if asked.plan is None else self._forms.get(asked.form)
        return "" if verdict is None else verdict.alone

    def _verdict(self, form: Hashable) -> Verdict:
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
        together = self._run_together([entry.work for entry in entries], _rows(entries))
        alone = [self._alone(entry) for entry in entries]
        self._judge(verdict, entries[0].work, _rows(entries), together, alone)

    def _judge(
        self,
        verdict: Verdict,
        asked: _Asked,
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
            if batch and _rows(batch) + entry.rows > most:
                self._together(batch, verdict.size_for)
                batch = []
            batch.append(entry)
        self._together(batch, verdict.size_for)

    def _find_sizes(self, asked: _Asked, verdict: Verdict) -> None:
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

    def _stand_in(self, asked: _Asked) -> Callable[[Sequence[Plan], int], list[Any]]:
        """Runs plans that are nobody's calls."""

        def run(plans: Sequence[Plan], size: int) -> list[Any]:
            made = [_Asked(asked.call, asked.rule, plan, asked.job) for plan in plans]
            answer = self._run_together(made, size)
            if isinstance(answer, Failure):
                raise answer.error
            parts: list[Any] = answer.value
            return parts

        return run

    def try_on(self, example: tuple[Any, ...]) -> None:
        """Tries batches of all sizes on rows like those of one real call of the model itself."""
        rule = self._rules.get(CALL)
        training = False if self.inner.backend.training is not None else None
        call = Call(self.name, CALL, example, context=Context(grad=False, training=training))
        plan = None if rule is None else rule.axes.plan(call)
        if rule is None or plan is None:
            return
        asked = _Asked(call, rule, plan, Job())
        verdict = self._verdict(asked.form)
        if rule.batching.invariant:
            self._find_sizes(asked, verdict)
        else:
            self._try_sizes(asked, plan, verdict)

    def _try_sizes(self, asked: _Asked, plan: Plan, verdict: Verdict) -> None:
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
            made = [_Asked(asked.call, asked.rule, row, asked.job) for row in rows[:size]]
            together = self._run_together(made, size)
            self._judge(verdict, asked, size, together, alone[:size])
            if verdict.alone:
                return


def _as_it_is(rows: int) -> int:
    return rows


def _rows(entries: Sequence[Waiting]) -> int:
    return sum(entry.rows for entry in entries)


def _own(value: Any) -> Any:
    """The value in memory that no other caller's answer lies in."""
    kind = type(value)
    if kind is tuple:
        return tuple(map(_own, value))
    if kind is dict:
        return {key: _own(each) for key, each in value.items()}
    adapter = tensors.CLAIMED.get(kind)
    return value if adapter is None else adapter.copy(value)
