"""Batch sharpness: its two plateaus, held against the optimizers themselves on stochastic quadratics."""

import dataclasses
import inspect
import itertools

import pytest
import torch
from torch import nn

from lightning_topo.stability import (
    Curvature,
    Hessian,
    batch_sharpness,
    curvature_batch_sharpness,
    curvature_elsewhere,
    hessian,
    parameter_thresholds,
)
from lightning_topo.stability._layout import Layout

TINY, CURVATURE, EVERY = 1e-12, 3.0, 120

OPTIMIZERS = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.SGD, {"momentum": 0.8, "dampening": 0.3}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (torch.optim.Adam, {"betas": (0.9, 0.99)}),
    (torch.optim.Adam, {"betas": (0.8, 0.99), "amsgrad": True}),
    (torch.optim.Adamax, {}),
    (torch.optim.RAdam, {"betas": (0.9, 0.97)}),
    (torch.optim.NAdam, {"momentum_decay": 0.0, "betas": (0.9, 0.99)}),
    (torch.optim.RMSprop, {"momentum": 0.9}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adagrad, {}),
]


def warmed_up(kind, options):
    """An optimizer whose bias corrections have died away, at entries of size TINY with curvatures about one."""
    near = CURVATURE * (1.0 + torch.arange(-40, 41, dtype=torch.float64) / 1e4)
    theta = torch.full((81,), TINY, dtype=torch.float64, requires_grad=True)
    eps = {"eps": 1.0} if "eps" in inspect.signature(kind).parameters else {}
    optimizer = kind([theta], lr=0.0, **eps | options)
    for _ in range(400):
        theta.grad = torch.zeros_like(theta)
        optimizer.step()
    return near, theta, optimizer


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
@pytest.mark.parametrize("every", [EVERY, 1])
def test_small_and_large_batches_diverge_where_their_plateau_is(kind, options, every):
    """A stochastic quadratic: each batch holds one sample of `every`, and the samples' gradients are orthogonal.

    So an entry has its own sample's curvature once in `every` steps, and none in between. Once in 120 momentum has
    spent itself before the sample comes again: small batches. At every step: one large batch.
    """
    near, theta, optimizer = warmed_up(kind, options)

    def measured():
        middle = theta.detach()[40:41].clone().requires_grad_()
        thresholds = parameter_thresholds([optimizer], [theta], torch.zeros(81, dtype=torch.float64)).parameters
        one = [
            type(t)(*(v if isinstance(v, float) else v[40:41] for v in (t.stability, t.step, t.weight_decay, t.total)))
            for t in thresholds
        ]
        return batch_sharpness(lambda: (0.5 * CURVATURE * middle**2).sum(), [middle], one)

    optimizer.param_groups[0]["lr"] = 1.0
    found = measured()
    assert found.value == pytest.approx(CURVATURE)
    optimizer.param_groups[0]["lr"] = 1.0 / (found.large if every == 1 else found.small)
    found = measured()
    assert (found.large if every == 1 else found.small) == pytest.approx(1.0, rel=1e-6)
    sizes = []
    for k in range(160 if every == 1 else 12 * every):
        theta.grad = near * theta.detach() if k % every == 0 else torch.zeros_like(theta)
        optimizer.step()
        if k % every == every - 1:
            sizes.append(theta.detach().abs().clone())
    half = len(sizes) // 2
    grows = torch.stack(sizes[-4:]).amax(0) > torch.stack(sizes[half - 4 : half]).amax(0)
    assert grows[-1]
    assert not grows[0]
    assert near[grows][0].item() == pytest.approx(CURVATURE, rel=1e-3)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    x, y = torch.randn(16, 5, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64)
    return model, lambda: nn.functional.mse_loss(model(x), y)


