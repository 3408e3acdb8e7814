"""Units of parameters in shards, here those of one process; with two `tests/distributed` gathers them."""

from functools import partial

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from lightning_topo.neurons._units import own_part, units

SHAPE = {"embed.weight": (5, 4), "block.0.weight": (4, 4), "block.0.bias": (4,), "head.weight": (5, 4)}


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


@pytest.fixture(params=KINDS)
def root(request, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield KINDS[request.param](Tied())
    dist.destroy_process_group()


def test_a_module_that_is_whole_has_none():
    assert units(Tied()) == []
    parameter = nn.Parameter(torch.ones(2))
    assert own_part(parameter) is parameter


def test_every_name_is_of_one_unit(root):
    outer, inner = units(root)
    assert (outer.path, inner.path) == ("", "block")
    assert sorted(outer.names) == ["embed.weight", "head.weight"]
    assert sorted(inner.names) == ["block.0.bias", "block.0.weight"]
    assert all(inner.holds(name) for name in inner.names)
    assert not inner.holds("embed.weight")
    assert inner.n_bytes == 4 * (16 + 4)


def test_gathered_they_are_those_of_the_module(root):
    plain = dict(Tied().named_parameters(remove_duplicate=False))
    for unit in units(root):
        names = sorted(unit.names)
        with unit.gathered() as whole:
            assert sorted(whole) == names
            assert all(torch.equal(whole[name], plain[name]) for name in whole)
            assert not any(p.requires_grad for p in whole.values())
        assert {p.untyped_storage().data_ptr() for p in unit.shards} <= {
            getattr(p, "_local_tensor", p).untyped_storage().data_ptr() for p in root.parameters()
        }


def test_the_forward_pass_finds_whole_parameters_in_between_and_no_hook_stays(root):
    hooks = {name: len(m._forward_pre_hooks) + len(m._forward_hooks) for name, m in root.named_modules()}
    seen, handles = [], []

    def ends(unit, are_whole):
        seen.append(f"{unit.path or 'root'} {'is whole' if are_whole else 'is freed'}")
        assert not are_whole or {name: tuple(p.shape) for name, p in unit.whole()}.items() <= SHAPE.items()

    for unit in units(root):
        begins = partial(seen.append, f"{unit.path or 'root'} begins")
        handles += unit.around_gathering(begins, partial(ends, unit))
    root(torch.tensor([1, 2]))
    assert seen[:2] == ["root begins", "root is whole"]
    assert seen.count("block is whole") == 1
    if isinstance(root, FullyShardedDataParallel):  # a module that calls itself gathers nothing by that
        assert seen == [
            "root begins",
            "root is whole",
            "block begins",
            "block is whole",
            "block begins",
            "block is freed",
            "root begins",
            "root is freed",
        ]
    for handle in handles:
        handle.remove()
    assert {name: len(m._forward_pre_hooks) + len(m._forward_hooks) for name, m in root.named_modules()} == hooks


def test_a_forward_pass_that_raises_leaves_no_unit_open(root):
    if not isinstance(root, FullyShardedDataParallel):
        pytest.skip("FSDP2 frees behind its own hooks, in which nothing is computed")
    seen = []
    begins = partial(seen.append, "begins")
    handles = [handle for unit in units(root) for handle in unit.around_gathering(begins, seen.append)]
    with pytest.raises(IndexError):
        root(torch.tensor([9]))
    for handle in handles:
        handle.remove()
    assert seen == ["begins", True, "begins", False]
