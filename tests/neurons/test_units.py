"""Units of parameters in shards, here those of one process; with two `tests/distributed` gathers them."""

import pytest
import torch
from torch import nn

from lightning_topo.neurons._units import own_part, units
from tests.neurons.shards import KINDS, Tied


@pytest.fixture(params=KINDS)
def root(request, one_process):
    return KINDS[request.param](Tied())


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


def test_parts_are_those_of_the_parameters_that_optimizers_hold(root):
    """A tied weight is one of them."""
    parts = [part for unit in units(root) for part in unit.parts()]
    assert {id(part.parameter) for part in parts} == {id(p) for p in root.parameters()}
    assert {(part.n_shards, part.place) for part in parts} == {(1, 0)}
    assert all(part.entries is part.parameter for part in parts)


def test_what_is_cut_from_whole_tensors_lies_in_the_parts_where_the_parameters_do(root):
    plain, held = dict(Tied().named_parameters(remove_duplicate=False)), {id(p): p for p in root.parameters()}
    for unit in units(root):
        for name in unit.names:
            parameter, at, entries = unit.cut(name, plain[name].detach())
            mine = getattr(held[id(parameter)], "_local_tensor", parameter).detach().reshape(-1)
            assert torch.equal(mine[at : at + len(entries)], entries)
            assert torch.equal(entries, plain[name].detach().reshape(-1))


def test_parameters_whose_memory_is_in_another_order_are_cut_in_that_order(one_process):
    net = nn.Sequential(nn.Linear(3, 2, bias=False))
    net[0].weight.data = torch.arange(6.0).view(3, 2).T
    root = KINDS["flat"](net)
    unit = next(unit for unit in units(root) if unit.names)
    _, at, entries = unit.cut("0.weight", torch.arange(6.0).view(3, 2).T)
    assert (at, entries.tolist()) == (0, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
