"""The state machine, against the rules of the contract and under every way of feeding it."""

import math
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.measurement import Measurement
from lightning_topo.phases import Band, DetectorState, Phase, PhaseRules, observe, replay

PAIRS = {
    "curvature_bound_exceeded": "curvature_bound_restored",
    "edge_of_stability_enter": "edge_of_stability_exit",
    "topology_breakdown": "topology_restored",
}


def ratios(values, group="net.0"):
    return [Measurement(k, 0, "distortion", group, {"critical_ratio": v}) for k, v in enumerate(values, start=1)]


def sharpnesses(values, name="sharpness_ratio"):
    return [Measurement(10 * k, 0, "sharpness", "", {name: v}) for k, v in enumerate(values)]


def names(run):
    return [(event.name.value, event.step) for event in run.events]


def test_nothing_measured_is_unknown():
    assert replay([]).state.phase is Phase.UNKNOWN
    assert replay([Measurement(0, 0, "training", "", {"loss": 1.0})]).state.phase is Phase.UNKNOWN


def test_small_ratios_preserve():
    run = replay(ratios([0.1, 0.999]))
    assert run.state.phase is Phase.PRESERVED
    assert run.events == ()


def test_the_edge_is_entered_by_the_median_of_three():
    run = replay(sharpnesses([0.9, 1.2, 0.9, 0.96, 0.97]))
    # Medians of three: .9, .96 (1.2, .9, .96) -> enters with the value of step 30.
    assert names(run) == [("edge_of_stability_enter", 30)]
    assert run.events[0].value == 0.96
    assert run.events[0].threshold == 0.95


def test_one_spike_does_not_enter_and_two_values_are_not_enough():
    assert names(replay(sharpnesses([0.2, 5.0, 0.2, 0.2]))) == []
    assert names(replay(sharpnesses([2.0, 2.0]))) == []


def test_the_edge_is_left_by_the_median_of_five():
    run = replay(sharpnesses([1.0, 1.0, 1.0, 0.69, 0.69, 0.71, 0.69, 0.69]))
    # At step 50 the last five are 1, 1, 1, .69, .69; their median falls below .7 at step 70 (.69 .69 .71 .69, 1).
    assert names(run) == [("edge_of_stability_enter", 20), ("edge_of_stability_exit", 60)]


def test_curvature_bound_enters_at_one_and_leaves_below_four_fifths():
    run = replay(sharpnesses([1.0, 1.0, 1.0, 0.81, 0.81, 0.81, 0.79, 0.79, 0.79], "eta_lambda"))
    assert names(run) == [("curvature_bound_exceeded", 20), ("curvature_bound_restored", 80)]


def test_a_breakdown_lasts_until_enough_quiet_steps():
    run = replay(ratios([0.5, 1.0, 1.7, *[0.9] * 100, 0.9]))
    assert names(run) == [("topology_breakdown", 2), ("topology_restored", 103)]
    assert run.events[0].value == 1.0
    assert run.events[1].value == 1.7
    assert "step 3" in run.events[1].message
    assert run.phases["net.0"] == ((1, Phase.PRESERVED), (2, Phase.BREAKDOWN), (103, Phase.PRESERVED))


def test_quiet_steps_are_counted_anew_after_each_critical_one():
    run = replay(ratios([1.5, *[0.1] * 99, 1.2, *[0.1] * 99]))
    assert names(run) == [("topology_breakdown", 1)]
    assert run.state.phase is Phase.BREAKDOWN


def test_breakdown_names_its_group_and_pair():
    values = {"critical_ratio": math.inf, "critical_i": 3.0, "critical_j": 7.0}
    _, (event,) = observe(DetectorState(), Measurement(1, 0, "distortion", "enc.fc", values))
    assert event.group == "enc.fc"
    assert "neurons 3 and 7" in event.message
    assert "enc.fc" in event.message


def test_the_highest_phase_holds_and_groups_keep_their_own():
    run = replay(
        [
            *sharpnesses([1.0, 1.0, 1.0]),
            Measurement(30, 0, "distortion", "a", {"critical_ratio": 1.5}),
            Measurement(30, 0, "distortion", "b", {"critical_ratio": 0.5}),
        ]
    )
    assert run.state.phase is Phase.BREAKDOWN
    assert run.state.phase_of("b") is Phase.EDGE_OF_STABILITY


def test_nan_says_nothing():
    state, events = observe(DetectorState(), Measurement(0, 0, "p", "g", {"critical_ratio": math.nan}))
    assert state == DetectorState()
    assert events == ()


def test_rules_are_checked():
    with pytest.raises(ValueError, match="leave < enter"):
        Band(enter=0.5, leave=0.5)
    with pytest.raises(ValueError, match="at least 1"):
        Band(enter=1.0, leave=0.5, enter_window=0)
    with pytest.raises(ValueError, match="hold_steps"):
        PhaseRules(hold_steps=0)


measurements = st.lists(
    st.one_of(
        st.builds(lambda g, v: ("distortion", g, {"critical_ratio": v}), st.sampled_from("ab"), st.floats(0.0, 3.0)),
        st.builds(
            lambda r, e: ("sharpness", "", {"sharpness_ratio": r, "eta_lambda": e}),
            st.floats(0.0, 2.0),
            st.floats(0.0, 2.0),
        ),
    ),
    max_size=60,
).map(lambda found: [Measurement(k, k // 7, p, g, v) for k, (p, g, v) in enumerate(found)])

QUICK = PhaseRules(hold_steps=3)


@given(measurements)
def test_paired_events_alternate_in_each_group_and_steps_never_go_back(found):
    run = replay(found, QUICK)
    assert [event.step for event in run.events] == sorted(event.step for event in run.events)
    by_pair = defaultdict(list)
    for event in run.events:
        opening = event.name.value in PAIRS
        pair = event.name.value if opening else next(k for k, v in PAIRS.items() if v == event.name.value)
        by_pair[pair, event.group].append(opening)
    for openings in by_pair.values():
        assert openings == [k % 2 == 0 for k in range(len(openings))]


@given(measurements, st.integers(0, 60))
def test_a_checkpoint_in_between_changes_nothing(found, at):
    first, second = found[:at], found[at:]
    state = DetectorState()
    events = []
    for m in first:
        state, new = observe(state, m, QUICK)
        events += new
    state = DetectorState.from_dict(state.to_dict())
    for m in second:
        state, new = observe(state, m, QUICK)
        events += new
    whole = replay(found, QUICK)
    assert tuple(events) == whole.events
    assert state == whole.state


@given(measurements)
def test_the_phase_series_ends_where_the_state_stands(found):
    run = replay(found, QUICK)
    for group, series in run.phases.items():
        phase = run.state.phase if group == "" else run.state.phase_of(group)
        assert (series[-1][1] if series else Phase.UNKNOWN) is phase
        assert all(a[0] < b[0] and a[1] is not b[1] for a, b in pairwise(series))
