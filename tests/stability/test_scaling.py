"""The thresholds of adaptive optimizers, against the optimizers themselves on a quadratic."""

import copy

import pytest
import torch
from torch import nn

from lightning_topo.stability import awaits_first_step, parameter_scalings
from tests.stability.test_sharpness import dense_hessian, stability

# At eps = 1 and parameters near 1e-8, D stays constant: the iteration is linear, as the threshold assumes.
TINY, EPS, CURVATURE = 1e-8, 1.0, 3.0

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
]


def step(optimizer, theta, curvature=CURVATURE):
    optimizer.zero_grad()
    (0.5 * curvature * theta**2).sum().backward()
    optimizer.step()


def settled(kind, lr, options, n=400):
    """An optimizer whose bias corrections have died away, at a parameter of size TINY."""
    theta = torch.tensor([TINY], dtype=torch.float64, requires_grad=True)
    optimizer = kind([theta], lr=lr, eps=EPS, **options)
    optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(n):
        step(optimizer, theta)
    optimizer.param_groups[0]["lr"] = lr
    return theta, optimizer


def ratio(optimizer, theta):
    (scaling,) = parameter_scalings([optimizer], [theta])
    return float(scaling.stability) * (CURVATURE + scaling.weight_decay)


def grows(optimizer, theta, n=3000):
    """Whether the iteration grows out of its linear range, rather than dying down."""
    for _ in range(n):
        step(optimizer, theta)
        if not 1e-4 * TINY < theta.abs().item() < 1e4 * TINY:
            break
    return theta.abs().item() > TINY


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
@pytest.mark.parametrize("side", [0.98, 1.02])
def test_the_threshold_is_where_the_optimizer_itself_diverges(kind, options, side):
    theta, optimizer = settled(kind, 1.0, options)
    # The threshold of a decoupled decay moves with the learning rate: by bisection.
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        optimizer.param_groups[0]["lr"] = middle
        low, high = (middle, high) if 0 <= ratio(optimizer, theta) < side else (low, middle)
    assert ratio(optimizer, theta) == pytest.approx(side)
    assert grows(optimizer, theta) == (side > 1.0)


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
    theta, optimizer = settled(torch.optim.Adagrad, 1.0, {"lr_decay": 1e-4})
    optimizer.param_groups[0]["lr"] = side / ratio(optimizer, theta)
    assert ratio(optimizer, theta) == pytest.approx(side)
    grown = []
    for _ in range(800):
        before = theta.abs().item()
        at = ratio(optimizer, theta)
        step(optimizer, theta)
        if abs(at - 1.0) > 1e-3:
            grown.append((theta.abs().item() > before) == (at > 1.0))
    assert len(grown) > 700
    assert all(grown)
    assert side > 1.0 or ratio(optimizer, theta) == pytest.approx(side * 1.04 / 1.12, rel=1e-3)


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_the_step_is_linear_in_the_newest_gradient_with_slope_m(kind, options):
    """Two copies with one history: the difference of their steps over that of their gradients is M."""
    moved = []
    for gradient in (1e-8, 2e-8):
        theta, optimizer = settled(kind, 0.1, options)
        (scaling,) = parameter_scalings([optimizer], [theta])
        before = theta.item()
        theta.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        moved.append(theta.item() - before)
    assert (moved[0] - moved[1]) / 1e-8 == pytest.approx(float(scaling.step), rel=1e-3)


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
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
    (ahead,) = parameter_scalings([optimizer], [theta], gradient)
    for name, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(state["state"][0][name])), "only looked at"
    theta.grad = gradient
    optimizer.step()
    (behind,) = parameter_scalings([optimizer], [theta])
    torch.testing.assert_close(ahead.stability, behind.stability)
    torch.testing.assert_close(ahead.step, behind.step)
    assert ahead.weight_decay == behind.weight_decay


def test_a_weight_that_has_had_no_gradient_so_far_does_not_count_as_unbounded():
    """Its second moment is 0, so that lr / eps would be its scaling; the next step takes its gradient in first."""
    theta = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=1e-3)
    for _ in range(25):
        theta.grad = torch.tensor([1.0, 0.0], dtype=torch.float64)
        optimizer.step()
    (without,) = parameter_scalings([optimizer], [theta])
    (with_it,) = parameter_scalings([optimizer], [theta], torch.tensor([1.0, 1.0], dtype=torch.float64))
    assert float(without.stability[1] / without.stability[0]) > 1e6
    # v = (1 - b2) against (1 - b2^26): 26 times less, so 5 times the scaling.
    assert float(with_it.stability[1] / with_it.stability[0]) == pytest.approx(26**0.5, rel=0.01)


def test_adagrads_learning_rate_decays_by_the_step_to_come():
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adagrad([theta], lr=0.1, lr_decay=0.5)
    for _ in range(3):
        step(optimizer, theta)
    (ahead,) = parameter_scalings([optimizer], [theta], torch.ones(1, dtype=torch.float64))
    before = theta.item()
    theta.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    assert before - theta.item() == pytest.approx(float(ahead.step), rel=1e-6)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_before_its_first_step_an_adaptive_optimizer_has_no_scaling(kind):
    theta = torch.ones(2, requires_grad=True)
    idle = torch.ones(2, requires_grad=True)
    optimizer = kind([theta, idle], lr=0.1)
    assert awaits_first_step([optimizer])
    assert parameter_scalings([optimizer], [theta]) is None
    step(optimizer, theta)
    assert not awaits_first_step([optimizer])
    moving, still = parameter_scalings([optimizer], [theta, idle])
    assert moving.stability.shape == (2,)
    assert still.stability == 0.0


def test_a_scheduler_s_learning_rate_is_what_counts():
    theta = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    step(optimizer, theta)
    (before,) = parameter_scalings([optimizer], [theta])
    scheduler.step()
    (after,) = parameter_scalings([optimizer], [theta])
    torch.testing.assert_close(after.stability, before.stability / 2)
    torch.testing.assert_close(after.step, before.step / 2)


@pytest.mark.parametrize(
    "kind", [torch.optim.Rprop, torch.optim.Adamax, torch.optim.ASGD, torch.optim.RAdam, torch.optim.Adadelta]
)
def test_unknown_optimizers_have_no_threshold(kind):
    theta = torch.ones(2, requires_grad=True)
    optimizer = kind([theta], lr=0.1)
    step(optimizer, theta)
    assert parameter_scalings([optimizer], [theta]) is None
    assert not awaits_first_step([optimizer])


def test_subclasses_and_maximize_are_unknown():
    class Own(torch.optim.Adam):
        def step(self, closure=None):
            return super().step(closure)

    theta = torch.ones(2, requires_grad=True)
    for optimizer in (Own([theta]), torch.optim.Adam([theta], maximize=True)):
        step(optimizer, theta)
        assert parameter_scalings([optimizer], [theta]) is None
    known = torch.optim.SGD([theta], lr=0.1)
    assert parameter_scalings([known, torch.optim.Rprop([theta])], [theta]) is None


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