def test_against_the_dense_matrix_under_adam(problem):
    model, loss_fn = problem
    params = list(model.parameters())
    optimizer = torch.optim.Adam(params, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss_fn().backward()
        optimizer.step()
    curvature = hessian(loss_fn, params)
    thresholds = parameter_thresholds([optimizer], params, curvature.gradient).parameters
    found = batch_sharpness(loss_fn, params, thresholds, noise=0.25)
    g = curvature.gradient
    dense = torch.stack([curvature @ e for e in torch.eye(len(g), dtype=g.dtype)])
    t = torch.cat([each.total.flatten() for each in thresholds])
    s = torch.cat([each.stability.flatten() for each in thresholds])
    assert found.value == pytest.approx(float(g @ dense @ g / (g @ g)))
    assert found.small == pytest.approx(float((t * g) @ dense @ (t * g) / (2 * g @ (t * g))))
    assert found.large == pytest.approx(float((s * g) @ dense @ (s * g) / (g @ (s * g))))
    assert found.ratio == pytest.approx(0.25 * found.small + 0.75 * found.large)


def test_momentum_has_both_plateaus_of_the_papers(problem):
    model, loss_fn = problem
    params = list(model.parameters())
    sgd = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    found = batch_sharpness(loss_fn, params, parameter_thresholds([sgd], params).parameters)
    assert found.small == pytest.approx(found.value * 0.1 / (2 * (1 - 0.9)))
    assert found.large == pytest.approx(found.value * 0.1 / (2 * (1 + 0.9)))
    assert found.ratio == found.small
    assert batch_sharpness(loss_fn, params).ratio is None


def test_a_gradient_of_zero_and_a_wrong_share():
    theta = torch.zeros(2, requires_grad=True)
    assert batch_sharpness(lambda: (theta**2).sum(), [theta]).value == 0.0
    with pytest.raises(ValueError, match="share of noise"):
        batch_sharpness(lambda: (theta**2).sum(), [theta], noise=1.5)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("noise", [0.0, 0.3, 0.8])
def test_the_share_of_noise_weighs_the_two_plateaus_exactly_in_one_direction(mu, noise):
    """The second moments of heavy-ball momentum whose curvature is drawn anew at every step, where the ratio is 1."""
    lr, b = 0.1, 1.0
    ratio = noise * lr * b / (2 * (1 - mu)) + (1 - noise) * lr * b / (2 * (1 + mu))
    mean, variance = (1 - noise) * b / ratio, noise * (1 - noise) * (b / ratio) ** 2
    a = 1 + mu - lr * mean
    # Of E[x_t^2], E[x_t x_(t-1)] and E[x_(t-1)^2].
    moments = torch.tensor(
        [[a**2 + lr**2 * variance, -2 * mu * a, mu**2], [a, -mu, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64
    )
    assert torch.linalg.eigvals(moments).abs().max().item() == pytest.approx(1.0, abs=1e-9)


@dataclasses.dataclass
class Counted(Curvature):
    """A Hessian that counts its products."""

    inner: Hessian
    n: int = 0

    def __post_init__(self):
        self.loss, self.params = self.inner.loss, self.inner.params

    @property
    def gradient(self):
        return self.inner.gradient

    def __matmul__(self, vector):
        self.n += 1
        return self.inner @ vector


@pytest.mark.parametrize(
    ("kind", "options", "products"),
    [
        (torch.optim.SGD, [{"momentum": 0.9}], 1),
        (torch.optim.AdamW, [{}], 2),
        (torch.optim.Adam, [{"betas": (0.9, 0.999)}, {"betas": (0.5, 0.999)}], 3),
        (torch.optim.SGD, [{"momentum": 0.9}, {"momentum": 1.0}], 3),
    ],
)
def test_no_product_is_taken_twice(kind, options, products):
    """One scale for all takes no product of its own, S none where it is T times one number."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    halves = [[*net[0].parameters()], [*net[2].parameters()]] if len(options) == 2 else [[*net.parameters()]]
    optimizer = kind([{"params": own, **more} for own, more in zip(halves, options, strict=True)], lr=0.01)
    x = torch.randn(8, 4, dtype=torch.float64)

    def loss():
        return net(x).square().mean()

    loss().backward()
    optimizer.step()
    params = [*net.parameters()]
    curvature = Counted(hessian(loss, params))
    thresholds = parameter_thresholds([optimizer], params, curvature.gradient).parameters
    found = curvature_batch_sharpness(curvature, thresholds)
    assert curvature.n == products
    g = curvature.gradient
    total, stable = (
        Layout.of(params).spread([getattr(each, name) for each in thresholds]) for name in ("total", "stability")
    )
    moved, other = total * g, stable * g
    assert found.small == pytest.approx(0.5 * float(moved @ (curvature @ moved)) / float(g @ moved))
    assert found.large == pytest.approx(float(other @ (curvature @ other)) / float(g @ other))
    share = curvature_elsewhere(curvature, curvature.inner, thresholds)
    assert share == pytest.approx(1.0)
    assert curvature.n == products + 3  # two of this test, one along the step


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("noise", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_of_the_mean_of_k_batches_the_noise_counts_a_kth_exactly_in_one_direction(mu, noise, k):
    """The mean of k curvatures has the same mean and a k-th of the variance; lr is where the ratio, without the factor
    1 + n of many directions, is 1."""
    b = 1.0
    part = 1.0 - noise + noise / k
    share = noise / (k * part)
    lr = 1.0 / (part * b * (share / (2 * (1 - mu)) + (1 - share) / (2 * (1 + mu))))
    assert lr == pytest.approx(1.0 / (noise * b / k / (2 * (1 - mu)) + (1 - noise) * b / (2 * (1 + mu))))
    mean, variance = (1 - noise) * b, noise * (1 - noise) * b**2 / k
    a = 1 + mu - lr * mean
    moments = torch.tensor(
        [[a**2 + lr**2 * variance, -2 * mu * a, mu**2], [a, -mu, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64
    )
    assert torch.linalg.eigvals(moments).abs().max().item() == pytest.approx(1.0, abs=1e-9)


def test_the_curvature_of_k_batches_follows_from_that_of_one_on_a_dense_stochastic_quadratic():
    """Gradients of pure noise, Hessians of their own: g is the mean of k, and H too."""
    torch.manual_seed(0)
    d, k, n = 40, 4, 4000
    base = torch.diag(torch.linspace(0.1, 3.0, d, dtype=torch.float64))

    def batch():
        g = torch.randn(d, dtype=torch.float64)
        return g, base + 0.5 * torch.outer(g, g) / d

    def sharpness(parts):
        g, h = (torch.stack(each).mean(0) for each in zip(*parts, strict=True))
        return float(g @ h @ g / (g @ g))

    single = [batch() for _ in range(n)]
    own = torch.tensor([sharpness([one]) for one in single]).mean()
    shared = torch.tensor([float(g @ h @ g / (g @ g)) for (g, _), (_, h) in itertools.pairwise(single)])
    noise = 1.0 - float(shared.mean() / own)
    together = torch.tensor([sharpness([batch() for _ in range(k)]) for _ in range(n)]).mean()
    assert float(together / own) == pytest.approx(1.0 - noise + noise / k, rel=0.02)
