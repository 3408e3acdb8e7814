"""Products by finite differences: what they are held against, when they are taken, and what they leave behind."""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from lightning_topo.stability import (
    NotTwiceDifferentiable,
    by_backward,
    curvature_sharpness,
    finite_difference_hessian,
    flatten,
    hessian,
    sharpness,
    split_finite_difference_hessian,
    split_hessian,
)
from tests.stability.dense import dense_hessian
from tests.stability.test_models import MODELS, problem


class SquareOnce(torch.autograd.Function):
    """x -> x^2, with a backward pass that autograd cannot look into."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


@torch.library.custom_op("lightning_topo_tests::square", mutates_args=())
def square(x: torch.Tensor) -> torch.Tensor:
    return x * x


@torch.library.custom_op("lightning_topo_tests::square_backward", mutates_args=())
def square_backward(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    return 2 * x * grad


square.register_autograd(
    lambda ctx, grad: square_backward(ctx.saved_tensors[0], grad),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


def ctc(theta):
    targets, lengths = torch.tensor([[1, 2], [3, 1]]), (torch.tensor([6, 6]), torch.tensor([2, 2]))
    return nn.functional.ctc_loss(theta.view(6, 2, 5).log_softmax(-1), targets, *lengths)


def flash(theta):
    q, k, v = theta.view(3, 1, 1, 4, 5)
    return nn.functional.scaled_dot_product_attention(q, k, v).square().sum()


def bag(theta):
    rows = torch.tensor([[0, 1], [3, 3]])
    return nn.functional.embedding_bag(rows, theta.view(12, 5), mode="max").square().sum()


# Each with what its second derivative is asked of.
OBSTACLES = {
    "SquareOnce": (lambda theta: (SquareOnce.apply(theta * theta) * theta).sum(), lambda theta: (theta**5).sum()),
    "lightning_topo_tests": (lambda theta: square(theta**2).sum(), lambda theta: (theta**4).sum()),
    "_ctc_loss_backward": (ctc, None),
    "_embedding_bag_backward": (bag, None),
    "flash_attention": (flash, None),
}


def point(n=60):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, generator=generator, dtype=torch.float64).add(0.5).requires_grad_()


@pytest.mark.parametrize("name", OBSTACLES)
def test_an_operator_without_double_backward_is_named_and_its_products_are_differences(name):
    loss_fn, twin = OBSTACLES[name]
    theta = point()
    before = theta.detach().clone()
    v = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with pytest.raises(NotTwiceDifferentiable, match=name):
        _ = hessian(lambda: loss_fn(theta), [theta]) @ v
    found = sharpness(lambda: loss_fn(theta), [theta], tolerance=1e-3)
    assert not found.exact
    assert name in found.obstacle
    assert found.converged
    assert torch.equal(theta, before)
    if twin is None:
        product = finite_difference_hessian(lambda: loss_fn(theta), [theta], obstacle=name) @ v
        ends = []
        for side in (1e-4, -1e-4):
            moved = (before + side * v).requires_grad_()
            ends.append(torch.autograd.grad(loss_fn(moved), moved)[0])
        torch.testing.assert_close(product, (ends[0] - ends[1]) / 2e-4, rtol=1e-5, atol=1e-7)
    else:
        truth = torch.linalg.eigvalsh(dense_hessian(lambda: twin(theta), [theta]))[-1].item()
        assert found.value == pytest.approx(truth, rel=1e-3)


def test_a_function_that_is_once_differentiable_alone_is_found_too():
    """Where the gradient from above needs none itself, torch does not even note the missing derivative."""
    theta = point(3)
    with pytest.raises(NotTwiceDifferentiable, match="SquareOnce"):
        hessian(lambda: SquareOnce.apply(theta).sum(), [theta])
    assert sharpness(lambda: SquareOnce.apply(theta).sum(), [theta]).value == pytest.approx(2.0, rel=1e-5)


def test_functions_that_can_be_differentiated_twice_are_not_accused():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            return 3 * ctx.saved_tensors[0] ** 2 * grad

    theta = point(3)
    found = sharpness(lambda: Cube.apply(theta).sum(), [theta])
    assert found.exact
    assert found.obstacle is None
    assert found.value == pytest.approx(6 * theta.max().item())


def test_other_errors_pass_through():
    theta = point(3)
    curvature = hessian(lambda: (theta**3).sum(), [theta])
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        _ = curvature @ torch.ones(2, dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-5), (torch.float32, 1e-2)])
def test_differences_are_the_exact_products(name, dtype, error):
    _, params, loss_fn = problem(name)
    eigenvectors = torch.linalg.eigh(dense_hessian(loss_fn, params)).eigenvectors
    truth = sharpness(loss_fn, params, tolerance=1e-4, max_products=400).value
    _, params, loss_fn = problem(name, dtype)
    top = eigenvectors[:, -1].to(dtype)
    exact, differences = hessian(loss_fn, params) @ top, finite_difference_hessian(loss_fn, params) @ top
    assert float((differences - exact).norm() / exact.norm()) < error
    found = curvature_sharpness(finite_difference_hessian(loss_fn, params))
    assert found.value == pytest.approx(truth, rel=0.02)
    assert not found.exact


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_under_autocast_the_moved_weights_are_the_ones_in_use(name):
    """Autocast keeps its own copies of the weights; a difference must not be one of two equal gradients."""
    _, params, loss_fn = problem(name)
    truth = sharpness(loss_fn, params, tolerance=1e-4, max_products=400).value
    _, params, loss_fn = problem(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        before = loss_fn().item()
        found = curvature_sharpness(finite_difference_hessian(loss_fn, params))
        assert loss_fn().item() == before
    assert found.value == pytest.approx(truth, rel=0.15)


def test_one_dropout_mask_serves_all_gradients_and_no_random_number_is_missing_afterwards():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2)).double()
    x = torch.randn(10, 4, dtype=torch.float64)
    state = torch.get_rng_state()
    curvature = finite_difference_hessian(lambda: model(x).square().mean(), model.parameters())
    generator = torch.Generator().manual_seed(1)
    v, w = (torch.randn(curvature.gradient.numel(), generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.equal(curvature @ v, curvature @ v)
    assert float(v @ (curvature @ w)) == pytest.approx(float(w @ (curvature @ v)), rel=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_and_gradients_come_back_bitwise_even_when_the_loss_fails():
    _, params, loss_fn = problem("mlp", torch.float32)
    loss_fn().backward()
    grads = [p.grad for p in params]
    before = [p.detach().clone() for p in params]
    calls = []

    def failing():
        calls.append(None)
        if len(calls) == 3:
            raise KeyError("in the middle of a product")
        return loss_fn()

    curvature = finite_difference_hessian(failing, params)
    with pytest.raises(KeyError):
        _ = curvature @ torch.ones_like(curvature.gradient)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    _ = curvature @ torch.randn_like(curvature.gradient)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))


def test_gradients_by_backward_are_the_same_and_leave_grad_alone():
    _, params, loss_fn = problem("mlp")
    params[0].grad = kept = torch.full_like(params[0], 7.0)
    v = torch.ones(sum(p.numel() for p in params), dtype=torch.float64)
    by_hooks = finite_difference_hessian(loss_fn, params, differentiate=by_backward)
    torch.testing.assert_close(by_hooks @ v, finite_difference_hessian(loss_fn, params) @ v)
    assert params[0].grad is kept
    assert torch.equal(kept, torch.full_like(kept, 7.0))
    assert all(p.grad is None for p in params[1:])


def test_parts_are_the_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    pieces = [(0.4, slice(0, 4)), (0.6, slice(4, 10))]
    parts = [(w, lambda at=at: nn.functional.mse_loss(model(x[at]), y[at])) for w, at in pieces]
    exact, differences = (
        split_hessian(parts, model.parameters()),
        split_finite_difference_hessian(parts, model.parameters()),
    )
    v = torch.randn(exact.gradient.numel(), dtype=torch.float64)
    torch.testing.assert_close(differences @ v, exact @ v, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(differences.gradient, exact.gradient)
    assert differences.loss == pytest.approx(exact.loss)


def test_no_direction_and_parameters_without_influence():
    used, unused = torch.ones(2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    curvature = finite_difference_hessian(lambda: (used**2).sum(), [used.requires_grad_(), unused.requires_grad_()])
    assert torch.equal(curvature @ torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(curvature @ torch.ones(5, dtype=torch.float64), flatten([used * 2, unused * 0]))


def test_errors_are_those_of_the_exact_hessian():
    w = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="requires a gradient"):
        finite_difference_hessian(lambda: (w**2).sum(), [w.detach()])
    with pytest.raises(ValueError, match="scalar loss"):
        finite_difference_hessian(lambda: w**2, [w])
    with pytest.raises(FloatingPointError, match="finite loss"):
        finite_difference_hessian(lambda: w.sum() / 0, [w])
    with pytest.raises(ValueError, match="at least one part"):
        split_finite_difference_hessian([], [w])
    for make in (hessian, finite_difference_hessian):
        with pytest.raises(ValueError, match="constant"):
            make(lambda: torch.ones(()), [w])
