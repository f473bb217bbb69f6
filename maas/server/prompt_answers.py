"""Calls that are answered on the loop, without a task: those that wait for nothing but the model.

The way is that of `answering.py`: the same checks, quotas, slots and counts. What is not as nearly
all calls are (a key, gradients, a stream, a model elsewhere, a long one) goes that way instead.
"""

from functools import partial
from typing import Any, Protocol

from maas.calls import Call, Result
from maas.executors.prompt import Prompt
from maas.http import Response
from maas.server.admission import Slots, rows_of
from maas.server.answering import presentable
from maas.server.catalogue import Catalogue, Version
from maas.server.entrance import Entrance, is_reserved
from maas.server.forms import Packed
from maas.server.front import Pending
from maas.server.guard import Guard
from maas.server.metrics import Metrics, Tally
from maas.server.observation import Observation
from maas.wire import Failure

__all__ = ["PromptAnswers"]


class _House(Protocol):
    """What is needed of the handler."""

    catalogue: Catalogue
    guard: Guard
    metrics: Metrics
    entrance: Entrance

    def tally(self, address: str, method: str) -> Tally:
        """What counts the calls of this method of a model."""


class PromptAnswers:
    """Answers the calls of one handler that it can answer so."""

    def __init__(self, house: _House) -> None:
        self._house = house
        self._entrance = house.entrance
        self._catalogue = house.catalogue

    def answer(self, form: Packed, body: bytearray, loop: Any) -> Response | Pending | Call | None:
        """The response, or one that will come; else the call if it was read, to be asked otherwise.

        A call that was read has been charged for.
        """
        route = form.route
        version = self._catalogue.find(route.model)
        if version is None or version.info is None or not version.may_be_prompt:
            return None
        if route.key is not None or is_reserved(route.method):
            return None
        seen = Observation(self._house.metrics, self._house.tally, route, len(body))
        turn: _Turn | None = None
        try:
            version = form.served = self._entrance.entered(route)
            turn = _Turn(self._catalogue, version, form, seen)
            caller = route.caller
            self._entrance.quotas.charge(caller.id, caller.quota, "bytes", len(body))
            call = form.read(body)
            self._entrance.charge_rows(caller, rows_of(call))
            if call.leaves or call.context.key is not None or not _is_prompt(version, call):
                turn.leave()
                return call
            return self._asked(turn, version, seen.asks(call), loop) or call
        except Exception as error:  # noqa: BLE001 - a fault of this server must not end it
            if turn is not None:
                turn.leave()
            return seen.answers(form.failure(seen.fails(presentable(error))))

    def _asked(
        self, turn: "_Turn", version: Version, call: Call, loop: Any
    ) -> Response | Pending | None:
        caller = turn.form.route.caller.id
        if self._house.guard.locked:
            call = Call(
                call.model,
                call.method,
                call.args,
                call.kwargs,
                call.context,
                owned=call.owned,
                caller=caller,
                likeness=call.likeness,
            )
        slots = self._entrance.slots(version.name)
        slots.enter(caller)
        turn.holds(slots, caller)
        turn.prompt = Prompt(turn.give, loop)
        if not version.executor.prompt(call, turn.prompt):  # type: ignore[attr-defined]
            turn.leave()
            turn.seen.withdraws()
            return None
        return turn if turn.response is None else turn.response


def _is_prompt(version: Version, call: Call) -> bool:
    asked: Any = version.executor
    return asked.is_prompt(call)  # type: ignore[no-any-return]


class _Turn(Pending):
    """One such call, from its reading to its answer."""

    __slots__ = (
        "_caller", "_catalogue", "_slots", "_version", "form", "prompt", "response", "seen"
    )  # fmt: skip

    def __init__(
        self, catalogue: Catalogue, version: Version, form: Packed, seen: Observation
    ) -> None:
        super().__init__()
        self._catalogue = catalogue
        self._version: Version | None = version
        self._slots: Slots | None = None
        self._caller = ""
        self.form = form
        self.seen = seen
        self.prompt: Prompt | None = None
        self.response: Response | None = None

    def holds(self, slots: Slots, caller: str) -> None:
        """A slot was taken, to be given back after `leave`."""
        self._slots = slots
        self._caller = caller

    def leave(self) -> None:
        """Lets go of the version; and of the slot, once the work has ended."""
        version, self._version = self._version, None
        if version is not None:
            self._catalogue.leave(version)
        slots, self._slots = self._slots, None
        if slots is None:
            return
        if self.prompt is None or not self.prompt.runs:
            slots.leave(self._caller)
        else:
            self.prompt.when_ended(partial(slots.leave, self._caller))

    def give(self, answer: Result | Failure) -> None:
        """The answer is there."""
        self.leave()
        try:
            self.seen.ran(answer, on_loop=self.prompt is not None and self.prompt.on_loop)
            response = self.form.answer(answer)
        except Exception as error:  # noqa: BLE001 - as in `answer`
            response = self.form.failure(self.seen.fails(presentable(error)))
        response = self.seen.answers(response)
        if self.then is None:
            self.response = response
        else:
            self.then(response)

    def cancel(self) -> None:
        """The caller has left."""
        if self.prompt is not None and self.prompt.cancel():
            self.leave()
            self.seen.leaves()
