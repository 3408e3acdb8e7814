"""Distinct neurons: merged means merged, at any diameter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

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


def by_definition(points: torch.Tensor) -> int:
    x = points.double()
    lengths = x.norm(dim=1)
    reach = 8 * torch.finfo(points.dtype).eps * torch.maximum(lengths[:, None], lengths)
    near = (x[:, None] - x[None]).norm(dim=2) <= reach
    return int(connected_components(near.numpy(), directed=False)[0])


@given(
    n=st.integers(2, 40),
    d=st.integers(1, 9),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    shape=st.sampled_from(["plain", "zeros", "scales", "shifted"]),
)
@settings(max_examples=50)
def test_is_the_definition(n, d, seed, dtype, shape):
    """Rows a few units of rounding apart, at several sizes, alone and as blocks of one tensor."""
    generator = torch.Generator().manual_seed(seed)
    units = torch.finfo(dtype).eps * torch.randint(-12, 12, (2, n, d), generator=generator).double()
    points = torch.randn(n, d, generator=generator)[torch.randint(n, (n,), generator=generator)].double()
    match shape:
        case "zeros":
            points[::3] = 0
        case "scales":
            points[::2] *= 1e-3
        case "shifted":
            points += 30
    clouds = (points * (1 + units)).to(dtype)
    counts = [by_definition(cloud) for cloud in clouds]
    assert [distinct_neurons(cloud) for cloud in clouds] == counts
    assert distinct_neurons(clouds) == sum(counts)


def test_many_and_long():
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(20_000, 16, generator=generator)
    many[7000:7600] = many[6999]
    many[100] = many[99] * (1 + 2**-22)
    assert distinct_neurons(many) == 20_000 - 601
    long = torch.randn(3, 80_000, generator=generator)
    assert distinct_neurons(torch.cat([long, long[:1]])) == 3
