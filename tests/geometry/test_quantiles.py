"""Quantiles over all pairs against torch.quantile's inverse of the empirical distribution."""

import numpy as np
import pytest
import torch

from lightning_topo.geometry import distortion_quantiles
from lightning_topo.geometry.quantiles import QUANTILE_RESOLUTION

LEVELS = [0.0, 0.01, 0.25, 0.5, 0.9, 1.0]


@pytest.mark.parametrize("size", [1e-3, 0.1, 5.0])
def test_matches_sorted_pairs(size):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(600, 6, generator=generator)
    after = before + size * torch.randn(600, 6, generator=generator)
    x, y = before.double(), after.double()
    i, j = torch.triu_indices(600, 600, 1)
    d = (x[i] - x[j]).norm(dim=1)
    q = ((y - x)[i] - (y - x)[j]).norm(dim=1) / d
    stretch = (y[i] - y[j]).norm(dim=1) / d - 1
    measured = distortion_quantiles(before, after, LEVELS)
    expected = np.quantile(q, LEVELS, method="inverted_cdf")
    np.testing.assert_allclose(measured.step_ratio, expected, rtol=QUANTILE_RESOLUTION)
    expected = np.quantile(stretch, LEVELS, method="inverted_cdf")
    np.testing.assert_allclose(
        np.array(measured.distance_ratio) - 1, expected, rtol=1.01 * QUANTILE_RESOLUTION
    )


def test_infinite_and_zero_ratios():
    before = torch.tensor([[0.0], [0.0], [5.0], [6.0]])
    after = torch.tensor([[0.0], [1.0], [7.0], [7.0]])
    measured = distortion_quantiles(before, after, [0.0, 1.0])
    assert measured.step_ratio[1] == measured.distance_ratio[1] == torch.inf
    assert measured.distance_ratio[0] == 0


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2 points"):
        distortion_quantiles(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="between 0 and 1"):
        distortion_quantiles(torch.zeros(2, 2), torch.zeros(2, 2), [1.5])
