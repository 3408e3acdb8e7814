"""Counting events and quiet captures, by hand."""

import math

import pytest

from lightning_topo.measurement import Measurement
from lightning_topo.outputs._feed import Findings
from lightning_topo.outputs._gates import StopRules, StopState, advance, reason_to_stop
from lightning_topo.phases import EventName, TopologyEvent

BREAKDOWN = "topology_breakdown"


def event(step, name=EventName.TOPOLOGY_BREAKDOWN, group="net.0"):
    return TopologyEvent(name, step, 0, group)


def seen(step, *events, change=None, group="net.0"):
    values = {"log_bottleneck_0": change, "log_bottleneck_bound": 9.0}
    found = () if change is None else (Measurement(step, 0, "persistence", group, values),)
    return Findings(step, 0, found, events)


def after(rules, *findings):
    state = StopState()
    for each in findings:
        state = advance(state, each, rules)
    return state


def test_only_events_in_question_within_the_groups_count():
    rules = StopRules(min_count=2, groups=("enc.*",))
    other = event(1, EventName.GAP, "")
    state = after(rules, seen(1, other, event(1, group="dec.0")), seen(2, event(2, group="enc.1")))
    assert dict(state.counts) == {BREAKDOWN: 1}
    assert reason_to_stop(state, rules) is None
    state = advance(state, seen(3, event(3, group="enc.0")), rules)
    assert "topology_breakdown at step 3 in enc.0" in reason_to_stop(state, rules)
    everywhere = StopRules((EventName.EDGE_OF_STABILITY_ENTER,), groups=("enc.*",))
    assert after(everywhere, seen(5, event(5, EventName.EDGE_OF_STABILITY_ENTER, ""))).n_events == 1


def test_quiet_captures_are_counted_in_a_row():
    rules = StopRules((), patience=2, tolerance=0.1)
    still = [seen(step, change=0.05) for step in range(8)]
    assert after(rules, still[1], still[2]).quiet_captures == 2
    assert after(rules, still[1], seen(2, change=0.2), still[3]).quiet_captures == 1
    assert after(rules, still[1], seen(2, change=math.nan), still[3]).quiet_captures == 1
    assert after(rules, still[1], seen(2, change=math.inf)).quiet_captures == 0
    # An event between two captures, whenever it came.
    assert after(rules, still[1], seen(2, event(2)), still[3], still[4]).quiet_captures == 1
    # Not a capture, or its first: nothing to compare with.
    assert after(rules, still[1], seen(2), seen(3)).quiet_captures == 1
    # A resume is no event of the network's, and what it measures again does not count again.
    assert after(rules, still[3], seen(3, event(3, EventName.GAP, ""), change=0.05), still[4]).quiet_captures == 2
    elsewhere = StopRules((), patience=2, groups=("dec",))
    assert after(elsewhere, seen(1, event(1), change=3.0), seen(2, change=0.0, group="dec")).quiet_captures == 1
    assert "2 captures in a row" in reason_to_stop(after(rules, *still[:2]), rules)


def test_two_captures_in_one_look_count_as_two():
    """Results of a worker may come in together."""
    rules = StopRules((), patience=2)
    both = Findings(2, 0, (*seen(1, change=0.0).measurements, *seen(2, change=0.0).measurements))
    assert after(rules, both).quiet_captures == 2
    assert after(rules, seen(3, change=0.0), both).quiet_captures == 1


@pytest.mark.parametrize("name", ["gap", "probe_failed", "unseen_step", "unwatched_parameters", "rewind"])
def test_what_is_about_the_monitor_leaves_a_quiet_time_quiet(name):
    rules = StopRules((), patience=2)
    assert after(rules, seen(1, event(1, EventName(name), ""), change=0.0), seen(2, change=0.0)).quiet_captures == 2


def test_a_state_survives_a_checkpoint():
    rules = StopRules(patience=9)
    state = after(rules, seen(1, event(1), change=0.0), seen(2, change=0.0))
    assert state.n_events == 1
    assert StopState.from_dict(state.to_dict()) == state
    with pytest.raises((KeyError, TypeError, ValueError)):
        StopState.from_dict({"step": "x"})


def test_an_event_that_two_monitors_find_counts_once():
    rules = StopRules.of("topology_breakdown", min_count=3)
    state = StopState()
    for step in (4, 5):
        for _ in ("one monitor", "the other"):
            broken = TopologyEvent(EventName.TOPOLOGY_BREAKDOWN, step, 0, "net.0")
            state = advance(state, Findings(step, 0, (), (broken,)), rules)
    assert state.n_events == 2
    assert StopState.from_dict(state.to_dict()) == state
