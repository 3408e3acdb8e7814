"""Events: plain values that compare, travel and are found again by name."""

import dataclasses
import pickle

import pytest
from hypothesis import given

from lightning_topo.phases import DETECTED, NOTES, EventName, Severity, TopologyEvent, replay
from tests.phases.series import QUICK, measurements


def test_an_event_is_the_same_in_another_process_and_nobody_changes_it():
    event = TopologyEvent(EventName.INSTABILITY, 3, 1, "net.0", Severity.ERROR, float("inf"), None, "said", "do")
    again = pickle.loads(pickle.dumps(event))
    assert (again, hash(again)) == (event, hash(event))
    assert again != dataclasses.replace(event, step=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.step = 4


def test_names_and_severities_are_found_by_the_words_of_the_record():
    assert EventName("topology_breakdown") is EventName.TOPOLOGY_BREAKDOWN
    assert f"{EventName.GAP} {Severity.WARN}" == "gap warn"
    with pytest.raises(ValueError, match="no_such_event"):
        EventName("no_such_event")


@given(measurements)
def test_measurements_alone_make_detected_events_only(found):
    """A replay of the record drops the detected events and makes them again: it must not lose or double another."""
    assert {event.name for event in replay(found, QUICK).detected} <= DETECTED
    assert NOTES.isdisjoint(DETECTED)
