"""The events of a job: told once each, in order, whatever a crash has cut off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas.errors import CodecError
from maas.jobs.events import EventReader, EventWriter


def written(path, numbers, count=0):
    """Events of these numbers, by a process that goes on after `count` of them."""
    with EventWriter(path, count) as events:
        for number in numbers:
            events.append({"step": number})


def test_they_are_read_from_any_number_on(tmp_path):
    """A reader sees what is added, from the beginning or from anywhere, and so many at a time."""
    path = tmp_path / "events"
    reader = EventReader(path)
    assert reader.read(0, 10) == []
    written(path, range(5))
    assert reader.read(0, 2) == [{"step": 0}, {"step": 1}]
    assert reader.read(3, 10) == [{"step": 3}, {"step": 4}]
    assert reader.read(5, 10) == []
    assert reader.count() == 5


@given(runs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6))
def test_what_a_process_takes_back_is_told_again(tmp_path_factory, runs):
    """After any number of new beginnings, old and new readers see what a list would hold."""
    path = tmp_path_factory.mktemp("events") / "events"
    watching, expected, fresh = EventReader(path), [], iter(range(1000))
    for keep, add in runs:
        del expected[keep:]
        numbers = [next(fresh) for _ in range(add)]
        expected += numbers
        written(path, numbers, keep)
        for reader in (watching, EventReader(path)):
            assert [event["step"] for event in reader.read(0, 1000)] == expected
            assert reader.count() == len(expected)


def test_a_cut_event_is_none(tmp_path):
    """Wherever the file is cut, readers see the whole events before, and writing goes on there."""
    path = tmp_path / "events"
    written(path, range(3))
    whole = path.read_bytes()
    size = len(whole) // 3
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        known = [{"step": number} for number in range(length // size)]
        assert EventReader(path).read(0, 10) == known
        written(path, [9], 3)
        assert EventReader(path).read(0, 10) == [*known, {"step": 9}]


def test_a_garbled_event_ends_the_reading(tmp_path):
    """An event with another byte is not told, and nothing after it."""
    path = tmp_path / "events"
    written(path, range(3))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    assert EventReader(path).read(0, 10) == [{"step": 0}]


def test_an_event_has_a_size(tmp_path):
    """One that no reader would take is refused when it is written."""
    with (
        EventWriter(tmp_path / "events", 0) as events,
        pytest.raises(CodecError, match="an event takes"),
    ):
        events.append({"note": "x" * 2**20})
