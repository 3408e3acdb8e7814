"""The loss of a tape at later parameters, and its curvature, against the user's own code."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_topo._tape import CannotReplay, StepRecorder, Tape, TapeLoss, accepted, tape_loss
from lightning_topo._tape.curvature import enough_samples
from lightning_topo.stability import hessian, sharpness
from tests.tape.steps import TRAININGS, Attention, Recurrent, batch, labels, mlp, tokens


def recorded(module: nn.Module, loss, scale: float = 1.0, n_samples: int | None = None) -> Tape:
    recorder = StepRecorder()
    recorder.begin(module)
    recorder.loss(loss() * scale, scale=scale, n_samples=n_samples)
    [tape] = recorder.end()
    return accepted(tape)


def moved(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


def dense(loss, params: list[Tensor]) -> Tensor:
    H = hessian(loss, params)
    n = sum(p.numel() for p in params)
    return torch.stack([H @ column for column in torch.eye(n, dtype=params[0].dtype)])


class Embedded(nn.Module):
    """Embeddings whose gradients are sparse, one a position or one a row of positions, behind a tanh."""

    def __init__(self, in_bags: bool) -> None:
        super().__init__()
        bags = nn.EmbeddingBag(17, 3, mode="sum", sparse=True)
        self.table, self.head = bags if in_bags else nn.Embedding(17, 3, sparse=True), nn.Linear(3, 3)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.table(ids)
        return self.head(torch.tanh(found if found.dim() == 2 else found.sum(1)))


def net_and_loss(kind: str):
    torch.manual_seed(0)
    if kind == "perceptron":
        net = mlp(4, 6, 3)
        return net, lambda: F.cross_entropy(net(batch(0, 12, 4).to(net[0].weight)), labels(0, 12))
    if kind == "recurrent":
        net = Recurrent(width=2)
        return net, lambda: F.cross_entropy(net(batch(0, 3, 4, 5).to(net.head.weight)), labels(0, 3))
    if kind in ("sparse", "bags"):
        net = Embedded(kind == "bags")
        return net, lambda: F.cross_entropy(net(tokens(0)), tokens(0)[:, 0] % 3)
    net = Attention(width=8)
    return net, lambda: F.cross_entropy(net(tokens(0)).flatten(0, 1), tokens(1).flatten())


@pytest.mark.parametrize("kind", ["perceptron", "recurrent", "attention", "sparse", "bags"])
def test_sharpness_is_the_top_eigenvalue_of_the_dense_hessian(kind: str) -> None:
    net, loss = net_and_loss(kind)
    tape = recorded(net, loss, scale=16.0)
    moved(net)
    found = sharpness(TapeLoss(net, [tape]), net.parameters(), tolerance=1e-3)
    net.double()
    if kind == "bags":  # whose kernel has no second derivative: the same sums
        net.table = nn.Embedding.from_pretrained(net.table.weight.detach(), freeze=False)
    with sdpa_kernel(SDPBackend.MATH):
        exact = float(torch.linalg.eigvalsh(dense(loss, list(net.parameters())))[-1])
    assert found.exact
    assert found.value == pytest.approx(exact, rel=2e-3)


def test_the_whole_hessian_agrees_in_float64() -> None:
    net, loss = net_and_loss("perceptron")
    tape = recorded(net.double(), loss)
    moved(net)
    params = list(net.parameters())
    assert torch.allclose(dense(TapeLoss(net, [tape]), params), dense(loss, params), rtol=0, atol=1e-12)


def test_second_derivatives_of_losses_that_differentiate() -> None:
    torch.manual_seed(0)
    made = TRAININGS["physics"]()
    recorder = StepRecorder()
    recorder.begin(made.module)
    made.step(recorder, 0)
    [tape] = recorder.end()
    net = made.module

    def loss() -> Tensor:
        x = batch(0, 16, 2).requires_grad_()
        u = net(x)
        slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        bend = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)[0][:, 0]
        return (slope[:, 1] - bend).square().mean() + u.square().mean()

    params = list(net.parameters())
    ours, theirs = hessian(TapeLoss(net, [tape]), params), hessian(loss, params)
    vector = torch.randn(sum(p.numel() for p in params))
    assert torch.allclose(ours @ vector, theirs @ vector, rtol=1e-4, atol=1e-5)


def test_one_mask_an_evaluation() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)), batch(0, 16, 5)
    tape = recorded(net, lambda: net(x).square().mean())
    state = torch.get_rng_state()
    loss = TapeLoss(net, [tape])
    assert torch.equal(loss(), loss())
    assert torch.equal(torch.get_rng_state(), state)


def test_buffers_and_gradients_are_left_alone() -> None:
    net, x = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), batch(0, 16, 5)
    tape = recorded(net, lambda: net(x).square().mean())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    sharpness(TapeLoss(net, [tape]), net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_half_precision_is_lifted() -> None:
    torch.manual_seed(0)
    net, x, y = mlp(5, 8, 3), batch(0, 16, 5), labels(0, 16)

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(net(x), y)

    tape = recorded(net, loss)
    assert torch.allclose(tape_loss(tape, {}), F.cross_entropy(net(x), y), atol=1e-6)


def test_several_tapes_are_weighted_by_their_samples() -> None:
    torch.manual_seed(0)
    net, x = mlp(5, 8, 3), batch(0, 12, 5)
    tapes = [recorded(net, lambda part=part: net(part).square().mean()) for part in (x[:8], x[8:])]
    loss = TapeLoss(net, tapes)
    assert loss.n_samples == 12
    assert torch.allclose(loss(), net(x).square().mean())
    assert [weight for weight, _ in loss.parts()] == [8 / 12, 4 / 12]
    assert enough_samples(tapes, 4) == (tapes[1],)
    assert enough_samples(tapes) == tuple(tapes)


def test_a_tape_without_values_needs_all_of_them_given() -> None:
    net, x = mlp(5, 8, 3), batch(0, 16, 5)
    tape = recorded(net, lambda: net(x).square().mean()).without_values()
    assert torch.allclose(TapeLoss(net, [tape])(), net(x).square().mean())
    with pytest.raises(CannotReplay, match=r"no value is given for 0\.weight"):
        tape_loss(tape, {})


def test_a_refused_tape_is_no_loss() -> None:
    tape = recorded(mlp(5, 8, 3), lambda: torch.zeros(())).replaced(obstacle="none")
    with pytest.raises(ValueError, match="expected tapes that can be replayed"):
        TapeLoss(mlp(5, 8, 3), [tape])
    with pytest.raises(ValueError, match="expected at least one tape"):
        TapeLoss(mlp(5, 8, 3), [])
