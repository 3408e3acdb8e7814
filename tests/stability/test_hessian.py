"""Products of the Hessian against the dense one, whole and in parts."""

from functools import partial

import pytest
import torch
from torch import nn

from lightning_topo.stability import hessian, split_hessian
from lightning_topo.stability._hessian import seeded, trainable_only
from tests.stability.dense import dense_hessian


@pytest.fixture
def problem():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    return model, lambda: nn.functional.mse_loss(model(x), y)


def test_products_are_those_of_the_dense_hessian(problem):
    model, loss_fn = problem
    dense = dense_hessian(loss_fn, model.parameters())
    curvature = hessian(loss_fn, model.parameters())
    for seed in range(3):
        v = torch.randn(len(dense), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(curvature @ v, dense @ v)
    assert curvature.loss == pytest.approx(loss_fn().item())


@pytest.mark.parametrize("make", [hessian, lambda loss_fn, params: split_hessian([(1.0, loss_fn)], params)])
def test_sparse_gradients_give_the_products_of_dense_ones(make):
    torch.manual_seed(0)
    tables = [nn.Embedding(7, 3, sparse=sparse).double() for sparse in (True, False)]
    tables[0].load_state_dict(tables[1].state_dict())
    ids = torch.tensor([[0, 2], [5, 2], [6, 1]])
    sparse, dense = (make(lambda t=t: t(ids).sum(1).tanh().square().mean(), t.parameters()) for t in tables)
    v = torch.randn(21, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sparse @ v, dense @ v)
    torch.testing.assert_close(sparse.gradient, dense.gradient)


def test_a_split_hessian_is_the_whole_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    whole = hessian(lambda: nn.functional.mse_loss(model(x), y), model.parameters())
    pieces = [(0.4, slice(0, 4)), (0.6, slice(4, 10))]
    parts = [(w, lambda at=at: nn.functional.mse_loss(model(x[at]), y[at])) for w, at in pieces]
    split = split_hessian(parts, model.parameters())
    v = torch.randn(split.gradient.numel(), dtype=torch.float64)
    torch.testing.assert_close(split @ v, whole @ v)
    torch.testing.assert_close(split.gradient, whole.gradient)
    assert split.loss == pytest.approx(whole.loss)
    with pytest.raises(ValueError, match="at least one part"):
        split_hessian([], model.parameters())


def test_a_split_hessian_keeps_its_dropout_masks_and_the_random_state():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2)).double()
    x = torch.randn(10, 4, dtype=torch.float64)
    parts = [(0.5, lambda at=at: model(x[at]).square().mean()) for at in (slice(0, 5), slice(5, 10))]
    state = torch.get_rng_state()
    split = split_hessian(parts, model.parameters())
    v = torch.randn(split.gradient.numel(), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(split @ v, split @ v)
    w = torch.randn(split.gradient.numel(), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert float(v @ (split @ w)) == pytest.approx(float(w @ (split @ v)))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_gradient_is_the_losses_own_and_grad_is_left_alone(problem):
    model, loss_fn = problem
    parts = [(0.25, loss_fn), (0.75, loss_fn)]
    for curvature in (hessian(loss_fn, model.parameters()), split_hessian(parts, model.parameters())):
        wanted = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss_fn(), list(model.parameters()))])
        torch.testing.assert_close(curvature.gradient, wanted)
        assert not curvature.gradient.requires_grad
        assert curvature.obstacle is None
    assert all(p.grad is None for p in model.parameters())


def test_no_grad_around_it_changes_nothing(problem):
    model, loss_fn = problem
    v = torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    wanted = hessian(loss_fn, model.parameters()) @ v
    with torch.no_grad():
        assert torch.equal(hessian(loss_fn, model.parameters()) @ v, wanted)


def test_parameters_along_which_the_loss_is_flat_have_zeros():
    bent, straight, unused = (torch.tensor([k], dtype=torch.float64, requires_grad=True) for k in (2.0, 3.0, 4.0))
    params = [bent, straight, unused]
    for curvature in (
        hessian(lambda: (bent**3 + 5 * straight).sum(), params),
        split_hessian([(1.0, lambda: (bent**3).sum()), (1.0, lambda: 5 * straight.sum())], params),
    ):
        assert (curvature @ torch.ones(3, dtype=torch.float64)).tolist() == [12.0, 0.0, 0.0]
        assert curvature.gradient.tolist() == [12.0, 5.0, 0.0]


def test_what_cannot_be_differentiated_is_refused_with_what_came():
    w = torch.ones(3, requires_grad=True)
    frozen = torch.ones(3)
    with pytest.raises(ValueError, match=r"scalar loss, got shape \(3,\)"):
        hessian(lambda: w, [w])
    with pytest.raises(ValueError, match="a constant one"):
        hessian(lambda: frozen.sum(), [w])
    with pytest.raises(FloatingPointError, match="finite loss, got nan"):
        hessian(lambda: (w * torch.nan).sum(), [w])
    with pytest.raises(ValueError, match="at least one parameter"):
        hessian(lambda: w.sum(), [frozen])
    assert trainable_only([frozen, w]) == (w,)


def test_seeded_random_numbers_are_those_of_the_seed_and_none_is_missing_afterwards():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        with seeded(seed, [torch.ones(1)]):
            drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_curvature_along_several_vectors_takes_each_part_once():
    """As v^T H v one by one, with the same dropout masks, and one evaluation of each part."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2)).double()
    x = torch.randn(12, 4, dtype=torch.float64)
    calls = []

    def part(k):
        calls.append(k)
        return net(x[4 * k : 4 * k + 4]).square().mean()

    curvature = split_hessian([(w, partial(part, k)) for k, w in enumerate((0.5, 0.3, 0.2))], net.parameters())
    vectors = [curvature.gradient, *torch.randn(2, len(curvature.gradient), dtype=torch.float64)]
    one_by_one = [float(v @ (curvature @ v)) for v in vectors]
    calls.clear()
    assert curvature.along(vectors) == pytest.approx(one_by_one)
    assert calls == [0, 1, 2]
    assert curvature.along([]) == []
