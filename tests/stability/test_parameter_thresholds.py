"""The thresholds of adaptive optimizers, against the optimizers themselves on a quadratic."""

import copy
import inspect
import math
import re

import pytest
import torch
from torch import nn

from lightning_topo.stability import awaits_first_step, parameter_thresholds
from tests.stability.dense import dense_hessian, stability

# At eps = 1 and parameters near 1e-12, D stays constant: the iteration is linear, as the threshold assumes.
TINY, EPS, CURVATURE = 1e-12, 1.0, 3.0

OPTIMIZERS = [
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"betas": (0.5, 0.99)}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.Adam, {"weight_decay": 0.7}),
    (torch.optim.Adam, {"weight_decay": 0.01, "decoupled_weight_decay": True}),
    (torch.optim.AdamW, {"betas": (0.0, 0.999), "weight_decay": 0.3}),
    (torch.optim.AdamW, {"weight_decay": 0.02}),
    (torch.optim.NAdam, {"momentum_decay": 0.0}),
    (torch.optim.NAdam, {"momentum_decay": 10.0, "betas": (0.8, 0.999)}),
    (torch.optim.NAdam, {"momentum_decay": 0.0, "weight_decay": 0.5}),
    (torch.optim.NAdam, {"momentum_decay": 0.0, "weight_decay": 0.05, "decoupled_weight_decay": True}),
    (torch.optim.RMSprop, {}),
    (torch.optim.RMSprop, {"momentum": 0.8}),
    (torch.optim.RMSprop, {"centered": True, "weight_decay": 0.4}),
    (torch.optim.Adagrad, {}),
    (torch.optim.Adagrad, {"weight_decay": 0.4}),
    (torch.optim.Adamax, {}),
    (torch.optim.Adamax, {"betas": (0.7, 0.99), "weight_decay": 0.4}),
    (torch.optim.RAdam, {"betas": (0.9, 0.97)}),
    (torch.optim.RAdam, {"betas": (0.6, 0.95), "weight_decay": 0.5}),
    (torch.optim.RAdam, {"betas": (0.6, 0.95), "weight_decay": 0.05, "decoupled_weight_decay": True}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adadelta, {"weight_decay": 0.3}),
]
OTHERS = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.3}),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (torch.optim.SGD, {"momentum": 0.7, "nesterov": True}),
    (torch.optim.ASGD, {"alpha": 0.0, "lambd": 0.3, "weight_decay": 0.2}),
]


def step(optimizer, theta, curvature=CURVATURE, scale=1.0):
    optimizer.zero_grad()
    (0.5 * scale * curvature * theta**2).sum().backward()
    optimizer.step()


def settled(kind, lr, options, curvature=CURVATURE, scale=1.0, entries=1):
    """An optimizer whose bias corrections have died away, at a parameter whose entries are of size TINY."""
    theta = torch.full((1, entries), TINY, dtype=torch.float64, requires_grad=True)
    eps = {"eps": EPS} if "eps" in inspect.signature(kind).parameters else {}
    optimizer = kind([theta], lr=lr, **eps | options)
    optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(400 if eps else 0):
        step(optimizer, theta, curvature, scale)
    optimizer.param_groups[0]["lr"] = lr
    return theta, optimizer


def ratio(optimizer, theta, curvature=CURVATURE, scale=1.0):
    found = parameter_thresholds(
        [optimizer], [theta], (curvature * theta).detach().flatten(), gradient_scales=[scale]
    ).parameters[0]
    return torch.as_tensor(found.stability * (curvature + found.weight_decay)).flatten()[0].item()


def edges(kind, options, curvature=CURVATURE, scale=1.0, n=80):
    """The curvature at which the ratio is 1, and the first of a grid, 1e-4 apart, at which the optimizer diverges."""
    near = curvature * (1.0 + torch.arange(-40, 41, dtype=torch.float64) / 1e4)
    theta, optimizer = settled(kind, 1e-3, options, near, scale, entries=81)
    low, high = 0.0, 1e3 / curvature
    for _ in range(50):
        middle = optimizer.param_groups[0]["lr"] = (low + high) / 2
        if kind is torch.optim.ASGD:
            optimizer = kind([theta], lr=middle, **options)
        # The threshold of a decoupled decay moves with the learning rate, and is negative beyond 2 / wd.
        low, high = (middle, high) if 0 <= ratio(optimizer, theta, curvature, scale) < 1.0 else (low, middle)
    largest = [torch.zeros(81, dtype=torch.float64) for _ in range(2)]
    for k in range(2 * n):
        step(optimizer, theta, near, scale)
        if k % n >= n - 10:
            largest[k // n] = torch.maximum(largest[k // n], theta.detach().abs().flatten())
    grows = largest[1] > largest[0]
    assert grows[-1]
    assert not grows[0]
    return curvature, near[grows][0].item()


@pytest.mark.parametrize(("kind", "options"), [*OPTIMIZERS, *OTHERS])
def test_the_threshold_is_where_the_optimizer_itself_diverges(kind, options):
    predicted, true = edges(kind, options)
    assert predicted == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize(("kind", "options"), [*OPTIMIZERS[:1], *OPTIMIZERS[3:5], OPTIMIZERS[13], *OTHERS])
@pytest.mark.parametrize("scale", [0.2, 5.0])
def test_the_threshold_knows_the_gradient_that_the_optimizer_is_handed(kind, options, scale):
    """A clipped gradient, or a loss that is summed over another number of samples: the optimizer sees s g."""
    predicted, true = edges(kind, options, scale=scale)
    assert predicted == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.5}])
