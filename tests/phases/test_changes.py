"""Counts and spans: a change is reported once, however often and however noisily it is measured."""

import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_topo.measurement import Measurement
from lightning_topo.phases import DetectorState, PhaseRules, observe, replay
from lightning_topo.phases._changes import (
    FloorState,
    LevelState,
    SpanState,
    follow_decline,
    follow_floor,
    follow_level,
    follow_span,
)
from tests.phases.series import QUICK, distinct, names, persistences


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


def test_each_fall_of_the_number_of_distinct_neurons_is_a_merger():
    assert names(replay(distinct([8, 8, 6, 6, 5, 5]))) == [("neurons_merged", 2), ("neurons_merged", 4)]


def of_size(n, values):
    return [replace(m, values={**m.values, "n_neurons": float(n)}) for m in distinct(values)]


def after(first, then):
    return [*first, *(replace(m, step=m.step + len(first)) for m in then)]


@pytest.mark.parametrize("start", [DetectorState(), "restored"])
def test_neurons_that_are_taken_away_or_added_have_not_merged(start):
    shrunk = after(of_size(8, [8, 8]), of_size(4, [4, 4, 3]))
    grown = after(of_size(4, [4]), of_size(8, [8, 7]))
    for run, expected in ((shrunk, [("neurons_merged", 4)]), (grown, [("neurons_merged", 2)])):
        state, events = DetectorState(), []
        for measurement in run:
            if start == "restored":
                state = DetectorState.from_dict(state.to_dict())
            state, new = observe(state, measurement)
            events += [(event.name, event.step) for event in new]
        assert events == expected
        assert names(replay(run)) == expected


def test_what_was_counted_among_other_neurons_is_forgotten_of_this_group_alone():
    bettis = [replace(m, group=group) for m in persistences([3]) for group in ("net.0", "net.2")]
    states = [DetectorState()]
    for measurement in (*bettis, *of_size(8, [8]), *of_size(4, [4])):
        states.append(observe(states[-1], measurement)[0])
    assert set(states[-2].betti) == {"betti_0 net.0", "betti_0 net.2"}
    assert set(states[-1].betti) == {"betti_0 net.2"}


def test_neurons_that_chatter_about_the_tolerance_merge_once():
    assert names(replay(distinct([8, 7, 8, 7, 8, 8, 7]))) == [("neurons_merged", 1)]
    assert names(replay(distinct([8, 7, 8, 8, 8, 8, 8, 7]))) == [("neurons_merged", 1), ("neurons_merged", 7)]


def test_splits_of_equal_neurons_are_one_event_until_they_have_held_together():
    splits = [Measurement(k, 0, "distortion", "g", {"twins_split": float(v)}) for k, v in enumerate([0, 2, 1, 0, 0, 1])]
    assert names(replay(splits, QUICK)) == [("equivariance_broken", 1)]
    rested = [Measurement(9 + k, 0, "distortion", "g", {"twins_split": float(v)}) for k, v in enumerate([0, 0, 0, 1])]
    assert names(replay([*splits, *rested], QUICK)) == [("equivariance_broken", 1), ("equivariance_broken", 12)]


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


def levels_reported(values, confirm, margin):
    """The definition, by looking back: the last `confirm` values since the last report lie all on one side of it."""
    reported, since, found = values[0], [], []
    for at, value in enumerate(values[1:], start=1):
        since.append(value)
        last = since[-confirm:]
        if len(last) == confirm and (
            all(v - reported >= margin for v in last) or all(reported - v >= margin for v in last)
        ):
            reported, since = value, []
            found.append(at)
    return found


@given(st.lists(st.integers(0, 5).map(float), min_size=1, max_size=40), st.integers(1, 4), st.sampled_from([1.0, 2.0]))
def test_a_level_is_reported_where_the_last_values_all_lie_on_one_side_of_it(values, confirm, margin):
    state, found = LevelState(), []
    for at, value in enumerate(values):
        state, fired = follow_level(state, value, confirm, margin)
        found += [at] if fired else []
    assert found == levels_reported(values, confirm, margin)


@given(st.lists(st.integers(1, 3), max_size=10))
def test_a_count_that_never_stays_up_long_enough_merges_once(runs):
    """However often 8 neurons come apart to 8 from 7: unless they stay apart for four measurements, that is noise."""
    state, found = FloorState(), 0
    for value in [8.0, *(v for times in runs for v in [7.0, *[8.0] * times])]:
        state, fired = follow_floor(state, value, confirm=4)
        found += fired
    assert found == min(len(runs), 1)


@given(st.text("aq.", max_size=40), st.integers(1, 4))
@example("aq.qa", 2)  # not quiet in a row
@example("aqqa.qqa", 2)
def test_a_span_lasts_to_the_end_of_as_many_quiet_measurements_in_a_row(text, hold):
    state, found = SpanState(), 0
    for letter in text:
        state, fired = follow_span(state, active=letter == "a", quiet=letter == "q", hold=hold)
        found += fired
    assert found == len(re.findall(f"a.*?(?:q{{{hold}}}|$)", text))


@given(st.lists(st.floats(0.0, 4.9), max_size=20), st.integers(1, 3))
def test_a_count_declines_by_its_margin_and_not_by_less(below, confirm):
    state, reports = LevelState(reported=80.0), []
    for fall in (*below, *[5.0] * confirm):
        state, fired = follow_decline(state, 80.0 - fall, confirm, margin=5.0)
        reports.append(fired)
    assert reports == [*[False] * (len(below) + confirm - 1), True]


@pytest.mark.parametrize(
    ("n", "vanishing", "expected"),
    [(32, 31, 1), (16, 7, 1), (16, 3, 0), (64, 5, 0), (200, 17, 0), (200, 18, 1)],
)
def test_one_capture_is_enough_where_many_neurons_vanish(n, vanishing, expected):
    values = {"measured_neurons": float(n), "vanishing_neurons": float(vanishing), "vanishing_neurons_at_start": 0.0}
    run = replay([Measurement(9, 0, "fate", "net.0", values)])
    assert names(run) == [("neurons_vanishing", 9)] * expected
