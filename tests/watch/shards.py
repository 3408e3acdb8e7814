"""A network in FSDP's shards, and a step of it that was recorded to be measured."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from lightning_topo._watch.recording import Recording
from lightning_topo._watch.training_loss import TrainingLoss
from lightning_topo.neurons._units import units
from tests.watch.driving import training_of


class Attends(nn.Module):
    """`out_proj` of the attention is read without being called, one unit runs twice, two layers share a weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        h = self.embed(x)
        h = h + self.attention(h, h, h)[0]
        h = self.block(self.block(h))
        return F.cross_entropy(self.head(self.norm(h.flatten(0, 1))), x.flatten())


def tokens(seed=0):
    return torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(seed))


def in_shards(net, **options):
    for unit in (net.attention, net.block):
        fully_shard(unit, **options)
    return fully_shard(net, **options)


def recorded(net, x, losses=1, call=None):
    """The training's loss after a step that was recorded to be measured, and what the step found."""
    training = training_of(net)
    loss = TrainingLoss(training, 0)
    recording = Recording(training, loss)
    recording.begin(x, 1, wanted=True)
    values = []
    for _ in range(losses):
        values.append((call or net)(x))
        recording.loss(values[-1], 1.0)
        values[-1].backward()
        recording.differentiated(goes_on=True)
    recording.end()
    return loss, torch.stack(values).mean().item()


def move(net, factor):
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(factor)


def in_flat_shards(net, **options):
    policy = ModuleWrapPolicy({nn.MultiheadAttention, nn.Sequential})
    return FullyShardedDataParallel(net, auto_wrap_policy=policy, device_id=torch.device("cpu"), **options)


KINDS = {
    "fsdp2": in_shards,
    "fsdp1": partial(in_flat_shards, use_orig_params=True),
    "flat": partial(in_flat_shards, use_orig_params=False),
}


def part_of(gradient, truth):
    """What this process should have of a dense gradient, given by name."""
    found = torch.zeros_like(gradient.layout.flatten(p.detach() for p in gradient.layout.params))
    owners = {name: unit for unit in units(gradient._root) for name in unit.names}
    for name, whole in truth.items():
        parameter, at, entries = owners[name].cut(name, whole)
        k = gradient._index[id(parameter)]
        begin = gradient._begins[k] + at
        found[begin : begin + len(entries)] = entries * gradient.layout.shares[k]
    return found
