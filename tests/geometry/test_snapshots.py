"""What a snapshot says of distances is never more than they are, and little less."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_topo.geometry import _snapshots as snapshots
from lightning_topo.geometry import snapshot, step_bound
from lightning_topo.geometry._lower_bounds import nearest_by_products
from lightning_topo.geometry._snapshots import as_clouds, carried, snapshot_of_nearest


def cloud(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def least_distances(points: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """The distance of each point to the nearest of those that it is not paired with."""
    x = points.double()
    distances = (x[:, None] - x[None]).norm(dim=2).fill_diagonal_(math.inf)
    for i, j in pairs.tolist():
        distances[i, j] = distances[j, i] = math.inf
    return distances.amin(dim=1)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), d=st.sampled_from([2, 30, 300]))
@settings(max_examples=30, deadline=None)
def test_nearest_is_below_every_distance(seed, n, d):
    points = cloud(n, d, seed=seed).float() + 50
    found = snapshot(points)
    distances = (points.double()[:, None] - points.double()[None]).norm(dim=2).fill_diagonal_(math.inf)
    for i, j in found.pairs.tolist():
        distances[i, j] = distances[j, i] = math.inf
    least = distances.amin(dim=1)[found.order[0]]
    assert bool((found.nearest[0] <= least).all())
    assert bool((found.nearest[0] >= 0.99 * least).all() | (n == 2))


def test_many_neurons_get_a_bound_without_all_pairs():
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(30_000, 64, generator=generator)
    found = snapshot(before)
    assert "directions" in found.reason
    rows = torch.arange(0, 30_000, 997)
    distances = torch.cdist(before[rows].double(), before.double(), compute_mode="donot_use_mm_for_euclid_dist")
    least = torch.where(distances == 0, math.inf, distances).amin(dim=1)
    nearest = torch.empty(30_000, dtype=torch.float64).scatter_(0, found.order[0], found.nearest[0])
    assert bool((nearest[rows] <= least).all())
    assert bool(step_bound(found, before, 1.0001 * before).step < 1)


def test_of_equal_neurons_only_the_first_is_anybodys_neighbour():
    points = cloud(12, 4)
    points[[5, 7, 9]] = points[2].clone()
    found = snapshot(points)
    same = {tuple(pair) for pair, equal in zip(found.pairs.tolist(), found.equal.tolist(), strict=True) if equal}
    assert same == {(2, 5), (2, 7), (2, 9)}
    nearest = torch.empty(12, dtype=torch.float64).scatter_(0, found.order[0], found.nearest[0])
    assert nearest.isinf().nonzero().flatten().tolist() == [5, 7, 9]
    others = torch.tensor([k for k in range(12) if k not in (5, 7, 9)])
    least = least_distances(points[others], torch.empty(0, 2))
    assert bool((nearest[others] <= least).all())
    assert bool((nearest[others] >= 0.97 * least).all())


def test_blocks_are_snapshots_of_their_own_with_rows_counted_through():
    blocks = torch.stack([cloud(9, 3), cloud(9, 3, seed=1)])
    blocks[1, 4] = blocks[1, 2] + 1e-9
    found = snapshot(blocks)
    assert (found.n_rows, found.pairs.tolist()) == (18, [[11, 13]])
    for one, nearest, order in zip(blocks, found.nearest, found.order, strict=True):
        alone = snapshot(one)
        assert torch.equal(alone.order[0], order)
        torch.testing.assert_close(alone.nearest[0], nearest, rtol=1e-12, atol=0)


def test_more_near_pairs_than_can_be_looked_at_are_bounded_instead():
    """Half of all neurons are twins: about n / 8 pairs are listed, the nearest ones, and the others bound."""
    x = cloud(200, 6)
    gaps = torch.logspace(-6, -4, 200)[:, None]
    points = torch.cat([x, x + gaps * cloud(200, 6, seed=1)]).double()
    found = snapshot(points)
    assert 0 < len(found.pairs) <= 2 * (400 // 8)
    nearest = torch.empty(400, dtype=torch.float64).scatter_(0, found.order[0], found.nearest[0])
    assert bool((nearest <= least_distances(points, found.pairs)).all())
    listed = (points[found.pairs[:, 0]] - points[found.pairs[:, 1]]).norm(dim=1)
    left = least_distances(points, found.pairs)
    assert float(listed.max()) <= float(left.min()) * (1 + 1e-6)


def test_what_is_known_of_neighbours_serves_as_well():
    points = as_clouds(cloud(30, 5))
    nearest, resolved = nearest_by_products(points)
    kept = nearest.clone()
    found, alone = snapshot_of_nearest(points, nearest, resolved), snapshot(points[0])
    assert torch.equal(nearest, kept)
    assert torch.equal(found.nearest, alone.nearest)
    assert torch.equal(found.pairs, alone.pairs)


def test_beyond_the_most_rows_the_reason_says_that_bounds_are_loose(monkeypatch):
    monkeypatch.setattr(snapshots, "MAX_ROWS", 20)
    points = cloud(21, 40)
    found = snapshot(points)
    assert "more than 20 neurons" in found.reason
    nearest = torch.empty(21, dtype=torch.float64).scatter_(0, found.order[0], found.nearest[0])
    assert bool((nearest <= least_distances(points, found.pairs)).all())
    points[3, 1] = torch.nan
    assert "NaN" in snapshot(points).reason


def test_beyond_the_most_rows_equal_neurons_are_one_point_and_near_ones_are_listed(monkeypatch):
    monkeypatch.setattr(snapshots, "MAX_ROWS", 20)
    points = cloud(40, 30)
    points[7], points[9], points[12] = points[2], points[2], points[11] + 1e-4
    found = snapshot(points)
    listed = {
        (*pair, equal) for pair, equal in zip(map(tuple, found.pairs.tolist()), found.equal.tolist(), strict=True)
    }
    assert {((2, 7), True), ((2, 9), True)} <= {((i, j), equal) for i, j, equal in listed}
    assert (11, 12, False) in listed
    assert float(found.nearest.amin()) > 0.1
    nearest = torch.empty(40, dtype=torch.float64).scatter_(0, found.order[0], found.nearest[0])
    assert nearest[[7, 9]].tolist() == [math.inf, math.inf]
    only_first = torch.cat([points[:7], points[8:9], points[10:]])
    apart = {(min(i, j), max(i, j)) for i, j, equal in listed if not equal}
    kept = [i for i in range(40) if i not in (7, 9)]
    true = (only_first.double()[:, None] - only_first.double()[None]).norm(dim=2).fill_diagonal_(math.inf)
    for a, i in enumerate(kept):
        for b, j in enumerate(kept):
            assert (min(i, j), max(i, j)) in apart or nearest[i] <= true[a, b]


def test_beyond_the_most_rows_too_many_equal_neurons_leave_nothing_to_certify(monkeypatch):
    monkeypatch.setattr(snapshots, "MAX_ROWS", 20)
    found = snapshot(torch.cat([cloud(30, 3), torch.zeros(10, 3)]))
    assert found.reason == "more than 20 neurons, of which 9 equal another one: nothing is certified"
    assert len(found.pairs) == 0
    assert float(found.nearest.amax()) == 0.0


@pytest.mark.parametrize("size", [1e-3, 0.05, 10.0])
def test_a_snapshot_carried_along_bounds_from_below_where_neurons_are_now(size):
    points = as_clouds(cloud(2, 30, 4))
    moves = size * cloud(2, 30, 4, seed=1).double()
    later = points.double() + moves
    found = carried(snapshot(points), moves.norm(dim=2).flatten() * (1 + 1e-9))
    nearest = torch.empty(2, 30, dtype=torch.float64).scatter_(1, found.order, found.nearest)
    for block, least in enumerate(nearest):
        pairs = [pair for pair in found.pairs.tolist() if pair[0] // 30 == block]
        assert bool((least <= least_distances(later[block], torch.tensor(pairs).view(-1, 2) % 30)).all())
    assert bool((found.nearest.diff(dim=1) >= 0).all())
    if size == 1e-3:
        assert float(found.nearest.amin()) > 0.9 * float(snapshot(points).nearest.amin())


def test_neurons_without_coordinates_are_all_equal():
    found = snapshot(torch.zeros(4, 0))
    assert found.pairs.tolist() == [[0, 1], [0, 2], [0, 3]]
    assert found.equal.all()
    assert snapshot(torch.zeros(1, 3)).nearest.tolist() == [[math.inf]]
    assert snapshot(torch.zeros(0, 3)).n_rows == 0


def test_what_is_no_cloud_is_refused():
    with pytest.raises(ValueError, match="expected points of shape"):
        snapshot(torch.zeros(3))
    with pytest.raises(TypeError, match="floating-point"):
        snapshot(torch.zeros(3, 2, dtype=torch.long))
    assert snapshot(cloud(3, 2), k=1).n_rows == 3
    with pytest.raises(ValueError, match="k >= 1"):
        snapshot(cloud(3, 2), k=0)
