"""Distances against direct subtraction in float64."""

import pytest
import torch

from lightning_topo.geometry import check_cloud, pairwise_distances


def direct(points: torch.Tensor) -> torch.Tensor:
    wide = points.double()
    return (wide[:, None] - wide[None]).norm(dim=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_accurate_to_rounding(dtype, offset):
    points = torch.randn(60, 20, generator=torch.Generator().manual_seed(0)).add(offset).to(dtype)
    points[30:] = points[:30]
    points[45:] *= 1 + 2 * torch.finfo(dtype).eps
    distances = pairwise_distances(points)
    assert distances.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(distances.double(), direct(points), rtol=2e-7, atol=0)
    assert torch.equal(distances, distances.T)


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (2, 1)])
def test_small_clouds(shape):
    assert pairwise_distances(torch.ones(shape)).tolist() == torch.zeros(shape[0], shape[0]).tolist()


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match="real floating-point"):
        check_cloud(torch.zeros(2, 2, dtype=dtype))


def test_non_finite_rows_are_named():
    points = torch.zeros(30, 2)
    points[[3, 7], 0] = torch.inf
    with pytest.raises(ValueError, match="in 2 of 30 rows: 3, 7"):
        check_cloud(points)
