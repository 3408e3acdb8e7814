"""Losses in autograd functions that fill buffers part by part and define their gradient by hand, as fused ones do."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder, TapeLoss, accepted
from lightning_topo.neurons import find_neuron_groups
from lightning_topo.stability import hessian
from tests.tape.steps import batch, labels


class OnlineLogSoftmax(torch.autograd.Function):
    """Log-probabilities of targets, tile by tile of the vocabulary, in one buffer that is used again (as in TRL)."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        n, tile = len(hidden), 3
        largest, total, chosen = hidden.new_full((n,), -math.inf), hidden.new_zeros(n), hidden.new_zeros(n)
        buffer = hidden.new_empty(n, tile)
        for rows in (slice(0, n // 2), slice(n // 2, n)):
            for start in range(0, len(weight), tile):
                z = buffer[rows, : len(weight[start : start + tile])]
                torch.mm(hidden[rows], weight[start : start + tile].t(), out=z)
                now = torch.maximum(largest[rows], z.amax(-1))
                total[rows].mul_(torch.exp(largest[rows] - now)).add_(torch.exp(z - now[:, None]).sum(-1))
                largest[rows].copy_(now)
                local = targets[rows] - start
                own = z.gather(1, local.clamp(0, z.shape[1] - 1)[:, None])[:, 0]
                chosen[rows].copy_(torch.where((local >= 0) & (local < z.shape[1]), own, chosen[rows]))
        ctx.save_for_backward(hidden, weight, targets)
        return chosen - largest - total.log()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, targets = ctx.saved_tensors
        at = F.one_hot(targets, len(weight)) - (hidden @ weight.t()).softmax(-1)
        at = at * gradient[:, None]
        return at @ weight, at.t() @ hidden, None


class GradientInForward(torch.autograd.Function):
    """A linear layer with cross-entropy whose gradient is computed in the forward pass (as in Liger)."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        loss = hidden.new_zeros(())
        gradients = torch.zeros_like(hidden), torch.zeros_like(weight)
        for k in range(0, len(hidden), 4):
            logits = hidden[k : k + 4] @ weight.t()
            loss += F.cross_entropy(logits, targets[k : k + 4], reduction="sum")
            at = (logits.softmax(-1) - F.one_hot(targets[k : k + 4], len(weight))) / len(hidden)
            gradients[0][k : k + 4] = at @ weight
            gradients[1].add_(at.t() @ hidden[k : k + 4])
        ctx.save_for_backward(*gradients)
        return loss / len(hidden)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return (*(gradient * saved for saved in ctx.saved_tensors), None)


class Tower(nn.Module):
    def __init__(self, function: type[torch.autograd.Function] | None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
        self.head, self.function = nn.Linear(5, 8, bias=False), function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.body(x)
        if self.function is None:
            return F.cross_entropy(self.head(hidden), y)
        found = self.function.apply(hidden, self.head.weight, y)
        return found if found.dim() == 0 else -found.mean()


FUNCTIONS = [OnlineLogSoftmax, GradientInForward]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_their_products_are_those_of_the_loss_written_plainly(function) -> None:
    torch.manual_seed(0)
    net, plain, x, y = Tower(function), Tower(None), batch(0, 12, 4), labels(0, 12, 8)
    plain.load_state_dict(net.state_dict())
    recorder = StepRecorder()
    recorder.begin(net)
    loss = net(x, y)
    recorder.loss(loss)
    loss.backward()
    [tape] = recorder.end()
    tape = accepted(tape, {name: p.grad for name, p in net.named_parameters()})
    assert not tape.obstacle
    assert not tape.gradient_obstacle
    products = hessian(TapeLoss(net, [tape]), net.parameters()), hessian(lambda: plain(x, y), plain.parameters())
    v = torch.randn(products[0].gradient.numel(), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(products[0] @ v, products[1] @ v, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(products[0].gradient, products[1].gradient)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_neurons_in_front_of_them_are_proved(function) -> None:
    torch.manual_seed(0)
    groups = find_neuron_groups(Tower(function), (batch(0, 12, 4), labels(0, 12, 8)))
    assert [(group.n, group.status) for group in groups] == [(6, "verified"), (5, "verified")]
    assert "head.weight" in groups[1].params
