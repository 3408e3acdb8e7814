"""The loss of a recorded step in shards; with two processes `tests/distributed` runs it."""

import pytest
import torch
from torch import nn

from lightning_topo._tape import tape_loss
from lightning_topo._watch import sharded_loss
from lightning_topo._watch.sharded_loss import ShardedTapeLoss
from tests.tape.recording import recorded
from tests.tape.steps import batch, mlp


class Shard(nn.Parameter):
    """A parameter that has to be gathered, and notes when it was."""

    placements = ("all of it",)
    log: list[str] = []  # noqa: RUF012

    def full_tensor(self):
        Shard.log.append(self.known_as)
        return self.detach().as_subclass(torch.Tensor)


@pytest.fixture
def net():
    net = mlp(5, 8, 3)
    Shard.log.clear()
    return net


def in_shards(net):
    """The same network with parameters to gather."""
    for name, parameter in list(net.named_parameters()):
        path, _, own = name.rpartition(".")
        shard = Shard(parameter.detach().clone())
        shard.known_as = name
        setattr(net.get_submodule(path), own, shard)
    return net


def test_the_loss_is_that_of_the_step_at_the_present_parameters(net):
    tape = recorded(net, lambda: net(batch(0, 4, 5)).square().mean())
    loss = ShardedTapeLoss(in_shards(net), tape.without_values())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    found = loss()
    named = {name: p.detach().as_subclass(torch.Tensor) for name, p in net.named_parameters()}
    assert found.item() == pytest.approx(tape_loss(tape, named).item(), rel=1e-6)
    assert not found.requires_grad
    assert sorted(Shard.log) == sorted(named)


def test_where_the_replay_breaks_off_everything_is_gathered_and_the_loss_is_no_number(net, monkeypatch):
    tape = recorded(net, lambda: net(batch(0, 4, 5)).square().mean())
    loss = ShardedTapeLoss(in_shards(net), tape.without_values())
    loss()
    whole = Shard.log.copy()
    Shard.log.clear()

    def breaks_off(tape, named):
        return named[whole[0]] @ named["another"]

    monkeypatch.setattr(sharded_loss, "tape_loss", breaks_off)
    assert loss().isnan()
    assert Shard.log == whole


def test_steps_that_read_other_parameters_have_another_order(net):
    first = recorded(net, lambda: net(batch(0, 4, 5)).square().mean())
    longer = recorded(net, lambda: net(batch(1, 7, 5)).square().mean())
    other = recorded(net, lambda: net[0](batch(0, 4, 5)).sum() + net[2].weight.sum())
    orders = [ShardedTapeLoss(in_shards(net), tape).order for tape in (first, longer, other)]
    assert orders[0] == orders[1] != orders[2]
