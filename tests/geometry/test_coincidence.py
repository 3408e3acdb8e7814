"""Distinct neurons: merged means merged, at any diameter."""

import pytest
import torch

from lightning_topo.geometry import distinct_neurons


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_groups_of_near_equal_neurons(dtype, factor):
    eps = torch.finfo(dtype).eps
    centres = torch.eye(7, 12, dtype=dtype) * factor
    near = centres * (1 + 4 * eps)
    far = centres * (1 + 32 * eps)
    assert distinct_neurons(torch.cat([centres, near])) == 7
    assert distinct_neurons(torch.cat([centres, far])) == 14


def test_chains_are_one_component():
    eps = torch.finfo(torch.float64).eps
    chain = (1 + 6 * eps * torch.arange(50, dtype=torch.float64))[:, None]
    assert distinct_neurons(chain) == 1
    assert distinct_neurons(torch.cat([chain[:20], chain[30:]])) == 2


@pytest.mark.parametrize(("points", "count"), [(torch.zeros(0, 2), 0), (torch.zeros(1, 2), 1), (torch.zeros(5, 2), 1)])
def test_small_clouds(points, count):
    assert distinct_neurons(points) == count
