"""The gradient of a recorded step in shards, here those of one process; with two `tests/distributed` runs it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from lightning_topo._tape import CannotReplay
from lightning_topo._watch import sharded_gradient
from lightning_topo._watch.sharded_gradient import ShardedGradient
from lightning_topo.probes import ProbeUnavailable
from tests.watch.shards import KINDS, Attends, in_flat_shards, in_shards, move, part_of, recorded, tokens

pytestmark = pytest.mark.usefixtures("one_process")


def accepted(loss):
    """The gradient of a step's loss, once it was evaluated at the step's own parameters."""
    with loss(None) as evaluate:
        evaluate()
        return evaluate.gradient()


def dense(net, x, call=None):
    """Loss and gradients of a whole network."""
    net.zero_grad()
    loss = (call or net)(x)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("losses", [1, 2])
def test_it_is_the_dense_gradient_at_the_present_parameters(kind, losses):
    """Of a tied weight, of a unit that runs twice, and of one that is read without being called."""
    net, alike = KINDS[kind](Attends().double()), Attends().double()
    gradient = accepted(recorded(net, tokens(), losses)[0])
    for factor in (1.0, 1.3):
        move(net, factor)
        move(alike, factor)
        loss, found = gradient()
        value, truth = dense(alike, tokens())
        assert loss == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(found, part_of(gradient, truth), rtol=1e-9, atol=1e-12)


def test_nothing_of_the_training_changes():
    net = in_shards(Attends())
    loss, _ = recorded(net, tokens(), call=lambda x: F.dropout(net(x) * torch.ones(4)).mean())
    kept = {name: (id(p), p.to_local().clone(), p.grad.to_local().clone()) for name, p in net.named_parameters()}
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    drawn = torch.get_rng_state()
    gradient = accepted(loss)
    assert torch.equal(gradient()[1], gradient()[1])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
    for name, p in net.named_parameters():
        known, values, own = kept[name]
        assert id(p) == known
        assert torch.equal(p.to_local(), values)
        assert torch.equal(p.grad.to_local(), own)


class Layers(nn.Module):
    """Linear layers, with activation checkpointing or without."""

    def __init__(self, width=8, reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(4))

    def forward(self, x):
        h = x
        for layer in self.layers:
            h = h + (layer(h) if self.reentrant is None else checkpoint(layer, h, use_reentrant=self.reentrant)).tanh()
        return h.float().square().mean()


def rows(width=8):
    return torch.randn(5, width, generator=torch.Generator().manual_seed(1))


def layered(net, **options):
    for layer in net.layers:
        fully_shard(layer, **options)
    return fully_shard(net, **options)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_no_obstacle(reentrant):
    """An autograd function of torch runs the layer again: its backward pass is the derivative."""
    net, x = layered(Layers(reentrant=reentrant)), rows().requires_grad_()
    gradient = accepted(recorded(net, x)[0])
    torch.testing.assert_close(gradient()[1], part_of(gradient, dense(Layers(), rows())[1]), rtol=1e-4, atol=1e-6)


def test_what_fsdp2_computes_in_half_precision_is_differentiated_in_single():
    """Parameters, too, are gathered in their own precision: what moves them by less than a half's rounding is seen."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    x = rows().bfloat16().float()  # FSDP casts what comes in, before the step
    gradient = accepted(recorded(layered(Layers(), mp_policy=policy), x)[0])
    assert gradient.eps == torch.finfo(torch.float32).eps
    torch.testing.assert_close(gradient()[1], part_of(gradient, dense(Layers(), x)[1]), rtol=1e-4, atol=1e-6)


