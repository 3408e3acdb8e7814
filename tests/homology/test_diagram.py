"""Diagrams: the contract, and the formats of others."""

import math

import numpy as np
import pytest
import torch

from lightning_topo.homology import Bars, PersistenceDiagram, available_engines, persistence


@pytest.fixture
def diagram() -> PersistenceDiagram:
    intervals = [
        np.array([[0.0, 0.0], [0.0, 1.5], [0.0, np.inf]]),
        np.array([[1.0, 2.0]]),
        np.empty((0, 2)),
    ]
    return PersistenceDiagram.from_numpy(intervals, n_points=3, diameter=2.5)


def test_access(diagram):
    assert (len(diagram), diagram.max_dim, diagram[0].n_essential, len(diagram[2])) == (3, 2, 1, 0)
    assert [len(bars) for bars in diagram] == [3, 1, 0]
    assert diagram[0].finite().deaths.tolist() == [0.0, 1.5]
    for missing in (-1, 3):
        with pytest.raises(IndexError, match="between 0 and 2"):
            diagram[missing]


def test_numpy_round_trip(diagram):
    again = PersistenceDiagram.from_numpy(diagram.to_numpy(), 3, 2.5)
    for mine, other in zip(diagram.to_numpy(), again.to_numpy(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_giotto_round_trip(diagram):
    array = diagram.to_giotto()
    assert array.shape == (1, 3, 3)
    assert array[0].tolist() == [[0, 0, 0], [0, 1.5, 0], [1, 2, 1]]
    padded = np.concatenate([array, [[[1.0, 1.0, 1.0]]]], axis=1)
    again = PersistenceDiagram.from_giotto(padded, 3, 2.5)
    for mine, other in zip(diagram.to_numpy()[:2], again.to_numpy(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_bad_bars():
    with pytest.raises(ValueError, match=r"shape \(k, 2\) in dimension 0, got \(2, 3\)"):
        PersistenceDiagram.from_numpy([np.zeros((2, 3))], 2, 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtype_follows_the_cloud(dtype):
    max_dim = 1 if available_engines() else 0
    points = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    for bars in persistence(points, max_dim):
        assert bars.births.dtype == bars.deaths.dtype == torch.promote_types(dtype, torch.float32)


def test_essential_class_is_kept():
    bars = persistence(torch.zeros(3, 2), max_dim=0)[0]
    assert isinstance(bars, Bars)
    assert bars.lifetimes.tolist() == [0, 0, math.inf]
