"""Metrics of steps: extremes over all steps since the last reset."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.metrics import CriticalRatio, LipschitzDistortion
from tests.metrics.twins import cloud


def test_lipschitz_distortion_spans_all_steps():
    metric, points = LipschitzDistortion(), cloud(0)
    metric.update(points, 2 * points)
    metric.update(points, points / 2)
    torch.testing.assert_close(metric.compute(), torch.tensor(4.0).log())


def pairs(before, after):
    """(|Delta_i - Delta_j| / d_ij, d'_ij / d_ij) of every pair, one by one."""
    n, moved = len(before), after - before
    for i in range(n):
        for j in range(i):
            d = (before[i] - before[j]).norm()
            yield float((moved[i] - moved[j]).norm() / d), float((after[i] - after[j]).norm() / d)


def test_both_are_the_extremes_of_all_pairs_of_all_steps():
    ratio, distortion, found = CriticalRatio(), LipschitzDistortion(), []
    for seed in range(4):
        before, after = cloud(seed), cloud(seed) + 0.3 * cloud(seed + 9)
        ratio.update(before, after)
        distortion.update(before, after)
        found += pairs(before.double(), after.double())
    stretches = [stretch for _, stretch in found]
    assert float(ratio.compute()) == pytest.approx(max(q for q, _ in found), rel=1e-5)
    assert float(distortion.compute()) == pytest.approx(math.log(max(stretches) / min(stretches)), rel=1e-4)


@given(st.integers(0, 50), st.floats(0.0, 0.1))
def test_below_the_critical_point_the_distortion_is_bounded_by_the_ratio(seed, size):
    """1 - r <= a <= b <= 1 + r at every step."""
    ratio, distortion = CriticalRatio(), LipschitzDistortion()
    for k in range(3):
        step = cloud(seed), cloud(seed) + size * cloud(seed + k + 1)
        ratio.update(*step)
        distortion.update(*step)
    r = float(ratio.compute())
    if r < 1.0:
        assert float(distortion.compute()) <= math.log((1 + r) / (1 - r)) + 1e-5


def test_nothing_measured_is_no_distortion_and_a_reset_forgets():
    for metric in (CriticalRatio(), LipschitzDistortion()):
        assert metric.compute() == 0.0
        metric.update(cloud(0), cloud(1))
        assert metric.compute() > 0.0
        metric.reset()
        metric.update(cloud(0), cloud(0))
        assert metric.compute() == 0.0


def test_neurons_that_merge_or_part_from_one_place_are_infinitely_far_from_preserved():
    apart, merged = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [0.0], [3.0]])
    ratio, distortion = CriticalRatio(), LipschitzDistortion()
    ratio.update(apart, merged)
    distortion.update(apart, merged)
    assert (float(ratio.compute()), float(distortion.compute())) == (1.0, math.inf)
    ratio.update(merged, apart)
    assert float(ratio.compute()) == math.inf
