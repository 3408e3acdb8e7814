"""The curvature along the step and along the swap of two neurons, against steps really taken."""

import pytest
import torch
from torch import nn

from lightning_topo.stability import (
    directional_ratio,
    flatten,
    hessian,
    parameter_thresholds,
    swap_curvature,
)
from tests.stability.dense import dense_hessian


def quadratic(n=6, seed=0):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix, theta = a @ a.T, torch.ones(n, dtype=torch.float64, requires_grad=True)
    return matrix, theta, lambda: 0.5 * theta @ matrix @ theta


@pytest.mark.parametrize("lr", [0.01, 0.05, 0.2])
def test_on_a_quadratic_it_is_the_formula_where_the_step_began(lr):
    matrix, theta, loss_fn = quadratic()
    g = matrix @ theta.detach()
    step = -lr * g
    truth = float(step @ matrix @ step) / (-2 * float(g @ step))
    with torch.no_grad():
        theta += step
    assert directional_ratio(hessian(loss_fn, [theta]), step) == pytest.approx(truth)


def test_at_one_the_loss_is_as_high_as_before_and_at_a_half_it_is_least():
    matrix, theta, loss_fn = quadratic()
    g = matrix @ theta.detach()
    exact = float(g @ g) / float(g @ matrix @ g)  # the line search's step
    before = loss_fn().item()
    for lr, expected in ((exact, 0.5), (2 * exact, 1.0)):
        with torch.no_grad():
            theta.fill_(1.0).sub_(lr * g)
        assert directional_ratio(hessian(loss_fn, [theta]), -lr * g) == pytest.approx(expected)
    assert loss_fn().item() == pytest.approx(before)


def test_an_uphill_step_and_no_step_have_no_ratio():
    matrix, theta, loss_fn = quadratic()
    g = matrix @ theta.detach()
    with torch.no_grad():
        theta += 0.01 * g
    assert directional_ratio(hessian(loss_fn, [theta]), 0.01 * g) is None
    assert directional_ratio(hessian(loss_fn, [theta]), torch.zeros_like(g)) is None


@pytest.mark.parametrize("gap", [1e-2, 1e-4])
def test_the_swap_ratio_is_the_critical_ratio_that_gradient_descent_gives_near_neurons(gap):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    x, y = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 2, dtype=torch.float64)

    def loss_fn():
        return nn.functional.mse_loss(model(x), y)

    first, bias, second = model[0].weight, model[0].bias, model[2].weight
    direction = torch.randn(7, dtype=torch.float64)
    with torch.no_grad():
        first[1] = first[0] + gap * direction[:4]
        bias[1] = bias[0] + gap * direction[4]
        second[:, 1] = second[:, 0] + gap * direction[5:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    swap = [torch.zeros_like(p) for p in model.parameters()]
    for u, p in ((swap[0], first), (swap[1], bias), (swap[2].T, second.T)):
        u[0], u[1] = p.detach()[0] - p.detach()[1], p.detach()[1] - p.detach()[0]
    curvature = hessian(loss_fn, model.parameters())
    u = flatten(swap)
    truth_along = float(u @ dense_hessian(loss_fn, model.parameters()) @ u / (u @ u))
    assert swap_curvature(curvature, u, None).ratio is None
    found = swap_curvature(curvature, u, parameter_thresholds([optimizer], curvature.params).parameters)

    def neurons():
        return torch.cat([first, bias[:, None], second.T], dim=1).detach().clone()

    before = neurons()
    loss_fn().backward()
    optimizer.step()
    moved = neurons() - before
    truth = (moved[0] - moved[1]).norm() / (before[0] - before[1]).norm()
    assert found.ratio == pytest.approx(truth.item(), rel=20 * gap)
    assert found.curvature == pytest.approx(truth_along)
