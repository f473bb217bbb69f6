"""In front of a model in this process: calls that wait while it runs go through it together.

A caller who finds the model free runs it as if nothing stood here. Otherwise the call waits
in a `Queue`, and whoever is there when the model becomes free goes in one run (`rows.py`),
provided that it was tried and cannot be noticed (`trials.py`). Of a run that fails, halves are
run again until the culprit is alone: it gets its own error, and its mates their own answers.
Therefore only pure methods are batched; calls that draw, that stream or that want gradients
never are, and go straight to the model.
"""

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs

from maas.backends.base import Method
from maas.batching import Batching
from maas.calls import AMBIENT, CALL, Call, Context, Result
from maas.errors import Cancelled
from maas.executors.base import Job, ModelInfo, Stream, late, waited_for
from maas.executors.batch_forms import Form, Forms, entry_of
from maas.executors.batch_rules import Rule, rules_for
from maas.executors.batch_runs import Asked, Runs, rows_in
from maas.executors.lanes import Lane
from maas.executors.local import LocalExecutor
from maas.executors.meter import Meter
from maas.executors.placement import Gathering, Placement
from maas.executors.prompt import Alarm, Prompt, apart, is_apart
from maas.executors.queue import Queue, Waiting
from maas.executors.trials import size_class
from maas.wire import Failure

__all__ = ["BatchingExecutor", "batched"]

