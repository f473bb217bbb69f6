"""Calls that are answered on the loop, without a task: those that wait for nothing but the model.

The way is that of `answering.py`: the same checks, quotas, slots and counts. What is not as nearly
all calls are (a key, gradients, a stream, a model elsewhere, a long one) goes that way instead.
"""

import asyncio
from functools import partial
from typing import Any, Protocol

from maas.buffers import Body
from maas.calls import Call, Result
from maas.executors.prompt import Prompt
from maas.http import Response
from maas.likeness import Reader
from maas.limits import Limits
from maas.server.admission import Slots, rows_of
from maas.server.answering import presentable
from maas.server.catalogue import Catalogue, Version
from maas.server.entrance import Entrance
from maas.server.forms import Packed, Route
from maas.server.front import Pending
from maas.server.guard import Guard
from maas.server.metrics import Metrics, Tally
from maas.server.observation import Observation
from maas.wire import Failure
from maas.writers import AnswerWriter

__all__ = ["PromptAnswers"]


class _House(Protocol):
    """What is needed of the handler."""

    catalogue: Catalogue
    guard: Guard
    metrics: Metrics
    entrance: Entrance
    limits: Limits
    tracebacks: bool
    reader: Reader
    writer: AnswerWriter

    def tally(self, address: str, method: str) -> Tally:
        """What counts the calls of this method of a model."""


class PromptAnswers:
    """Answers the calls of one handler that it can answer so."""

    def __init__(self, house: _House) -> None:
        self._house = house
        self._entrance = house.entrance

    def answer(self, route: Route, body: Body) -> Response | Pending | Call | None:
        """The response, or one that will come; else the call if it was read, to be asked otherwise.

        A call that was read has been charged for.
        """
        house = self._house
        turn = _Turn(house, route, len(body))
        try:
            turn.served = version = self._entrance.entered(route)
            turn.held = True
            if version.info is None or not version.may_be_prompt:
                turn.leave()
                return None
            caller = route.caller
            if route.metered:
                self._entrance.quotas.charge(caller.id, caller.quota, "bytes", len(body))
            # Without keys there is one caller, whose calls need no turns.
            name = caller.id if house.guard.locked else ""
            call = house.reader.read(body, model=route.model, method=route.method, caller=name)
            if route.metered:
                self._entrance.charge_rows(caller, rows_of(call))
            if call.leaves or call.context.key is not None:
                turn.leave()
                return call
            return self._asked(turn, version, call)
        except Exception as error:  # noqa: BLE001 - a fault of this server must not end it
            turn.leave()
            return turn.failed(presentable(error))

    def _asked(self, turn: "_Turn", version: Version, call: Call) -> Response | Pending | Call:
        route, method = turn.route, call.method
        tally = version.tallies.get(method)
        if tally is None:
            tally = self._house.tally(route.model, method)
            if method in version.known.methods:  # else it is one for all that are not known
                version.tallies[method] = tally
        asked = turn.seen.asks(call, tally)
        slots: Any = route.slots
        turn.holds(slots if version is route.version else self._entrance.slots(version.name))
        turn.prompt = Prompt(turn.give, asyncio.get_running_loop())
        if not version.executor.prompt(asked, turn.prompt):  # type: ignore[attr-defined]
            turn.leave()
            turn.prompt = None  # it holds the turn
            turn.seen.withdraws()
            return call
        return turn if turn.response is None else turn.response


class _Turn(Pending):
    """One such call, from its reading to its answer; `held`: the version that is `served` is."""

    __slots__ = ("_house", "_slots", "held", "prompt", "response", "route", "seen", "served")

    def __init__(self, house: _House, route: Route, received: int) -> None:
        self.then = None
        self._house = house
        self.held = False
        self._slots: Slots | None = None
        self.route = route
        self.seen = Observation(house.metrics, house.tally, route, received)
        self.prompt: Prompt | None = None
        self.response: Response | None = None
        self.served: Version | None = None

    def holds(self, slots: Slots) -> None:
        """Takes a slot, to be given back after `leave`; raises `Overloaded` where there is none."""
        slots.enter(self.route.caller.id)
        self._slots = slots

    def leave(self) -> None:
        """Lets go of the version; and of the slot, once the work has ended."""
        if self.held and self.served is not None:
            self.held = False
            self._house.catalogue.leave(self.served)
        slots, self._slots = self._slots, None
        if slots is None:
            return
        if self.prompt is None or not self.prompt.runs:
            slots.leave(self.route.caller.id)
        else:
            self.prompt.when_ended(partial(slots.leave, self.route.caller.id))

    def give(self, answer: Result | Failure) -> None:
        """The answer is there."""
        self.leave()
        try:
            self.seen.ran(answer, on_loop=self.prompt is not None and self.prompt.on_loop)
            response = self.seen.answers(self._form().answer(answer))
        except Exception as error:  # noqa: BLE001 - as in `answer`
            response = self.failed(presentable(error))
        if self.then is None:
            self.response = response
        else:
            self.then(response)

    def failed(self, error: Exception) -> Response:
        """The response that says so."""
        return self.seen.answers(self._form().failure(self.seen.fails(error)))

    def _form(self) -> Packed:
        form = Packed(self._house, self.route)
        form.served = self.served
        return form

    def cancel(self) -> None:
        """The caller has left."""
        if self.prompt is not None and self.prompt.cancel():
            self.leave()
            self.seen.leaves()
