"""Rips persistence against ripser and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import linkage

from lightning_topo.geometry import pairwise_distances
from lightning_topo.homology import _rips as rips
from lightning_topo.homology import available_engines, betti_number, persistence, rips_task

ENGINES = available_engines()
needs_engine = pytest.mark.skipif(not ENGINES, reason="H1 needs an engine")


def cloud(kind: str, n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=generator)
    if kind == "tied":
        points = points.round()
    elif kind == "duplicated":
        points[n // 2 :] = points[: n - n // 2]
    elif kind == "clustered":
        points = 1e-3 * points + torch.randint(0, 3, (n, 1), generator=generator)
    return points


@pytest.mark.parametrize("engine", ENGINES)
def test_circle(engine):
    angles = torch.arange(12) * 2 * math.pi / 12
    diagram = persistence(torch.stack([angles.cos(), angles.sin()], dim=1), engine=engine)
    assert diagram[0].deaths[:-1].tolist() == pytest.approx([2 * math.sin(math.pi / 12)] * 11, rel=1e-6)
    assert diagram[0].deaths[-1] == math.inf
    assert diagram[1].births.tolist() == pytest.approx([2 * math.sin(math.pi / 12)], rel=1e-6)
    assert diagram[1].deaths.tolist() == pytest.approx([2 * math.sin(4 * math.pi / 12)], rel=1e-6)
    assert (diagram.engine, diagram.n_points, diagram.exact, diagram.covering_radius) == (engine, 12, True, 0)
    assert diagram.diameter == pytest.approx(2)


@pytest.mark.parametrize("kind", ["random", "tied", "duplicated", "clustered"])
@pytest.mark.parametrize("engine", ENGINES)
def test_matches_ripser(kind, engine):
    ripser = pytest.importorskip("ripser").ripser
    points = cloud(kind, 24, 3)
    distances = pairwise_distances(points).numpy()
    truth = ripser(distances, distance_matrix=True, maxdim=2)["dgms"]
    diagram = persistence(points, max_dim=2, engine=engine)
    for k in (1, 2):
        expected = truth[k][truth[k][:, 1] > truth[k][:, 0]]
        expected = expected[np.lexsort((expected[:, 1], expected[:, 0]))]
        measured = torch.stack([diagram[k].births, diagram[k].deaths], dim=1).numpy()
        np.testing.assert_allclose(measured, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["random", "duplicated", "clustered"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_h0_is_the_spanning_tree(kind, offset):
    points = cloud(kind, 40, 5) + offset
    truth = np.sort(linkage(points.double().numpy(), "single")[:, 2])
    deaths = persistence(points, max_dim=0)[0].deaths
    np.testing.assert_allclose(deaths[:-1].double().numpy(), truth, rtol=1e-6)
    assert deaths[-1] == math.inf


@needs_engine
@pytest.mark.parametrize("n", [0, 1, 2])
def test_small_clouds(n):
    diagram = persistence(torch.arange(n, dtype=torch.float32)[:, None])
    assert diagram[0].deaths.tolist() == [1.0] * (n - 1) + [math.inf] * (n > 0)
    assert len(diagram[1]) == 0


@needs_engine
def test_all_equal():
    diagram = persistence(torch.ones(5, 3))
    assert diagram[0].deaths.tolist() == [0, 0, 0, 0, math.inf]
    assert diagram.diameter == 0


@needs_engine
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales(scale):
    points = cloud("random", 15, 2).double()
    plain, scaled = persistence(points), persistence(points * scale)
    np.testing.assert_allclose(scaled[1].deaths, plain[1].deaths * scale, rtol=1e-6)
    assert len(plain[1]) > 0


@needs_engine
def test_landmarks_are_marked():
    points = cloud("random", 50, 3)
    diagram, whole = persistence(points, max_landmarks=10), persistence(points)
    assert (diagram.n_points, diagram.exact) == (50, False)
    torch.testing.assert_close(diagram[0].deaths, whole[0].deaths, rtol=1e-6, atol=0)
    assert diagram.diameter == whole.diameter
    assert diagram.landmark_error == pytest.approx(2 * diagram.covering_radius / diagram.diameter)
    assert whole.landmark_error == 0
    assert diagram.is_vacuous(1)
    assert not diagram.is_vacuous(0)
    assert not diagram.without_essential().is_vacuous(0)
    assert not whole.is_vacuous(1)


@needs_engine
@pytest.mark.parametrize("room", [rips.H0_BYTES, 0])
def test_h0_of_close_pairs_beside_landmarks(monkeypatch, room):
    """The corners of a simplex, each doubled: n / 2 pairs at distance eps, all else at sqrt(2)."""
    monkeypatch.setattr(rips, "H0_BYTES", room)
    corners = torch.eye(256)
    diagram = persistence(torch.cat([corners, corners + 1e-3 * torch.eye(256).roll(1, 0)]), max_landmarks=32)
    assert betti_number(diagram, 0, 0.25 * diagram.diameter) == 256
    np.testing.assert_allclose(diagram[0].deaths[:256], 1e-3, rtol=1e-3)
    # The nearest of two pairs are those whose extra coordinate points at the other corner.
    np.testing.assert_allclose(diagram[0].deaths[256:-1], math.sqrt(2) * (1 - 0.5e-3), rtol=1e-5)


@needs_engine
@pytest.mark.parametrize(("thickness", "says_nothing"), [(0.0, False), (1.0, True)])
def test_a_ring_is_seen_through_landmarks(thickness, says_nothing):
    angles = torch.arange(400) * 2 * math.pi / 400
    ring = torch.stack([angles.cos(), angles.sin()], dim=1)
    ball = thickness * torch.randn(400, 20, generator=torch.Generator().manual_seed(0))
    diagram = persistence(torch.cat([ring, ball], dim=1), max_landmarks=60)
    assert diagram.is_vacuous(1) is says_nothing


@needs_engine
def test_worker_gets_landmarks_but_not_h0():
    points = cloud("random", 30, 3)
    task = rips_task(points, 1, 10, leave_h0=True)
    assert task.deaths is not None
    assert task.distances is not None
    assert task.distances.shape == (10, 10)
    tree, loops = np.ones(9), np.zeros((0, 2))
    torch.testing.assert_close(task.diagram([tree, loops])[0].deaths, persistence(points, 0)[0].deaths)
    assert rips_task(points, 1, 30, leave_h0=True).deaths is None


@needs_engine
def test_bad_input():
    with pytest.raises(ValueError, match="max_dim >= 0"):
        persistence(torch.zeros(3, 2), max_dim=-1)
    with pytest.raises(ValueError, match="expected an engine of giotto-ph"):
        persistence(torch.zeros(3, 2), engine="dionysus")
    with pytest.raises(ValueError, match="pass max_landmarks"):
        persistence(torch.zeros(20_000, 1))
    with pytest.raises(ValueError, match="1 of 2 rows"):
        persistence(torch.tensor([[0.0], [torch.nan]]))


def test_more_points_than_a_matrix_may_hold(monkeypatch):
    points = cloud("random", 400, 3)
    expected = persistence(points, max_dim=0)
    monkeypatch.setattr(rips, "MATRIX_BYTES", 400)
    diagram = persistence(points, max_dim=0)
    torch.testing.assert_close(diagram[0].deaths, expected[0].deaths, rtol=1e-6, atol=0)
    assert diagram.diameter == pytest.approx(expected.diameter, rel=1e-6)
    assert diagram.exact


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_dimensions(dtype):
    points = torch.randn(6, 100_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    diagram = persistence(points, max_dim=0)
    truth = np.sort(linkage(points.double().numpy(), "single")[:, 2])
    np.testing.assert_allclose(diagram[0].deaths[:-1], truth, rtol=1e-6)
