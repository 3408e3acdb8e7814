"""Measurements on columns of steps: bounded memory that loses no extreme."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lightning_topo._figures.coverage import stretches
from lightning_topo.measurement import Measurement, StepState
from lightning_topo.outputs.record._bins import Bins, join, join_coverage, lead


def test_bins_keep_the_first_and_the_newest_as_they_were():
    bins = Bins(Measurement(0, 0, "distortion", "g", {"critical_ratio": 0.0}))
    for step in range(1, 1000):
        bins.add(Measurement(step, 0, "distortion", "g", {"critical_ratio": 1.0 / step, "contraction": 1.0 / step}))
        if len(bins) > 40:
            bins.shrink(16)
    kept = list(bins)
    assert (kept[0].step, kept[1].step, kept[-1].step) == (0, 1, 999)
    assert len(kept) <= 42
    assert min(m.values["contraction"] for m in kept[1:]) == 1.0 / 999
    assert join(kept[1], kept[2]).step == 1


RATIOS = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.5, math.inf])


def binned(measurements, most, n_columns):
    first, *rest = measurements
    bins = Bins(first)
    for m in rest:
        bins.add(m)
        if len(bins) > most:
            bins.shrink(n_columns)
    return bins


@given(st.lists(st.tuples(st.integers(1, 9), RATIOS, RATIOS), min_size=3, max_size=80), st.integers(2, 6))
def test_no_extreme_of_a_group_is_lost_and_the_peak_keeps_its_step(drawn, n_columns):
    step, lines = 0, []
    for gap, ratio, low in drawn:
        step += gap
        lines.append(Measurement(step, 0, "distortion", "g", {"critical_ratio": ratio, "contraction": low}))
    bins = binned(lines, 2 * n_columns + 2, n_columns)
    kept = list(bins)
    assert len(kept) <= 2 * n_columns + 2
    assert [m.step for m in kept] == sorted(m.step for m in kept)
    assert (kept[0], kept[-1]) == (lines[0], lines[-1])
    assert max(m.values["critical_ratio"] for m in kept) == max(m.values["critical_ratio"] for m in lines)
    assert min(m.values["contraction"] for m in kept) == min(m.values["contraction"] for m in lines)
    ratios = {m.step: m.values["critical_ratio"] for m in lines}
    assert all(ratios[m.step] == m.values["critical_ratio"] for m in kept)


@given(st.lists(st.sampled_from([0.1, 0.5, 2.0, 9.0, math.nan]), min_size=3, max_size=120))
def test_a_curve_keeps_its_lowest_and_highest_as_they_were_and_that_it_diverged(losses):
    lines = [Measurement(k, 0, "training", "", {"loss": loss}) for k, loss in enumerate(losses)]
    kept = list(binned(lines, 20, 4))
    assert all(m is lines[m.step] for m in kept)
    finite = [loss for loss in losses if math.isfinite(loss)]
    left = [m.values["loss"] for m in kept if math.isfinite(m.values["loss"])]
    assert (min(left, default=0.0), max(left, default=0.0)) == (min(finite, default=0.0), max(finite, default=0.0))
    first = next((k for k, loss in enumerate(losses) if not math.isfinite(loss)), None)
    assert next((m.step for m in kept if not math.isfinite(m.values["loss"])), None) == first


STATES = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5), st.sampled_from(StepState)), min_size=2, max_size=30)


@given(STATES)
def test_no_step_is_more_certain_behind_columns_than_it_was(drawn):
    step, lines = 0, []
    for gap, length, state in drawn:
        begins, step = step + gap, step + gap + length
        bound = {"bound": 0.01 * step} if state is StepState.BOUNDED else {}
        lines.append(Measurement(step, 0, "coverage", "g", {"from": float(begins), "state": float(state)} | bound))

    def states(measurements):
        return {step: s.state for s in stretches(measurements)["g"] for step in range(s.first, s.last + 1)}

    truth, shown = states(lines), states(list(binned(lines, 6, 2)))
    assert all(state <= truth.get(step, StepState.OPEN) for step, state in shown.items())
    assert truth.keys() <= shown.keys()


def test_two_lines_are_one_of_the_weaker_state_and_the_larger_bound():
    def line(begins, ends, state, **bound):
        return Measurement(ends, 0, "coverage", "g", {"from": float(begins), "state": float(state)} | bound)

    exact, bounded = line(0, 4, StepState.EXACT), line(4, 9, StepState.BOUNDED, bound=0.3)
    assert join_coverage(exact, bounded) == line(0, 9, StepState.BOUNDED, bound=0.3)
    assert join_coverage(bounded, line(9, 12, 2, bound=0.7)) == line(4, 12, 2, bound=0.7)
    assert join_coverage(exact, line(5, 9, StepState.EXACT)) == line(0, 9, StepState.OPEN)


def test_a_number_is_kept_where_the_other_is_none():
    nan, one = ({"critical_ratio": v, "contraction": v} for v in (math.nan, 0.5))
    for pair in ((nan, one), (one, nan)):
        joined = join(*(Measurement(k, 0, "distortion", "g", values) for k, values in enumerate(pair)))
        assert joined.values == one
    assert lead(Measurement(1, 0, "sharpness", "", {"other": 3.0, "eta_lambda": 0.2, "sharpness_ratio": 0.1})) == 0.1
    seen = {"batch_sharpness": 9.0, "batch_noise": 0.5, "batch_sharpness_ratio": 0.9}
    assert lead(Measurement(1, 0, "step_edge", "", seen)) == 0.9
    assert lead(Measurement(1, 0, "own", "", {})) == 0.0
