"""Each optimizer's rule against the optimizer itself: where it diverges, and how far its next step goes."""

import pytest
import torch

from lightning_topo.stability import ParameterThreshold, parameter_thresholds
from lightning_topo.stability._optimizer_thresholds import coupled_gradient


def sgd(params, **options):
    return torch.optim.SGD(params, **options)


SGDS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.5, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.5},
    {"momentum": 0.9, "weight_decay": 0.2},
    {"dampening": 0.5},
]


@pytest.mark.parametrize("options", SGDS)
@pytest.mark.parametrize("side", [0.98, 1.02])
def test_the_threshold_is_where_the_optimizer_itself_diverges(options, side):
    """Simulate the optimizer on a quadratic whose ratio is just below, or just above, 1."""
    lr, h = 0.1, 4.0
    theta = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    (threshold,) = parameter_thresholds([sgd([theta], lr=1.0, **options)], [theta]).parameters
    lr = side / (threshold.stability * (h + threshold.weight_decay))
    optimizer = sgd([theta], lr=lr, **options)
    (threshold,) = parameter_thresholds([optimizer], [theta]).parameters
    assert threshold.stability * (h + threshold.weight_decay) == pytest.approx(side)
    for _ in range(3000):
        optimizer.zero_grad()
        (0.5 * h * theta**2).sum().backward()
        optimizer.step()
    assert (theta.abs().item() < 1e-3) == (side < 1.0)


@pytest.mark.parametrize("options", SGDS)
def test_eta_lambda_is_the_lipschitz_constant_of_the_newest_gradient_in_the_step(options):
    """Two copies with one history: the difference of their steps over their distance is M (H + wd)."""
    h, steps = 3.0, []
    for theta0 in (1.0, 1.001):
        theta = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        optimizer = sgd([theta], lr=0.05, **options)
        for start in (None, theta0):
            if start is not None:
                with torch.no_grad():
                    theta.fill_(start)
                (threshold,) = parameter_thresholds([optimizer], [theta]).parameters
            optimizer.zero_grad()
            (0.5 * h * theta**2).sum().backward()
            before = theta.item()
            optimizer.step()
        steps.append(theta.item() - before)
    assert abs(steps[1] - steps[0]) / 0.001 == pytest.approx(threshold.step * (h + threshold.weight_decay))


@pytest.mark.parametrize("shape", [(6,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("growth", [0.5, 5.0])
def test_adafactors_next_step_is_m_times_the_gradient(shape, growth, decay):
    """Factored moments and relative rate as the optimizer has them, and its clipping where gradients grow."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adafactor([theta], lr=0.05, weight_decay=decay)
    for k in range(5):
        gradient = growth**k * torch.randn(shape, generator=generator, dtype=torch.float64)
        if optimizer.state:
            (found,) = parameter_thresholds([optimizer], [theta], gradient.flatten()).parameters
            expected = (1.0 - 0.05 * decay) * theta.detach() - found.step * gradient
        theta.grad = gradient
        optimizer.step()
    torch.testing.assert_close(theta.detach(), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3}])
def test_adadeltas_next_step_is_m_times_the_gradient(options):
    """Its accumulated updates are those from before the step, its squared gradients those behind it."""
    theta = torch.ones(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adadelta([theta], lr=0.7, **options)
    for k in range(5):
        gradient = torch.arange(1.0, 5.0, dtype=torch.float64) * (-1.3) ** k
        if optimizer.state:
            (found,) = parameter_thresholds([optimizer], [theta], gradient).parameters
            expected = theta.detach() - found.step * (gradient + found.weight_decay * theta.detach())
        theta.grad = gradient
        optimizer.step()
    torch.testing.assert_close(theta.detach(), expected)


def test_adagrads_learning_rate_decays_by_the_step_to_come():
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adagrad([theta], lr=0.1, lr_decay=0.5)
    for _ in range(3):
        theta.grad = 3.0 * theta.detach()
        optimizer.step()
    (ahead,) = parameter_thresholds([optimizer], [theta], torch.ones(1, dtype=torch.float64)).parameters
    before = theta.item()
    theta.grad = torch.ones(1, dtype=torch.float64)
    optimizer.step()
    assert before - theta.item() == pytest.approx(float(ahead.step), rel=1e-6)


TOTALS = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.4}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (torch.optim.Adam, {"betas": (0.9, 0.9999999)}),
    (torch.optim.RMSprop, {"momentum": 0.8, "alpha": 0.9999999}),
]


@pytest.mark.parametrize(("kind", "options"), TOTALS)
def test_the_total_is_how_far_one_gradient_moves_the_parameter_in_the_end(kind, options):
    """Two copies with one history: one gets a little more gradient once, and both nothing else from then on."""
    ends = []
    for more in (0.0, 1e-6):
        theta = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        optimizer = kind([theta], lr=0.1, **options)
        for k in range(400):
            theta.grad = torch.tensor([1.0 + 0.5 * (-1.0) ** k], dtype=torch.float64)
            optimizer.step()
        (found,) = parameter_thresholds([optimizer], [theta]).parameters
        for k in range(400):
            theta.grad = torch.tensor([more if k == 0 else 0.0], dtype=torch.float64)
            optimizer.step()
        ends.append(theta.item())
    # The second moment hardly changes, the bias correction has died away: what is left is M and its echoes.
    assert (ends[0] - ends[1]) / 1e-6 == pytest.approx(float(found.total), rel=0.02)


def test_a_scaled_threshold_is_that_of_the_optimizer_that_is_handed_so_much_more():
    threshold = ParameterThreshold(0.5, 1.0, 0.1, 2.0)
    assert threshold.scaled(1.0) is threshold
    assert threshold.scaled(2.0).scaled(0.5) == threshold
    # s (H + wd / s) = s H + wd: the decay stays what it was.
    scaled = threshold.scaled(4.0)
    assert scaled.stability * (3.0 + scaled.weight_decay) == pytest.approx(0.5 * (4.0 * 3.0 + 0.1))
    assert threshold.scaled(0.0) == ParameterThreshold(0.0, 0.0)


@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        ({}, 1.0),
        ({"weight_decay": 0.5}, 1.0 + 0.5 * 4.0),
        ({"weight_decay": 0.5, "decoupled_weight_decay": True}, 1.0),
        ({"weight_decay": 0.0, "decoupled_weight_decay": False}, 1.0),
    ],
)
def test_decay_is_in_the_gradient_only_where_the_optimizer_couples_it(group, wanted):
    found = coupled_gradient(group, torch.full((2,), 4.0), torch.ones(2))
    assert found.tolist() == [wanted, wanted]


def test_squares_of_small_half_precision_gradients_do_not_vanish():
    small = torch.full((2,), 1e-5, dtype=torch.float16)
    assert (coupled_gradient({}, small, small) ** 2).all()
    theta = torch.ones(2, dtype=torch.float16, requires_grad=True)
    optimizer = torch.optim.Adagrad([theta], lr=0.1)
    theta.grad = torch.ones_like(theta)
    optimizer.step()
    (found,) = parameter_thresholds([optimizer], [theta]).parameters
    assert found.step.dtype is torch.float32
