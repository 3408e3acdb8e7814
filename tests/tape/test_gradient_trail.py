"""What is computed from gradients between two losses is no part of the second one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo._tape import StepRecorder, accepted
from lightning_topo._tape.gradient_trail import GradientTrail
from lightning_topo.neurons import find_neuron_groups
from tests.tape.steps import batch, labels, mlp


def sign(p: torch.Tensor, state: dict) -> None:
    p.add_(p.grad.sign(), alpha=0.01)


def normalized(p: torch.Tensor, state: dict) -> None:
    p.add_(0.01 * p.grad / (p.grad.norm() + 1e-12))


def momentum(p: torch.Tensor, state: dict) -> None:
    buffer = state.setdefault(p, torch.zeros_like(p))
    buffer.mul_(0.9).add_(p.grad)
    p.sub_(buffer * 0.1)


def adaptive(p: torch.Tensor, state: dict) -> None:
    p.data.addcdiv_(p.grad, p.grad.square().sqrt().add_(1e-3), value=-0.01)


def clipped(p: torch.Tensor, state: dict) -> None:
    p.grad.mul_(0.5)
    p.copy_(p - 0.1 * p.grad.clamp(-1, 1))


def together(p: torch.Tensor, state: dict) -> None:
    torch._foreach_add_([p], [part * 0.01 for part in torch._foreach_sign([p.grad])])


@pytest.mark.parametrize("move", [sign, normalized, momentum, adaptive, clipped, together])
def test_weights_moved_by_hand_between_two_losses_are_those_of_the_second(move) -> None:
    torch.manual_seed(0)
    net, x, y = mlp(4, 6, 3), batch(0, 12, 4), labels(0, 12)
    recorder = StepRecorder()
    recorder.begin(net)
    state: dict = {}
    for _ in range(2):
        net.zero_grad()
        loss = F.cross_entropy(net(x), y)
        recorder.loss(loss)
        loss.backward()
        recorder.resume()
        with torch.no_grad():
            for p in net.parameters():
                move(p, state)
    first, second = map(accepted, recorder.end())
    assert not first.obstacle
    assert not second.obstacle
    assert [call.name for call in first.calls] == [call.name for call in second.calls]
    assert not torch.equal(first.recorded[0], second.recorded[0])


def test_a_mask_written_into_the_weights_before_the_loss_stays_part_of_it() -> None:
    class Masked(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.weight.data *= torch.ones(6, 4).tril()
            return super().forward(x)

    torch.manual_seed(0)
    net = nn.Sequential(Masked(4, 6), nn.Tanh(), nn.Linear(6, 3))
    net(batch(0, 12, 4)).sum().backward()  # its gradients are there, and are not what the mask is made of
    assert not find_neuron_groups(net, batch(0, 12, 4))


def test_freed_memory_leads_nowhere() -> None:
    w = torch.ones(1000, requires_grad=True)
    trail = GradientTrail()
    for _ in range(20):
        trail.follow([torch.ones(1000)])
        assert not trail.leads_to([torch.ones(1000)], [w])
