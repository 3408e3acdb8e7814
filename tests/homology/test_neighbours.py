"""Nearest neighbours outside one's component, against all distances in float64, as components grow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.homology import _neighbours as neighbours
from lightning_topo.homology._neighbours import NeighbourLists, least_of_each


def merged(labels, generator):
    """Components as they are after some of them have joined: labels count from 0."""
    count = int(labels.max()) + 1
    roots = torch.randint(max(count // 2, 1), (count,), generator=generator)
    return roots[labels].unique(return_inverse=True)[1]


def check(lists, labels, points):
    """The nearest of each component is right, and no point is said to be nearer than it is."""
    nearest, found = lists.nearest_outside(labels)
    distances = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    outside = distances.masked_fill(labels[:, None] == labels, torch.inf)
    count = int(labels.max()) + 1
    truth = least_of_each(outside.amin(dim=1), labels, count)
    least = least_of_each(nearest, labels, count).sqrt() / lists.scale
    torch.testing.assert_close(least, truth, rtol=1e-6, atol=0)
    known = nearest.isfinite().nonzero().flatten()
    assert bool((labels[found[known]] != labels[known]).all())
    torch.testing.assert_close(nearest[known].sqrt() / lists.scale, outside[known, found[known]], rtol=1e-6, atol=0)
    assert bool((nearest[known].sqrt() / lists.scale <= outside.amin(dim=1)[known] * (1 + 1e-6)).all())


@given(n=st.integers(2, 60), d=st.integers(1, 4), seed=st.integers(0, 10**6), tied=st.booleans())
def test_the_nearest_of_every_component_is_found_however_components_grow(n, d, seed, tied):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=generator)
    points = points.mul(2).round() if tied else points
    lists = NeighbourLists(points)
    labels = torch.arange(n)
    while int(labels.max()) > 0:
        check(lists, labels, points)
        labels = merged(labels, generator)


def test_lists_over_several_tiles_are_those_over_one(monkeypatch):
    points = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) // 30
    whole = NeighbourLists(points)
    expected = whole.nearest_outside(labels)
    monkeypatch.setattr(neighbours, "_TILE_ROWS", 7)
    monkeypatch.setattr(neighbours, "_TILE_COLUMNS", 11)
    small = NeighbourLists(points)
    check(small, labels, points)
    both = expected[0].isfinite() & small.nearest_outside(labels)[0].isfinite()
    assert bool(both.any())
    torch.testing.assert_close(small.nearest_outside(labels)[0][both], expected[0][both])


def test_a_list_is_made_anew_only_where_all_of_it_was_absorbed(monkeypatch):
    """Else a round would cost all distances again."""
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    points[:, 0] += torch.where(torch.arange(200) < 100, 0.0, 10.0)
    lists, labels = NeighbourLists(points), torch.arange(200)
    lists.nearest_outside(labels)
    renewed, renew = [], NeighbourLists._renew

    def noted(self, rows, labels):
        renewed.append(len(rows))
        renew(self, rows, labels)

    monkeypatch.setattr(NeighbourLists, "_renew", noted)
    check(lists, labels, points)
    check(lists, labels // 2, points)  # one of sixteen was absorbed
    assert renewed == []
    check(lists, labels // 100, points)  # all of them: two clusters
    assert 0 < sum(renewed) <= 200


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_it_works_at_any_scale(scale):
    points = scale * torch.tensor([[0.0], [1.0], [3.0], [3.5]])
    nearest, found = (lists := NeighbourLists(points)).nearest_outside(torch.arange(4))
    assert found.tolist() == [1, 0, 3, 2]
    assert (nearest.sqrt() / lists.scale / scale).tolist() == pytest.approx([1.0, 1.0, 0.5, 0.5], rel=1e-6)


def test_the_least_of_each_component_and_none_of_an_empty_one():
    values = torch.tensor([3.0, 1.0, 2.0])
    assert least_of_each(values, torch.tensor([0, 2, 2]), 3).tolist() == [3.0, torch.inf, 1.0]