def test_adafactors_threshold_is_where_it_diverges(options):
    """Its relative rate is at most 1 / sqrt(t), so that the curvature has to be large."""
    predicted, true = edges(torch.optim.Adafactor, {"eps": (EPS, EPS)} | options, curvature=1e3)
    assert predicted == pytest.approx(true, rel=1e-3)


def test_nadam_s_threshold_follows_its_momentum_schedule():
    """With torch's default `momentum_decay` the coefficients drift: the ratio tells each step's own side of 1."""
    theta, optimizer = settled(torch.optim.NAdam, 1.0, {})
    for side in (0.9, 1.1):
        twin = theta.detach().clone().requires_grad_()
        other = torch.optim.NAdam([twin], lr=1.0, eps=EPS)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        other.param_groups[0]["lr"] = side / ratio(optimizer, theta)
        for _ in range(150):
            step(other, twin)
        assert 0.85 < ratio(other, twin) < 1.15
        assert (twin.abs().item() < TINY) == (side < 1.0)


@pytest.mark.parametrize("side", [0.95, 1.05])
def test_adagrad_slows_down_and_so_does_its_ratio(side):
    theta, optimizer = settled(torch.optim.Adagrad, 1.0, {"lr_decay": 4e-4})
    optimizer.param_groups[0]["lr"] = side / ratio(optimizer, theta)
    assert ratio(optimizer, theta) == pytest.approx(side)
    grown = []
    for _ in range(200):
        before = theta.abs().item()
        at = ratio(optimizer, theta)
        step(optimizer, theta)
        if abs(at - 1.0) > 1e-3:
            grown.append((theta.abs().item() > before) == (at > 1.0))
    assert len(grown) > 170
    assert all(grown)
    assert side > 1.0 or ratio(optimizer, theta) == pytest.approx(side * 1.16 / 1.24, rel=1e-3)


@pytest.mark.parametrize(("kind", "options"), [*OPTIMIZERS, *OTHERS])
def test_the_step_is_linear_in_the_newest_gradient_with_slope_m(kind, options):
    """Two copies with one history: the difference of their steps over that of their gradients is M."""
    moved = []
    for gradient in (1e-8, 2e-8):
        theta, optimizer = settled(kind, 0.1, options)
        (threshold,) = parameter_thresholds([optimizer], [theta]).parameters
        before = theta.item()
        theta.grad = torch.tensor([[gradient]], dtype=torch.float64)
        optimizer.step()
        moved.append(theta.item() - before)
    assert (moved[0] - moved[1]) / 1e-8 == pytest.approx(float(threshold.step), rel=1e-3)


@pytest.mark.parametrize(("kind", "options"), [case for case in OPTIMIZERS if case[0] is not torch.optim.Adadelta])
@pytest.mark.parametrize("steps", [1, 7])
def test_with_a_gradient_the_scaling_is_that_behind_the_step_it_would_make(kind, options, steps):
    generator = torch.Generator().manual_seed(steps)
    theta = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = kind([theta], lr=0.1, **options)
    for _ in range(steps):
        theta.grad = torch.randn(5, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
        optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    gradient = torch.randn(5, generator=generator, dtype=torch.float64)
    (ahead,) = parameter_thresholds([optimizer], [theta], gradient).parameters
    for name, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(state["state"][0][name])), "only looked at"
    theta.grad = gradient
    optimizer.step()
    (behind,) = parameter_thresholds([optimizer], [theta]).parameters
    torch.testing.assert_close(ahead.stability, behind.stability)
    torch.testing.assert_close(ahead.step, behind.step)
    assert ahead.weight_decay == behind.weight_decay


def test_a_weight_that_has_had_no_gradient_so_far_does_not_count_as_unbounded():
    """Its second moment is 0, so that lr / eps would be its threshold; the next step takes its gradient in first."""
    theta = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=1e-3)
    for _ in range(25):
        theta.grad = torch.tensor([1.0, 0.0], dtype=torch.float64)
        optimizer.step()
    (without,) = parameter_thresholds([optimizer], [theta]).parameters
    (with_it,) = parameter_thresholds([optimizer], [theta], torch.tensor([1.0, 1.0], dtype=torch.float64)).parameters
    assert float(without.stability[1] / without.stability[0]) > 1e6
    # v = (1 - b2) against (1 - b2^26): 26 times less, so 5 times the threshold.
    assert float(with_it.stability[1] / with_it.stability[0]) == pytest.approx(26**0.5, rel=0.01)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_before_its_first_step_an_adaptive_optimizer_has_no_threshold(kind):
    theta = torch.ones(2, requires_grad=True)
    idle = torch.ones(2, requires_grad=True)
    optimizer = kind([theta, idle], lr=0.1)
    assert awaits_first_step([optimizer])
    assert parameter_thresholds([optimizer], [theta]).parameters is None
    step(optimizer, theta)
    assert not awaits_first_step([optimizer])
    moving, still = parameter_thresholds([optimizer], [theta, idle]).parameters
    assert moving.stability.shape == (2,)
    assert still.stability == 0.0