def test_so_it_is_under_autocast_and_casts_are_not_kept(monkeypatch):
    def autocast(net):
        def call(x):
            with torch.autocast("cpu", torch.bfloat16):
                return net(x)

        return call

    net, kept = layered(Layers(32)), []
    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", noting(kept))
    gradient = accepted(recorded(net, rows(32), call=autocast(net))[0])
    found = gradient()[1]
    assert not [tensor.shape for tensor in kept if tensor.numel() >= 32 * 32]
    torch.testing.assert_close(found, part_of(gradient, dense(Layers(32), rows(32))[1]), rtol=1e-4, atol=1e-6)


def noting(kept):
    """`saved_tensors_hooks` that adds to `kept` what is saved as a tensor."""
    real = torch.autograd.graph.saved_tensors_hooks

    def hooks(pack, unpack):
        def noted(tensor):
            packed = pack(tensor)
            kept.extend([packed] if isinstance(packed, torch.Tensor) else [])
            return packed

        return real(noted, unpack)

    return hooks


@pytest.mark.parametrize("kind", KINDS)
def test_what_autograd_saves_of_parameters_is_no_tensor(monkeypatch, kind):
    kept = []
    net = KINDS[kind](Attends())
    gradient = accepted(recorded(net, tokens())[0])
    shapes = {p.shape for p in Attends().parameters() if p.dim() > 1}
    shapes |= {shape[::-1] for shape in shapes}
    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", noting(kept))
    gradient()
    assert kept
    assert not shapes & {tensor.shape for tensor in kept}


def test_flat_shards_in_mixed_precision_are_differentiated_in_single():
    half, x = MixedPrecision(param_dtype=torch.bfloat16), rows().bfloat16().float()
    net = in_flat_shards(Layers(), use_orig_params=True, mixed_precision=half)
    gradient = accepted(recorded(net, x)[0])
    torch.testing.assert_close(gradient()[1], part_of(gradient, dense(Layers(), x)[1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["fsdp2", "fsdp1"])
def test_frozen_parameters_have_no_part(kind):
    def frozen(net):
        net.block.requires_grad_(False)
        return net

    net, alike = KINDS[kind](frozen(Attends())), frozen(Attends())
    gradient = accepted(recorded(net, tokens())[0])
    assert len(gradient()[1]) == sum(p.numel() for p in alike.parameters() if p.requires_grad)
    truth = dense(alike, tokens())[1]
    torch.testing.assert_close(gradient()[1], part_of(gradient, truth), rtol=1e-4, atol=1e-6)


class Straight(torch.autograd.Function):
    """Its backward pass is not its derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_function_of_the_users_may_define_another_gradient():
    net = in_shards(Attends())
    loss, _ = recorded(net, tokens(), call=lambda x: Straight.apply(net(x) * 3.0))
    with pytest.raises(ProbeUnavailable, match="without functions of its own: Straight"):
        accepted(loss)


def test_a_loss_that_was_not_accepted_has_no_gradient():
    loss, _ = recorded(in_shards(Attends()), tokens())
    with loss(None) as evaluate, pytest.raises(CannotReplay, match="not accepted"):
        evaluate.gradient()


def test_what_is_not_finite_is_told(monkeypatch):
    net = in_shards(Attends())
    gradient = accepted(recorded(net, tokens())[0])
    move(net, float("nan"))
    with pytest.raises(FloatingPointError, match="finite loss"):
        gradient()


def test_where_there_is_no_room_nothing_is_gathered(monkeypatch):
    gradient = accepted(recorded(in_shards(Attends()), tokens())[0])
    monkeypatch.setattr(sharded_gradient, "has_room", lambda unit, device: False)
    with pytest.raises(CannotReplay, match="memory runs out"):
        gradient()


def test_a_failure_inside_is_that_of_the_measurement_and_the_next_one_goes_well(monkeypatch):
    gradient = accepted(recorded(in_shards(Attends()), tokens())[0])
    found = gradient()[1]
    with monkeypatch.context() as broken:
        broken.setattr(ShardedGradient, "_take", lambda *args: [][0])
        with pytest.raises(CannotReplay, match="list index out of range"):
            gradient()
    assert torch.equal(gradient()[1], found)
