"""The state machine, against the rules of the contract and under every way of feeding it."""

import itertools
import math
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.measurement import Measurement, StepState
from lightning_topo.phases import DetectorState, Phase, observe, replay
from tests.phases.series import QUICK, coverage, in_any_order, losses, measurements, names, ratios, sharpnesses

PAIRS = {
    "curvature_bound_exceeded": "curvature_bound_restored",
    "edge_of_stability_enter": "edge_of_stability_exit",
    "topology_breakdown": "topology_restored",
}


def test_nothing_measured_is_unknown():
    assert replay([]).state.phase is Phase.UNKNOWN
    assert replay([Measurement(0, 0, "training", "", {"loss": 1.0})]).state.phase is Phase.UNKNOWN


def test_small_ratios_preserve():
    run = replay(ratios([0.1, 0.999]))
    assert run.state.phase is Phase.PRESERVED
    assert run.detected == ()


def test_a_breakdown_lasts_until_enough_quiet_steps():
    run = replay(ratios([0.5, 1.0, 1.7, *[0.9] * 100, 0.9]))
    assert names(run) == [("topology_breakdown", 2), ("topology_restored", 103)]
    assert run.detected[0].value == 1.0
    assert run.detected[1].value == 1.7
    assert "step 3" in run.detected[1].message
    assert run.phases["net.0"] == ((1, Phase.PRESERVED), (2, Phase.BREAKDOWN), (103, Phase.PRESERVED))


def test_quiet_steps_are_counted_anew_after_each_critical_one():
    run = replay(ratios([1.5, *[0.1] * 99, 1.2, *[0.1] * 99]))
    assert names(run) == [("topology_breakdown", 1)]
    assert run.state.phase is Phase.BREAKDOWN


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


@given(measurements)
def test_paired_events_alternate_in_each_group_and_steps_never_go_back(found):
    run = replay(found, QUICK)
    assert [event.step for event in run.detected] == sorted(event.step for event in run.detected)
    by_pair = defaultdict(list)
    for event in run.detected:
        if event.name.value not in {*PAIRS, *PAIRS.values()}:
            continue
        opening = event.name.value in PAIRS
        pair = event.name.value if opening else next(k for k, v in PAIRS.items() if v == event.name.value)
        by_pair[pair, event.group].append(opening)
    for openings in by_pair.values():
        assert openings == [k % 2 == 0 for k in range(len(openings))]


@given(measurements)
def test_the_phase_series_ends_where_the_state_stands(found):
    run = replay(found, QUICK)
    for group, series in run.phases.items():
        phase = run.state.phase if group == "" else run.state.phase_of(group)
        assert (series[-1][1] if series else Phase.UNKNOWN) is phase
        assert all(a[0] < b[0] and a[1] is not b[1] for a, b in itertools.pairwise(series))


@given(measurements)
def test_what_passes_by_changes_nothing(found):
    """Polled more often: measurements of other things, and NaN, in between."""
    noise = [
        [
            m,
            Measurement(m.step, m.epoch, "schedule", "", {"sharpness_every": 3.0}),
            replace(m, values={"residual": 1.0}),
        ]
        for m in found
    ]
    polled = replay([m for three in noise for m in three], QUICK)
    assert repr(polled.detected) == repr(replay(found, QUICK).detected)


@given(measurements, st.lists(st.integers(0, 5), max_size=60))
def test_it_does_not_matter_how_often_it_is_asked(found, asked):
    """Looked at between any two measurements, copied, written down: what follows is the same."""
    state, events = DetectorState(), []
    for m, times in itertools.zip_longest(found, asked[: len(found)], fillvalue=0):
        for _ in range(times):
            _ = state.phase, [state.phase_of(group) for group in ("", "a", "b")], state.to_dict()
            observe(state, m, QUICK)  # what nobody keeps has not happened
        state, new = observe(state, m, QUICK)
        events += new
    whole = replay(found, QUICK)
    # In words: from Python 3.13 on, NaN in a dataclass is not equal to itself.
    assert repr(tuple(events)) == repr(whole.detected)
    assert in_any_order(state) == in_any_order(whole.state)


@given(measurements)
def test_events_of_a_group_do_not_depend_on_other_groups(found):
    alone = replay([m for m in found if m.group == "a"], QUICK)
    together = replay(found, QUICK)
    assert alone.detected == tuple(e for e in together.detected if e.group == "a")


