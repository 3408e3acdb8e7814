"""Distances to nearest neighbours, from below, against all distances in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_topo.geometry._lower_bounds import (
    first_equal,
    lower_roots,
    near_by_directions,
    nearest_by_products,
    working_points,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def cloud(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def least(points: torch.Tensor) -> torch.Tensor:
    """By differences, so that near and far ones are equally right."""
    x = points.double()
    return (x[:, None] - x[None]).norm(dim=2).fill_diagonal_(math.inf).amin(dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    n=st.integers(2, 40),
    d=st.sampled_from([1, 7, 200]),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    offset=st.sampled_from([0.0, 100.0]),
)
@settings(max_examples=15, deadline=None)
def test_products_bound_from_below_and_are_good_to_a_percent_where_they_say_so(dtype, n, d, seed, scale, offset):
    points = (scale * (cloud(2, n, d, seed=seed) + offset)).to(dtype)
    nearest, resolved = nearest_by_products(points)
    for block in range(2):
        truth = least(points[block])
        assert bool((nearest[block] <= truth).all())
        clear = truth > resolved[block]
        assert bool((nearest[block] >= 0.99 * truth)[clear].all())


def test_far_from_the_origin_distances_that_matter_are_resolved():
    points = cloud(1, 50, 20) + 1000
    nearest, resolved = nearest_by_products(points)
    assert bool((least(points[0]) > resolved[0]).all())
    assert bool((nearest[0] >= 0.99 * least(points[0])).all())


def test_near_twins_are_below_what_is_resolved_and_equal_ones_at_zero():
    points = cloud(1, 20, 8)
    points[0, 1], points[0, 3] = points[0, 0], points[0, 2] + 1e-6
    nearest, resolved = nearest_by_products(points)
    assert nearest[0, :2].tolist() == [0.0, 0.0]
    assert bool((nearest[0, 2:4] <= resolved[0]).all())


def test_tiles_do_not_show(monkeypatch):
    points = cloud(2, 37, 5)
    whole, _ = nearest_by_products(points)
    monkeypatch.setattr("lightning_topo.geometry._lower_bounds._TILE_ELEMENTS", 300)
    monkeypatch.setattr("lightning_topo.geometry._lower_bounds._BLOCK_ELEMENTS", 40)
    tiled, _ = nearest_by_products(points)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=0)


def nearest_by_directions(points: torch.Tensor, k: int = 1) -> torch.Tensor:
    return near_by_directions(points, torch.arange(len(points)), k)[0].amin(dim=1)


@given(n=st.integers(2, 60), d=st.sampled_from([1, 3, 6, 40]), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_directions_bound_from_below(n, d, seed):
    points = cloud(n, d, seed=seed) * torch.logspace(0, -3, d)
    nearest = nearest_by_directions(points)
    truth = least(points)
    assert bool((nearest <= truth).all())
    if d <= 6:  # the directions are all there are
        assert bool((nearest >= 0.99 * truth).all())


def test_directions_are_those_in_which_the_cloud_is_spread():
    """Six coordinates of a hundred hold nearly all: bounds in six directions lose little."""
    points = cloud(300, 100) * torch.where(torch.arange(100) % 17 == 0, 1.0, 1e-3)
    assert bool((nearest_by_directions(points) >= 0.9 * least(points)).all())


@given(n=st.integers(2, 40), k=st.integers(1, 9), d=st.sampled_from([1, 3, 40]), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_of_the_nearest_in_the_directions_true_distances_are_listed_and_the_last_one_bounds_all_others(n, k, d, seed):
    points = cloud(n + 3, d, seed=seed)
    rows = torch.arange(n + 3)[torch.randperm(n + 3, generator=torch.Generator().manual_seed(seed))[:n]]
    distances, columns = near_by_directions(points, rows, k)
    true = (points.double()[:, None] - points.double()[None]).norm(dim=2)
    for i, row in enumerate(rows.tolist()):
        others = columns[i, :-1].tolist()
        listed = {j: x for j, x in zip(others, distances[i, :-1].tolist(), strict=True) if j != row}
        assert len(listed) == min(k, n - 1)
        assert list(listed.values()) == pytest.approx([float(true[row, j]) for j in listed], rel=1e-6)
        assert all(x <= true[row, j] for j, x in listed.items())
        assert all(distances[i, -1] <= true[row, j] for j in rows.tolist() if j != row and j not in listed)


def test_more_neighbours_make_bounds_tighter():
    points = cloud(500, 40)
    few, many = (float(nearest_by_directions(points, k).amin()) for k in (1, 8))
    assert 1.5 * few < many < float(least(points).amin())


def test_distinct_rows_that_the_directions_do_not_tell_apart_cost_no_more_than_others():
    points = torch.zeros(4000, 300)
    points[torch.arange(4000), torch.arange(4000) % 300] = 1.0
    points[:, 0] = torch.arange(4000) % 2
    points = points.unique(dim=0)
    assert bool((nearest_by_directions(points) <= least(points)).all())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_each_row_is_given_the_first_one_that_equals_it(dtype):
    points = cloud(200, 3).round().to(dtype)
    points[3], points[4] = 0.0, -0.0
    truth = [int((points == row).all(dim=1).nonzero()[0]) for row in points]
    assert first_equal(points).tolist() == truth
    assert truth[4] == truth[3]


def test_rows_that_share_a_hash_by_chance_stay_apart(monkeypatch):
    monkeypatch.setattr(torch, "randint", lambda low, high, shape, generator: torch.zeros(shape, dtype=torch.long))
    points = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0], [0.0, 0.0]])  # summed by weights of 1
    assert first_equal(points).tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_cloud_that_is_not_finite_has_no_bounds(value):
    points = cloud(1, 9, 4)
    points[0, 3, 2] = value
    assert not bool((nearest_by_products(points)[0] > 0).all())


def test_squares_that_may_have_vanished_count_as_zero():
    tiny = torch.finfo(torch.float32).tiny
    squares = torch.tensor([0.0, 3 * tiny, 4 * 2 * tiny, 4.0], dtype=torch.float64)
    assert lower_roots(squares, torch.float32, 2).tolist() == [0.0, 0.0, 0.0, pytest.approx(2.0)]


@pytest.mark.parametrize("size", [1e-35, 1.0, 1e35])
def test_working_points_are_centred_and_near_one(size):
    points = size * (cloud(3, 10, 4) + 7)
    slack, work, scale = working_points(points)
    assert 0 < slack < 1e-4
    assert bool((work.abs().amax(dim=(1, 2)) <= 1).all())
    assert bool((work.abs().amax(dim=(1, 2)) > 0.25).all())
    assert bool((torch.frexp(scale).mantissa == 0.5).all())  # powers of two: nothing is rounded
    back = (work.double() / scale).diff(dim=1)
    torch.testing.assert_close(back, points.double().diff(dim=1), rtol=1e-4, atol=1e-5 * size)
