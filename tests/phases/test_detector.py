"""The state machine, against the rules of the contract and under every way of feeding it."""

import itertools
import math
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.measurement import Measurement, StepState
from lightning_topo.phases import (
    DETECTED,
    Band,
    DetectorState,
    EdgeSource,
    EventName,
    Phase,
    PhaseRules,
    TopologyEvent,
    observe,
    replay,
    replay_record,
)

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
    return [(event.name.value, event.step) for event in run.detected]


def test_nothing_measured_is_unknown():
    assert replay([]).state.phase is Phase.UNKNOWN
    assert replay([Measurement(0, 0, "training", "", {"loss": 1.0})]).state.phase is Phase.UNKNOWN


def test_small_ratios_preserve():
    run = replay(ratios([0.1, 0.999]))
    assert run.state.phase is Phase.PRESERVED
    assert run.detected == ()


def test_the_edge_is_entered_by_the_median_of_three():
    run = replay(sharpnesses([0.9, 1.2, 0.9, 0.96, 0.97]))
    # Medians of three: .9, .96 (1.2, .9, .96) -> enters with the value of step 30.
    assert names(run) == [("edge_of_stability_enter", 30)]
    assert run.detected[0].value == 0.96
    assert run.detected[0].threshold == 0.95


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
    assert run.detected[0].value == 1.0
    assert run.detected[1].value == 1.7
    assert "step 3" in run.detected[1].message
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
    for name in ("hold_steps", "instability_age", "loss_window", "fate_confirm", "instability_ratio", "diagram_jump"):
        with pytest.raises(ValueError, match=name):
            PhaseRules(**{name: 0})


def lines(probe, group, names, numbers):
    return st.builds(lambda *v: (probe, group, dict(zip(names, v, strict=True))), *numbers)


