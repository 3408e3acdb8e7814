"""Log-bottleneck distance against closed forms, and fact 5's bound."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_topo.geometry import step_distortion
from lightning_topo.homology import (
    Bars,
    PersistenceDiagram,
    available_engines,
    log_bottleneck,
    persistence,
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
    bound = max(math.log(step.expansion), -math.log(step.contraction))
    a, b = persistence(before), persistence(after)
    for k in (0, 1):
        assert log_bottleneck(a, b, k) <= bound + 1e-6


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
