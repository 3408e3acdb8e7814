"""Memory that several tensors share, as bytes or numbers: a replay elsewhere is the step there, or it is refused."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape import CannotReplay, StepRecorder, accepted, replay
from tests.tape.steps import batch, mlp


class Net(nn.Module):
    """A cache of its first weight that is no buffer, an average that is one, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.qkv = mlp(5, 12, 4), nn.Linear(4, 24)
        self.register_buffer("average", self.net[0].weight.detach().clone())
        self.cache = self.net[0].weight.detach().clone()

    def attended(self) -> Tensor:
        out = self.net(batch(0, 12, 5)).view(3, 4, 4)
        q, k, v = self.qkv(out).view(3, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def plain(self) -> Tensor:
        return self.net(batch(0, 12, 5)).square().mean()


def bytes_of(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def copied_view_of_attention(m: Net) -> Tensor:
    out = m.attended().flatten(2)
    return (out - 0.5 * copy.deepcopy(out.detach()).flip(-1)).square().mean()


def attention_as_integers(m: Net) -> Tensor:
    out = m.attended()
    bits = torch.empty(0, dtype=torch.int32).set_(out.detach().untyped_storage())
    return out.square().mean() + (bits.view(torch.float32)[:7] * out.flatten()[:7]).sum()


def cache_read_before_its_storage_is_written(m: Net) -> Tensor:
    weight, before = m.net[0].weight, m.cache.norm()
    m.cache.untyped_storage().copy_(weight.detach().untyped_storage())
    return m.plain() + (weight * m.cache).sum() + 0 * before


def bytes_read_before_their_storage_is_written(m: Net) -> Tensor:
    weight, seen = m.net[0].weight, bytes_of(m.cache)
    seen[0].item(), m.cache.sum()
    m.cache.untyped_storage().copy_(weight.detach().untyped_storage())
    return m.plain() + (weight - 0.9 * m.cache).square().sum() + (weight.flatten() * seen.view(torch.float32)).sum()


def bytes_read_after_their_storage_was_written(m: Net) -> Tensor:
    weight = m.net[0].weight
    m.cache.untyped_storage().copy_(weight.detach().untyped_storage())
    return m.plain() + (weight.flatten() * bytes_of(m.cache).clone().view(torch.float32)).sum()


def data_exchanged_and_copied(m: Net) -> Tensor:
    weight = m.net[0].weight
    weight.data, m.average.data = m.average.data, weight.data
    a, b = copy.deepcopy(weight.data), copy.deepcopy(m.average)
    weight.data, m.average.data = m.average.data, weight.data
    return m.plain() + (weight - a).square().sum() + (weight * b).sum()


CASES: tuple[Callable[[Net], Tensor], ...] = (
    copied_view_of_attention, attention_as_integers, cache_read_before_its_storage_is_written,
    bytes_read_before_their_storage_is_written, bytes_read_after_their_storage_was_written, data_exchanged_and_copied,
)  # fmt: skip


def moved(net: Net) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: p.detach() + 0.1 * torch.randn(p.shape, generator=generator) for name, p in net.named_parameters()}


@pytest.mark.parametrize("formulas", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_replay_at_other_parameters_is_the_step_there_or_refused(case, formulas) -> None:
    torch.manual_seed(0)
    net = Net()
    truth, elsewhere, recorder = copy.deepcopy(net), moved(net), StepRecorder()
    recorder.begin(net)
    loss = case(net)
    recorder.loss(loss)
    loss.backward()
    [tape] = recorder.end()
    tape = accepted(tape, {name: p.grad for name, p in net.named_parameters()})
    assert tape.obstacle == ""
    truth.load_state_dict(elsewhere, strict=False)
    expected = case(truth)
    names = list(elsewhere)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in elsewhere.items()}
    try:
        [found] = replay(tape, leaves, formulas=formulas)
    except CannotReplay:
        assert formulas  # only memory that a formula lays out otherwise
        return
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, [dict(truth.named_parameters())[name] for name in names], allow_unused=True)
    given = torch.autograd.grad(found, [leaves[name] for name in names], allow_unused=True)
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(torch.zeros(()) if one is None else one, torch.zeros(()) if other is None else other)


def test_memory_beside_a_parameter_is_not_taken_for_what_lies_there_in_a_replay() -> None:
    net, flat = Net(), torch.arange(72.0)
    first = net.net[0]
    first.weight.data, first.bias.data = flat[:60].view(12, 5), flat[60:]
    recorder = StepRecorder()
    recorder.begin(net)
    whole = torch.empty(0).set_(copy.deepcopy(first.weight.detach()).untyped_storage())
    recorder.loss(net.plain() + (whole[60:] * first.bias).sum())
    [tape] = recorder.end()
    assert "beside what is known" in accepted(tape).obstacle
