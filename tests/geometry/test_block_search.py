"""Many small clouds searched at once: each as all of its pairs have it, or named as not resolved."""

import math

import pytest
import torch

from lightning_topo.geometry._block_search import search_blocks


def cloud(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def truth(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q and d'/d of all pairs in float64, NaN on the diagonal."""
    x, y = before.double(), after.double()
    here, there = (z[:, None] - z[None] for z in (x, y))
    far = here.norm(dim=2)
    return (there - here).norm(dim=2) / far, there.norm(dim=2) / far


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "d"), [(2, 1), (7, 40), (60, 5)])
@pytest.mark.parametrize("size", [1e-3, 0.1, 4.0])
def test_every_resolved_block_has_the_extremes_of_its_pairs(dtype, n, d, size):
    before = cloud(6, n, d, dtype=dtype) + (1.0 if dtype is torch.float32 else 0.0)
    after = (before.double() + size * cloud(6, n, d, seed=1).double()).to(dtype)
    found = search_blocks(before, after)
    assert len(found.extremes) == len(found.resolved) == 6
    if dtype is not torch.bfloat16:
        assert all(found.resolved)
    for block in range(6):
        if not found.resolved[block]:
            continue
        q, ratio = truth(before[block], after[block])
        one = found.extremes[block]
        for extreme, values, wanted in (
            (one.critical, q, q.nan_to_num(-1).max()),
            (one.expansion, ratio, ratio.nan_to_num(-1).max()),
            (one.contraction, ratio, ratio.nan_to_num(math.inf, posinf=math.inf).min()),
        ):
            assert extreme.value == pytest.approx(float(wanted), rel=1e-6)
            assert float(values[extreme.pair]) == pytest.approx(extreme.value, rel=1e-6)
            assert extreme.pair[0] < extreme.pair[1]


def test_a_block_whose_neurons_nearly_coincide_is_left_to_others_and_harms_none():
    before = cloud(4, 8, 5)
    after = before + 0.1 * cloud(4, 8, 5, seed=1)
    before[1, 3] = before[1, 2]  # equal before
    after[2, 3] = after[2, 2]  # equal after
    before[3, 5] = before[3, 4] + 1e-6
    found = search_blocks(before, after)
    assert found.resolved == (True, False, False, False)
    q, _ = truth(before[0], after[0])
    assert found.extremes[0].critical.value == pytest.approx(float(q.nan_to_num(-1).max()), rel=1e-6)


def test_where_the_ratio_is_all_but_one_rounding_must_not_decide():
    """One neuron goes to the place of another, all but: r a little below 1; the others are clear."""
    before = torch.tensor([[[0.0], [1.0], [9.0]]]).repeat(3, 1, 1)
    after = before.clone()
    for block, r in enumerate((1 - 1e-6, 1.3, 0.9)):
        after[block, 1] = 1 - r
    found = search_blocks(before.double(), after.double())
    assert found.resolved == (False, True, True)


def test_a_step_of_nothing_is_not_resolved_by_its_own_rounding():
    before = cloud(1, 5, 3)
    assert search_blocks(before, before.clone()).resolved == (False,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_is_below_the_distance_after_the_step_and_good_where_it_is_clear(dtype):
    before = cloud(5, 20, 6, dtype=dtype)
    after = before + 0.3 * cloud(5, 20, 6, seed=1, dtype=dtype)
    after[2, 7] = after[2, 6]
    found = search_blocks(before, after)
    y = after.double()
    least = torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist")
    least = least.masked_fill(torch.eye(20, dtype=torch.bool), math.inf).amin(dim=2)
    assert bool((found.nearest <= least).all())
    clear = least > found.clear
    assert int((~clear).sum()) == 2
    assert bool((found.nearest >= 0.99 * least)[clear].all())
