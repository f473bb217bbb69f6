import socket
import time

import pytest

from maas.transports.addresses import in_turn, left, lookup


def test_a_dead_address_leaves_time_for_the_others():
    """Each gets an equal share of what is left when its turn comes, the last one all of it."""
    start = time.monotonic()
    turns = list(in_turn([(0, "a"), (0, "b"), (0, "c")], start + 300))
    assert [address for (_, address), _, _ in turns] == ["a", "b", "c"]
    assert [round(until - start, -1) for _, until, _ in turns] == [100, 150, 300]
    assert [last for _, _, last in turns] == [False, False, True]


def test_no_time_left_is_a_timeout():
    """Zero would mean not to wait at all, and a negative time is an error to sockets."""
    assert 0 < left(time.monotonic() + 1) <= 1
    with pytest.raises(TimeoutError):
        left(time.monotonic())


@pytest.mark.parametrize(
    ("address", "found"),
    [
        (("tcp", "127.0.0.1", 80), (socket.AF_INET, ("127.0.0.1", 80))),
        (("tcp", "::1", 80), (socket.AF_INET6, ("::1", 80, 0, 0))),
        (("unix", "/run/maas.sock"), (socket.AF_UNIX, "/run/maas.sock")),
    ],
)
def test_what_is_an_address_already_is_not_looked_up(address, found):
    """It is known at once, without a thread."""
    future = lookup(address)
    assert future.done()
    assert future.result() == [found]
