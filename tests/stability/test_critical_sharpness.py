"""Critical sharpness against closed forms, a dense scan, and the directional ratio."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from lightning_topo.stability import critical_sharpness, directional_ratio, hessian
from lightning_topo.stability._critical_sharpness import rounding_within


@given(st.floats(0.02, 50.0), st.floats(0.2, 5.0))
@example(3.47265625, 1.1)
def test_a_parabola_has_its_second_root(value, off):
    """L(s) = s (s - r): no lower than before it from r on."""
    found = critical_sharpness(lambda s: s * (s - 1.0 / value), start=off / value)
    assert found.value == pytest.approx(value, rel=0.06)
    assert found.converged
    low, high = found.bracket
    up_to_rounding = 1.0 + 1e-9  # a change of the loss by rounding alone tells nothing
    assert low < 1.0 / value <= high * up_to_rounding
    assert high <= 1.1 * low * up_to_rounding


@given(st.floats(0.02, 50.0), st.floats(0.93, 1.08))
@example(1.0, 1.0)
def test_from_a_start_nearby_six_forwards_do(value, off):
    def loss_at(s):
        return s * (s - 1.0 / value)

    found = critical_sharpness(loss_at, start=off / value)
    assert found.converged
    # Where the search starts at the very end, nothing is seen there: it looks at half of it, too.
    assert found.n_forwards <= (7 if loss_at(off / value) == 0.0 else 6)


@pytest.mark.parametrize("third", [-0.3, 0.3])
def test_beyond_quadratics_it_is_the_scanned_root(third):
    def loss_at(s):
        return -s + 0.4 * s**2 + third * 0.1 * s**3

    scan = next(s for s in torch.arange(1, 10**5) / 1e4 if loss_at(float(s)) >= 0.0)
    found = critical_sharpness(loss_at, tolerance=0.01, max_forwards=40)
    assert found.value == pytest.approx(1.0 / float(scan), rel=0.01)


def test_on_a_quadratic_it_is_the_directional_ratio():
    torch.manual_seed(0)
    model = nn.Linear(6, 3).double()
    x, y = torch.randn(30, 6, dtype=torch.float64), torch.randn(30, 3, dtype=torch.float64)
    params = list(model.parameters())
    optimizer = torch.optim.Adam(params, lr=0.3)

    def loss_fn():
        return nn.functional.mse_loss(model(x), y)

    before = [p.detach().clone() for p in params]
    loss_fn().backward()
    optimizer.step()
    steps = [p.detach() - b for p, b in zip(params, before, strict=True)]

    def loss_at(s):
        with torch.no_grad():
            for p, b, d in zip(params, before, steps, strict=True):
                p.copy_(b + s * d)
            return loss_fn()

    found = critical_sharpness(loss_at, tolerance=1e-4, max_forwards=60)
    loss_at(1.0)
    expected = directional_ratio(hessian(loss_fn, params), torch.cat([d.flatten() for d in steps]))
    assert found.value == pytest.approx(expected, rel=1e-3)


def test_a_step_that_always_or_never_lowers_the_loss():
    always = critical_sharpness(lambda s: -s)
    never = critical_sharpness(lambda s: s)
    assert (always.value, always.converged) == (0.0, False)
    assert (never.value, never.converged) == (1.0 / never.bracket[1], False)
    assert never.value > 1e6


def test_a_loss_that_stands_but_for_rounding_tells_nothing():
    noise = torch.rand(200, generator=torch.Generator().manual_seed(0)) * 2e-6
    for losses in (iter([1.0] * 50), iter(5.0 + noise)):
        flat = critical_sharpness(lambda s, losses=losses: next(losses))
        assert (math.isnan(flat.value), flat.converged) == (True, False)


@given(st.floats(0.01, 5.0), st.floats(1e-8, 1e3))
def test_rounding_is_not_taken_for_a_root(value, start):
    """In single precision, where the shortest multiples change nothing but the last digits."""

    def loss_at(s):
        return torch.tensor(3.0 + 1e-2 * s * (s - 1.0 / value), dtype=torch.float32)

    found = critical_sharpness(loss_at, start=start / value, max_forwards=60)
    assert found.value == pytest.approx(value, rel=0.06)


def test_a_step_that_only_raises_the_loss_is_no_root_in_the_rounding():
    found = critical_sharpness(lambda s: torch.tensor(3.0 + 1e-3 * s), start=1e-6, max_forwards=60)
    assert found.value >= 1.0, "at the edge: the step itself raises the loss"
    assert (found.bracket[0], found.converged) == (0.0, False)


def test_a_fall_that_rounding_hides_leaves_a_lower_bound():
    """Of a twentieth, in losses of half precision: the root is seen to lie no further than where the loss has risen."""
    found = critical_sharpness(lambda s: torch.tensor(2.0 * (1.0 - 0.01 * s * (2.0 - s)), dtype=torch.bfloat16))
    assert found.bracket[0] == 0.0
    assert not found.converged
    assert found.value <= 0.5
    seen = critical_sharpness(lambda s: torch.tensor(2.0 * (1.0 - 0.05 * s * (2.0 - s)), dtype=torch.bfloat16))
    assert seen.value == pytest.approx(0.5, rel=0.25)


def test_half_precision_inside_of_a_loss_is_told_to_the_search():
    noise = iter(3.0 + 2e-3 * torch.rand(50, generator=torch.Generator().manual_seed(0)))
    found = critical_sharpness(lambda s: next(noise), rounding=rounding_within(torch.bfloat16))
    assert math.isnan(found.value)


def test_a_loss_that_only_comes_near_its_start_again_has_no_root():
    for loss_at in (lambda s: 1.0 - s * math.exp(-s), lambda s: 1.0 - s / (1.0 + s**4)):
        found = critical_sharpness(lambda s, f=loss_at: torch.tensor(f(s)), max_forwards=40)
        assert not found.converged


def test_of_a_loss_near_zero_its_summands_rounding_counts():
    noise = iter(1e-9 * torch.rand(50, generator=torch.Generator().manual_seed(0)))
    assert math.isnan(critical_sharpness(lambda s: next(noise)).value)


def test_what_is_not_finite_is_higher():
    found = critical_sharpness(lambda s: -s if s < 3.0 else math.nan, tolerance=0.01, max_forwards=40)
    assert found.value == pytest.approx(1.0 / 3.0, rel=0.01)
    with pytest.raises(FloatingPointError, match="before the step"):
        critical_sharpness(lambda s: math.nan)


def test_noise_is_half_the_distance_of_the_halves():
    def parabola(value):
        return lambda s: s * (s - 1.0 / value)

    found = critical_sharpness(parabola(1.0), tolerance=0.001, max_forwards=60, halves=(parabola(0.9), parabola(1.2)))
    assert found.noise == pytest.approx(0.15, rel=1e-6)
    same = critical_sharpness(parabola(1.0), halves=(parabola(1.0), parabola(1.0)))
    assert same.noise == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("wrong", [{"start": 0.0}, {"start": math.nan}, {"tolerance": 0.0}, {"max_forwards": 2}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="expected start > 0"):
        critical_sharpness(lambda s: s, **wrong)
