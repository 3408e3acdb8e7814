"""The fate of neurons against counting pair by pair, and the laws that counts must obey."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.geometry import _fate as fate
from lightning_topo.geometry import distinct_neurons, neuron_fate
from lightning_topo.geometry._fate import (
    aligned_clusters,
    effective_neurons,
    independent_neurons,
    multiplicity,
    vanishing_neurons,
)


def cloud(seed: int, n: int, d: int) -> torch.Tensor:
    """Neurons of all sizes, some near or equal to others, some aligned, some zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x *= torch.exp(torch.randn(n, 1, generator=generator, dtype=torch.float64))
    for i in range(1, n):
        other, kind = int(torch.randint(i, (), generator=generator)), int(torch.randint(6, (), generator=generator))
        if kind == 0:
            x[i] = x[other]
        elif kind == 1:
            x[i] = x[other] * (1 + 0.3 * torch.rand((), generator=generator, dtype=torch.float64))
        elif kind == 2:
            x[i] = x[other] + 0.2 * x[i] * x[other].norm() / x[i].norm()
        elif kind == 3 and i % 5 == 0:
            x[i] = 0
    return x


clouds = st.builds(cloud, st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 6))


def components(n: int, joined) -> list[int]:
    """Sizes of the components of a graph on n vertices, by flooding."""
    left, sizes = set(range(n)), []
    while left:
        stack, size = [left.pop()], 0
        while stack:
            i = stack.pop()
            size += 1
            near = {j for j in left if joined(i, j)}
            left -= near
            stack += near
        sizes.append(size)
    return sizes


def independent_by_pairs(x: torch.Tensor, threshold: float) -> int:
    kept: list[torch.Tensor] = []
    for a in sorted(x, key=lambda row: -float(row.square().sum())):
        if all(
            float(a.square().sum() + b.square().sum()) > 0
            and float(2 * (a - b).square().sum() / (a.square().sum() + b.square().sum())) >= threshold
            for b in kept
        ):
            kept.append(a)
    return len(kept)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@given(clouds, st.sampled_from([0.03, 0.1, 0.5]))
def test_independent_neurons_by_pairs(x, threshold):
    assert independent_neurons(x, threshold) == independent_by_pairs(x, threshold)


@given(clouds, st.sampled_from([0.05, 0.1, 0.6]))
def test_vanishing_neurons_by_their_norms(x, threshold):
    norms = [float(row.norm()) for row in x]
    assert vanishing_neurons(x, threshold) == sum(a == 0 or a < threshold * max(norms) for a in norms)


@given(clouds, st.sampled_from([0.5, 0.9, 0.95]))
def test_aligned_clusters_by_flooding(x, threshold):
    rows = [row for row in x if row.norm() > 0]
    expected = components(len(rows), lambda i, j: cosine(rows[i], rows[j]) > threshold)
    assert aligned_clusters(x, threshold) == len(expected)


@given(clouds)
def test_effective_neurons_by_eigenvalues(x):
    if len(x) < 2 or (x - x.mean(0)).norm(dim=1).max() < 1e-12 * x.norm(dim=1).max() or not x.any():
        return
    spectrum = torch.linalg.svdvals(x - x.mean(0)).square()
    assert effective_neurons(x) == pytest.approx(float(spectrum.sum() ** 2 / spectrum.square().sum()), rel=1e-9)


@given(clouds)
def test_multiplicity_is_the_classes_of_distinct_neurons(x):
    eps = 8 * torch.finfo(x.dtype).eps
    sizes = components(len(x), lambda i, j: float((x[i] - x[j]).norm()) <= eps * float(max(x[i].norm(), x[j].norm())))
    found = multiplicity(x)
    assert found == tuple(sorted((s for s in sizes if s > 1), reverse=True))
    assert len(x) - sum(found) + len(found) == distinct_neurons(x)


@given(clouds, st.randoms(use_true_random=False))
def test_the_order_of_neurons_does_not_matter(x, random):
    order = list(range(len(x)))
    random.shuffle(order)
    here, there = neuron_fate(x, x), neuron_fate(x[order], x[order])
    assert there.effective_neurons == pytest.approx(here.effective_neurons, rel=1e-9)
    for name in ("independent_neurons", "vanishing_neurons", "aligned_clusters", "multiplicity"):
        assert getattr(here, name) == getattr(there, name)