counts, jumps = st.integers(1, 6).map(float), st.floats(0.0, 2.0)
starts, states = (st.integers(0, most).map(float) for most in (60, 4))
measurements = st.lists(
    st.one_of(
        *(
            lines(
                "distortion",
                g,
                ("critical_ratio", "distinct_neurons", "twins_split"),
                (st.floats(0.0, 3.0), counts, counts),
            )
            for g in "ab"
        ),
        *(lines("persistence", g, ("betti_0", "betti_1", "log_bottleneck_0"), (counts, counts, jumps)) for g in "ab"),
        lines("sharpness", "", ("sharpness_ratio", "eta_lambda"), (st.floats(0.0, 2.0), st.floats(0.0, 2.0))),
        *(lines("edge", "", (source.quantity,), (st.floats(0.0, 2.0),)) for source in EdgeSource),
        *(lines("coverage", g, ("from", "state"), (starts, states)) for g in "ab"),
        *(lines("fate", g, ("vanishing_neurons", "aligned_clusters"), (counts, counts)) for g in "ab"),
        lines("training", "", ("loss",), (st.floats(0.0, 2.0) | st.sampled_from([math.nan, math.inf]),)),
    ),
    max_size=60,
).map(lambda found: [Measurement(k, k // 7, p, g, v) for k, (p, g, v) in enumerate(found)])

QUICK = PhaseRules(hold_steps=3)


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
    # In words: from Python 3.13 on, NaN in a dataclass is not equal to itself.
    assert repr(tuple(events)) == repr(whole.detected)
    assert in_any_order(state) == in_any_order(whole.state)


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


def in_any_order(state):
    """A state in words, its groups sorted."""
    plain = state.to_dict()
    return {name: sorted(map(repr, v.items())) if isinstance(v, dict) else repr(v) for name, v in plain.items()}


@given(st.lists(st.floats(0.0, 2.0), max_size=6), st.integers(1, 2))
def test_a_band_that_is_measured_more_often_at_rest_changes_no_more_than_once(values, times):
    """Each value again and again: the more measurements, the surer the medians; never more changes than values."""
    for name in ("sharpness_ratio", "eta_lambda"):
        held = [v for v in values for _ in range(5 * times)]
        run = replay(sharpnesses(held, name))
        band = PhaseRules().edge if name == "sharpness_ratio" else PhaseRules().curvature
        inside, changes = False, []
        for v in values:
            now = v >= band.leave if inside else v >= band.enter
            changes += [now] if now != inside else []
            inside = now
        assert len(run.detected) == len(changes)


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


def persistences(values, name="betti_0"):
    return [Measurement(k, k, "persistence", "net.0", {name: v}) for k, v in enumerate(values)]


def test_a_betti_number_that_flickers_has_not_changed():
    assert names(replay(persistences([3, 4, 3, 4, 3, 2, 4, 3]))) == []
    run = replay(persistences([3, 4, 4, 4, 4, 3, 3]))
    assert names(run) == [("betti_changed", 2), ("betti_changed", 6)]
    assert [(e.threshold, e.value) for e in run.detected] == [(3, 4), (4, 3)]
    assert names(replay(persistences([1, 5, 9, 20, 50]))) == [("betti_changed", 2), ("betti_changed", 4)]


def test_of_many_clusters_a_twentieth_must_have_changed():
    assert names(replay(persistences([62, 63, 64, 63, 61, 60, 62, 64, 65]))) == []
    assert names(replay(persistences([62, 63, 64, 65, 66, 66]))) == [("betti_changed", 5)]
    assert names(replay(persistences([0, 1, 1]))) == [("betti_changed", 2)]
    assert names(replay(persistences([62, 63, 63]), PhaseRules(betti_share=0.0))) == [("betti_changed", 2)]


def test_a_jump_is_told_once_with_its_bound_until_the_diagram_rests():
    assert names(replay(persistences([0.1, 0.8, 0.9, 0.5, 0.8, 0.3, 0.8], "log_bottleneck_1"))) == [
        ("diagram_jump", 1),
        ("diagram_jump", 6),
    ]
    for bound, said in (({"log_bottleneck_bound": 1.5}, "allows up to 1.5"), ({}, "There is no bound")):
        (event,) = replay([Measurement(1, 0, "persistence", "g", {"log_bottleneck_0": 0.9} | bound)]).detected
        assert said in event.message
    (event,) = replay(persistences([math.inf], "log_bottleneck_0")).detected
    assert "infinity" in event.message


def distinct(values):
    return [Measurement(k, 0, "distortion", "net.0", {"distinct_neurons": float(v)}) for k, v in enumerate(values)]


def test_each_fall_of_the_number_of_distinct_neurons_is_a_merger():
    assert names(replay(distinct([8, 8, 6, 6, 5, 5]))) == [("neurons_merged", 2), ("neurons_merged", 4)]


def test_neurons_that_chatter_about_the_tolerance_merge_once():
    assert names(replay(distinct([8, 7, 8, 7, 8, 8, 7]))) == [("neurons_merged", 1)]
    assert names(replay(distinct([8, 7, 8, 8, 8, 8, 8, 7]))) == [("neurons_merged", 1), ("neurons_merged", 7)]


def test_a_merger_in_the_very_first_step_is_seen_by_the_closed_distance():
    values = {"distinct_neurons": 5.0, "total_contraction": 0.0}
    assert names(replay([Measurement(1, 0, "distortion", "net.0", values)])) == [("neurons_merged", 1)]


def losses(values, first=0):
    return [Measurement(first + k, 0, "training", "", {"loss": v}) for k, v in enumerate(values)]


def ratio(step, value):
    return Measurement(step, 0, "sharpness", "", {"sharpness_ratio": value})


def test_a_loss_that_is_not_finite_is_an_instability_once():
    assert names(replay(losses([1.0, math.nan, math.nan, math.inf]))) == [("instability", 1)]
    (event,) = replay(losses([math.nan])).detected
    assert "diverged" in event.message
    # A loss alone does not say that anything was measured of the topology.
    assert replay(losses([1.0])).state.phase is Phase.UNKNOWN


def ratios_at(value, steps):
    return [ratio(k, value) for k in steps]


def test_a_rising_loss_is_unstable_only_beyond_the_edge_and_a_sharp_step_only_with_a_rising_loss():
    level, rising = [2.0] * 12, [2.0 + 0.1 * k for k in range(1, 12)]
    falling = [3.0 - 0.1 * k for k in range(12)]
    assert names(replay([*ratios_at(1.4, [0, 0]), *losses([*level, *rising], 1)])) == []
    assert names(replay([*ratios_at(1.6, [0, 0]), *losses(falling, 1)])) == []
    # Five losses in a row above nine tenths of those before.
    assert names(replay([*ratios_at(1.6, [0, 0]), *losses([*level, *rising], 1)])) == [("instability", 17)]


def test_evidence_of_instability_is_confirmed_and_fresh():
    level, rising = [2.0] * 60, [2.0 + 0.1 * k for k in range(1, 12)]
    once = [ratio(0, 100.0)]
    stale = ratios_at(100.0, [0, 1])
    assert names(replay([*once, *losses([*level[:12], *rising], 1)])) == []
    assert names(replay([*stale, *losses([*level, *rising], 1)])) == []
    fresh = ratios_at(100.0, [59, 60])
    assert names(replay([*losses(level), *fresh, *losses(rising, 61)])) == [("instability", 65)]


def test_a_loss_that_explodes_is_an_instability_whatever_is_measured():
    exploding = [3.0 * 2.0**k for k in range(1, 12)]
    # Three times the first loss is 6: 12, ..., 192 are the first five in a row above the level.
    assert names(replay(losses([2.0, 1.5, *[1.0] * 50, *exploding]))) == [("instability", 57)]
    assert names(replay(losses([2.0, *[1.0, 50.0] * 30]))) == [], "a loss that always varies by as much"


def test_an_instability_is_over_after_calm_values_and_can_come_again():
    calm = losses([1.0] * 5, 1)
    assert names(replay([*losses([math.nan]), *calm, *losses([math.nan], 6)])) == [
        ("instability", 0),
        ("instability", 6),
    ]
    assert names(replay([*losses([math.nan]), *calm[:4], *losses([math.nan], 6)])) == [("instability", 0)]


def test_splits_of_equal_neurons_are_one_event_until_they_have_held_together():
    splits = [Measurement(k, 0, "distortion", "g", {"twins_split": float(v)}) for k, v in enumerate([0, 2, 1, 0, 0, 1])]
    assert names(replay(splits, QUICK)) == [("equivariance_broken", 1)]
    rested = [Measurement(9 + k, 0, "distortion", "g", {"twins_split": float(v)}) for k, v in enumerate([0, 0, 0, 1])]
    assert names(replay([*splits, *rested], QUICK)) == [("equivariance_broken", 1), ("equivariance_broken", 12)]


def test_every_event_of_a_replay_says_what_happened_and_what_to_do():
    found = [
        *losses([math.nan]),
        *distinct([8, 7]),
        *persistences([1, 2, 2]),
        *persistences([2.0], "log_bottleneck_0"),
        Measurement(1, 0, "distortion", "g", {"critical_ratio": 2.0, "twins_split": 1.0}),
        *persistences([0, 3, 3], "vanishing_neurons"),
        *persistences([9, 3, 3], "aligned_clusters"),
        *sharpnesses([3.0] * 3, "eta_lambda"),
        *sharpnesses([3.0] * 3),
    ]
    events = replay(found).detected
    assert {e.name for e in events} == DETECTED - {
        "topology_restored",
        "edge_of_stability_exit",
        "curvature_bound_restored",
    }
    assert all(e.message and e.remedy for e in events)


def test_a_state_from_before_these_events_is_read():
    old = {name: DetectorState().to_dict()[name] for name in ("measured", "curvature", "edge", "breakdowns")}
    assert DetectorState.from_dict(old) == DetectorState()


def coverage(begins, ends, state, group="net.0", **bound):
    return Measurement(ends, 0, "coverage", group, {"from": float(begins), "state": float(state)} | bound)


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


@pytest.mark.parametrize("source", list(EdgeSource))
def test_the_edge_names_the_source_that_it_stands_on(source):
    band = source.band(PhaseRules())
    values = [1.0] * band.enter_window + [0.1] * band.leave_window
    run = replay(sharpnesses(values, source.quantity))
    entered, left = run.detected
    assert (entered.name, left.name) == ("edge_of_stability_enter", "edge_of_stability_exit")
    for event in (entered, left):
        assert f"(source: {source.value})" in event.message
    assert entered.threshold == band.enter
    assert left.threshold == band.leave


def test_the_steps_own_ratios_decide_only_where_no_threshold_is_known():
    calm = {"sharpness_ratio": 0.2, "directional_ratio": 1.0, "critical_sharpness": 1.0}
    assert names(replay([Measurement(k, 0, "p", "", calm) for k in range(20)])) == []
    batch = {"sharpness_ratio": 0.05, "batch_sharpness_ratio": 1.0}
    assert names(replay([Measurement(k, 0, "p", "", batch) for k in range(20)])) == [("edge_of_stability_enter", 2)]
    # An optimizer with a threshold takes over from one without.
    first = [Measurement(k, 0, "p", "", {"directional_ratio": 1.0}) for k in range(10)]
    swapped = replay([*first, *(Measurement(k, 0, "p", "", calm) for k in range(10, 20))])
    assert names(swapped) == [("edge_of_stability_enter", 4), ("edge_of_stability_exit", 10)]


def test_a_record_without_coverage_says_what_it_said():
    said = TopologyEvent(EventName.INSTABILITY, 12, 0, message="said then")
    old = [
        *(Measurement(k, 0, "distortion", "net.0", {"critical_ratio": 0.1}) for k in range(5)),
        *(Measurement(k, 0, "sharpness", "", {"directional_ratio": 1.0}) for k in range(5, 15)),
        *losses([math.nan], 15),
    ]
    seen = replay_record(old, [said], complete=True)
    assert [(e.name, e.message) for e in seen.detected] == [("instability", "said then")]
    assert seen.phases[""] == ((0, Phase.PRESERVED),)
    new = replay_record([coverage(0, 1, StepState.EXACT), *old], [said], complete=True)
    assert {e.name for e in new.detected} == {"edge_of_stability_enter", "instability"}
    assert new.phases[""][-1] == (15, Phase.UNKNOWN)


def test_neurons_that_vanish_or_condense_are_reported_once_they_stay():
    def fate(name, values):
        return names(replay([Measurement(k, 0, "fate", "g", {name: float(v)}) for k, v in enumerate(values)]))

    assert fate("vanishing_neurons", [0, 3, 0, 3, 4, 4, 1, 1, 2, 2]) == [
        ("neurons_vanishing", 4),
        ("neurons_vanishing", 9),
    ]
    assert fate("aligned_clusters", [9, 4, 9, 4, 3, 9, 9]) == [("neurons_condensing", 4)]


def test_a_count_that_wanders_by_less_than_its_share_is_reported_once():
    def fate(name, values):
        found = [{name: float(v), "measured_neurons": 200.0} for v in values]
        return names(replay([Measurement(k, 0, "fate", "g", each) for k, each in enumerate(found)]))

    # 3 % of 200 are 6; a fall by 18 needs no second capture.
    assert fate("aligned_clusters", [100, 84, 86, 91, 81, 91, 81, 80]) == [("neurons_condensing", 2)]
    assert fate("aligned_clusters", [200, 182]) == [("neurons_condensing", 1)]
    assert fate("aligned_clusters", [200, 183]) == []
    assert fate("aligned_clusters", [200, 90, 88, 86, 84, 82, 82]) == [
        ("neurons_condensing", 1),
        ("neurons_condensing", 5),
    ]
    at_start = {"aligned_clusters": 90.0, "aligned_clusters_at_start": 200.0, "measured_neurons": 200.0}
    assert names(replay([Measurement(7, 0, "fate", "g", at_start)])) == [("neurons_condensing", 7)]
    assert fate("vanishing_neurons", [0, 5, 5, 5]) == []
    assert fate("vanishing_neurons", [0, 6, 6, 6]) == [("neurons_vanishing", 2)]


def test_a_state_with_the_edge_of_one_source_is_read():
    plain = DetectorState().to_dict() | {
        "edge": {"inside": True, "recent": [1.0, 1.0, 1.0]},
        "stability": {"losses": [1.0], "ratio": 2.0, "span": {"inside": False, "quiet": 0}},
    }
    state = DetectorState.from_dict(plain)
    assert state.phase is Phase.EDGE_OF_STABILITY
    assert state.edge.source == "sharpness"
    assert state.stability.losses == (1.0,)
