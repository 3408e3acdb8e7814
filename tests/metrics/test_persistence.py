"""Metrics of persistence: a value per dimension, the mean over clouds or the largest of pairs."""

import math

import pytest
import torch

from lightning_topo.metrics import BettiNumbers, DiagramDistance, TotalPersistence
from tests.metrics.twins import CLOUD_METRICS, cloud


@pytest.mark.parametrize(("make", "twin"), CLOUD_METRICS)
def test_cloud_metrics_are_means(make, twin):
    metric = make()
    for seed in range(3):
        metric.update(cloud(seed))
    torch.testing.assert_close(metric.compute(), torch.stack([twin(cloud(s)) for s in range(3)]).mean(0).squeeze())
    metric.reset()
    metric.update(cloud(5))
    torch.testing.assert_close(metric.compute(), twin(cloud(5)).squeeze())


def test_nothing_measured_has_no_mean_and_no_distance():
    assert math.isnan(BettiNumbers(0).compute())
    assert DiagramDistance(0).compute() == 0.0


def test_a_mean_is_of_all_clouds_whatever_their_size_and_order():
    """Bars of points on a line are their gaps: 3, 5 and 10 in all."""
    lines = [
        torch.tensor([[0.0], [3.0]]),
        torch.tensor([[5.0], [1.0], [0.0]]),
        torch.tensor([[10.0], [0.0], [4.0], [4.5]]),
    ]
    for order in (lines, lines[::-1]):
        metric = TotalPersistence(0)
        for points in order:
            metric.update(points)
        assert float(metric.compute()) == pytest.approx(6.0)


def test_the_largest_distance_stays_when_later_clouds_are_nearer():
    points, metric = torch.tensor([[0.0], [1.0], [9.0]]), DiagramDistance(0, "log_bottleneck")
    for factor in (1.5, 3.0, 1.0):
        metric.update(points, factor * points)
    assert float(metric.compute()) == pytest.approx(math.log(3.0))


def test_dimensions_below_zero_are_refused():
    for make in (TotalPersistence, DiagramDistance):
        with pytest.raises(ValueError, match="max_dim >= 0, got -1"):
            make(max_dim=-1)
