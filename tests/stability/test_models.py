"""Sharpness of real layers, against the dense float64 Hessian and against curvlinops."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from lightning_topo.stability import curvature_sharpness, flatten, hessian, sharpness, split_hessian
from tests.stability.dense import dense_hessian


class Attention(nn.Module):
    """A transformer block over 4 tokens of 6 features, with the token embedding tied to the output if asked."""

    def __init__(self, dropout=0.0, tied=False):
        super().__init__()
        self.embed = nn.Linear(3, 6, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.mlp = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 6))
        self.head = None if tied else nn.Linear(6, 3, bias=False)
        self.dropout = dropout

    def forward(self, x):
        x = self.embed(x)
        q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = (x + self.mlp(self.norm2(x))).mean(1)
        return x @ self.embed.weight if self.head is None else self.head(x)


def mlp(dropout=0.0):
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


def frozen():
    model = mlp()
    for p in model[0].parameters():
        p.requires_grad_(False)
    return model


MODELS = {
    "mlp": (mlp, (5,)),
    "mlp-dropout": (lambda: mlp(0.3), (5,)),
    "mlp-frozen": (frozen, (5,)),
    "cnn-batchnorm": (cnn, (1, 6, 6)),
    "transformer": (Attention, (4, 3)),
    "transformer-dropout": (lambda: Attention(0.2), (4, 3)),
    "transformer-tied": (lambda: Attention(tied=True), (4, 3)),
}


def problem(name, dtype=torch.float64):
    """The model, its trainable parameters, and its loss with one dropout mask."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().to(dtype)
    x, y = torch.randn(32, *shape, dtype=torch.float64).to(dtype), torch.randint(0, 3, (32,))

    def loss_fn():
        with torch.random.fork_rng(), sdpa_kernel(SDPBackend.MATH):
            torch.manual_seed(1)
            return nn.functional.cross_entropy(model(x), y)

    return model, [p for p in model.parameters() if p.requires_grad], loss_fn


@pytest.mark.parametrize("name", MODELS)
def test_against_the_dense_hessian(name):
    _, params, loss_fn = problem(name)
    dense = dense_hessian(loss_fn, params)
    spectrum = torch.linalg.eigvalsh(dense)
    found = sharpness(loss_fn, params)
    assert found.converged
    assert found.value == pytest.approx(spectrum[-1].item(), rel=0.01)
    assert float((spectrum - found.value).abs().min()) <= found.residual + 1e-12
    curvature = hessian(loss_fn, params)
    v = torch.randn(len(dense), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(curvature @ v, dense @ v)
    exact = sharpness(loss_fn, params, n_largest=3, tolerance=1e-8, max_products=400)
    assert exact.top == pytest.approx(spectrum.flip(0)[:3].tolist(), rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_float32_finds_the_value_of_float64(name):
    _, params, loss_fn = problem(name)
    truth = sharpness(loss_fn, params, tolerance=1e-6, max_products=400).value
    _, params, loss_fn = problem(name, torch.float32)
    assert sharpness(loss_fn, params).value == pytest.approx(truth, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_products_are_the_differences_of_the_gradient(name):
    _, params, loss_fn = problem(name)
    v = torch.randn(sum(p.numel() for p in params), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    product = hessian(loss_fn, params) @ v
    gradients = []
    for side in (1e-6, -2e-6):
        with torch.no_grad():
            for p, piece in zip(params, v.split([p.numel() for p in params]), strict=True):
                p.add_(side * piece.view_as(p))
        gradients.append(flatten(torch.autograd.grad(loss_fn(), params)))
    torch.testing.assert_close((gradients[0] - gradients[1]) / 2e-6, product, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "cnn-batchnorm", "transformer", "transformer-tied"])
def test_against_curvlinops(name):
    """In evaluation mode and without LayerNorm: torch.func, on which curvlinops builds, errs on the latter by 7 %."""
    curvlinops = pytest.importorskip("curvlinops")
    model, params, _ = problem(name)
    model.eval()
    if isinstance(model, Attention):
        model.norm1 = model.norm2 = nn.Identity()
        params = list(model.parameters())
    x, y = torch.randn(32, *MODELS[name][1], dtype=torch.float64), torch.randint(0, 3, (32,))
    loss = nn.CrossEntropyLoss()
    v = torch.randn(sum(p.numel() for p in params), dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = curvlinops.HessianLinearOperator(model, loss, params, [(x, y)], check_deterministic=False)
        torch.testing.assert_close(hessian(lambda: loss(model(x), y), params) @ v, theirs @ v)


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_under_bfloat16_autocast_it_is_near_the_truth(name):
    _, params, loss_fn = problem(name)
    truth = torch.linalg.eigvalsh(dense_hessian(loss_fn, params))[-1].item()
    _, params, loss_fn = problem(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = sharpness(loss_fn, params, tolerance=0.05)
    assert found.value == pytest.approx(truth, rel=0.1)


def test_a_loss_that_does_not_depend_on_some_parameters():
    model, params, _ = problem("mlp")
    x = torch.randn(10, 5, dtype=torch.float64)
    found = sharpness(lambda: model[0](x).square().mean(), params)
    dense = dense_hessian(lambda: model[0](x).square().mean(), list(model[0].parameters()))
    assert found.value == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item(), rel=0.02)
    assert found.vector.numel() == sum(p.numel() for p in params)


def test_a_hessian_that_is_not_finite_says_so():
    w = torch.zeros(3, requires_grad=True)
    with pytest.raises(FloatingPointError, match="Hessian products"):
        sharpness(lambda: (w + 0.0).abs().sqrt().sum() * 0 + (w.pow(1.5)).sum(), [w])


def peak_bytes(function):
    """The most that the allocator had handed out at any time while the function ran, beyond what it began with."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize(("name", "n"), [("mlp", 1024), ("transformer", 512)])
def test_products_in_parts_take_no_more_than_three_training_steps_memory(name, n):
    """In parts of half the training batch, from a probe batch eight times as large as that."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    x, y = torch.randn(n, *shape), torch.randint(0, 3, (n,))

    def loss_of(first, last):
        with sdpa_kernel(SDPBackend.MATH):
            return nn.functional.cross_entropy(model(x[first:last]), y[first:last])

    parts = [(1 / 16, lambda k=k: loss_of(k, k + n // 16)) for k in range(0, n, n // 16)]
    found = []
    training = peak_bytes(lambda: loss_of(0, n // 8).backward())
    in_parts = peak_bytes(lambda: found.append(curvature_sharpness(split_hessian(parts, model.parameters()))))
    at_once = peak_bytes(lambda: found.append(sharpness(lambda: loss_of(0, n), model.parameters())))
    assert found[0].value == pytest.approx(found[1].value, rel=0.02)
    assert in_parts <= 3 * training
    assert at_once > 3 * training
