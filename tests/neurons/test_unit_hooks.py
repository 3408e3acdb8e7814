"""Hooks around a unit's own gathering."""

from functools import partial

import pytest
import torch
from torch.distributed.fsdp import FullyShardedDataParallel

from lightning_topo.neurons._units import units
from tests.neurons.shards import KINDS, Tied

SHAPE = {"embed.weight": (5, 4), "block.0.weight": (4, 4), "block.0.bias": (4,), "head.weight": (5, 4)}


@pytest.fixture(params=KINDS)
def root(request, one_process):
    return KINDS[request.param](Tied())


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
