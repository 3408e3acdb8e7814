"""H0 by every route against scipy's single linkage in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage

from lightning_topo.geometry import pairwise_distances
from lightning_topo.homology import h0_deaths
from lightning_topo.homology._h0 import _boruvka


def by_matrix(points: torch.Tensor) -> torch.Tensor:
    return h0_deaths(points)


def by_neighbour_lists(points: torch.Tensor) -> torch.Tensor:
    return h0_deaths(points, matrix_bytes=0)


def by_boruvka_on_matrix(points: torch.Tensor) -> torch.Tensor:
    """What an accelerator runs."""
    distances = pairwise_distances(points)

    def nearest_outside(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nearest, neighbours = distances.masked_fill(labels[:, None] == labels, torch.inf).min(dim=1)
        return nearest, neighbours

    return _boruvka(torch.arange(len(points)), nearest_outside).sort().values


ROUTES = [by_matrix, by_neighbour_lists, by_boruvka_on_matrix]


def cloud(kind: str, n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=generator)
    half = points[: n - n // 2]
    match kind:
        case "tied":
            return points.mul(2).round()
        case "duplicated":
            return torch.cat([half, half])[:n]
        case "near twins":
            return torch.cat([half, half + 1e-6 * points[: len(half)].flip(0)])[:n]
        case "collapsed":
            return points[:1] + 1e-6 * points
        case "offset":
            return points + 1000
    return points


KINDS = ["plain", "tied", "duplicated", "near twins", "collapsed", "offset"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("route", ROUTES)
def test_every_death(route, kind):
    points = cloud(kind, 300, 8, seed=1)
    truth = np.sort(linkage(points.double().numpy(), "single")[:, 2])
    np.testing.assert_allclose(route(points).double().numpy(), truth, rtol=1e-6)


@given(kind=st.sampled_from(KINDS), n=st.integers(2, 40), d=st.integers(1, 4), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_routes_agree(kind, n, d, seed):
    points = cloud(kind, n, d, seed)
    expected = by_matrix(points)
    assert len(expected) == n - 1
    for route in ROUTES[1:]:
        torch.testing.assert_close(route(points), expected, rtol=1e-6, atol=0)


@given(n=st.integers(2, 20), seed=st.integers(0, 10**6), factor=st.sampled_from([2.0**-60, 3.0, 2.0**50]))
@settings(deadline=None, max_examples=30)
def test_isometry_and_scale(n, seed, factor):
    points = cloud("plain", n, 3, seed).double()
    rotation = torch.linalg.qr(cloud("plain", 3, 3, seed + 1).double())[0]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    moved = factor * (points[order] @ rotation + 4)
    torch.testing.assert_close(h0_deaths(moved), factor * h0_deaths(points), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_follows_the_cloud(dtype):
    deaths = h0_deaths(torch.tensor([[0.0], [1.0], [3.0]], dtype=dtype))
    assert deaths.tolist() == [1, 2]
    assert deaths.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("route", ROUTES[:2])
@pytest.mark.parametrize("n", [0, 1])
def test_no_pair_no_death(route, n):
    assert route(torch.zeros(n, 3)).tolist() == []
