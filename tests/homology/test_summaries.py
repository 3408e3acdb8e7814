"""Summaries against closed forms."""

import math

import pytest
import torch

from lightning_topo.homology import (
    Bars,
    PersistenceDiagram,
    betti_number,
    max_persistence,
    persistence_entropy,
    total_persistence,
)


def diagram(*bars: tuple[float, float]) -> PersistenceDiagram:
    births, deaths = torch.tensor(bars, dtype=torch.float32).reshape(-1, 2).unbind(1)
    return PersistenceDiagram((Bars(births, deaths),), n_points=len(bars), diameter=1.0)


def test_values():
    bars = diagram((0.0, 1.0), (0.0, 2.0), (0.0, 2.0), (0.0, math.inf))
    assert [betti_number(bars, 0, s) for s in (-1.0, 0.0, 1.0, 1.9, 2.0)] == [0, 4, 3, 3, 1]
    assert total_persistence(bars, 0) == 5
    assert total_persistence(bars, 0, power=2.0) == 9
    assert max_persistence(bars, 0) == 2
    expected = -(0.2 * math.log(0.2) + 2 * 0.4 * math.log(0.4))
    assert persistence_entropy(bars, 0) == pytest.approx(expected, rel=1e-6)


def test_without_finite_bars():
    for bars in (diagram(), diagram((0.0, math.inf)), diagram((1.0, 1.0))):
        assert total_persistence(bars, 0) == max_persistence(bars, 0) == persistence_entropy(bars, 0) == 0


def test_missing_dimension():
    with pytest.raises(IndexError, match="between 0 and 0, got 1"):
        betti_number(diagram(), 1, 0.5)