def test_a_scheduler_s_learning_rate_is_what_counts():
    theta = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    step(optimizer, theta)
    (before,) = parameter_thresholds([optimizer], [theta]).parameters
    scheduler.step()
    (after,) = parameter_thresholds([optimizer], [theta]).parameters
    torch.testing.assert_close(after.stability, before.stability / 2)
    torch.testing.assert_close(after.step, before.step / 2)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: torch.optim.Rprop(p, lr=0.1), "Rprop: .* signs"),
        (lambda p: torch.optim.LBFGS(p), "LBFGS: .* curvature"),
    ],
)
def test_without_a_threshold_there_is_a_reason(make, reason):
    theta = torch.ones(2, requires_grad=True)
    optimizer = make([theta])
    found = parameter_thresholds([optimizer], [theta])
    assert found.parameters is None
    assert re.match(reason, found.reason)
    assert not awaits_first_step([optimizer])
    known = torch.optim.SGD([theta], lr=0.1)
    assert parameter_thresholds([known, optimizer], [theta]).parameters is None


def test_tensors_that_are_not_the_models_have_no_threshold():
    """As behind DeepSpeed's wrappers, which step flat copies."""
    theta, flat = (torch.ones(2, requires_grad=True) for _ in range(2))
    found = parameter_thresholds([torch.optim.SGD([flat], lr=0.1)], [theta])
    assert found.parameters is None
    assert "other tensors" in found.reason


@pytest.mark.parametrize("scales", [[1.0, 1.0], [-1.0], [math.nan], [math.inf]])
def test_gradient_scales_are_checked(scales):
    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="gradient scales"):
        parameter_thresholds([torch.optim.SGD([theta], lr=0.1)], [theta], gradient_scales=scales)


@pytest.fixture
def problem():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.randn(40, 3, dtype=torch.float64)
    return model, lambda: nn.functional.mse_loss(model(x), y)


def test_two_optimizers_with_groups_of_their_own_against_the_dense_matrix(problem):
    model, loss_fn = problem
    first, second = list(model[0].parameters()), list(model[2].parameters())
    adam = torch.optim.Adam(
        [{"params": first[:1], "lr": 1e-3, "weight_decay": 0.1}, {"params": first[1:], "lr": 5e-3}], lr=1e-3
    )
    sgd = torch.optim.SGD(second, lr=0.05, momentum=0.9)
    for _ in range(20):
        adam.zero_grad(), sgd.zero_grad()
        loss_fn().backward()
        adam.step(), sgd.step()
    _, found = stability(loss_fn, model.parameters(), [adam, sgd], tolerance=1e-10, max_products=75)
    s, m, wd = [], [], []
    for p, lr, decay in ((first[0], 1e-3, 0.1), (first[1], 5e-3, 0.0)):
        d = (1 - 0.9**20) * ((adam.state[p]["exp_avg_sq"] / (1 - 0.999**20)).sqrt() + 1e-8)
        s.append((lr / (38.0 * d)).flatten())
        m.append((lr * 0.1 / d).flatten())
        wd.append(torch.full_like(d, decay).flatten())
    for p in second:
        s.append(torch.full_like(p, 0.05 / 3.8).detach().flatten())
        m.append(torch.full_like(p, 0.05).detach().flatten())
        wd.append(torch.zeros_like(p).detach().flatten())
    dense = dense_hessian(loss_fn, model.parameters()) + torch.cat(wd).diag()
    for scale, value in ((torch.cat(s), found.ratio), (torch.cat(m), found.eta_lambda)):
        root = scale.sqrt()
        spectrum = torch.linalg.eigvalsh(root[:, None] * dense * root)
        truth = spectrum[-1] if value == found.ratio else spectrum.abs().max()
        assert value == pytest.approx(truth.item(), rel=1e-6)
    assert found.converged
    assert found.n_hvp > 0


def test_one_spectrum_serves_both_numbers_where_momentum_is_the_same(problem):
    model, loss_fn = problem
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss_fn().backward()
        optimizer.step()
    _, found = stability(loss_fn, model.parameters(), [optimizer], tolerance=1e-6)
    # c w = 2 (1 + b1) = 3.8
    assert found.eta_lambda == pytest.approx(3.8 * found.ratio, rel=1e-3)
    _, again = stability(loss_fn, model.parameters(), [optimizer], tolerance=1e-6, seed=9)
    assert again.ratio == pytest.approx(found.ratio, rel=1e-5)
