"""A small network with a tied weight, in FSDP's shards."""

from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.block, self.head = nn.Embedding(5, 4), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 5, False)
        self.head.weight = self.embed.weight

    def forward(self, x, deeper=True):
        return self(x, deeper=False) if deeper else self.head(self.block(self.embed(x)))


def in_shards(net):
    fully_shard(net.block)
    return fully_shard(net)


def in_flat_shards(net, use_orig_params):
    policy = ModuleWrapPolicy({nn.Sequential})
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(net, auto_wrap_policy=policy, device_id=cpu, use_orig_params=use_orig_params)


KINDS = {"fsdp2": in_shards, "fsdp1": partial(in_flat_shards, use_orig_params=True)}
KINDS["flat"] = partial(in_flat_shards, use_orig_params=False)
