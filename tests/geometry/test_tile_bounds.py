"""Bounds of a tile's pairs: what they rule out is never true, and what they leave is little."""

import itertools
import math

import pytest
import torch

from lightning_topo.geometry import _tile_bounds as tile_bounds
from lightning_topo.geometry import step_distortion
from lightning_topo.geometry._precision import worst_case_slack
from lightning_topo.geometry._tile_bounds import Extreme, Extremes, Products, Step, TileBounds, centred


def cloud(n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def squares(points: torch.Tensor) -> torch.Tensor:
    """|x_i - x_j|² in float64."""
    x = points.double()
    return (x[:, None] - x[None]).square().sum(dim=2)


STEPS = {"tiny": 1e-6, "small": 1e-2, "large": 3.0}
TILES = [(slice(0, 40), slice(0, 40)), (slice(0, 25), slice(25, 40)), (slice(10, 12), slice(30, 40))]


@pytest.mark.parametrize("size", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(("rows", "columns"), TILES)
def test_position_step_and_growth_bound_the_squares_of_every_pair(size, rows, columns):
    before = cloud(40, 30, 0) + 5
    after = before + size * cloud(40, 30, 1)
    step = Step.of(before, after, 0.25)
    bounds = TileBounds.of(step, rows, columns)
    t = step.magnification
    here, there, moved = (squares(z)[rows, columns] / 16 for z in (before, after, after.double() - before.double()))
    assert bool((bounds.position.double() <= here).all())
    gap = bounds.row_gap[:, None] + bounds.column_gap
    assert bool((here <= bounds.position.double() + gap + 1e-12).all())
    assert bool((bounds.step.double() >= t**2 * moved).all())
    margin = (bounds.row_margin[:, None] + bounds.column_margin).double()
    assert bool(((bounds.growth.double() - t * (there - here)).abs() <= margin).all())
    # However small the step is, growth is known to a part of itself, not of the squares.
    assert float(margin.max()) < 1e-3 * float(bounds.step.max())


@pytest.mark.parametrize("size", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(("rows", "columns"), TILES)
def test_no_pair_beyond_the_extremes_is_ruled_out(size, rows, columns):
    before = cloud(40, 30, 2)
    after = before + size * cloud(40, 30, 3)
    step = Step.of(before, after, 0.25)
    bounds = TileBounds.of(step, rows, columns)
    here, there = squares(before).sqrt(), squares(after).sqrt()
    critical, ratio = squares(after.double() - before.double()).sqrt() / here, there / here
    pairs = [(i, j) for i in range(rows.start, rows.stop) for j in range(columns.start, columns.stop) if i < j]
    ordered = sorted(pairs, key=lambda pair: float(ratio[pair]))
    largest = sorted(pairs, key=lambda pair: float(critical[pair]))
    extremes = Extremes(
        Extreme(float(critical[largest[-4]])), Extreme(float(ratio[ordered[3]])), Extreme(float(ratio[ordered[-4]]))
    )
    found = bounds.candidates(extremes, 10_000)
    assert found is not None
    left = set(zip(*(part.tolist() for part in found), strict=True))
    assert left >= {*largest[-3:], *ordered[:3], *ordered[-3:]}
    assert len(left) < 9 + 0.2 * len(pairs)
    assert bounds.candidates(extremes, 1) is None
    nothing = Extremes(Extreme(math.inf), Extreme(0.0), Extreme(math.inf))
    none = bounds.candidates(nothing, 1)
    assert none is not None
    assert len(none[0]) == 0


def test_leaders_are_pairs_of_the_tile_and_have_its_extremes():
    before = cloud(40, 30, 4)
    after = before + 0.3 * cloud(40, 30, 5)
    step = Step.of(before, after, 0.25)
    for rows, columns in TILES:
        i, j = TileBounds.of(step, rows, columns).leaders()
        assert bool((i < j).all())
        assert bool(((i >= rows.start) & (i < columns.stop) & (j < columns.stop)).all())
        here, there = squares(before).sqrt(), squares(after).sqrt()
        inside = torch.zeros(40, 40, dtype=torch.bool)
        inside[rows, columns] = True
        inside &= torch.ones(40, 40, dtype=torch.bool).triu_(1)
        ratio = (there / here)[inside]
        assert float((there / here)[i, j].max()) == pytest.approx(float(ratio.max()), rel=1e-5)
        assert float((there / here)[i, j].min()) == pytest.approx(float(ratio.min()), rel=1e-5)


def test_certificates_do_not_rest_on_likely_rounding(monkeypatch):
    """Products that err half as much as the worst case allows hide a break: it is looked at all the same."""
    exact_tile = tile_bounds.Products.tile

    def erring_tile(self, rows, columns, weight=1.0):
        squares, norms = exact_tile(self, rows, columns, weight), self.squares.clone()
        norms[2:] = 0
        error = worst_case_slack(squares.dtype, self.rows.shape[1]) / 2
        return squares + error * (norms[rows, None] + norms[columns]) * (norms[rows, None] * norms[columns] > 0)

    monkeypatch.setattr(tile_bounds.Products, "tile", erring_tile)
    before = 30 * cloud(300, 400, 0)
    before[1], before[5] = before[0] + 0.087 * cloud(1, 400, 2)[0], before[4] + cloud(1, 400, 3)[0]
    after = before + 0.001 * cloud(300, 400, 1)
    gap, other = before[1] - before[0], before[5] - before[4]
    after[0], after[1] = before[0] + 0.51 * gap, before[1] - 0.51 * gap
    after[4], after[5] = before[4] + 0.45 * other, before[5] - 0.45 * other
    step = step_distortion(before, after)
    assert step.critical_pair == (0, 1)
    assert not step.certified


def test_whoever_may_break_is_named_whatever_the_rounding_was():
    before = cloud(30, 50, 6)
    after = before + 1e-3 * cloud(30, 50, 7)
    after[7] = before[7] + 1.01 * (before[3] - before[7])
    after[3] = before[3]
    step = Step.of(before, after, 0.25)
    bounds = TileBounds.of(step, slice(0, 30), slice(0, 30))
    found = bounds.possible_breaks(step, 1000)
    assert found is not None
    left = set(zip(*(part.tolist() for part in found), strict=True))
    critical = squares(after.double() - before.double()).sqrt() / squares(before).sqrt()
    broken = {(i, j) for i, j in itertools.combinations(range(30), 2) if float(critical[i, j]) >= 1}
    assert (3, 7) in broken
    assert broken <= left
    assert bounds.possible_breaks(step, 0) is None


def test_products_hold_within_their_slack_and_the_centre_costs_nothing():
    points = cloud(20, 64, 8) + 300
    rows = centred(points, 2.0**-9, torch.float32)
    assert float(rows.mean(dim=0).abs().max()) < 1e-6
    products = Products.of(rows)
    error = (products.tile(slice(0, 20), slice(0, 20)).double() - squares(rows)).abs()
    slack = worst_case_slack(torch.float32, 64)
    assert bool((error <= slack * (products.squares[:, None] + products.squares)).all())


def test_a_step_of_nothing_and_a_cloud_in_one_point_are_not_magnified():
    points = cloud(5, 3, 9)
    assert Step.of(points, points, 1.0).magnification == 1.0
    same = points[:1].expand(5, 3).contiguous()
    assert Step.of(same, same + points, 1.0).magnification == 1.0
    magnified = Step.of(points, points + 2.0**-20 * cloud(5, 3, 10), 1.0)
    assert 2.0**18 <= magnified.magnification <= 2.0**22
