"""Curves, landscapes and images against their definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_topo.homology import (
    Bars,
    PersistenceDiagram,
    betti_curve,
    betti_number,
    bottleneck,
    crocker,
    landscape,
    persistence_image,
)

SCALES = torch.linspace(0, 3, 13)


def diagram(n: int, seed: int, essential: int = 1) -> PersistenceDiagram:
    generator = torch.Generator().manual_seed(seed)
    births = torch.rand(n + essential, generator=generator)
    deaths = births + 2 * torch.rand(n + essential, generator=generator)
    deaths[n:] = math.inf
    return PersistenceDiagram((Bars(births, deaths),), n, 3.0)


@given(n=st.integers(0, 12), seed=st.integers(0, 10**6))
def test_betti_curve_is_the_betti_number_at_each_scale(n, seed):
    bars = diagram(n, seed)
    expected = [betti_number(bars, 0, float(scale)) for scale in SCALES]
    assert betti_curve(bars, 0, SCALES).tolist() == expected


def test_crocker_stacks_curves():
    diagrams = [diagram(5, seed) for seed in range(3)]
    matrix = crocker(diagrams, 0, SCALES)
    assert matrix.shape == (3, 13)
    assert torch.equal(matrix[1], betti_curve(diagrams[1], 0, SCALES))
    assert crocker([], 0, SCALES).shape == (0, 13)


@given(n=st.integers(0, 8), m=st.integers(0, 8), seed=st.integers(0, 10**6))
@settings(deadline=None)
def test_landscapes_are_ordered_and_1_lipschitz(n, m, seed):
    a, b = diagram(n, seed), diagram(m, seed + 1)
    x, y = landscape(a, 0, SCALES), landscape(b, 0, SCALES)
    assert x.shape == (5, 13)
    assert (x[:-1] >= x[1:]).all()
    # Births differ, as they do from dimension 1 on.
    empty = Bars(SCALES[:0], SCALES[:0])
    lifted = [PersistenceDiagram((empty, d[0].finite()), 0, 3.0) for d in (a, b)]
    assert (x - y).abs().max() <= bottleneck(*lifted, 1) + 1e-6


def test_landscape_of_one_bar():
    bars = PersistenceDiagram((Bars(torch.tensor([1.0]), torch.tensor([3.0])),), 1, 3.0)
    assert landscape(bars, 0, torch.tensor([0.0, 1.5, 2.0, 4.0]), depth=2).tolist() == [
        [0, 0.5, 1, 0],
        [0] * 4,
    ]


def test_image_sums_weighted_densities():
    bars = diagram(6, 0)
    births, lifetimes = torch.linspace(0, 1, 4), torch.linspace(0, 2, 5)
    expected = torch.zeros(4, 5)
    finite = bars[0].finite()
    for birth, lifetime in zip(finite.births, finite.lifetimes, strict=True):
        squares = (births[:, None] - birth) ** 2 + (lifetimes - lifetime) ** 2
        expected += lifetime * torch.exp(-squares / (2 * 0.3**2)) / (2 * math.pi * 0.3**2)
    torch.testing.assert_close(persistence_image(bars, 0, births, lifetimes, 0.3), expected)


def test_image_integrates_to_total_persistence():
    bars = diagram(6, 1)
    grid = torch.linspace(-3, 6, 300)
    step = float(grid[1] - grid[0])
    image = persistence_image(bars, 0, grid, grid, 0.2)
    total = float(bars[0].finite().lifetimes.sum())
    assert float(image.sum()) * step**2 == pytest.approx(total, rel=1e-4)


def test_bad_arguments():
    with pytest.raises(ValueError, match="depth >= 1"):
        landscape(diagram(1, 0), 0, SCALES, depth=0)
    with pytest.raises(ValueError, match="bandwidth > 0"):
        persistence_image(diagram(1, 0), 0, SCALES, SCALES, 0.0)
