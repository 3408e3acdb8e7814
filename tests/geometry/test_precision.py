"""Ambient precision settings neither reach the results nor change."""

import pytest
import torch

from lightning_topo.geometry import pairwise_distances, step_distortion
from lightning_topo.geometry._precision import full_precision


@pytest.mark.parametrize("ambient", ["high", "medium"])
def test_reduced_matmul_precision(ambient):
    before = torch.randn(80, 64, generator=torch.Generator().manual_seed(0))
    after = 1.5 * before.roll(1, 0)
    expected = step_distortion(before, after)
    settings = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(ambient)
        measured = step_distortion(before, after)
        assert torch.get_float32_matmul_precision() == ambient
        with full_precision(before.device):
            product = before @ before.T
        assert torch.get_float32_matmul_precision() == ambient
    finally:
        torch.set_float32_matmul_precision(settings)
    assert measured == expected
    torch.testing.assert_close(product.double(), before.double() @ before.double().T, rtol=1e-4, atol=1e-4)


def test_autocast_and_inference_mode():
    points = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    expected = pairwise_distances(points)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(pairwise_distances(points), expected)
