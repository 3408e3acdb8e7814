"""The extreme pairs of a step, against all pairs in float64."""

import math

import pytest
import torch

from lightning_topo.geometry import _pair_search as pair_search
from lightning_topo.geometry._pair_search import pair_ratios, search_extreme_pairs, step_tile_rows, tile_ratios


def cloud(n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def all_ratios(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q and d'/d of all pairs i < j, from differences in float64; -1 elsewhere."""
    x, y = before.double(), after.double()
    here, there = ((z[:, None] - z[None]) for z in (x, y))
    far, moved = here.norm(dim=2), (there - here).norm(dim=2)
    above = torch.ones_like(far, dtype=torch.bool).triu_(1)
    critical = torch.where(far > 0, moved / far, torch.where(there.norm(dim=2) > 0, math.inf, 0.0))
    ratio = torch.where(far > 0, there.norm(dim=2) / far, torch.where(there.norm(dim=2) > 0, math.inf, 1.0))
    return critical.masked_fill(~above, -1), ratio.masked_fill(~above, -1)


def assert_extremes(found, before, after, *, critical=True):
    """Values and pairs are those of brute force; a pair may be another of the same value."""
    q, ratio = all_ratios(before, after)
    low = torch.where(ratio >= 0, ratio, math.inf)
    if critical:
        assert found.critical.value == pytest.approx(float(q.max()), rel=1e-6)
        assert float(q[found.critical.pair]) == pytest.approx(found.critical.value, rel=1e-6)
    assert found.expansion.value == pytest.approx(float(ratio.max()), rel=1e-6)
    assert float(ratio[found.expansion.pair]) == pytest.approx(found.expansion.value, rel=1e-6)
    assert found.contraction.value == pytest.approx(float(low.min()), rel=1e-6)
    assert float(low[found.contraction.pair]) == pytest.approx(found.contraction.value, rel=1e-6)


STEPS = {"tiny": 1e-6, "small": 1e-2, "large": 3.0}


@pytest.mark.parametrize("size", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("tile", [7, 32, 512])
def test_over_any_tiles_the_extremes_are_those_of_all_pairs(monkeypatch, size, tile):
    monkeypatch.setattr(pair_search, "step_tile_rows", lambda points: tile)
    start = cloud(90, 12, 0)
    before = start + 0.5 * cloud(90, 12, 1)
    after = before + size * cloud(90, 12, 2)
    found = search_extreme_pairs(before, after, start)
    assert_extremes(found.step, before, after)
    assert found.total is not None
    assert_extremes(found.total, start, after, critical=False)
    x = after.double()
    least = (x[:, None] - x[None]).norm(dim=2).fill_diagonal_(math.inf).amin(dim=1)
    assert bool((found.nearest <= least).all())
    clear = least > found.resolved
    assert bool(clear.all())
    assert bool((found.nearest >= 0.97 * least).all())


def test_without_a_reference_there_is_no_total():
    before = cloud(20, 3, 3)
    assert search_extreme_pairs(before, 2 * before).total is None


def test_many_ties_are_settled_in_float64():
    """A rotation leaves all distances as they are: every pair is a candidate."""
    before = cloud(200, 6, 4)
    after = before @ torch.linalg.qr(cloud(6, 6, 5)).Q
    found = search_extreme_pairs(before, after).step
    assert found.contraction.value == pytest.approx(1.0, abs=1e-6)
    assert found.expansion.value == pytest.approx(1.0, abs=1e-6)
    assert_extremes(found, before, after)


def test_equal_neurons_that_part_are_infinitely_far_and_others_that_stay_are_still():
    before = cloud(30, 4, 6)
    before[9], before[21] = before[8], before[20]
    after = before.clone()
    after[21, 0] += 1e-3
    found = search_extreme_pairs(before, after).step
    assert (found.critical.value, found.expansion.value) == (math.inf, math.inf)
    assert found.critical.pair == found.expansion.pair == (20, 21)
    assert found.contraction.value <= 1.0


@pytest.mark.parametrize(("rows", "columns"), [(slice(0, 30), slice(0, 30)), (slice(0, 11), slice(11, 30))])
def test_a_tile_in_float64_has_the_ratios_of_its_pairs_near_ones_too(rows, columns):
    before = cloud(30, 5, 7)
    before[15:] = before[:15] + 1e-6 * cloud(15, 5, 8)
    after = before + 1e-3 * cloud(30, 5, 9)
    critical, ratio = tile_ratios(before, after, rows, columns, 0.5)
    above = torch.ones(30, 30, dtype=torch.bool).triu_(1)[rows, columns]
    for found, truth in zip((critical, ratio), all_ratios(before, after), strict=True):
        torch.testing.assert_close(found[above], truth[rows, columns][above], rtol=1e-6, atol=0)


def test_listed_pairs_have_the_ratios_of_their_differences(monkeypatch):
    monkeypatch.setattr(pair_search, "_TILE_ELEMENTS", 64)  # a few pairs at a time
    before, after = cloud(12, 5, 10, torch.bfloat16), cloud(12, 5, 11, torch.bfloat16)
    after[4], before[5], after[5] = before[4], before[4], before[4]
    i, j = torch.triu_indices(12, 12, 1)
    found = pair_ratios(before, after, i, j, 0.25)
    for one, truth in zip(found, all_ratios(before, after), strict=True):
        torch.testing.assert_close(one, truth[i, j], rtol=1e-12, atol=0)
    assert [float(one[(i == 4) & (j == 5)]) for one in found] == [0.0, 1.0]


@pytest.mark.parametrize(("d", "rows"), [(0, 512), (100, 512), (1 << 17, 64), (1 << 23, 32)])
def test_tiles_of_long_rows_are_smaller(d, rows):
    assert step_tile_rows(torch.empty(10, d, device="meta")) == (rows if d > 100 else 4 * rows)
    if d <= 100:
        assert step_tile_rows(torch.empty(10, d)) == rows