def test_ties_of_norm_do_not_let_the_order_in():
    angles = torch.arange(12, dtype=torch.float64) * 0.2
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    x /= x.norm(dim=1, keepdim=True)
    counts = {independent_neurons(x[torch.randperm(12, generator=torch.Generator().manual_seed(s))]) for s in range(20)}
    assert len(counts) == 1


@given(clouds, st.integers(-300, 300))
def test_scale_does_not_matter(x, power):
    scaled = x * 2.0**power
    assert neuron_fate(x, x) == neuron_fate(scaled, scaled)


@given(clouds)
def test_bounds(x):
    found = neuron_fate(x, x)
    n, d = x.shape
    assert min(n, 1) <= found.independent_neurons <= distinct_neurons(x)
    assert 0 <= found.effective_neurons <= max(min(n - 1, d), 0) + 1e-9
    assert min(n, 1) <= found.largest_multiplicity <= n
    assert not found.subsampled


def test_tiles_join_across_their_borders(monkeypatch):
    x = cloud(3, 40, 4)
    whole = neuron_fate(x, x)
    monkeypatch.setattr(fate, "_TILE", 7)
    tiled = neuron_fate(x, x)
    assert tiled.effective_neurons == pytest.approx(whole.effective_neurons, rel=1e-12)
    assert (tiled.independent_neurons, tiled.aligned_clusters) == (whole.independent_neurons, whole.aligned_clusters)
    assert tiled.aligned_clusters == len(
        components(int((x.norm(dim=1) > 0).sum()), lambda i, j: cosine(*x[x.norm(dim=1) > 0][[i, j]]) > 0.95)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_known_clouds_in_every_dtype(dtype):
    corners = torch.eye(8, dtype=dtype)
    found = neuron_fate(torch.cat([corners, corners[:3], 0.01 * corners[:2]]), torch.cat([corners, corners[:5]]))
    assert (found.independent_neurons, found.vanishing_neurons, found.aligned_clusters) == (10, 2, 8)
    assert found.multiplicity == (2, 2, 2)
    assert effective_neurons(corners) == pytest.approx(7.0, rel=1e-2)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_equal_neurons_are_one(value):
    found = neuron_fate(torch.full((9, 3), value), torch.full((9, 3), value))
    assert (found.independent_neurons, found.effective_neurons, found.largest_multiplicity) == (1, 0.0, 9)
    assert found.aligned_clusters == (1 if value else 0)
    assert found.vanishing_neurons == (0 if value else 9)


def test_no_neurons():
    assert neuron_fate(torch.zeros(0, 3)).largest_multiplicity == 0
    assert math.isclose(effective_neurons(torch.zeros(0, 3)), 0.0)


def test_a_sample_says_that_it_is_one():
    x = cloud(0, 40, 3)
    found = neuron_fate(x, max_neurons=10, generator=torch.Generator().manual_seed(5))
    chosen = torch.randperm(40, generator=torch.Generator().manual_seed(5))[:10]
    assert (found.n, found.n_measured, found.subsampled) == (40, 10, True)
    assert found.independent_neurons == independent_neurons(x[chosen])
    assert neuron_fate(x, max_neurons=10) == neuron_fate(x, max_neurons=10)


def test_what_is_refused():
    with pytest.raises(ValueError, match="expected incoming weights of 3 neurons, got 2 rows"):
        neuron_fate(torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="expected max_neurons >= 1, got 0"):
        neuron_fate(torch.zeros(3, 2), max_neurons=0)
    with pytest.raises(ValueError, match="expected 0 < threshold < 2, got 2"):
        neuron_fate(torch.zeros(3, 2), independence=2.0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        neuron_fate(torch.full((3, 2), math.nan))


def test_weights_that_shrink_are_seen_to_vanish():
    """Twenty-nine of 128 neurons die; the count of distinct ones cannot see it."""
    x = torch.randn(128, 16, generator=torch.Generator().manual_seed(0))
    x[:29] *= 1e-3
    assert (vanishing_neurons(x), distinct_neurons(x)) == (29, 128)
