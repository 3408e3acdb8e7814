"""Topological quantities of clouds as functions, against closed forms and pair by pair."""

import math

import pytest
import torch

from lightning_topo.metrics import functional
from tests.metrics.twins import EVERY, MAX_DIM, cloud


@pytest.mark.parametrize(("make", "twin", "arity"), EVERY)
def test_one_update_is_the_functional_twin(make, twin, arity):
    clouds = [cloud(seed) for seed in range(arity)]
    metric = make()
    expected = twin(*clouds).squeeze()  # as torchmetrics does
    torch.testing.assert_close(metric(*clouds), expected)
    torch.testing.assert_close(metric.compute(), expected)


def line(*places):
    return torch.tensor(places, dtype=torch.float64)[:, None]


def test_on_a_line_the_bars_are_the_gaps():
    """H0 of points on a line: a bar per gap between neighbours, and one that never ends."""
    points, gaps = line(0.0, 7.0, 1.0, 3.0), [1.0, 2.0, 4.0]
    torch.testing.assert_close(functional.total_persistence(points, 0, power=2.0), torch.tensor([21.0]).double())
    entropy = -sum(g / 7 * math.log(g / 7) for g in gaps)
    torch.testing.assert_close(functional.persistence_entropy(points, 0), torch.tensor([entropy]).double())
    for scale, n in ((0.0, 4), (0.9 / 7, 4), (1.5 / 7, 3), (3.0 / 7, 2), (1.0, 1)):
        assert functional.betti_numbers(points, 0, scale).tolist() == [n]


@pytest.mark.skipif(MAX_DIM == 0, reason="needs an engine of H1")
def test_a_circle_has_one_loop():
    angles = 2 * math.pi * torch.arange(24).double() / 24
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    assert functional.betti_numbers(circle, 1, scale=0.25).tolist() == [1.0, 1.0]
    # Born with the edges between neighbours, dead when every third point closes a triangle: sqrt(3) of radius 1.
    life = math.sqrt(3.0) - 2 * math.sin(math.pi / 24)
    assert functional.total_persistence(circle, 1)[1] == pytest.approx(life, abs=1e-6)
    assert functional.persistence_entropy(circle, 1)[1] == 0.0


@pytest.mark.parametrize(
    ("distance", "expected"), [("bottleneck", 4.0), ("log_bottleneck", math.log(2)), ("wasserstein", 4.5)]
)
def test_a_cloud_of_twice_the_size_is_as_far_away_as_its_bars_have_grown(distance, expected):
    points = line(0.0, 1.0, 3.0, 7.0)
    found = functional.diagram_distance(points, 2 * points, 0, distance)
    assert float(found) == pytest.approx(expected)
    assert float(functional.diagram_distance(points, points.flip(0), 0, distance)) == 0.0


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_values_are_of_the_clouds_dtype_and_at_least_single(dtype, wanted):
    before, after = cloud(0).to(dtype), cloud(1).to(dtype)
    for value in (
        functional.critical_ratio(before, after),
        functional.lipschitz_distortion(before, after),
        functional.betti_numbers(before, 0),
        functional.diagram_distance(before, after, 0),
    ):
        assert value.dtype == wanted


def test_a_distance_that_does_not_exist_is_refused_before_anything_is_computed():
    with pytest.raises(ValueError, match="expected a distance of bottleneck, log_bottleneck, wasserstein, got 'l2'"):
        functional.diagram_distance(torch.full((2, 1), math.nan), torch.zeros(2, 1), 0, "l2")
