"""Extreme eigenvalues of operators known by their products, against the spectra of matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_topo.stability import LanczosSettings, extreme_eigenvalues
from lightning_topo.stability import _lanczos as lanczos


@settings(max_examples=25)
@given(st.integers(2, 30), st.integers(0, 10**6))
def test_lanczos_bounds_the_spectrum_of_random_matrices(n, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    matrix = a + a.T
    spectrum = torch.linalg.eigvalsh(matrix)
    start = torch.randn(n, generator=generator, dtype=torch.float64)
    found = extreme_eigenvalues(lambda v: matrix @ v, start, LanczosSettings(tolerance=1e-10, max_products=n))
    assert found.largest == pytest.approx(spectrum[-1].item(), abs=1e-8 * float(spectrum.abs().max()))
    assert found.smallest == pytest.approx(spectrum[0].item(), abs=1e-8 * float(spectrum.abs().max()))
    assert float((matrix @ found.vector - found.largest * found.vector).norm()) <= 1e-6 * float(matrix.norm())


def with_spectrum(values, seed=0):
    """A symmetric matrix of these eigenvalues, and a random start."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    spectrum = torch.as_tensor(values, dtype=torch.float64)
    return basis @ torch.diag(spectrum) @ basis.T, torch.randn(n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("fewest", [5, 9])
def test_a_basis_that_is_full_is_restarted_and_finds_the_same(monkeypatch, fewest):
    matrix, start = with_spectrum([*torch.linspace(-1.0, 3.0, 120).tolist(), 3.2, 3.3])
    wanted = LanczosSettings(tolerance=1e-8, max_products=2000, n_largest=2)
    whole = extreme_eigenvalues(lambda v: matrix @ v, start, wanted)
    monkeypatch.setattr(lanczos, "_MOST_BYTES", 0)
    monkeypatch.setattr(lanczos, "_FEWEST_ROWS", fewest)
    few = extreme_eigenvalues(lambda v: matrix @ v, start, wanted)
    for found in (whole, few):
        assert found.converged
        assert found.top == pytest.approx((3.3, 3.2), abs=1e-7)
        assert float((matrix @ found.vector - found.largest * found.vector).norm()) < 1e-6
    assert few.n_products > whole.n_products
    assert few.smallest >= -1.0 - 1e-9


@given(st.integers(2, 25), st.integers(1, 12), st.integers(0, 10**6))
def test_early_or_late_it_is_a_lower_bound_with_an_eigenvalue_within_the_residual(n, products, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator, dtype=torch.float64)
    matrix, start = with_spectrum(values.tolist(), seed)
    n_called = []

    def operator(v):
        n_called.append(None)
        return matrix @ v

    found = extreme_eigenvalues(operator, start, LanczosSettings(tolerance=1e-6, max_products=products))
    assert found.n_products == len(n_called) <= min(products, n)
    assert found.largest <= float(values.max()) + 1e-10
    assert found.smallest >= float(values.min()) - 1e-10
    assert float((values - found.largest).abs().min()) <= found.residual + 1e-10
    assert float(found.vector.norm()) == pytest.approx(1.0)


def test_a_start_on_an_eigenvector_is_not_taken_at_its_word():
    """It converges at once, to an eigenvalue that is not the largest: hence the least number of products."""
    matrix = torch.diag(torch.tensor([1.0, 2.0, 7.0], dtype=torch.float64))
    start = torch.tensor([1.0, 1e-3, 1e-3], dtype=torch.float64)
    early = extreme_eigenvalues(lambda v: matrix @ v, start, LanczosSettings(tolerance=0.5, min_products=1))
    assert early.largest < 1.1
    found = extreme_eigenvalues(lambda v: matrix @ v, start, LanczosSettings(tolerance=0.5, min_products=3))
    assert found.largest == pytest.approx(7.0)


def test_an_invariant_start_ends_at_once():
    """Nothing is left of the product: more of them would be rounding."""
    found = extreme_eigenvalues(lambda v: 2.0 * v, torch.ones(50), LanczosSettings(min_products=10))
    assert (found.n_products, found.largest, found.converged) == (1, 2.0, True)
    none = extreme_eigenvalues(lambda v: 0.0 * v, torch.ones(50))
    assert (none.largest, none.smallest, none.converged) == (0.0, 0.0, True)


def test_more_eigenvalues_than_there_are_dimensions_are_all_of_them():
    matrix, start = with_spectrum([3.0, 1.0])
    found = extreme_eigenvalues(lambda v: matrix @ v, start, LanczosSettings(n_largest=5))
    assert found.top == pytest.approx((3.0, 1.0))


def test_a_product_that_is_not_finite_is_an_error():
    with pytest.raises(FloatingPointError, match="Hessian products"):
        extreme_eigenvalues(lambda v: v * torch.nan, torch.ones(3))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"tolerance": 0.0}, "tolerance between 0 and 1, got 0.0"),
        ({"tolerance": 1.0}, "tolerance between 0 and 1"),
        ({"min_products": 0}, "min_products >= 1, got 0"),
        ({"max_products": 0}, "max_products >= 1"),
        ({"n_largest": 0}, "n_largest >= 1"),
    ],
)
def test_settings_are_checked(wrong, match):
    with pytest.raises(ValueError, match=match):
        LanczosSettings(**wrong)
