"""Landmarks by farthest points, and the radius within which they cover the cloud."""

import pytest
import torch

from lightning_topo.geometry import farthest_point_landmarks, pairwise_distances


def cloud(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 5, 39])
def test_radius_covers_the_cloud(k):
    points = cloud(40, 6)
    landmarks = farthest_point_landmarks(points, k)
    assert len(landmarks.indices.unique()) == k
    nearest = pairwise_distances(points)[:, landmarks.indices].min(dim=1).values
    assert landmarks.covering_radius == pytest.approx(float(nearest.max()), rel=1e-6)


def test_all_points_when_they_fit():
    landmarks = farthest_point_landmarks(cloud(5, 2), 5)
    assert landmarks.indices.tolist() == [0, 1, 2, 3, 4]
    assert landmarks.covering_radius == 0


def test_radius_is_near_the_optimum():
    """Four tight clusters: four landmarks must find one in each."""
    corners = torch.tensor([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 9.0]])
    points = (corners[:, None] + 0.1 * cloud(40, 2).reshape(4, 10, 2)).flatten(0, 1)
    landmarks = farthest_point_landmarks(points, 4)
    assert sorted((landmarks.indices // 10).tolist()) == [0, 1, 2, 3]
    assert landmarks.covering_radius < 1


def test_order_of_points_does_not_matter():
    points = cloud(30, 3)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    plain, shuffled = (farthest_point_landmarks(p, 6) for p in (points, points[order]))
    assert order[shuffled.indices].tolist() == plain.indices.tolist()


def test_bad_count():
    with pytest.raises(ValueError, match="max_landmarks >= 1"):
        farthest_point_landmarks(cloud(3, 2), 0)
