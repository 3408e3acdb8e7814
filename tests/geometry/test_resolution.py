"""The critical ratio over the pairs that rounding can tell apart, against brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_topo.geometry import resolved_critical_ratio, step_distortion


def brute_force(before, after, resolution):
    x, y = before.double(), after.double()
    i, j = torch.triu_indices(len(x), len(x), 1)
    d, moved = (x[i] - x[j]).norm(dim=1), ((y - x)[i] - (y - x)[j]).norm(dim=1)
    counts = d > resolution * torch.maximum(x[i].norm(dim=1), x[j].norm(dim=1))
    return float((moved / d)[counts].max()) if counts.any() else 0.0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 40),
    near=st.sampled_from([0.0, 1e-8, 1e-7, 1e-5]),
    step=st.sampled_from([1e-6, 1e-2, 3.0]),
)
def test_it_is_the_maximum_over_the_pairs_that_count(seed, n, near, step):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(n, 5, generator=generator)
    before[n // 2 :] = before[: n - n // 2] * (1 + near)
    after = before + step * torch.randn(n, 5, generator=generator)
    for resolution in (0.0, 2.0**-22):
        truth = brute_force(before, after, resolution)
        assert resolved_critical_ratio(before, after, resolution) == pytest.approx(truth, rel=1e-6)


def test_without_near_pairs_it_is_the_critical_ratio():
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(50, 7, generator=generator)
    after = before + 0.1 * torch.randn(50, 7, generator=generator)
    assert resolved_critical_ratio(before, after, 1e-6) == step_distortion(before, after).critical_ratio


def test_equal_neurons_that_split_do_not_count():
    before = torch.ones(4, 3)
    after = before + torch.arange(12.0).view(4, 3)
    assert step_distortion(before, after).critical_ratio == math.inf
    assert resolved_critical_ratio(before, after) == 0.0


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="resolution"):
        resolved_critical_ratio(torch.ones(2, 1), torch.ones(2, 1), -1.0)
    with pytest.raises(ValueError, match="finite"):
        resolved_critical_ratio(torch.ones(2, 1), torch.full((2, 1), math.nan))
