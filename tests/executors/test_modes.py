import threading
import time
from typing import Any

import pytest

import maas
from maas.backends.base import Method
from maas.calls import Context
from maas.executors.modes import ModeGate
from maas.signature import Signature

PATIENCE = 20.0


class Target:
    """A backend with nothing but a mode."""

    def __init__(self, training: bool | None) -> None:
        self.training = training
        self.switches: list[bool] = []

    def set_training(self, training):
        before, self.training = self.training, training
        self.switches.append(training)

        def restore() -> None:
            self.training = before

        return restore


def gate_of(target: Any) -> ModeGate:
    return ModeGate(target)


def enter(gate: ModeGate, mode: bool | None, *, exclusive: bool, deadline=None) -> bool:
    method = Method(name="ask", label="ask", signature=Signature(), exclusive=exclusive)
    return gate.enter(Context(training=mode, deadline=deadline), method)


def test_calls_of_one_mode_overlap():
    """Two calls in eval mode are inside at once, and switch to it once."""
    target = Target(training=True)
    gate = gate_of(target)
    assert enter(gate, False, exclusive=False) is False
    assert enter(gate, False, exclusive=False) is False
    assert target.training is False
    gate.leave()
    assert target.training is False
    gate.leave()
    assert target.training is True
    assert target.switches == [False]


def test_calls_that_draw_are_alone():
    """A call in train mode may draw from the generator, so a second one waits for its end."""
    gate = gate_of(Target(training=True))
    assert enter(gate, True, exclusive=False) is True
    with pytest.raises(maas.DeadlineExceeded):
        enter(gate, True, exclusive=False, deadline=time.monotonic() + 0.05)
    gate.leave()


@pytest.mark.parametrize(("mode", "exclusive"), [(True, False), (False, True)])
def test_another_mode_or_an_exclusive_call_waits(mode, exclusive):
    """A call in the other mode, and an exclusive one in the same, wait until the first has left."""
    gate = gate_of(Target(training=False))
    enter(gate, False, exclusive=False)
    inside = threading.Event()

    def second() -> None:
        enter(gate, mode, exclusive=exclusive)
        inside.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not inside.is_set()
    gate.leave()
    assert inside.wait(PATIENCE)
    thread.join()
    gate.leave()


def test_a_call_that_waits_has_a_deadline():
    """A call whose deadline passes while it waits is not let in."""
    gate = gate_of(Target(training=False))
    enter(gate, False, exclusive=True)
    with pytest.raises(maas.DeadlineExceeded):
        enter(gate, False, exclusive=False, deadline=time.monotonic() + 0.05)
    gate.leave()
    enter(gate, False, exclusive=False)
    gate.leave()


def test_the_own_mode_is_told_while_another_is_in_force():
    """What a handle without a mode of its own gets is the target's, not that of a call inside."""
    gate = gate_of(Target(training=False))
    enter(gate, True, exclusive=False)
    assert gate.own() is False
    gate.leave()
    assert gate.own() is False


def test_a_target_without_modes_is_never_switched():
    """Functions and objects have no mode, so nothing is set on them."""
    target = Target(training=None)
    gate = gate_of(target)
    enter(gate, None, exclusive=False)
    gate.leave()
    assert target.switches == []
