"""Gradients in half the memory, and their largest entry."""

import pytest
import torch

from lightning_topo.neurons._trial import Scaled, largest_entry


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_a_gradient_of_any_size_is_kept_to_single_precision(size) -> None:
    gradient = size * torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = Scaled.of(gradient.clone())
    torch.testing.assert_close(kept.values.double() * kept.scale, gradient, rtol=1e-6, atol=0)
    assert Scaled.of(torch.zeros(3)).scale == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_gradient_that_is_kept_is_left_as_it_is(dtype) -> None:
    gradient = 3e9 * torch.randn(4, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    before = gradient.clone()
    kept = Scaled.of(gradient.T)
    assert torch.equal(gradient, before)
    assert kept.scale == largest_entry(before) == float(before.abs().max())
    torch.testing.assert_close(kept.values.to(dtype) * kept.scale, before.T, rtol=1e-6, atol=1e3)


def test_of_no_entries_the_largest_is_nothing() -> None:
    assert largest_entry(torch.empty(0, 3)) == 0.0
