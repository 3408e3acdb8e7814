"""The edge of stability: medians enter and leave it, and of several sources those that know a threshold decide."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.measurement import Measurement
from lightning_topo.phases import EdgeSource, PhaseRules, replay
from tests.phases.series import names, sharpnesses


def test_the_edge_is_entered_by_the_median_of_three():
    run = replay(sharpnesses([0.9, 1.2, 0.9, 0.99, 1.0]))
    # Medians of three: .9, .99 (1.2, .9, .99) -> enters with the value of step 30.
    assert names(run) == [("edge_of_stability_enter", 30)]
    assert run.detected[0].value == 0.99
    assert run.detected[0].threshold == 0.98


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


def test_where_batches_are_measured_they_decide_and_not_the_sharpness():
    high = {"sharpness_ratio": 1.1, "batch_sharpness_ratio": 0.6}
    assert names(replay([Measurement(k, 0, "p", "", high) for k in range(20)])) == []
    # Until three batches are known the sharpness stands, and after them it does not.
    first = [Measurement(k, 0, "p", "", {"sharpness_ratio": 1.1}) for k in range(4)]
    both = replay([*first, *(Measurement(k, 0, "p", "", high) for k in range(4, 20))])
    assert names(both) == [("edge_of_stability_enter", 2), ("edge_of_stability_exit", 6)]


@pytest.mark.parametrize("seldom", ["sharpness_ratio", "batch_sharpness_ratio"])
def test_a_source_that_is_measured_seldom_still_decides(seldom):
    """What is measured at every step beside it, for an optimizer whose threshold is known, decides nothing."""
    values = [{seldom: 0.2} if k % 150 == 0 else {"critical_sharpness": 1.2} for k in range(2000)]
    assert names(replay([Measurement(k, 0, "p", "", one) for k, one in enumerate(values)])) == []


@pytest.mark.parametrize("lost", ["sharpness_ratio", "batch_sharpness_ratio", "directional_ratio"])
def test_a_source_that_is_not_measured_any_more_does_not_decide(lost):
    """As when an optimizer without a threshold takes the place of one that had it, or a probe is switched off."""
    other = "critical_sharpness" if lost != "batch_sharpness_ratio" else "sharpness_ratio"
    at_edge = [Measurement(k, 0, "p", "", {lost: 1.2, other: 0.3}) for k in range(10)]
    alone = [Measurement(k, 0, "p", "", {other: 0.3}) for k in range(10, 40)]
    run = replay([*at_edge, *alone])
    entered, left = run.detected
    assert (entered.name, left.name) == ("edge_of_stability_enter", "edge_of_stability_exit")
    assert left.step in range(10 + 5, 10 + 15)
    assert "(source: " in left.message