@given(measurements)
def test_a_reported_change_is_a_change(found):
    """A count is never reported twice, nor is a level or a fall that is none."""
    reported = {}
    for event in replay(found, QUICK).detected:
        if event.name == "betti_changed":
            assert event.value != event.threshold
            key = event.group, event.message.split("(b")[1][0]
            assert reported.get(key, event.threshold) == event.threshold
            reported[key] = event.value
        if event.name == "neurons_merged":
            assert event.value < event.threshold
        if event.name == "diagram_jump":
            assert event.value > event.threshold


def test_a_merger_in_the_very_first_step_is_seen_by_the_closed_distance():
    values = {"distinct_neurons": 5.0, "total_contraction": 0.0}
    assert names(replay([Measurement(1, 0, "distortion", "net.0", values)])) == [("neurons_merged", 1)]


def test_preserved_asks_for_steps_that_are_all_exact_or_bounded():
    run = replay(
        [
            Measurement(1, 0, "distortion", "net.0", {"critical_ratio": 0.1}),
            coverage(0, 10, StepState.BOUNDED, bound=0.4),
            coverage(10, 20, StepState.EXACT),
            coverage(20, 30, StepState.OPEN),
            coverage(30, 40, StepState.BOUNDED, bound=0.9),
            coverage(40, 50, StepState.SPANNED),
        ]
    )
    preserved, unknown = Phase.PRESERVED, Phase.UNKNOWN
    assert run.phases[""] == ((1, preserved), (30, unknown), (40, preserved), (50, unknown))
    assert run.phases["net.0"] == run.phases[""]


@pytest.mark.parametrize(
    "line",
    [
        coverage(10, 20, StepState.BOUNDED, bound=math.nan),
        coverage(10, 20, StepState.BOUNDED, bound=1.0),
        coverage(10, 20, 7),
        coverage(15, 20, StepState.EXACT),
        Measurement(20, 0, "coverage", "net.0", {"state": 0.0}),
    ],
)
def test_a_line_that_certifies_nothing_leaves_its_steps_open(line):
    run = replay([coverage(0, 10, StepState.EXACT), line])
    assert run.state.phase_of("net.0") is Phase.UNKNOWN


@pytest.mark.parametrize("begins", [math.nan, math.inf, -math.inf, 21.0])
def test_a_first_line_without_a_beginning_is_open_even_in_a_breakdown(begins):
    broken = Measurement(1, 0, "distortion", "net.0", {"critical_ratio": 1.2})
    line = coverage(begins, 20, StepState.BOUNDED)
    assert replay([line]).state.phase is Phase.UNKNOWN
    assert replay([broken, line]).state.phase is Phase.BREAKDOWN


def test_a_group_without_coverage_is_not_known_where_others_have_some():
    run = replay([coverage(0, 9, StepState.EXACT, "a"), Measurement(9, 0, "distortion", "b", {"critical_ratio": 0.1})])
    assert run.state.phase_of("a") is Phase.PRESERVED
    assert run.state.phase_of("b") is Phase.UNKNOWN
    assert replay([coverage(0, 9, 0, "a"), coverage(0, 9, 3, "b")]).state.phase is Phase.UNKNOWN


def test_bounded_steps_count_towards_the_end_of_a_breakdown():
    broken = Measurement(1, 0, "distortion", "net.0", {"critical_ratio": 1.2})
    run = replay([broken, coverage(1, 60, StepState.BOUNDED), coverage(60, 101, StepState.BOUNDED)])
    assert names(run) == [("topology_breakdown", 1), ("topology_restored", 101)]
    for state in (StepState.SPANNED, StepState.OPEN, StepState.EXACT):
        assert replay([broken, coverage(1, 500, state)]).state.phase is Phase.BREAKDOWN


def test_behind_a_loss_that_is_not_finite_nothing_is_known_but_a_breakdown():
    at_edge = [coverage(0, 30, StepState.EXACT), *sharpnesses([1.0] * 3), *losses([math.nan], 31)]
    run = replay(at_edge)
    assert run.state.phase is Phase.UNKNOWN
    assert names(run)[-1] == ("instability", 31)
    assert replay([*at_edge, *losses([1.0], 32)]).state.phase is Phase.EDGE_OF_STABILITY
    broken = Measurement(40, 0, "distortion", "net.0", {"critical_ratio": 1.2})
    assert replay([*at_edge, broken]).state.phase is Phase.BREAKDOWN