_TRAINS = "runs alone: the model is in train mode, where calls draw; eval() lets them share runs"


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
    front = BatchingExecutor(inner, rules_for(inner.describe().methods, batching))
    rule = front.rules.get(CALL)
    if example is not None and rule is not None:
        front.runs.try_on(rule, example if type(example) is tuple else (example,))
    return front


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
        self.rules = {name: Rule.of(inner.method(name), each) for name, each in rules.items()}
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._holding_back = False
        # One model, one queue: its methods take turns, so the bounds are those of the first.
        self._queue = Queue(next(iter(rules.values())), self.name)
        self.runs = Runs(inner)
        self._forms = Forms(self.runs)
        self._most = max(each.max_batch_size for each in rules.values())
        self._gathering = Gathering()
        self._alarm = Alarm(self._ring)
        self._running: list[Waiting] = []
        self._draining: Any = None
        """Who takes what waits: a loop, or True for a thread of the model; None for nobody.

        A loop, which may end at any time, does so only while all who wait are its own.
        """
        self._handed: list[Waiting] | None = None
        """A batch on its way to the loop that takes what waits."""
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
        told = {name: self._told(name, rule) for name, rule in self.rules.items()}
        return attrs.evolve(info, details={**info.details, "batching": told})

    def _told(self, name: str, rule: Rule) -> dict[str, Any]:
        verdicts = self.runs.verdicts(name)
        tried = [each for each in verdicts if not each.alone and (each.tried or each.sizes)]
        now = [_TRAINS] if self.inner.trains() else []
        return {
            "max_batch_size": rule.batching.max_batch_size,
            "max_wait": float(rule.batching.max_wait),
            "invariant": rule.batching.invariant,
            "forms": len(tried),
            "alone": now + sorted({each.alone for each in verdicts if each.alone}),
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
            entry.work.job.finish(Failure(closed))

    # In.

    def run(self, call: Call) -> Result:
        """The answer: from this thread if the model is free, else from a batch."""
        rule = self.rules.get(call.method)
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
        rule = self.rules.get(call.method)
        if rule is None or self._closed or self._passes_by(call, rule.method):
            return self.inner.submit(call)
        entry: Waiting | None = None
        job: Job[Any] = Job(on_cancel=lambda: self._leave(entry))
        if self._holder == threading.get_ident() or is_apart():
            # A model asks itself, or another one from a loop that it holds: nobody else would run.
            job.settle(self.inner.execute(call, rule.method, 0.0))
            return job
        try:
            asked, form = self._forms.asked(call, rule, job)
            now = time.monotonic()
            self._check_time(call.context, now)
            entry = entry_of(asked, form, now)
            job.begins_later()
            self._enqueue(entry)
        except Exception as error:  # noqa: BLE001 - the job's to raise
            # Its traceback would hold the job that holds it: garbage, and for each refusal some.
            job.finish(Failure(error.with_traceback(None)))
        else:
            if call.context.deadline is not None:
                self.inner.release_at(call.context.deadline, job)
        return job

    def _passes_by(self, call: Call, method: Method) -> bool:
        """Whether the call goes straight to the model, since it draws."""
        return call.context.rng is not None or self.inner.draws(call.context, method)

    def _check_time(self, context: Context, now: float) -> None:
        if context.deadline is not None and context.deadline <= now:
            raise late(self.name)

    def _enqueue(self, entry: Waiting, loop: Any = None) -> None:
        """The call waits; `loop` is where its caller waits for it, if that is one."""
        with self._lock:
            evicted = self._queue.offer(entry, entry.arrived)
            if loop is None or self._draining is not loop:
                try:
                    self._see_to(entry, loop)
                except BaseException:
                    self._queue.withdraw(entry)
                    raise
        for other in evicted:
            refusal = self._queue.overloaded("it made room for other callers", entry.arrived)
            other.work.job.finish(Failure(refusal))

    def _see_to(self, entry: Waiting, loop: Any) -> None:
        """Under the lock: somebody takes the call, once its turn has come."""
        lane = self.inner.pool("batches", 1)  # refuses after a fork, where nobody would drain
        if self._is_draining_elsewhere(entry):
            batch, self._handed = self._handed, None
            self._put(lane, batch)
            return
        form = entry.bucket
        here = loop is not None and type(form) is Form and form.place(entry.rows, 1) is not None
        self._wake(lane, loop if here else None)

    def _leave(self, entry: Waiting | None) -> None:
        with self._lock:
            if entry is not None:
                self._queue.withdraw(entry)

    # In, from a loop.

    def prompt(self, call: Call, prompt: Prompt) -> bool:
        """Answers a call, at once or later; False, and nothing was done, where a loop may not ask.

        That is: where it would have to wait, and where the model is not known to be short.
        """
        rule = self.rules.get(call.method)
        if rule is None:
            return self.inner.prompt(call, prompt)
        context, now = call.context, time.monotonic()
        if self._closed or (
            # Of calls alike one was asked; without a mode of its own it has the model's, of now.
            context.training is None and self.inner.trains()
            if call.likeness in self._forms.alike
            else self._passes_by(call, rule.method)
        ):
            return False
        try:
            self._check_time(context, now)
            asked, form = self._forms.asked(call, rule, prompt)
        except Exception as error:  # noqa: BLE001 - the caller's to hear
            prompt.settle(Failure(error.with_traceback(None)))
            return True
        if self._gathering.lone and form is not None and self._ran_at_once(asked, form, now):
            return True
        entry = entry_of(asked, form, now)
        prompt.on_cancel = partial(self._leave, entry)
        try:
            self._enqueue(entry, prompt.loop)
        except Exception as error:  # noqa: BLE001 - too much waits, or no thread can be had
            prompt.finish(Failure(error.with_traceback(None)))
        else:
            self._alarm.set(entry.deadline, prompt.loop)
        return True

    def _ran_at_once(self, asked: Asked, form: Form, now: float) -> bool:
        """Runs a call that is alone, and is expected to stay so, if it is short and can run now."""
        place = form.place(asked.plan.rows if asked.plan is not None else 1, 1)
        if place is None or self._draining is not None or not asked.rule.plain:
            return False
        with self._lock:
            if not self._queue.claim(now):
                return False
        self._gathering.ran_alone()
        ran = self._run_here(asked, place, partial(self._answer, asked, form.verdict.alone))
        with self._lock:
            if not ran:
                self._queue.done(time.monotonic())
            if self._queue.calls:
                self._wake(self.inner.pool("batches", 1))
        return ran

    def _answer(self, asked: Asked, note: str) -> None:
        asked.job.settle(self.runs.alone(asked, 0.0, note=note))

    # Out: one thread or one loop takes what waits while there is work, nobody while there is none.

    def _is_draining_elsewhere(self, entry: Waiting) -> bool:
        """Whether what waits is a loop's to take, and the call is not that loop's."""
        return self._draining not in (None, True) and not _is_of(entry, self._draining)

    def _wake(self, lane: Lane, loop: Any = None) -> None:
        """Under the lock: sees to it that somebody takes what waits once the model is free."""
        if self._draining is True:
            if self._holding_back:  # for nobody, a notice takes as long as the rest of this
                self._arrived.notify()
            return
        if self._draining is not None or self._queue.due(time.monotonic()) is None:
            return  # a loop looks at its next turn
        if loop is not None:
            self._draining = loop
            loop.call_soon(self._turn, loop)
        else:
            self._put(lane, None)

    def _put(self, lane: Lane, batch: list[Waiting] | None) -> None:
        before, self._draining = self._draining, True
        try:
            lane.put(partial(self._drain, batch), partial(self._stopped, batch))
        except BaseException:
            self._draining = before
            raise

    def _stopped(self, batch: list[Waiting] | None, error: Exception) -> None:
        self._draining = None
        for entry in batch or ():
            entry.work.job.finish(Failure(error))

    # On a thread.

    def _drain(self, batch: list[Waiting] | None) -> None:
        if batch is not None:
            self._draining = True  # one that ended since this one was put has said: nobody
            self._run_there(batch)
        while (batch := self._next()) is not None:
            if self._handed_over(batch):
                return
            self._run_there(batch)

    def _handed_over(self, batch: list[Waiting]) -> bool:
        """Whether a loop takes it from here: it has become known that such batches are short."""
        form, job = batch[0].bucket, batch[0].work.job
        if type(form) is not Form or type(job) is not Prompt:
            return False
        if form.place(rows_in(batch), len(batch)) is None:
            return False
        with self._lock:
            if not all(_is_of(entry, job.loop) for entry in (*batch, *self._queue)):
                return False
            try:
                job.loop.call_soon_threadsafe(self._take_over, batch, job.loop)
            except RuntimeError:  # it has closed
                return False
            self._draining, self._handed = job.loop, batch
        return True

    def _run_there(self, batch: list[Waiting]) -> None:
        self._holder = threading.get_ident()
        self._running = batch
        meter = Meter()
        try:
            self.runs.answer(batch)
        finally:
            self._holder = 0
            self._running = []
            form = batch[0].bucket
            if type(form) is Form:
                form.places.there(size_class(rows_in(batch))).ran(meter.cost())
            with self._lock:
                self._queue.done(time.monotonic())

    # On a loop.

    def _take_over(self, batch: list[Waiting], loop: Any) -> None:
        with self._lock:
            if self._handed is not batch:
                return  # a thread took it back
            self._handed = None
        self._run_or_pass_on(batch, loop)

    def _turn(self, loop: Any) -> None:
        """One turn of the loop, in which others may have come."""
        if self._draining is not loop:
            return
        queue = self._queue
        full = queue.rows >= self._most
        if not self._gathering.turn(queue.calls, full=full):
            loop.call_soon(self._turn, loop)
            return
        with self._lock:
            if self._draining is not loop:
                return
            taken = queue.take(time.monotonic())
            if not taken.batch and not taken.late:
                if queue.due(time.monotonic()) is None:
                    self._draining = None
                else:
                    # Somebody is held back for company, and a loop does not wait.
                    self._put(self.inner.pool("batches", 1), None)
                return
        for entry in taken.late:
            entry.work.job.finish(Failure(self._too_late(entry)))
        if taken.batch:
            self._run_or_pass_on(taken.batch, loop)
        else:
            loop.call_soon(self._turn, loop)

    def _run_or_pass_on(self, batch: list[Waiting], loop: Any) -> None:
        form = batch[0].bucket
        place = form.place(rows_in(batch), len(batch)) if type(form) is Form else None
        run = partial(self.runs.answer, batch)
        ran = place is not None and self._run_here(batch[0].work, place, run)
        with self._lock:
            if not ran:
                self._put(self.inner.pool("batches", 1), batch)
            elif self._draining is loop:
                loop.call_soon(self._turn, loop)
            elif self._queue.calls:
                self._wake(self.inner.pool("batches", 1))

    def _run_here(self, asked: Asked, place: Placement, run: Callable[[], None]) -> bool:
        """Runs such calls on this thread, a loop's; False where it would have to wait."""
        if not self.inner.hold(asked.call.context, asked.rule.method):
            return False
        with apart():
            self._holder = threading.get_ident()
            self.runs.held = True
            meter = Meter()
            try:
                run()
            finally:
                self.inner.let_go()
                self.runs.held = False
                self._holder = 0
                place.ran(meter.cost())
                with self._lock:
                    self._queue.done(time.monotonic())
        return True

    def _ring(self) -> float | None:
        """Releases those whose deadline has passed; when it passes for the next."""
        now = time.monotonic()
        with self._lock:
            waiting = [*self._queue, *self._running]
        deadlines = []
        for entry in waiting:
            job, deadline = entry.work.job, entry.deadline
            if deadline is None or type(job) is not Prompt or job.done():
                continue
            if deadline <= now:
                job.settle(Failure(late(self.name)))
            else:
                deadlines.append(deadline)
        return min(deadlines, default=None)

    def _next(self) -> list[Waiting] | None:
        """The next batch, waited for while somebody waits for company; None where nobody waits."""
        while True:
            with self._lock:
                taken = self._queue.take(time.monotonic())
                if not taken.batch and not taken.late:
                    pause = self._queue.due(time.monotonic())
                    if pause is None:
                        self._draining = None
                        return None
                    self._holding_back = True
                    self._arrived.wait(pause)
                    self._holding_back = False
            for entry in taken.late:
                entry.work.job.finish(Failure(self._too_late(entry)))
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


def _is_of(entry: Waiting, loop: Any) -> bool:
    """Whether the loop's own callers wait for it."""
    job = entry.work.job
    return type(job) is Prompt and job.loop is loop
