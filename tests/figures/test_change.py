"""Views of change hold the distances that they are drawn from."""

import math

import numpy as np
import pytest
import torch

from lightning_topo import persistence
from lightning_topo.homology import log_bottleneck

pytest.importorskip("matplotlib")

from lightning_topo._figures.change import capture_distances, distances_figure, entropy_figure


def captured(scale, seed=0):
    return [scale * torch.randn(12, 3, generator=torch.Generator().manual_seed(seed + b)) for b in range(2)]


def test_every_capture_against_every_other():
    captures = [[persistence(c, max_dim=0) for c in captured(scale)] for scale in (1.0, 2.0, 1.0)]
    found = capture_distances(captures, 0)
    # H0 in log scale: a scaled cloud is as far away as the log of the scale.
    np.testing.assert_allclose(found, math.log(2) * np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]), atol=1e-6)
    assert np.isnan(capture_distances(captures, 1)[0, 1])
    assert np.isnan(capture_distances([captures[0], captures[1][:1]], 0)[0, 1])
    other = [[persistence(c, max_dim=0) for c in captured(1.0, seed)] for seed in (0, 7)]
    worst = max(log_bottleneck(a, b, 0) for a, b in zip(*other, strict=True))
    assert capture_distances(other, 0)[0, 1] == worst


def test_the_map_shows_the_distances():
    matrix = np.array([[0.0, 1.0], [1.0, 0.0]])
    axes = distances_figure([0, 20], [matrix, matrix * np.nan], "change").axes
    shown = axes[0].collections[0].get_array()
    np.testing.assert_array_equal(np.asarray(shown).reshape(2, 2), matrix)
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["0", "20"]


def test_entropy_stands_at_the_largest_ratio_before_its_capture():
    figure = entropy_figure([(1, 0.5), (2, 0.1), (5, 0.3)], {0: [(2, 1.5), (4, 1.6), (6, 1.7)]}, "entropy")
    (axes,) = figure.axes
    drawn = np.ma.filled(axes.collections[0].get_offsets(), np.nan)
    # No ratio lies before the capture at step 4: it has no place.
    np.testing.assert_array_equal(drawn[~np.isnan(drawn).any(axis=1)], [[0.5, 1.5], [0.3, 1.7]])
    assert axes.get_xscale() == "log"
