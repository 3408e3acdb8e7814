"""Sharpness against the dense float64 Hessian, closed forms, and the optimizers themselves."""

import math

import pytest
import torch
from torch import nn

from lightning_topo.stability import ParameterThreshold, parameter_thresholds, sharpness
from tests.stability.dense import dense_hessian, stability


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    return model, lambda: nn.functional.mse_loss(model(x), y)


def test_value_residual_and_convergence_against_the_spectrum(problem):
    model, loss_fn = problem
    spectrum = torch.linalg.eigvalsh(dense_hessian(loss_fn, model.parameters()))
    found = sharpness(loss_fn, model.parameters())
    assert found.converged
    assert found.value <= spectrum[-1] * (1 + 1e-9)
    assert found.value == pytest.approx(spectrum[-1].item(), rel=0.02)
    assert float((spectrum - found.value).abs().min()) <= found.residual
    assert found.smallest >= spectrum[0] * (1 + 1e-9)
    exact = sharpness(loss_fn, model.parameters(), tolerance=1e-9, max_products=200)
    assert exact.value == pytest.approx(spectrum[-1].item(), rel=1e-9)


def test_a_warm_start_needs_fewer_products_and_finds_the_same(problem):
    model, loss_fn = problem
    cold = sharpness(loss_fn, model.parameters())
    warm = sharpness(loss_fn, model.parameters(), start=cold.vector)
    assert warm.n_hvp < cold.n_hvp
    assert warm.value == pytest.approx(cold.value, rel=0.02)


def test_a_warm_start_far_from_the_top_is_restarted(problem):
    model, loss_fn = problem
    bottom = torch.linalg.eigh(dense_hessian(loss_fn, model.parameters())).eigenvectors[:, 0]
    found = sharpness(loss_fn, model.parameters(), start=bottom + 1e-12, tolerance=1e-6, max_products=50)
    truth = torch.linalg.eigvalsh(dense_hessian(loss_fn, model.parameters()))[-1]
    assert found.value == pytest.approx(truth.item(), rel=1e-4)


def test_what_did_not_converge_says_so(problem):
    model, loss_fn = problem
    found = sharpness(loss_fn, model.parameters(), max_products=2, tolerance=1e-6)
    assert not found.converged
    assert found.residual > 0
    assert found.n_hvp == 2


def test_nothing_is_left_behind(problem):
    model, loss_fn = problem
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    sharpness(loss_fn, model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_frozen_and_unused_parameters():
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    frozen = torch.ones(3, dtype=torch.float64)
    unused = torch.ones(2, dtype=torch.float64, requires_grad=True)
    found = sharpness(lambda: (frozen * w**2).sum(), [w, frozen, unused], tolerance=1e-9)
    assert found.value == pytest.approx(2.0)
    assert found.vector.shape == (5,)


def test_a_linear_loss_has_no_curvature():
    w = torch.ones(3, requires_grad=True)
    found = sharpness(lambda: w.sum(), [w])
    assert found.value == 0.0
    assert found.converged


def test_negative_curvature_everywhere():
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    found = sharpness(lambda: -(torch.tensor([1.0, 2.0, 3.0]) * w**2).sum(), [w], tolerance=1e-9)
    assert found.value == pytest.approx(-2.0)
    assert found.smallest == pytest.approx(-6.0)


def test_errors_say_what_is_wrong():
    w = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="requires a gradient"):
        sharpness(lambda: (w**2).sum(), [w.detach()])
    with pytest.raises(ValueError, match="scalar loss"):
        sharpness(lambda: w**2, [w])
    with pytest.raises(FloatingPointError, match="finite loss"):
        sharpness(lambda: (w * math.nan).sum(), [w])


def test_unknown_optimizers_have_no_threshold():
    theta = torch.ones(2, requires_grad=True)
    assert parameter_thresholds([torch.optim.Rprop([theta])], [theta]).parameters is None


def test_who_maximizes_has_the_threshold_of_the_loss_times_minus_one_and_who_does_both_has_none():
    theta, other = (torch.ones(2, requires_grad=True) for _ in range(2))
    upwards, downwards = (torch.optim.SGD([theta], lr=0.1, maximize=up) for up in (True, False))
    expected = parameter_thresholds([downwards], [theta]).parameters
    assert parameter_thresholds([upwards], [theta]).parameters == expected
    both = parameter_thresholds([upwards, torch.optim.SGD([other], lr=0.1)], [theta, other])
    assert (both.parameters, both.reason) == (None, "some of the optimizers maximize, and others minimize")
    groups = [{"params": [theta], "maximize": True}, {"params": [other]}]
    assert "some of its groups" in parameter_thresholds([torch.optim.SGD(groups, lr=0.1)], [theta]).reason


def test_plain_sgd_has_eta_lambda_twice_the_ratio(problem):
    model, loss_fn = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    raw, found = stability(loss_fn, model.parameters(), [optimizer])
    assert found.ratio == pytest.approx(0.15 * raw.value)
    assert found.eta_lambda == pytest.approx(2 * found.ratio)


def test_learning_rates_by_group_against_the_dense_matrix(problem):
    model, loss_fn = problem
    first, second = list(model[0].parameters()), list(model[2].parameters())
    optimizer = torch.optim.SGD([{"params": first, "lr": 0.2, "weight_decay": 0.1}, {"params": second, "lr": 0.05}])
    _, found = stability(loss_fn, model.parameters(), [optimizer], tolerance=1e-9, max_products=200)
    dense = dense_hessian(loss_fn, model.parameters())
    sizes = [sum(p.numel() for p in ps) for ps in (first, second)]
    s = torch.cat([torch.full((sizes[0],), 0.1), torch.full((sizes[1],), 0.025)]).double()
    wd = torch.cat([torch.full((sizes[0],), 0.1), torch.zeros(sizes[1])]).double()
    scaled = s.sqrt()[:, None] * (dense + wd.diag()) * s.sqrt()[None, :]
    spectrum = torch.linalg.eigvalsh(scaled)
    assert found.ratio == pytest.approx(spectrum[-1].item(), rel=1e-6)
    assert found.eta_lambda == pytest.approx(2 * spectrum.abs().max().item(), rel=1e-6)


def test_parameters_without_an_optimizer_do_not_move():
    a, b = (torch.ones(1, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([a], lr=0.5)
    assert parameter_thresholds([optimizer], [a, b]).parameters[1] == ParameterThreshold(0.0, 0.0)
    raw, found = stability(lambda: (a**2 + 100 * b**2).sum(), [a, b], [optimizer])
    assert raw.value == pytest.approx(200.0, rel=1e-3)
    assert found.ratio == pytest.approx(0.5, rel=1e-3)


def test_a_cold_start_is_not_taken_in_by_a_crowd_below_the_top():
    """Of 4000 eigenvalues one is 10 and ten are near 8.5: a residual of 20 % is soon reached, and says nothing."""
    curvatures = torch.cat([torch.tensor([10.0]), torch.linspace(8.0, 9.0, 10), torch.rand(4000)]).double()
    for seed in range(20):
        w = torch.randn(len(curvatures), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        w.requires_grad_()
        found = sharpness(lambda w=w: 0.5 * (curvatures * w**2).sum(), [w], tolerance=0.1, seed=seed)
        assert found.value == pytest.approx(10.0, rel=0.005)


def test_a_cold_start_needs_no_gradient():
    w = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    found = sharpness(lambda: 0.5 * (torch.arange(20.0) * w**2).sum(), [w])
    assert found.value == pytest.approx(19.0, rel=0.01)
