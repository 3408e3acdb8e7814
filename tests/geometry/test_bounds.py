"""Bounds of a step's critical ratio against the ratio itself, over all pairs in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_topo.geometry import (
    BoundTable,
    displacement_lengths,
    pair_bounds,
    snapshot,
    step_bound,
    step_bounds,
    step_distortion,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def cloud(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def true_ratio(before: torch.Tensor, after: torch.Tensor) -> float:
    """r by the definition, pair by pair, in long doubles: float64 would round a small move of near neurons.

    Differences of near neurons first, which are exact: the moves of neurons far from the origin are not.
    """
    x, y = (points.double().numpy().astype(np.longdouble) for points in (before, after))
    with np.errstate(all="ignore"):
        here, there = (z[:, None] - z[None] for z in (x, y))
        far, moved = (np.sqrt(np.square(z).sum(axis=2)) for z in (here, there - here))
        q = np.where(far > 0, moved / far, np.where(moved > 0, np.inf, 0.0))
    return float(q.max())


def certified(bound: torch.Tensor) -> bool:
    return bool(bound < 1)


CLOUDS = {
    "plain": lambda x: x,
    "far from the origin": lambda x: x + 1000,
    "equal": lambda x: x[torch.arange(len(x)) // 2],
    "all equal": lambda x: x[:1].expand_as(x),
    "dead": lambda x: torch.cat([x[: len(x) // 2], 0 * x[len(x) // 2 :]]),
    "near": lambda x: torch.cat([x[::2], x[::2] + 1e-6 * x[: len(x[::2])].roll(1, 0)]),
    "decayed": lambda x: torch.cat([x[: len(x) // 2], 1e-12 * x[len(x) // 2 :]]),
    "small": lambda x: 1e-22 * x,
    "large": lambda x: 1e3 * x,
    "scales": lambda x: x * torch.logspace(-4, 2, len(x))[:, None],
}
STEPS = {
    "noise": lambda x, e: x + e,
    "shift": lambda x, e: x + 10 + e,
    "decay": lambda x, e: 0.99 * x,
    "none": lambda x, e: x,
    "one neuron": lambda x, e: torch.cat([x[:1] + 100 * e[:1], x[1:]]),
    "in proportion": lambda x, e: x * (1 + e[:, :1]),
}


@pytest.mark.parametrize("shape", CLOUDS)
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(n=st.integers(1, 24), d=st.integers(1, 40), seed=st.integers(0, 10**6), size=st.sampled_from([1e-5, 1e-2, 1.0]))
@settings(max_examples=4, deadline=None)
def test_never_below_the_ratio(shape, kind, dtype, n, d, seed, size):
    """Also where the snapshot lies a few steps back, with and without exact neighbours and centring."""
    base = CLOUDS[shape](cloud(n, d, seed=seed))
    scale = float(base.abs().amax()) or 1.0
    start = base.to(dtype)
    before = STEPS[kind](base, size * scale * cloud(len(base), d, seed=seed + 1)).to(dtype)
    after = STEPS[kind](before.float(), size * scale * cloud(len(base), d, seed=seed + 2)).to(dtype)
    for near, centre in ((0.25, False), (0.25, True), (math.inf, False)):
        bound = step_bound(snapshot(start, k=3, near=near), before, after, centre)
        assert not float(bound.step) < true_ratio(before, after)
        assert not float(bound.span) < true_ratio(start, after)


def test_worst_case_of_rounding_in_long_rows():
    """Signed constants of 65,536 coordinates, where rounding errors add up instead of averaging out."""
    d = 65_536
    signs = cloud(6, d).sign()
    before = 0.1 * signs + 1e-3 * cloud(6, d, seed=1)
    after = before + 0.12 * signs[torch.tensor([1, 0, 3, 2, 5, 4])]
    bound = step_bound(snapshot(before), before, after)
    assert float(bound.step) >= true_ratio(before, after)


@pytest.mark.parametrize("centre", [False, True])
def test_tight_where_it_can_be(centre):
    """Far apart neurons that move by as much against each other: at most sqrt(2) above, and equal for two."""
    before = cloud(200, 500)
    after = before + 0.01 * cloud(200, 500, seed=1)
    exact = step_distortion(before, after).critical_ratio
    assert exact <= float(step_bound(snapshot(before), before, after, centre).step) < 1.6 * exact
    two = torch.tensor([[0.0], [1.0]])
    moved = torch.tensor([[0.25], [0.75]])
    assert float(step_bound(snapshot(two), two, moved).step) == pytest.approx(0.5, rel=1e-4)


def test_order_matters():
    """A neuron that moves far lies far from all others: sorting by distance keeps it from the near ones."""
    before = torch.cat([torch.arange(10.0)[:, None], torch.tensor([[1000.0]])])
    after = before.clone()
    after[10] += 100
    bound = step_bound(snapshot(before), before, after)
    assert true_ratio(before, after) <= float(bound.step) < 0.12


def test_centring_takes_a_common_shift_out():
    before = cloud(50, 20)
    after = before + 5 + 0.01 * cloud(50, 20, seed=1)
    start = snapshot(before)
    assert not certified(step_bound(start, before, after).step)
    assert certified(step_bound(start, before, after, centre=True).step)


def test_exact_neighbours_tighten():
    before = torch.cat([cloud(40, 3), 5 * cloud(40, 3, seed=1)])
    after = before + 0.05 * cloud(80, 3, seed=2)
    plain, exact = (step_bound(snapshot(before, near=near), before, after) for near in (0.0, math.inf))
    assert true_ratio(before, after) <= float(exact.step) < float(plain.step)


@pytest.mark.parametrize("gap", [1e-3, 1e-8, 1e-20, 1e-25, 1e-30])
def test_near_neurons_that_stay_together_are_certified(gap):
    """Decayed units, a LoRA matrix of zeros, unused tokens: distances near zero that do not change much."""
    before = cloud(60, 10)
    before[30] = 0
    before[31] = gap * cloud(10, seed=1)
    after = 0.999 * before
    assert certified(step_bound(snapshot(before), before, after).step)
    after[31, 0] += 3 * float(before[31].double().norm())
    assert not certified(step_bound(snapshot(before), before, after).step)


def test_equal_neurons_count_as_one_until_they_part():
    before = cloud(12, 4)
    before[3:8] = before[2]
    after = before + 0.01 * before.roll(1, 1)
    start = snapshot(before)
    assert certified(step_bound(start, before, after).step)
    split = after.clone()
    split[5, 0] += 1e-6
    assert float(step_bound(start, before, split).step) == math.inf
    assert float(step_bound(start, split, split).span) == math.inf
    assert float(step_bound(start, split, after).step) == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_certifies_nothing(value):
    good, bad = cloud(9, 4), cloud(9, 4)
    bad[4, 2] = value
    for start, before, after in ((bad, good, good), (good, bad, good), (good, good, bad), (bad, bad, bad)):
        found = snapshot(start)
        bound = step_bound(found, before, after)
        assert not certified(bound.step)
        assert (found.reason != "") == (start is bad)
        assert not certified(bound.span) or (after is good and start is good)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_neurons(n):
    bound = step_bound(snapshot(cloud(n, 3)), cloud(n, 3), 2 * cloud(n, 3))
    assert (float(bound.step), float(bound.span)) == (0.0, 0.0)


def test_no_update():
    before = cloud(20, 5)
    assert float(step_bound(snapshot(before), before, before).step) < 1e-15


def test_blocks_and_groups_together_are_each_by_itself():
    """Of several sizes, so that they fill more than one bucket; pairs keep to their block."""
    starts = [cloud(3, 40, 6), cloud(1, 2, 5), cloud(500, 4), cloud(4, 7, 3), cloud(1, 9)]
    starts[0][1, 3] = starts[0][1, 4]
    moves = [(snapshot(x), x, x + 0.02 * x.roll(1, -1)) for x in starts]
    together = step_bounds(moves)
    assert together.step.shape == (5,)
    for k, (found, before, after) in enumerate(moves):
        alone = step_bound(found, before, after)
        assert float(together.step[k]) == pytest.approx(float(alone.step), rel=1e-12)
        assert float(together.span[k]) == pytest.approx(float(alone.span), rel=1e-12)
        blocks = zip(before, after, strict=True) if before.ndim == 3 else [(before, after)]
        assert float(alone.step) >= max(true_ratio(x, y) for x, y in blocks)


def test_path_serves_for_the_net_displacement():
    """Lengths since the snapshot may be summed over steps: the bound holds, looser."""
    points = [cloud(30, 8)]
    for k in range(4):
        points.append(points[-1] + 0.01 * cloud(30, 8, seed=k + 1))
    table = BoundTable.of([snapshot(points[0])])
    steps = [displacement_lengths(x, y) for x, y in itertools.pairwise(points)]
    path = table.bounds(steps[3], steps[0] + steps[1] + steps[2])
    net = table.bounds(steps[3], displacement_lengths(points[0], points[3]))
    assert true_ratio(points[3], points[4]) <= float(net) <= float(path)


def test_rejects_what_is_no_move():
    start = snapshot(cloud(3, 2))
    with pytest.raises(ValueError, match="expected clouds of the snapshot's shape"):
        step_bound(start, cloud(4, 2), cloud(4, 2))
    with pytest.raises(ValueError, match="expected 3 lengths"):
        BoundTable.of([start]).bounds(torch.zeros(4))


def test_pairs_alone():
    start = snapshot(torch.tensor([[0.0], [1e-9], [1.0], [3.0], [5.0], [8.0]]))
    assert start.pairs.tolist() == [[0, 1]]
    rows = torch.tensor([[[0.0], [1.0]]])
    assert float(pair_bounds(start, rows, 3 * rows)) == pytest.approx(2.0)
    assert float(pair_bounds(start, 0 * rows, rows)) == math.inf
