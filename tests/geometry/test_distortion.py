"""Step distortion against brute force in float64, and the facts it rests on."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_topo.geometry import StepDistortion, distortions, resolved_critical_ratio, step_distortion


def brute_force(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float, float]:
    """r, a, b by the definition, pair by pair, in float64."""
    x, y = before.double(), after.double()
    r, a, b = 0.0, math.inf, 0.0
    for i, j in itertools.combinations(range(len(x)), 2):
        d, d_after = float((x[i] - x[j]).norm()), float((y[i] - y[j]).norm())
        if d == 0:
            q, ratio = (math.inf, math.inf) if d_after > 0 else (0.0, 1.0)
        else:
            q, ratio = float(((y[i] - x[i]) - (y[j] - x[j])).norm()) / d, d_after / d
        r, a, b = max(r, q), min(a, ratio), max(b, ratio)
    return r, a, b


def assert_matches(step: StepDistortion, truth: tuple[float, float, float]) -> None:
    measured = (step.critical_ratio, step.contraction, step.expansion)
    assert measured == pytest.approx(truth, rel=1e-6, abs=0)


def cloud(n: int, d: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(
    n=st.integers(2, 12),
    d=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-6, 1e-3, 0.3, 3.0]),
    offset=st.sampled_from([0.0, 100.0]),
)
def test_matches_brute_force(n, d, seed, size, offset):
    before = cloud(n, d, seed) + offset
    after = before + size * cloud(n, d, seed + 1)
    assert_matches(step_distortion(before, after), brute_force(before, after))


@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_twins(gap, dtype):
    before = cloud(40, 30, 0, dtype)
    before[20:] = before[:20] + gap * cloud(20, 30, 1, dtype)
    after = before + 1e-3 * cloud(40, 30, 2, dtype)
    after[20:30] = after[:10] + 2 * (before[20:30] - before[:10])
    assert_matches(step_distortion(before, after), brute_force(before, after))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    before = cloud(20, 9, 3, dtype)
    after = before + cloud(20, 9, 4, dtype) / 16
    assert_matches(step_distortion(before, after), brute_force(before, after))


def all_pairs(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float, float]:
    """r, a, b from differences in float64, for clouds without coincident neurons."""

    def lengths(points: torch.Tensor) -> torch.Tensor:
        return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")[above]

    above = torch.ones(len(before), len(before), dtype=torch.bool).triu_(1)
    x, y = before.double(), after.double()
    d, d_after, moved = lengths(x), lengths(y), lengths(y - x)
    return float((moved / d).max()), float((d_after / d).min()), float((d_after / d).max())


STEPS = {
    "tiny": lambda x, noise: x + 1e-6 * noise,
    "large": lambda x, noise: x + 3 * noise,
    "decay": lambda x, noise: 0.999 * x,
    "rows scaled": lambda x, noise: x * (1 + 0.01 * noise[:, :1]),
    "low rank": lambda x, noise: x + 0.1 * noise[:, :1] * noise[0],
}
CLOUDS = {
    "plain": lambda x: x,
    "offset": lambda x: x + 1000,
    "near twins": lambda x: torch.cat([x[::2], x[::2] + 1e-6 * x[1::2]]),
    "clusters": lambda x: x[torch.arange(len(x)) % 5] + 1e-5 * x.roll(1, 0),
    "collapsed": lambda x: x[:1] + 1e-6 * x,
    "scales": lambda x: x * torch.logspace(-6, 3, len(x))[:, None],
}


@pytest.mark.parametrize("shape", CLOUDS)
@pytest.mark.parametrize("kind", STEPS)
def test_many_tiles(kind, shape):
    """Clouds over several tiles, and those for which bounds by float32 products decide little."""
    before = CLOUDS[shape](cloud(600, 24, 5))
    after = STEPS[kind](before, cloud(600, 24, 6))
    assert_matches(step_distortion(before, after), all_pairs(before, after))


@given(power=st.integers(-6, -2), seed=st.integers(0, 10**6), momentum=st.sampled_from([0.0, 0.5]))
@settings(max_examples=10)
def test_fact_2_equal_neurons_stay_equal(power, seed, momentum):
    """On integers and binary fractions no sum is rounded, so the rule is equivariant to the last bit."""
    neurons = cloud(6, 4, seed, torch.float64).round()
    neurons[3:] = neurons[:3]
    neurons.requires_grad_()
    optimizer = torch.optim.SGD([neurons], lr=2.0**power, momentum=momentum)
    inputs = cloud(8, 3, seed + 1, torch.float64).round()
    for _ in range(2):
        before = neurons.detach().clone()
        hidden = (inputs[:, None] * neurons[:, :3]).sum(dim=2).relu()
        loss = ((hidden * neurons[:, 3]).sum(dim=1) - 1).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step = step_distortion(before, neurons)
        assert step.n_coincident >= 3
        assert step.n_split == 0


@given(n=st.integers(2, 10), seed=st.integers(0, 10**6), size=st.floats(1e-4, 2.0))
def test_fact_1_ratio_bounds_contraction_and_expansion(n, seed, size):
    before = cloud(n, 3, seed, torch.float64)
    step = step_distortion(before, before + size * cloud(n, 3, seed + 1, torch.float64))
    slack = 1e-9 * (1 + step.critical_ratio)
    assert 1 - step.critical_ratio <= step.contraction + slack
    assert step.contraction <= step.expansion <= 1 + step.critical_ratio + slack
    if step.critical_ratio < 1:
        assert step.certified
        assert step.n_merged == 0


@given(n=st.integers(2, 8), d=st.integers(1, 4), seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_isometry_and_scale(n, d, seed):
    before, after = cloud(n, d, seed, torch.float64), cloud(n, d, seed + 1, torch.float64)
    q, _ = torch.linalg.qr(cloud(d, d, seed + 2, torch.float64))
    plain = step_distortion(before, after)
    moved = step_distortion(3 * before @ q + 5, 3 * after @ q + 5)
    assert moved.critical_ratio == pytest.approx(plain.critical_ratio, rel=1e-9)
    assert moved.log_distortion == pytest.approx(plain.log_distortion, rel=1e-9, abs=1e-12)


def test_pairs_attain_the_values():
    before, after = cloud(30, 5, 0), cloud(30, 5, 1)
    step = step_distortion(before, after)
    for pair, value, moved in [
        (step.critical_pair, step.critical_ratio, after - before),
        (step.contraction_pair, step.contraction, after),
        (step.expansion_pair, step.expansion, after),
    ]:
        assert pair is not None
        i, j = pair
        ratio = (moved[i] - moved[j]).norm() / (before[i] - before[j]).norm()
        assert float(ratio) == pytest.approx(value, rel=1e-5)


def test_coincident_neurons_that_stay_together():
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    step = step_distortion(before, 2 * before)
    assert (step.n_coincident, step.n_split, step.n_merged) == (1, 0, 0)
    assert (step.critical_ratio, step.contraction, step.expansion) == (1.0, 1.0, 2.0)


def test_split_and_merge():
    before = torch.tensor([[1.0], [1.0], [5.0], [6.0]])
    after = torch.tensor([[1.0], [2.0], [7.0], [7.0]])
    step = step_distortion(before, after)
    assert (step.n_coincident, step.n_split, step.n_merged) == (1, 1, 1)
    assert step.critical_ratio == step.expansion == step.log_distortion == math.inf
    assert step.critical_pair == step.expansion_pair == (0, 1)
    assert (step.contraction, step.contraction_pair) == (0.0, (2, 3))
    assert not step.certified


@pytest.mark.parametrize("n", [0, 1])
def test_no_pair_gives_identity_values(n):
    step = step_distortion(torch.zeros(n, 3), torch.ones(n, 3))
    assert (step.critical_ratio, step.contraction, step.expansion, step.log_distortion) == (0, 1, 1, 0)
    assert step.critical_pair is step.contraction_pair is step.expansion_pair is None
    assert step.certified


def test_no_step_is_the_identity():
    before = cloud(10, 4, 0)
    step = step_distortion(before, before.clone())
    assert (step.critical_ratio, step.contraction, step.expansion) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("n", [12, 64, 600])
@pytest.mark.parametrize(
    ("here", "there"), [(3.3e38, 1.0), (3.3e38, 3.3e38), (1.0, 1e15), (1e-38, 1e-38), (1e-44, 1e-44)]
)
def test_numbers_at_the_ends_of_single_precision(n, here, there):
    """As a run that explodes has them, a step before its weights are infinite."""
    generator = torch.Generator().manual_seed(0)
    before, after = (2.0 * torch.rand(2, n, 5, generator=generator, dtype=torch.float64) - 1.0).unbind()
    before, after = (before * here).float(), (after * there).float()
    i, j = torch.triu_indices(n, n, 1)
    x, moved = before.double(), after.double() - before.double()
    wanted = float(((moved[i] - moved[j]).norm(dim=1) / (x[i] - x[j]).norm(dim=1)).max())
    assert step_distortion(before, after).critical_ratio == pytest.approx(wanted, rel=1e-4)
    assert resolved_critical_ratio(before, after, 1e-7) == pytest.approx(wanted, rel=1e-4)


def test_bad_input():
    good = torch.zeros(4, 2)
    bad = good.clone()
    bad[2, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 4 rows: 2"):
        step_distortion(good, bad)


def test_inputs_are_left_alone():
    before = cloud(6, 3, 0).requires_grad_()
    after = (2 * before.detach()).t().contiguous().t()
    copy = after.clone()
    assert step_distortion(before, after).expansion == pytest.approx(2.0)
    assert torch.equal(after, copy)


@pytest.mark.parametrize("shape", CLOUDS)
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("n", [16, 300, 600])
def test_step_and_total_together_are_as_each_alone(kind, shape, n):
    """Blocks of one tensor, small and large; with what a snapshot takes."""
    start = torch.stack([CLOUDS[shape](cloud(n, 24, seed)) for seed in (5, 7)])
    before = torch.stack([STEPS["large"](x, cloud(n, 24, 8)) for x in start])
    after = torch.stack([STEPS[kind](x, cloud(n, 24, 6)) for x in before])
    found = distortions(before, after, start)
    for block, (x, y, z) in enumerate(zip(before, after, start, strict=True)):
        assert_matches(found.step[block], all_pairs(x, y))
        total = found.total[block]
        assert (total.contraction, total.expansion) == pytest.approx(all_pairs(z, y)[1:], rel=1e-6, abs=0)
        assert math.isnan(total.critical_ratio)
    least = torch.cdist(after.double(), after.double(), compute_mode="donot_use_mm_for_euclid_dist")
    least = least.masked_fill(torch.eye(n, dtype=torch.bool), math.inf).amin(dim=2)
    assert bool((found.nearest <= least).all())
    clear = (least > 1.1 * found.resolved) & (least > 0)
    assert bool((found.nearest >= 0.97 * least)[clear].all())


@pytest.mark.parametrize("n", [20, 300])
def test_clouds_that_rest(n):
    truth = brute_force if n < 100 else all_pairs  # pair by pair in Python takes seconds
    start = cloud(n, 9, 0)[None]
    end = 2 * start + start.roll(1, 1)
    assert distortions(start, start, start).step[0] == step_distortion(start[0], start[0])
    for before, after in ((start, end), (end, end)):
        found = distortions(before, after, start)
        assert_matches(found.step[0], truth(before[0], after[0]))
        assert found.total[0].expansion == pytest.approx(truth(start[0], end[0])[2], rel=1e-6)


@pytest.mark.parametrize("n", [40, 600])
@pytest.mark.parametrize("gap", [1e-20, 1e-25, 1e-37])
def test_pruned_neurons_that_part(n, gap):
    """Two pruned neurons, one not quite zero: ratios beyond the range of float32."""
    before = cloud(n, 17, 0)
    before[:2] = 0
    before[0, 0] = gap
    after = before + 1e-3 * cloud(n, 17, 1)
    step = step_distortion(before, after)
    truth = float((after[0] - after[1]).double().norm()) / gap
    assert step.critical_ratio == pytest.approx(truth, rel=1e-3)
    assert step.critical_pair == (0, 1)
    assert step.contraction == pytest.approx(all_pairs(before, after)[1], rel=1e-6)


@pytest.mark.parametrize("n", [5, 100])
def test_distances_whose_squares_vanish_are_bounded_from_below(n):
    x = 1e-161 * cloud(n, 3, seed=1).double()[None]
    found = distortions(x, 1.5 * x, None)
    apart = torch.cdist(1.5e161 * x[0], 1.5e161 * x[0]).fill_diagonal_(math.inf)
    least = 1e-161 * apart.amin(dim=1)
    assert bool((found.nearest[0] <= least).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e-18, 1e-24, 1e-30])
@pytest.mark.parametrize("n", [3, 150])
def test_a_cloud_that_collapses_is_never_certified_however_small_it_is(dtype, size, n):
    before = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)).to(dtype) * size
    before[1] = before[0]
    step = step_distortion(before, torch.zeros_like(before))
    assert (step.critical_ratio, step.contraction, step.expansion, step.certified) == (1.0, 0.0, 1.0, False)
    assert (step.n_coincident, step.n_split, step.n_merged) == (1, 0, n * (n - 1) // 2 - 1)


@pytest.mark.parametrize("size", [1e-150, 1e-158, 1e-161, 1e-200, 1e-300])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("n", [6, 150])
def test_squares_that_would_vanish_hide_no_critical_pair(size, alone, n):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    before *= size if alone else 1.0
    before[:2] = torch.tensor([[1.0, 0.0], [3.0, 2.0]], dtype=torch.float64) * (size if not alone else size / 100)
    swapped = before.clone()
    swapped[:2] = before[:2].flip(0)
    step = step_distortion(before, swapped)
    assert (step.critical_ratio, step.certified) == (pytest.approx(2.0, rel=1e-12), False)
    joined = before.clone()
    joined[0] = before[1]
    step = step_distortion(before, joined)
    assert (step.critical_ratio, step.contraction, step.n_merged, step.certified) == (
        pytest.approx(1.0, rel=1e-12),
        0.0,
        1,
        False,
    )
