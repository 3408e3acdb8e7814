"""Distances between diagrams against brute force and closed forms; facts 5 and 6."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from lightning_topo.geometry import step_distortion
from lightning_topo.homology import (
    Bars,
    PersistenceDiagram,
    available_engines,
    bottleneck,
    log_bottleneck,
    log_bottleneck_bound,
    persistence,
    wasserstein,
)

needs_engine = pytest.mark.skipif(not available_engines(), reason="H1 needs an engine")


def cloud(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@needs_engine
@given(n=st.integers(2, 14), seed=st.integers(0, 10**6), size=st.sampled_from([1e-3, 0.05, 0.3]))
@settings(max_examples=40, deadline=None)
def test_fact_5_distortion_bounds_log_bottleneck(n, seed, size):
    before = cloud(n, 2, seed)
    after = before + size * cloud(n, 2, seed + 1)
    step = step_distortion(before, after)
    a, b = persistence(before), persistence(after)
    rescaled = persistence(after / math.sqrt(step.expansion * step.contraction))
    for k in (0, 1):
        assert log_bottleneck(a, b, k) <= log_bottleneck_bound(step) + 1e-6
        assert log_bottleneck(a, rescaled, k) <= step.log_distortion / 2 + 1e-6


@needs_engine
@given(n=st.integers(5, 25), k=st.integers(1, 10), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_fact_6_landmarks_are_within_twice_their_radius(n, k, seed):
    points = cloud(n, 2, seed)
    full, sparse = persistence(points), persistence(points, max_landmarks=k)
    for dim in (0, 1):
        assert bottleneck(full, sparse, dim) <= 2 * sparse.covering_radius + 1e-6


def test_merged_step_has_no_bound():
    before, after = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [0.0], [3.0]])
    assert log_bottleneck_bound(step_distortion(before, after)) == math.inf


@needs_engine
def test_scaling_shifts_by_the_logarithm():
    points = cloud(20, 2, 0)
    a, b = persistence(points), persistence(1.1 * points)
    assert len(a[1]) > 0
    assert log_bottleneck(a, b, 0) == pytest.approx(math.log(1.1), rel=1e-6)
    longest = max(math.log(death / birth) for birth, death in zip(a[1].births, a[1].deaths, strict=True))
    assert log_bottleneck(a, b, 1) == pytest.approx(min(math.log(1.1), longest / 2), rel=1e-6)
    assert log_bottleneck(a, a, 1) == 0


def test_infinite_where_neurons_merged():
    before, after = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [0.0], [3.0]])
    a, b = (persistence(points, max_dim=0) for points in (before, after))
    assert log_bottleneck(a, b, 0) == math.inf
    assert log_bottleneck(b, b, 0) == 0
    assert log_bottleneck(a, persistence(before[:2], max_dim=0), 0) == math.inf


def intervals(n: int, seed: int) -> PersistenceDiagram:
    births = 1 + torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    deaths = births * (1 + torch.rand(n, generator=torch.Generator().manual_seed(seed + 1)))
    return PersistenceDiagram((Bars(births[:0], births[:0]), Bars(births, deaths)), n, 4.0)


@given(n=st.integers(0, 12), m=st.integers(0, 12), seed=st.integers(0, 10**6))
@settings(deadline=None)
def test_h1_matches_hera(n, m, seed):
    hera = pytest.importorskip("gudhi.hera")
    a, b = intervals(n, seed), intervals(m, seed + 2)
    logs = [torch.stack([x[1].births, x[1].deaths], 1).log().numpy() for x in (a, b)]
    assert log_bottleneck(a, b, 1) == pytest.approx(hera.bottleneck_distance(*logs, delta=0.0), rel=1e-9)
    plain = [torch.stack([x[1].births, x[1].deaths], 1).numpy() for x in (a, b)]
    assert bottleneck(a, b, 1) == pytest.approx(hera.bottleneck_distance(*plain, delta=0.0), rel=1e-9)


def by_assignment(a: PersistenceDiagram, b: PersistenceDiagram, k: int, order: float) -> float:
    """Wasserstein distance as one assignment of all bars and all projections to the diagonal."""
    x, y = (d[k].finite() for d in (a, b))
    n, m = len(x), len(y)
    cost = np.zeros((n + m, n + m))
    cost[:n, :m] = np.maximum(
        (x.births[:, None] - y.births).abs().numpy(), (x.deaths[:, None] - y.deaths).abs().numpy()
    )
    cost[:n, m:] = x.lifetimes.numpy()[:, None] / 2
    cost[n:, :m] = y.lifetimes.numpy() / 2
    i, j = linear_sum_assignment(cost**order)
    return float((cost[i, j] ** order).sum() ** (1 / order))


@given(
    n=st.integers(0, 9), m=st.integers(0, 9), seed=st.integers(0, 10**6), order=st.sampled_from([1.0, 2.0])
)
@settings(deadline=None)
def test_wasserstein_is_the_best_assignment(n, m, seed, order):
    a, b = intervals(n, seed), intervals(m, seed + 2)
    assert wasserstein(a, b, 1, order) == pytest.approx(by_assignment(a, b, 1, order), rel=1e-9, abs=1e-12)
    assert wasserstein(a, a, 1, order) == 0
    assert bottleneck(a, b, 1) <= wasserstein(a, b, 1, order) + 1e-12


@given(n=st.integers(1, 9), m=st.integers(1, 9), seed=st.integers(0, 10**6))
@settings(deadline=None)
def test_h0_rank_formula_is_the_bottleneck(n, m, seed):
    a, b = persistence(cloud(n, 2, seed), 0), persistence(cloud(m, 2, seed + 1), 0)
    empty = a[0].births[:0]
    lifted = [PersistenceDiagram((Bars(empty, empty), d[0].finite()), 0, 1.0) for d in (a, b)]
    assert bottleneck(a, b, 0) == pytest.approx(bottleneck(*lifted, 1), rel=1e-9, abs=1e-12)


def test_essential_bars_match_each_other():
    one = PersistenceDiagram.from_numpy([np.array([[0.0, np.inf]])], 1, 0.0)
    shifted = PersistenceDiagram.from_numpy([np.array([[0.5, np.inf]])], 1, 0.0)
    two = PersistenceDiagram.from_numpy([np.array([[0.0, np.inf], [0.0, np.inf]])], 2, 0.0)
    for distance in (bottleneck, wasserstein):
        assert distance(one, shifted, 0) == 0.5
        assert distance(one, two, 0) == math.inf
    with pytest.raises(ValueError, match="order >= 1"):
        wasserstein(one, two, 0, order=0.5)


@given(n=st.integers(3, 15), seed=st.integers(0, 10**6), factor=st.sampled_from([0.01, 2.0, 1000.0]))
@settings(max_examples=30, deadline=None)
@needs_engine
def test_isometry_and_scale_laws(n, seed, factor):
    points = cloud(n, 3, seed)
    rotation = torch.linalg.qr(cloud(3, 3, seed + 1))[0]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    plain, moved = persistence(points), persistence(points[order] @ rotation + 7)
    scaled = persistence(factor * points)
    for k in (0, 1):
        assert bottleneck(plain, moved, k) <= 1e-6 * plain.diameter
        for name in ("births", "deaths"):
            before, after = (getattr(diagram[k], name).sort().values for diagram in (plain, scaled))
            torch.testing.assert_close(after, factor * before, rtol=1e-6, atol=0)
